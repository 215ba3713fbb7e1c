"""How sharply the loss bends at a model: largest eigenvalues, trace and density of its Hessian.

An eigenvalue is drawn with the stability threshold of the rule in use, and printed with an error. What the
errors prove is said where they are made, in `lanczos`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from optscope.devices import to_numpy
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.optim.rule import Rule
from optscope.probes import lanczos
from optscope.probes.hessian import GaussNewton, Hessian, Preconditioned, SymmetricOperator
from optscope.probes.live import adaptive, preconditioner
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject, Value, check_examples
from optscope.probes.rule_in_use import rule_in_use, steps_made, threshold


@dataclass(frozen=True, repr=False)
class CurvatureProbe(Probe):
    """A probe of the Hessian of the mean training loss over the first `examples`, in eval mode.

    Its rows are the trained parameters: frozen ones and those that the live optimiser lacks are constants.
    `gauss_newton` takes the Gauss-Newton matrix instead.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "second derivative")
    gauss_newton: bool = field(default=False, kw_only=True)
    examples: int | None = field(default=256, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="train", kw_only=True)

    def matrix(self, subject: Subject) -> Hessian | GaussNewton:
        """Return the matrix at the subject's weights, once the examples are checked.

        Raises:
            UserError: when outputs are not finite, or the loss is no mean.
        """
        check_examples(subject)
        kind = GaussNewton if self.gauss_newton else Hessian
        return kind(subject.model, subject.loss, subject.inputs, subject.targets, parameters=subject.trained,
                    call=subject.task.outputs)


@dataclass(frozen=True, repr=False)
class TopEigenvalues(CurvatureProbe):
    """Measure the `k` largest eigenvalues λ₁ ≥ λ₂ ≥ ... of the Hessian.

    "sharpness" is λ₁. Proved: an eigenvalue lies within "sharpness error" of it, at most `rel` of it. Likely
    (99 random starts in 100): none lies above "sharpness limit", at most `margin` of it higher. Gradient
    descent is stable on the quadratic model of the loss while the sharpness is below the "stability threshold",
    which is given when the rule in use has one for the plain Hessian.

    The search starts from the gradient and, where a training is followed, the last reading's answer (its `memory`),
    with noise added: `rel=0.05, margin=2` then costs about four products a reading. Arrays: "eigenvalues"
    and "eigenvalue errors", `(k,)`, and "products", how many it took.

    Lanczos with full orthogonalisation: Parlett 1998, The symmetric eigenvalue problem, chapter 13; the limit: van
    Dorsselaer, Hochstenbach and van der Vorst 2000, SIAM J. Matrix Anal. Appl. 22, 837.

    Raises:
        UserError: unless 1 <= k <= P, 0 < rel < 1 and margin > 0.
    """

    k: int = 1
    rel: float = 1e-3
    margin: float = 0.5

    def __post_init__(self) -> None:
        _check(self, self.rel, self.margin, self.k)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Sharpness with its error and limit, and the threshold of the rule in use."""
        return _metrics("sharpness", "stability threshold",
                        "largest eigenvalue of the Hessian of the training loss")

    def measure(self, subject: Subject) -> Reading:
        """Run Lanczos on the Hessian."""
        rule = rule_in_use(subject.snapshot)
        matrix = self.matrix(subject)
        found = _search(self, subject, matrix, matrix.gradient(), self.k, "sharpness")
        return _reading(found, "sharpness", "stability threshold",
                        None if adaptive(rule) else _threshold(rule, subject))


@dataclass(frozen=True, repr=False)
class PreconditionedSharpness(CurvatureProbe):
    """Measure the largest eigenvalue of P⁻¹ᐟ² H P⁻¹ᐟ² + C with the preconditioner P of the live optimiser.

    P is diagonal for Adam, AdamW and RMSProp, Shampoo's and SOAP's in their present basis, and for LARS and LAMB
    that of their present trust ratios, LARS's of the gradient over the probe's examples (`live.preconditioner`).
    C is 0, but for LARS and LAMB with decay: what that bends. The threshold is that of the rule's momentum while P
    stands still. `ByKind` has a P if each of its parts has a threshold, `Graft` if its direction has.

    Adam's edge of stability lies where it meets "preconditioned threshold", 38/lr at beta1 = 0.9 (Cohen et al.
    2022, arXiv 2207.14484). Errors and arrays as in `TopEigenvalues`. Before the first step there is no
    preconditioner, and nothing is read.

    Raises:
        UserError: unless 0 < rel < 1 and margin > 0, and when the snapshot has no such optimiser.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "second derivative", "live optimiser")
    rel: float = 1e-3
    margin: float = 0.5

    def __post_init__(self) -> None:
        _check(self, self.rel, self.margin)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Preconditioned sharpness with its error and limit, and the threshold of the rule in use."""
        return _metrics("preconditioned sharpness", "preconditioned threshold",
                        "largest eigenvalue of the Hessian as the adaptive rule in use meets it")

    def measure(self, subject: Subject) -> Reading:
        """Run Lanczos on the preconditioned Hessian."""
        matrix = self.matrix(subject)
        gradient = matrix.gradient()
        held = preconditioner(subject.snapshot, matrix.layout, gradient)
        if held is None:
            return Reading({})
        found = _search(self, subject, Preconditioned(matrix, held), held.root(gradient), 1,
                        "preconditioned sharpness")
        return _reading(found, "preconditioned sharpness", "preconditioned threshold",
                        _threshold(rule_in_use(subject.snapshot), subject))


@dataclass(frozen=True, repr=False)
class LayerSharpness(CurvatureProbe):
    """Measure the largest eigenvalue of each layer's diagonal block of the Hessian.

    Each is found to a relative residual of `rel`, by Lanczos as in `TopEigenvalues` (Parlett 1998). Arrays:
    "layers", their names in the order of the axis, and "layer sharpness errors".

    Raises:
        UserError: unless 0 < rel < 1.
    """

    rel: float = 1e-2

    def __post_init__(self) -> None:
        _check(self, self.rel)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One eigenvalue a layer."""
        return (Metric("layer sharpness", "", "neither", "largest eigenvalue of a layer's block of the Hessian",
                       axis="layer"),)

    def measure(self, subject: Subject) -> Reading:
        """Run Lanczos on each block; they share one graph."""
        matrix = self.matrix(subject)
        names = matrix.layout.names
        starts = matrix.layout.views(matrix.gradient())
        found = [lanczos.largest(matrix.block(name), rel=self.rel, start=g.reshape(-1), generator=subject.generator)
                 for name, g in zip(names, starts, strict=True)]
        return Reading({"layer sharpness": {float(i): float(f.values[0]) for i, f in enumerate(found)}},
                       {"layers": np.array(names), "layer sharpness errors": np.array([float(f.errors[0])
                                                                                       for f in found])})


