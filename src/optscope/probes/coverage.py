"""How well a generator covers what is real: Fréchet distance, precision, recall, density and coverage.

Real and generated things are compared as clouds of features (`optscope.probes.embedding`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.probes.embedding import Embedding, Pixels
from optscope.probes.needs import Need
from optscope.probes.neighbours import neighbourhoods
from optscope.probes.probe import Probe, Reading, Subject, in_batches


def generated(subject: Subject, n: int) -> Tensor:
    """Return `n` things that the subject's generator makes, `(n, ...)`, from latent vectors of the probe's stream.

    Raises:
        UserError: when latent vectors or outputs are not finite.
    """
    game = subject.task
    latent = game.draw_latent(n, subject.generator)
    if latent is None or not bool(torch.isfinite(latent).all()):
        raise UserError(f"{game.name}: latent(n, generator) gave nan or inf; it must draw finite numbers")
    made = in_batches(subject.model.get_submodule("generator"), latent.to(subject.device))
    if not bool(torch.isfinite(made).all()):
        raise UserError(f"{game.name}: the generator made nan or inf: training diverged; lower a learning rate")
    return made


@dataclass(frozen=True, repr=False)
class Coverage(Probe):
    """Compare `samples` generated things with the real ones of a split, in the features of `embedding`.

    The Fréchet distance is biased upward by few samples: "Fréchet floor" is its expected value for a perfect
    generator at these very numbers of samples, and differences near it mean nothing. The other four look at balls
    about each thing that reach its k-th neighbour of the same kind (k = `neighbours`).

    Heusel et al. 2017, arXiv 1706.08500; Kynkäänniemi et al. 2019, arXiv 1904.06991 (precision, recall); Naeem et
    al. 2020, arXiv 2002.09797 (density, coverage).

    Raises:
        UserError: unless there are more samples, of both kinds, than neighbours.
    """

    needs: ClassVar[tuple[Need, ...]] = ("generator", "float input")
    embedding: Embedding = field(default_factory=Pixels)
    samples: int = 2000
    neighbours: int = 5

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.samples <= self.neighbours:
            raise UserError("Coverage needs one neighbour or more, and more samples than neighbours; got "
                            f"{self.neighbours} neighbours and {self.samples} samples")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The distance with its floor, and four shares."""
        return (
            Metric("Fréchet distance", "", "lower", "between Gaussians fitted to real and generated features"),
            Metric("Fréchet floor", "", "neither", "what a perfect generator would have, from bias alone"),
            Metric("precision", "", "higher", "share of the generated that lie within a ball about a real one"),
            Metric("recall", "", "higher", "share of the real that lie within a ball about a generated one"),
            Metric("density", "", "higher", "balls about real ones that a generated one lies in, by k"),
            Metric("coverage", "", "higher", "share of the balls about real ones that hold a generated one"))

    def measure(self, subject: Subject) -> Reading:
        """Embed both clouds and compare them.

        Raises:
            UserError: unless there are more real examples than neighbours.
        """
        if len(subject.batch) <= self.neighbours:
            raise UserError(f"Coverage needs more real examples than neighbours; the {self.split} part has "
                            f"{len(subject.batch)}, and there are {self.neighbours} neighbours: ask for fewer")
        # Ties are ties only where sums run in a known order, so that clouds are compared on the CPU.
        real, fake = (self.embedding(each).cpu().double()
                      for each in (subject.leaf, generated(subject, self.samples)))
        return Reading({"Fréchet distance": frechet_distance(real, fake),
                        "Fréchet floor": frechet_floor(real, self.samples),
                        **neighbourhoods(real, fake, self.neighbours)})


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the squared Fréchet distance of the Gaussians fitted to two clouds `(n, f)`.

        ‖μ_r − μ_g‖² + tr(Σ_r + Σ_g − 2 (Σ_r^½ Σ_g Σ_r^½)^½)

    Covariances are those of numpy (n − 1); the roots come from symmetric eigenvalues, in double precision.

    >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(x, x + 2.0), 6)
    12.0
    """
    clouds = real.double(), fake.double()
    means = [cloud.mean(0) for cloud in clouds]
    covariances = [torch.cov(cloud.T).reshape(cloud.shape[1], -1) for cloud in clouds]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    inner = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    traces = sum(covariance.diagonal().sum() for covariance in covariances)
    return float((means[0] - means[1]).square().sum() + traces - 2 * inner)


def frechet_floor(real: Tensor, samples: int) -> float:
    """Return the distance that `samples` things as good as real ones would have from `real` `(n, f)`.

    The bias falls like 1/n₁ + 1/n₂, so the distance between halves of the real cloud is scaled to the numbers at
    hand.
    """
    return between_halves(real) * _bias(len(real), samples)


def between_halves(real: Tensor) -> float:
    """Return the Fréchet distance between random halves of a cloud, mean over four divisions."""
    generator = torch.Generator().manual_seed(0)
    half, n = len(real) // 2, len(real)
    orders = [torch.randperm(n, generator=generator, device="cpu") for _ in range(4)]
    return float(np.mean([frechet_distance(real[order[:half]], real[order[half:2 * half]]) for order in orders]))


def _bias(n: int, samples: int) -> float:
    """Return the bias at n real and so many generated things, in that of two halves of n."""
    return (1 / n + 1 / samples) / (2 / (n // 2))
