"""What a generator left out, where kinds are known: modes of mixtures, classes of images; and what it made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optscope.devices import to_floats, to_numpy
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.probes.coverage import generated
from optscope.probes.embedding import GREY, own_classifier
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject, in_batches
from optscope.tasks.mixtures import Mixture

WITHIN = 5.0
"""A sample is of high quality within so many standard deviations of its nearest mode."""
SHARE = 0.01
"""A mode is recovered when this share of all samples are of high quality and belong to it."""
CLASS_SHARE = 0.02


@dataclass(frozen=True, repr=False)
class Modes(Probe):
    """Count the modes of `mixture` that a generator recovers, from `samples` samples.

    A blurred generator hits many modes with few good samples: read count and quality together, or the missed mass,
    Σ_k max(0, 1/K − p_k) over the K modes with p_k the share of all samples that is good and of mode k. The
    divergence is that of the good samples' histogram over modes from the uniform one; log K when none is good.
    After Srivastava et al. 2017, arXiv 1705.07761, where a sample is good within 3 standard deviations, and one
    finds its mode; the bounds here, as `metrics` says them, are ours.

    Raises:
        UserError: unless mixture is one; of things that are no points of it.
    """

    needs: ClassVar[tuple[Need, ...]] = ("generator",)
    mixture: Mixture
    samples: int = 2000

    def __post_init__(self) -> None:
        if not isinstance(self.mixture, Mixture):
            raise UserError(f"Modes needs a mixture whose modes are known, such as Ring(); got {self.mixture!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Modes, high-quality share, missed mass, divergence from uniform."""
        return (
            Metric("modes", "", "higher", f"those with at least {SHARE:.0%} of the samples within {WITHIN:g} "
                                          "standard deviations"),
            Metric("high quality", "", "higher", "share of the samples within that distance of their nearest mode"),
            Metric("missed mass", "", "lower", "probability that is missing at the modes, 0 … 1"),
            Metric("KL to uniform", "nats", "lower", "of the modes' histogram of the good samples"))

    def measure(self, subject: Subject) -> Reading:
        """Sample and count."""
        samples = generated(subject, self.samples)
        if samples.shape[1:] != self.mixture.means.shape[1:]:
            raise UserError(f"modes are those of points {tuple(self.mixture.means.shape[1:])}; the generator of "
                            f"{subject.task.name} makes {tuple(samples.shape[1:])}: measure Coverage instead")
        found = count_modes(samples, self.mixture.means.to(samples), self.mixture.std)
        return Reading(dict(zip(found, to_floats(*found.values()), strict=True)))


def count_modes(samples: Tensor, means: Tensor, width: float) -> dict[str, Tensor]:
    """Return the metrics of `Modes`, each `(...)`, of samples `(..., n, 2)` of a mixture.

    Samples that are not finite are of no mode.
    """
    distance, nearest = torch.cdist(samples.nan_to_num(1e9, 1e9, -1e9), means).min(dim=-1)
    good = distance <= WITHIN * width
    chosen = torch.nn.functional.one_hot(nearest, len(means)) * good.unsqueeze(-1)
    counts = chosen.sum(-2).double()
    total = counts.sum(-1, keepdim=True)
    shares = torch.where(total > 0, counts / total.clamp(min=1), 0.0)
    divergence = torch.special.xlogy(shares, shares * len(means)).sum(-1)
    none = torch.full_like(divergence, math.log(len(means)))
    missed = (1 / len(means) - counts / samples.shape[-2]).clamp(min=0).sum(-1)
    return {"modes": (counts >= SHARE * samples.shape[-2]).sum(-1).double(),
            "high quality": good.double().mean(-1), "missed mass": missed,
            "KL to uniform": torch.where(total.squeeze(-1) > 0, divergence, none)}


@dataclass(frozen=True, repr=False)
class Classes(Probe):
    """Count the classes among generated grey images, as our classifier of "digits" or "fashion_mnist" sees them.

    Three classes or fewer are a collapse. The classifier and the bound are ours.

    Raises:
        UserError: when the generator makes images of another shape.
    """

    needs: ClassVar[tuple[Need, ...]] = ("generator",)
    data: str = "digits"
    samples: int = 2000

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Classes found, and the entropy of their histogram."""
        return (Metric("classes", "", "higher", f"those with more than {CLASS_SHARE:.0%} of the generated images"),
                Metric("class entropy", "nats", "higher", "of the histogram of classes; log 10 when even"))

    def measure(self, subject: Subject) -> Reading:
        """Generate and classify."""
        images, side = generated(subject, self.samples), GREY[self.data][0]
        if images.shape[1:] != (1, side, side):
            raise UserError(f"classes of {self.data} are those of images (1, {side}, {side}); the generator of "
                            f"{subject.task.name} makes {tuple(images.shape[1:])}: measure Coverage instead")
        classes = in_batches(own_classifier(self.data, images.device), images).argmax(1)
        found = classes.cpu().bincount(minlength=10).double()
        shares = found / found.sum()
        return Reading({"classes": float((shares > CLASS_SHARE).sum()),
                        "class entropy": float(-torch.special.xlogy(shares, shares).sum())})


@dataclass(frozen=True, repr=False)
class Samples(Probe):
    """Keep `count` generated things as an array "samples", always from the same latent vectors of a seed."""

    needs: ClassVar[tuple[Need, ...]] = ("generator",)
    count: int = 10

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """None: it is there to be looked at."""
        return ()

    def measure(self, subject: Subject) -> Reading:
        """Generate."""
        return Reading({}, {"samples": to_numpy(generated(subject, self.count))})
