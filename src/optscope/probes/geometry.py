"""Where a model lies: its weights, how far they went, what step comes next, and how far its boundary is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optscope.devices import to_numpy
from optscope.errors import UserError, first_words
from optscope.evidence.records import Metric
from optscope.probes.accuracy import check_classifier
from optscope.probes.at_weights import AtWeights, mean_gradient
from optscope.probes.needs import Need, missing
from optscope.probes.probe import Probe, Reading, Subject, Value, check_examples, portion_of
from optscope.probes.rule_in_use import rule_in_use
from optscope.probes.singular import ranks, singular_values, spectra
from optscope.tasks.fresh import fresh_model
from optscope.tasks.tree import leaves
from optscope.vector import Layout

Array = NDArray[np.float64]

NEAR_ZERO = 1e-3
"""A weight is near zero when it is at most this share of its layer's largest."""

LOW = 0.1
"""The quantile of margins and distances that stands for the examples that are hard."""

BATCH = 256


@dataclass(frozen=True, repr=False)
class Geometry(Probe):
    """Measure the weights w of a model, trained or not: length, sparsity, rank, and distance from their start.

    "weight norm" is |w|₂. "effective density" is |w|₁² / (P |w|₂²) in percent: 100 when all are equally large, and
    100/P when one is alone (over P, the effective sparsity of Plan and Vershynin 2013, Comm. Pure Appl. Math. 66,
    1275). "near-zero weights" are at most 10⁻³ of the largest in their layer. Ranks are those of matrices, and of
    convolution kernels reshaped to (out, rest), in percent of min(rows, columns), and the mean over them; with
    singular values σ and p = σ / Σσ,

        stable rank = Σσ² / max σ²                  Rudelson and Vershynin 2007, J. ACM 54, 21
        effective rank = exp(-Σ p log p)            Roy and Vetterli 2007, EUSIPCO, 606

    "distance from initialisation" is |w - w₀|₂, for models that training made: their snapshot knows its step. No
    examples are used. Arrays: "layers", their names, and for each "layer weight norms", "layer effective densities"
    and "layer near-zero weights" (both in percent) and "layer distances from initialisation"; "matrices", their
    names, and for each "stable ranks" and "effective ranks" (in dimensions, not percent), and of each the "singular
    values of NAME", descending.

    Raises:
        UserError: for a model without parameters.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Norm, sparsity, ranks and distance."""
        return (Metric("weight norm", "", "neither", "l2 norm of all weights"),
                Metric("effective density", "%", "neither", "|w|₁²/(P |w|₂²): 100 when all are equally large"),
                Metric("near-zero weights", "%", "neither", "at most a thousandth of the largest in their layer"),
                Metric("stable rank", "%", "neither", "of the full rank, mean over matrices and kernels"),
                Metric("effective rank", "%", "neither", "exp(entropy of σ/Σσ), otherwise as stable rank"),
                Metric("distance from initialisation", "", "neither", "l2 norm of the change since step 0"))

    def measure(self, subject: Subject) -> Reading:
        """Look at the weights."""
        layers = _weights(subject.model)
        values, arrays = _sizes(layers)
        for part in (_ranks(layers), _distances(subject, layers)):
            values, arrays = values | part[0], arrays | part[1]
        return Reading(values, {"layers": np.array(list(layers))} | arrays)


@dataclass(frozen=True, repr=False)
class FirstStep(Probe):
    """Measure the step the rule in use would make from here with no memory of earlier gradients.

    "step length" is |s|₂ for s = the rule's first step on the gradient g of the mean loss over the examples, both
    in the trained parameters alone; "step cosine" is that of the angle between s and -g: 1 for SGD, 0 at a right
    angle, nan where s or g is zero. The learning rate is the present one, where it is known. Nothing is read
    without a rule. Arrays: "layers" and for each "layer step lengths" and "layer step cosines". Ours.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network",)
    examples: int | None = field(default=256, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="train", kw_only=True)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Length and cosine."""
        return (Metric("step length", "", "neither", "l2 norm of the rule's first step from these weights"),
                Metric("step cosine", "", "neither", "cosine of the angle between that step and steepest descent"))

    def measure(self, subject: Subject) -> Reading:
        """Start the rule at the present weights.

        Raises:
            UserError: when the rule is a foreign one that makes no step on float64 weights.
        """
        rule = rule_in_use(subject.snapshot) or subject.snapshot.rule
        if rule is None:
            return Reading({})
        check_examples(subject)
        at = AtWeights(subject.model, subject.trained, call=subject.task.outputs)
        layout, weights = at.layout, at.flatten(list(at.weights.values()))
        size = min(BATCH, portion_of(subject))
        gradient = mean_gradient(at, subject.loss, subject.batch, size)

        def elsewhere(there: Tensor) -> Tensor:
            with torch.no_grad():
                for own, part in zip(at.weights.values(), layout.views(there), strict=True):
                    own.copy_(part)
            return mean_gradient(at, subject.loss, subject.batch, size)

        try:
            step, _ = rule.seek(elsewhere if rule.asks else lambda _: gradient, rule.init(weights, layout), weights,
                                layout)
        except UserError:
            raise
        except Exception as error:  # whatever the author of a foreign optimiser chose to raise
            raise UserError(f"{rule!r} makes no step on copies of the weights in float64, which are used here: "
                            f"{first_words(error)}") from error
        step, gradient = step.double(), gradient.double()
        parts = [(s.flatten(), g.flatten())
                 for s, g in zip(layout.views(step), layout.views(gradient), strict=True)]
        lengths, cosines = _descents([(step, gradient), *parts])
        return Reading({"step length": float(lengths[0]), "step cosine": float(cosines[0])},
                       {"layers": np.array(layout.names), "layer step lengths": lengths[1:],
                        "layer step cosines": cosines[1:]})


