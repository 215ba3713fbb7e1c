"""How noisy the gradient is, and what its noise and the curvature do to the loss in one step.

The examples' gradients g_1 .. g_n are independent draws with mean G and covariance Σ; products of different
ones are then unbiased, and leaving out one at a time gives intervals. Where the examples are shuffled and cut
into k parts of b, the parts' gradients have the covariance Σ/b, and one part is left out at a time. Models are in
eval mode: batch normalisation uses its running statistics (in training mode the examples of a batch would not be
independent), dropout and augmentation are off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from optscope.devices import to_numpy
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.evidence.stats import Interval, mean_interval
from optscope.optim.combinator import bare
from optscope.optim.momentum import Momentum, matched
from optscope.optim.rule import Rule
from optscope.optim.sgd import SGD
from optscope.probes import bending
from optscope.probes.at_weights import AtWeights, change_by_parts, mean_gradient, seen
from optscope.probes.jackknife import (
    Array,
    curvatures,
    example_values,
    positive_interval,
    pseudo_values,
    ratio_interval,
    signal_and_noise,
)
from optscope.probes.layer_gradients import NoRuleError
from optscope.probes.needs import Need
from optscope.probes.per_example import lengths
from optscope.probes.probe import Probe, Reading, Subject, check_examples, portion_of
from optscope.probes.rule_in_use import rule_in_use, steps_made
from optscope.tasks.kinds import BATCH
from optscope.tasks.mean_loss import parts_change
from optscope.tasks.tree import Batch, joined

CONFIDENCE = 0.95


@dataclass(frozen=True, repr=False)
class GradientNoise(Probe):
    """Measure |G|², tr Σ and the simple noise scale B = tr Σ / |G|² from one gradient of all examples.

        |G|²  = mean over i ≠ j of g_i · g_j            tr Σ = mean over i of |g_i|² - |G|²

    Both are unbiased, the first possibly negative. B, in examples, is the batch size at which noise and signal are
    equally strong; as a ratio of unbiased numbers it is itself biased, and infinite where |G|² is estimated <= 0.
    Arrays: a 95 % interval (low, high) for each, "gradient square interval", "gradient noise interval" (jackknife
    over the examples, Student's t, the second on a log scale) and "noise scale interval" (Fieller's, unbounded
    above unless |G|² differs from 0).

    The loss must be a mean over examples. The gradients of single examples are known by their lengths and products
    (`per_example`), for models whose trained weights are those of linear layers, convolutions of one and two axes,
    normalisation, embeddings and PReLU. Of any other `silence` says so, and the examples are shuffled and cut into
    k = `parts` parts of b, with g_i the gradient of a part, whose covariance is Σ/b: k ⌊n/k⌋ examples are used, k
    gradients are held in memory, and intervals are wider.

    Reference: McCandlish et al. 2018, arXiv 1812.06162, appendix A.1, with B_small = 1, or b, and B_big = n.

    Raises:
        UserError: unless parts >= 3, and for fewer than 3 examples.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network",)
    parts: int = 8
    examples: int | None = field(default=256, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="train", kw_only=True)

    def __post_init__(self) -> None:
        _check_count(self, "parts", self.parts, 3)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Signal, noise and their ratio."""
        return (Metric("gradient square", "", "neither", "squared norm of the mean gradient, unbiased"),
                Metric("gradient noise", "", "neither", "trace of the covariance of single gradients, unbiased"),
                Metric("noise scale", "examples", "neither", "gradient noise over gradient square"))

    def measure(self, subject: Subject) -> Reading:
        """Take one gradient of all examples, or of each part."""
        if len(subject.batch) < 3:
            raise UserError("the noise of a gradient is read from three examples or more; got "
                            f"{len(subject.batch)}: raise examples")
        check_examples(subject, every=False)
        try:
            return _noise(example_values(*_example_products(subject)))
        except NoRuleError as reason:
            batches = shuffled_parts(subject, self.parts)
            gradients = batch_gradients(subject, batches)
            values = pseudo_values(signal_and_noise, _array(gradients @ gradients.T)) * [1, len(batches[0])]
            said = f"the intervals are over {self.parts} parts of the examples, as {reason}"
            return replace(_noise(values), silence=said)


@dataclass(frozen=True, repr=False)
class DescentSplit(Probe):
    """Measure how one step of SGD on a batch of B examples is expected to change the loss, as a sum of three terms.

        E L(w - η g) - L(w) = -η |G|² + η²/2 GᵀHG + η²/(2B) tr(HΣ) + O(η³)

    They are "descent", "curvature-induced" and "noise-induced", in units of the loss; B is `batch`. They are given
    where the rule in use is SGD: η is its learning rate over 1 - momentum, the rate at which SGD without momentum
    moves alike. GᵀHG and tr(HΣ) are given for every rule. All are unbiased, as H and the two gradients of a product
    come from three different parts:

        GᵀHG = mean over i ≠ j ≠ m ≠ i of g_iᵀ H_m g_j        tr(HΣ) = b (mean over i ≠ m of g_iᵀ H_m g_i - GᵀHG)

    One pass in forward mode along the parts' gradients gives these products where a model is linear by pieces but
    for the weights of its layers (`bending`); otherwise they take k - 1 Hessian products over all examples. Arrays:
    "<metric> interval" for each, 95 % (low, high), by jackknife over the parts. The rest is as in `GradientNoise`.

    Reference: Wang et al. 2023, arXiv 2307.15196, lemma 2.4.

    Raises:
        UserError: unless batch >= 1 and parts >= 4.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "second derivative")
    batch: int = 128
    parts: int = 8
    examples: int | None = field(default=256, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="train", kw_only=True)

    def __post_init__(self) -> None:
        _check_count(self, "batch", self.batch, 1)
        _check_count(self, "parts", self.parts, 4)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The three terms and their sum, and the same without learning rate and batch size."""
        return (Metric("descent", "", "lower", "-η |G|², change of the loss in a step"),
                Metric("curvature-induced", "", "lower", "η²/2 GᵀHG, change of the loss in a step"),
                Metric("noise-induced", "", "lower", f"η²/2 tr(HΣ)/{self.batch}, change of the loss in a step"),
                Metric("expected loss change", "", "lower", "sum of the three, to second order in η"),
                Metric("gradient curvature", "", "neither", "GᵀHG, with G the mean gradient"),
                Metric("noise curvature", "", "neither", "tr(HΣ), with Σ the covariance of one example's gradient"))

    def measure(self, subject: Subject) -> Reading:
        """Take the gradient of each part, then the Hessian of each part on the gradients of the others."""
        batches = shuffled_parts(subject, self.parts)
        gradients, products = _curved(subject, batches)
        square = pseudo_values(signal_and_noise, _array(gradients @ gradients.T))[:, 0]
        curved, spread = pseudo_values(curvatures, products).T
        spread = spread * len(batches[0])
        numbers = {"gradient curvature": curved, "noise curvature": spread}
        eta = effective_rate(rule_in_use(subject.snapshot), steps_made(subject.snapshot))
        if eta is not None:
            terms = {"descent": -eta * square, "curvature-induced": eta**2 / 2 * curved,
                     "noise-induced": eta**2 / (2 * self.batch) * spread}
            numbers |= terms | {"expected loss change": sum(terms.values(), start=np.zeros(self.parts))}
        return _reading({name: mean_interval(values, CONFIDENCE) for name, values in numbers.items()})


def shuffled_parts(subject: Subject, parts: int) -> list[Batch]:
    """Return the examples shuffled and cut into `parts` of equal size; the few left over are not used.

    Raises:
        UserError: when there are fewer examples than parts, or they will not do (`check_examples`).
    """
    check_examples(subject)
    size = len(subject.batch) // parts
    if size == 0:
        raise UserError(f"the noise of a gradient is read from {parts} parts of the examples; got "
                        f"{len(subject.batch)} examples: raise examples or lower parts")
    order = torch.randperm(len(subject.batch), generator=subject.generator, device="cpu")[:size * parts]
    return list(subject.batch.take(order.to(subject.device)).split(size))


def batch_gradients(subject: Subject, batches: Sequence[Batch]) -> Tensor:
    """Return the gradient of the loss on each batch in the trained parameters, `(k, P)`.

    Raises:
        UserError: when nothing is trained, or the loss is no mean over examples.
    """
    at = AtWeights(subject.model, subject.trained, call=subject.task.outputs)
    _check_parts(change_by_parts(at, subject.loss, batches, lambda part: [
        size for size in (len(part) // 2, len(part) - len(part) // 2) if size]))
    size = portion_of(subject)
    size = len(batches[0]) if size == BATCH else size  # in one pass, unless every example has many outputs
    return torch.stack([mean_gradient(at, subject.loss, batch, size) for batch in batches])


def _check_mean(subject: Subject, outputs: Tensor, batch: Batch) -> None:
    """Raise UserError unless two single examples and the rest count in the loss of a batch by their numbers."""
    _check_parts(parts_change(subject.loss, outputs, seen(subject.loss, batch),
                              [size for size in (1, 1, len(batch) - 2) if size > 0][:len(batch)]))


def _check_parts(change: float) -> None:
    if change:
        raise UserError("the noise of a gradient needs a loss that is a mean over examples; this one's gradient "
                        f"changes by {change:.1%} when it is the mean over parts of a batch: use "
                        "reduction='mean' without class weights or ignored labels")


def effective_rate(rule: Rule | None, step: int = 0) -> float | None:
    """Return the rate η of SGD that moves alike after `step` steps, lr / (1 - momentum), or None for other rules.

    Known are SGD and Momentum, also inside Scheduled, Decayed and Rounded.

    >>> round(effective_rate(SGD(lr=0.01, momentum=0.9)), 12)
    0.1
    """
    if rule is None:
        return None
    try:
        inner, factor, _ = bare(rule, step)
        return float(matched(inner).lr) * factor if isinstance(inner, (SGD, Momentum)) else None  # type: ignore[arg-type]
    except UserError:  # one rule a member
        return None


def _curved(subject: Subject, batches: Sequence[Batch]) -> tuple[Tensor, Array]:
    """Return the batches' gradients `(k, P)`, and g_iᵀ H_m g_j at [m, i, j], zeros where m is i or j."""
    try:
        if portion_of(subject) < len(batches[0]):
            raise NoRuleError("every example has many outputs")
        at = AtWeights(subject.model, subject.trained, call=subject.task.outputs)
        gradients, bent = bending.by_layers(at, subject.loss, batches, lambda outputs: _check_mean(
            subject, outputs, joined(batches)))
    except NoRuleError:
        gradients = batch_gradients(subject, batches)
        bent = bending.by_hessians(subject, batches, gradients)
    products, every = to_numpy(bent), np.arange(len(batches))
    products[every, every] = products[every, :, every] = 0.0
    return gradients, products