@dataclass(frozen=True, repr=False)
class HessianTrace(CurvatureProbe):
    """Measure the trace of the Hessian, the sum of its eigenvalues, by Hutch++ with its standard error.

        tr H ≈ tr(QᵀHQ) + mean over i of g_iᵀ (I − QQᵀ) H (I − QQᵀ) g_i        g_i random signs

    Q is an orthonormal basis of H times a third of the `products` random vectors; the error is over the g_i alone.
    Meyer, Musco, Musco and Woodruff 2021, arXiv 2010.09649, algorithm 1.

    Raises:
        UserError: for fewer than 6 products.
    """

    products: int = 30

    def __post_init__(self) -> None:
        if self.products < 6:
            raise UserError(f"HessianTrace: products must be at least 6; got {self.products!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The trace and its standard error."""
        return (Metric("Hessian trace", "", "neither", "sum of the Hessian's eigenvalues"),
                Metric("Hessian trace error", "", "neither", "standard error over the random vectors"))

    def measure(self, subject: Subject) -> Reading:
        """Run Hutch++."""
        found = lanczos.trace(self.matrix(subject), self.products, generator=subject.generator)
        return Reading({"Hessian trace": found.value, "Hessian trace error": found.error})


@dataclass(frozen=True, repr=False)
class SpectralDensity(CurvatureProbe):
    """Measure the density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    It takes `samples` times `steps` products. "negative share" is the part of Σ λ² that negative eigenvalues
    hold. Arrays: the "density" at "density eigenvalues", smoothed by a Gaussian whose width is a hundredth of
    the range, and the bare "density nodes" with their "density weights", each `(samples, steps)`.

    Ubaru, Chen and Saad 2017, SIAM J. Matrix Anal. Appl. 38, 1075; of networks Ghorbani et al. 2019, arXiv
    1901.10159.

    Raises:
        UserError: unless samples >= 1 and steps >= 2.
    """

    samples: int = 2
    steps: int = 30

    def __post_init__(self) -> None:
        if self.samples < 1 or self.steps < 2:
            raise UserError("SpectralDensity: samples must be at least 1 and steps at least 2; "
                            f"got samples={self.samples!r} and steps={self.steps!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The ends of the spectrum and how much of it is negative."""
        return (Metric("smallest eigenvalue", "", "neither", "smallest Ritz value; the true one is lower"),
                Metric("largest eigenvalue", "", "neither", "largest Ritz value; the true one is higher"),
                Metric("negative share", "%", "neither", "of the sum of squared eigenvalues"))

    def measure(self, subject: Subject) -> Reading:
        """Run stochastic Lanczos quadrature."""
        found = lanczos.spectrum(self.matrix(subject), samples=self.samples, steps=self.steps,
                                 generator=subject.generator)
        low, high = float(found.nodes.min()), float(found.nodes.max())
        width = max(high - low, math.ulp(1.0)) / 100
        at = np.linspace(low - 5 * width, high + 5 * width, 512)
        squares = found.weights * found.nodes**2
        negative = float(squares[found.nodes < 0].sum() / max(squares.sum(), math.ulp(0.0)))
        return Reading({"smallest eigenvalue": low, "largest eigenvalue": high, "negative share": 100 * negative},
                       {"density eigenvalues": at, "density": found.density(at, width),
                        "density nodes": found.nodes, "density weights": found.weights})


def _check(probe: Probe, rel: float, margin: float = 1.0, k: int = 1) -> None:
    if not (0 < rel < 1 and margin > 0 and k >= 1):
        raise UserError(f"{type(probe).__name__}: rel must be a relative error between 0 and 1, such as 1e-3, "
                        f"margin positive and k at least 1; got rel={rel!r}, margin={margin!r}, k={k!r}")


def _metrics(name: str, limit: str, text: str) -> tuple[Metric, ...]:
    return (
        Metric(name, "", "neither", text),
        Metric(f"{name} error", "", "neither", f"an eigenvalue lies within this of the {name}"),
        Metric(f"{name} limit", "", "neither", "no eigenvalue lies above this, for 99 random starts in 100"),
        Metric(limit, "", "neither", "above this the rule in use is unstable on the quadratic model"),
        Metric(f"{name} / threshold", "", "neither", "1 is the edge of stability"),
    )


def _search(probe: TopEigenvalues | PreconditionedSharpness, subject: Subject, operator: SymmetricOperator,
            gradient: Tensor, k: int, name: str) -> lanczos.Eigenpairs:
    """Run Lanczos from the gradient and the sum of the vectors that were found at the last moment."""
    start = functional.normalize(gradient, dim=0)
    last = subject.memory.get(name)
    if last is not None and last.shape == start.shape:  # layers may have been frozen or freed meanwhile
        last = last.to(start)
        start = start + torch.copysign(torch.ones_like(start[0]), last @ start) * last
    return lanczos.largest(operator, k, rel=probe.rel, margin=probe.margin, start=start,
                           generator=subject.generator)


def _threshold(rule: Rule | None, subject: Subject) -> float | None:
    """Return the rule's stability threshold, or None where none is known."""
    try:
        return None if rule is None else threshold(rule, steps_made(subject.snapshot))
    except UserError:
        return None


def _reading(found: lanczos.Eigenpairs, name: str, limit: str, edge: float | None) -> Reading:
    values: dict[str, Value] = {name: float(found.values[0]), f"{name} error": float(found.errors[0]),
                                f"{name} limit": found.limit}
    if edge is not None:
        values |= {limit: edge, f"{name} / threshold": float(found.values[0]) / edge}
    return Reading(values, {"eigenvalues": to_numpy(found.values), "eigenvalue errors": to_numpy(found.errors),
                            "products": np.array(found.products)},
                   memory={name: found.vectors.sum(dim=0)})