@dataclass(frozen=True, repr=False)
class Margin(Probe):
    """Measure by how much the right class leads, in logits and as a distance in the input; errors count negative.

        m(x) = z_y - max over j ≠ y of z_j        d(x) = m(x) / |∇_x m(x)|₂

    d is the signed l2 distance to the boundary with the runner-up where the model is linear, and to first order
    elsewhere (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599; Elsayed et al. 2018, arXiv 1803.05598); it is
    infinite where the gradient vanishes and the margin does not, so its centre is the median. The "lowest tenth" is
    the 10 % quantile. Where there is no finite gradient in the input (it is nan at a blank image that is divided by
    its norm, and there is none in token ids) there is a margin and no distance: those examples are left out, and
    the reading's `silence` says so. Arrays: "margins" and "boundary distances", one an example, nan where there is
    none.

    Raises:
        UserError: for a task that is no classification.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "labels")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Centres and lowest tenths."""
        return (Metric("margin", "", "higher", "mean lead of the right class's logit over the next"),
                Metric("margin, lowest tenth", "", "higher", "10 % of the examples lead by no more"),
                Metric("boundary distance", "", "higher", "median of margin over the norm of its input gradient"),
                Metric("boundary distance, lowest tenth", "", "higher", "10 % of the examples are no further"))

    def measure(self, subject: Subject) -> Reading:
        """Take the margin and, where there is one, its gradient in the input for every example."""
        check_classifier(subject)
        pairs = [_margins(subject, where) for where in
                 torch.arange(len(subject.batch), device=subject.device).split(BATCH)]
        margins, slopes = (to_numpy(torch.cat(column).double()) for column in zip(*pairs, strict=True))
        distances = np.copysign(np.where(margins == 0, 0.0, np.inf), margins)
        np.divide(margins, slopes, out=distances, where=slopes > 0)
        distances[~np.isfinite(margins) | ~np.isfinite(slopes)] = np.nan
        values = _centre("margin", margins[np.isfinite(margins)], np.mean)
        far = distances[~np.isnan(distances)]
        values |= _centre("boundary distance", far, lambda some: _quantile(some, 0.5))
        kinds = ", ".join(sorted({str(leaf.dtype) for leaf in leaves(subject.inputs).values()}))
        silence = "" if len(far) == len(margins) else (
            f"{len(margins) - len(far)} of {len(margins)} examples have no boundary distance, as the margin has no "
            f"finite gradient in them ({kinds})")
        return Reading(values, {"margins": margins, "boundary distances": distances}, silence)


def _centre(name: str, values: Array, centre: Callable[[Array], np.floating[Any] | float]) -> dict[str, Value]:
    """Return a centre of some values and their lowest tenth; nothing where there are none."""
    if not len(values):
        return {}
    return {name: float(centre(values)), f"{name}, lowest tenth": _quantile(values, LOW)}


def effective_density(weights: Tensor) -> float:
    """Return |w|₁² / (P |w|₂²), in [1/P, 1]; 0 for zeros.

    >>> effective_density(torch.tensor([3.0, -3.0, 0.0, 0.0]))
    0.5
    """
    return float(_densities([weights])[0])


def _densities(tensors: Sequence[Tensor]) -> Array:
    sums = [f(w.double()).sum() for w in tensors for f in (torch.abs, torch.square)]
    lengths, squares = to_numpy(torch.stack(sums)).reshape(-1, 2).T
    sizes = np.array([w.numel() for w in tensors])
    density: Array = np.divide(lengths**2, sizes * squares, out=np.zeros(len(sizes)), where=squares > 0)
    return density