def _example_products(subject: Subject) -> tuple[Array, Array, float]:
    """Return |g_i|² and g_i · Ḡ of the examples, `(n,)`, and |Ḡ|².

    Raises:
        NoRuleError: when they do not follow from what the layers see.
        UserError: when outputs are not finite, nothing is trained, or the loss is no mean over examples.
    """
    at = AtWeights(subject.model, subject.trained, call=subject.task.outputs)
    firsts: list[Batch] = []

    def look(outputs: Tensor, part: Batch) -> None:
        if not bool(torch.isfinite(outputs).all()):
            check_examples(subject)
        _check_mean(subject, outputs, part)
        firsts.append(part.first(1))

    found = lengths(at, subject.loss, subject.batch, look)
    if len(firsts) > 1:  # equal within each of the parts that were looked at, so equal if these are
        _check_parts(change_by_parts(at, subject.loss, firsts, lambda part: [len(part)]))
    n, numbers = len(subject.batch), to_numpy(torch.cat([found.squares, found.along, found.mean.view(1)]))
    return numbers[:n], numbers[n:-1], float(numbers[-1])


def _check_count(probe: Probe, name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{type(probe).__name__}: {name} must be a whole number >= {least}; got {value!r}")


def _array(tensor: Tensor) -> Array:
    return to_numpy(tensor.double())


def _noise(values: Array) -> Reading:
    """Return what pseudo-values of |G|² and tr Σ say, `(k, 2)`."""
    square, noise = values.T
    return _reading({"gradient square": mean_interval(square, CONFIDENCE),
                     "gradient noise": positive_interval(noise, CONFIDENCE),
                     "noise scale": ratio_interval(noise, square, CONFIDENCE)})


def _reading(found: dict[str, Interval]) -> Reading:
    return Reading({name: seen.estimate for name, seen in found.items()},
                   {f"{name} interval": np.array([seen.low, seen.high]) for name, seen in found.items()})
