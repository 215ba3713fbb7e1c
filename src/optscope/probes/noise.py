"""Accuracy under Gaussian noise: white and clamped, or limited to one band of frequencies and not clamped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optscope.dct import dct2, equal_count_bands, idct2
from optscope.devices import to_numpy
from optscope.errors import UserError, blaming
from optscope.evidence.records import Metric
from optscope.probes.accuracy import check_classifier, classes_of, nameless, percent, verdicts
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject

OUTSIDE = "the model, shown inputs that are moved and not clamped,"
"""What stopped, where a model takes no inputs outside their range."""

PIXELS = 2**18  # numbers a noise draw: part of what a seed means, as draws of another size differ


@dataclass(frozen=True, repr=False)
class GaussianNoise(Probe):
    """Measure accuracy (percent) on x + n, n ~ N(0, σ² I), clamped to the task's bounds, a variance σ² each.

    One draw an image serves all variances, scaled, so that the curve is smooth in σ² and the same for all
    models that share a seed. Arrays: "correct under gaussian noise", bool `(variances, n)`.

    Reference: arXiv 2308.06703.

    Raises:
        UserError: unless variances is a tuple of numbers >= 0, at least one.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "float input", "labels")
    variances: tuple[float, ...] = (0.001, 0.005, 0.01)

    def __post_init__(self) -> None:
        if not isinstance(self.variances, tuple) or not self.variances or min(self.variances) < 0:
            raise UserError("GaussianNoise: variances must be a tuple of numbers >= 0, such as (0.001, 0.01) "
                            f"or (0.01,); got {self.variances!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One accuracy a variance."""
        return (Metric("accuracy under gaussian noise", "%", "higher", "noise clamped to the bounds",
                       axis="variance"),)

    def measure(self, subject: Subject) -> Reading:
        """Measure all variances."""
        check_classifier(subject)
        rows = []
        for images, where, noise in _noisy_batches(subject):
            noisy = (images + variance**0.5 * noise for variance in self.variances)
            clamped = torch.cat([x if subject.bounds is None else x.clamp(*subject.bounds) for x in noisy])
            rows.append(classes_of(subject, clamped, where.repeat(len(self.variances)))
                        .view(len(self.variances), -1))
        classes = torch.cat(rows, dim=1)
        correct, classes = (classes == subject.targets).cpu(), classes.cpu()
        curve = {variance: percent(row) for variance, row in zip(self.variances, correct, strict=True)}
        return Reading({"accuracy under gaussian noise": curve},
                       {"correct under gaussian noise": to_numpy(correct)}, nameless(classes.amin(0)))


@dataclass(frozen=True, repr=False)
class BandNoise(Probe):
    """Measure the accuracy lost (points) to noise of one frequency band, for each of `bands` radial bands.

    White noise n ~ N(0, σ² I), σ² = `variance`, is cut into bands of the DCT, each of which holds equally
    many coefficients and so an equal share of the noise's energy:

        drop_k = acc(x) - acc(x + D (M_k ∘ Dᵀ n D) Dᵀ)

    Band 0 is the lowest. Nothing is clamped. One draw an image, transformed once, serves all bands. Arrays:
    "correct under band noise", bool `(bands, n)`, and "correct" on the clean images.

    Reference: arXiv 2308.06703, figure 4.

    Raises:
        UserError: unless variance >= 0 and bands >= 1.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "float input", "labels", "images")
    variance: float = 0.01
    bands: int = 10

    def __post_init__(self) -> None:
        if self.variance < 0 or self.bands < 1:
            raise UserError("BandNoise: variance must be >= 0 and bands >= 1; "
                            f"got variance={self.variance!r}, bands={self.bands!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One drop a band."""
        return (Metric("drop under band noise", "points", "lower", "clean accuracy less noisy, not clamped",
                       axis="band"),)

    def measure(self, subject: Subject) -> Reading:
        """Measure all bands."""
        check_classifier(subject)
        leaf = subject.leaf
        height, width = leaf.shape[-2:]
        band = equal_count_bands(height, width, self.bands).to(leaf.device)
        masks = torch.stack([band == k for k in range(self.bands)]).to(leaf)
        masks = masks.view(self.bands, *[1] * (leaf.ndim - 2), height, width)
        rows = []
        for images, where, noise in _noisy_batches(subject):
            parts = idct2(masks * dct2(self.variance**0.5 * noise))
            with blaming(subject.task.name, OUTSIDE):
                rows.append(verdicts(subject, (images + parts).flatten(0, 1), where.repeat(self.bands))
                            .view(self.bands, -1))
        correct = torch.cat(rows, dim=1).cpu()
        classes = classes_of(subject)
        clean, classes = (classes == subject.targets).cpu(), classes.cpu()
        drops = {float(k): percent(clean) - percent(row) for k, row in enumerate(correct)}
        return Reading({"drop under band noise": drops},
                       {"correct under band noise": to_numpy(correct), "correct": to_numpy(clean)},
                       nameless(classes))


def _noisy_batches(subject: Subject) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, which examples they are, and for each its own standard normal noise."""
    leaf = subject.leaf
    size = max(1, PIXELS // leaf[0].numel())
    every = torch.arange(len(leaf), device=leaf.device)
    for images, where in zip(leaf.split(size), every.split(size), strict=True):
        noise = torch.randn(images.shape, generator=subject.generator, dtype=images.dtype, device="cpu")
        yield images, where, noise.to(images.device)