def near_zero(weights: Tensor) -> Tensor:
    """Return which weights of a layer are at most 10⁻³ of its largest.

    >>> near_zero(torch.tensor([2.0, -0.002, 0.003, 0.0]))
    tensor([False, True, False, True])
    """
    return weights.abs() <= NEAR_ZERO * weights.abs().max()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    layers = {name: p.detach() for name, p in model.named_parameters()}
    if not layers:
        raise UserError(f"geometry is that of a model's parameters; this {type(model).__name__} has none")
    return layers


_Part = tuple[dict[str, Value], dict[str, NDArray[np.generic]]]


def _sizes(layers: Mapping[str, Tensor]) -> _Part:
    norms = _norms(layers)
    zeros = to_numpy(torch.stack([near_zero(w).sum() for w in layers.values()]))
    sizes = np.array([w.numel() for w in layers.values()])
    total, *densities = _densities([torch.cat([w.flatten() for w in layers.values()]), *layers.values()])
    values: dict[str, Value] = {"weight norm": float(np.linalg.norm(norms)),
                                "effective density": 100 * float(total),
                                "near-zero weights": 100 * int(zeros.sum()) / int(sizes.sum())}
    return values, {"layer weight norms": norms, "layer effective densities": 100 * np.array(densities),
                    "layer near-zero weights": 100 * (zeros / sizes)}


def _ranks(layers: Mapping[str, Tensor]) -> _Part:
    matrices = {name: w.flatten(1) for name, w in layers.items() if w.ndim > 1}
    if not matrices:
        return {}, {}
    full = np.array([min(w.shape) for w in matrices.values()])
    singular = torch.cat([singular_values(w) for w in matrices.values()]).cpu().split(full.tolist())
    stable, effective = np.array([ranks(part) for part in singular]).T
    return ({"stable rank": float(np.mean(100 * stable / full)),
             "effective rank": float(np.mean(100 * effective / full))},
            {"matrices": np.array(list(matrices)), "stable ranks": stable, "effective ranks": effective}
            | spectra(matrices, singular))


def _distances(subject: Subject, layers: Mapping[str, Tensor]) -> _Part:
    snapshot = subject.snapshot
    if snapshot.step is None or not snapshot.from_seed:
        return {}, {}
    start = _weights(fresh_model(snapshot.task, snapshot.seed))
    if Layout.of(start) != Layout.of(layers):
        raise UserError(f"the distance from initialisation needs the model that the task {snapshot.task.name!r} "
                        "makes; this one has other parameters: give the snapshot its own task, or no step")
    moved = _norms({name: w - start[name].to(w) for name, w in layers.items()})
    return ({"distance from initialisation": float(np.linalg.norm(moved))},
            {"layer distances from initialisation": moved})


def _norms(layers: Mapping[str, Tensor]) -> Array:
    return to_numpy(torch.stack([w.double().norm() for w in layers.values()]))


def _descents(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Array, Array]:
    """Return the lengths of steps `(n,)`, and the cosines of their angles with the gradients' opposites `(n,)`."""
    rows = [number for s, g in pairs for number in (s.norm(), s.norm() * g.norm(), s @ g)]
    lengths, both, products = to_numpy(torch.stack(rows)).reshape(-1, 3).T
    return lengths, np.divide(-products, both, out=np.full(len(both), np.nan), where=both != 0)


def _margins(subject: Subject, where: Tensor) -> tuple[Tensor, Tensor]:
    """Return some examples' margins and the norms of their gradients in what is moved, `(m,)`; nan for none."""
    own, floating = subject.targets[where, None], not missing(("float input",), subject.task, subject.batch)
    with torch.enable_grad():
        x = subject.leaf[where].requires_grad_() if floating else None
        logits = subject.outputs(subject.take(where).inputs) if x is None else subject.moved(x, where)
        margins = logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)
        try:
            slopes = None if x is None else torch.autograd.grad(margins.sum(), x, allow_unused=True,
                                                                materialize_grads=True)[0]
        except RuntimeError:  # an operation of the model's has no derivative
            slopes = None
    found = margins.detach()
    return found, torch.full_like(found, torch.nan) if slopes is None else slopes.flatten(1).double().norm(dim=1)


def _quantile(values: Array, share: float) -> float:
    """Return the smallest value that is not below `share` of them, itself one of them as some may be infinite."""
    return float(np.quantile(values, share, method="inverted_cdf"))
