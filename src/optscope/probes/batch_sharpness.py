"""Batch sharpness: how sharply a batch's loss bends along its own gradient, which is what a step of SGD meets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch

from optscope.devices import to_numpy
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.evidence.stats import mean_interval
from optscope.optim.combinator import bare
from optscope.optim.momentum import Momentum, practical
from optscope.optim.rule import Rule
from optscope.optim.sgd import SGD
from optscope.probes.gradient_noise import CONFIDENCE, shuffled_parts
from optscope.probes.hessian import Hessian
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject, Value
from optscope.probes.rule_in_use import rule_in_use, steps_made
from optscope.theory.stability import batch_edges


@dataclass(frozen=True, repr=False)
class BatchSharpness(Probe):
    """Measure the mean over batches B of `batch` examples of g_Bᵀ H_B g_B / |g_B|², with its standard error.

    Without `batch` they are as large as those that the model was trained in, which a snapshot of a training knows.

    g_B and H_B are gradient and Hessian of the loss of one batch, in eval mode; the examples are shuffled and cut
    into as many batches as there are. Under SGD it settles at about 2/lr, where the full sharpness does not
    (Andreyev and Beneventano 2024, arXiv 2412.20553); with momentum β about the "small-batch edge" 2(1 − β)/lr in
    small batches, and the "large-batch edge" 2(1 + β)/lr in large ones (arXiv 2604.14108). Both are given where the
    rule in use is SGD without Nesterov's momentum, or Momentum; which holds at a batch size has no closed form.

    Arrays: "batch sharpness interval", 95 % (low, high) by Student's t, "batches", the number of each, `(k,)`, and
    "batch size". It takes one Hessian product a batch.

    Raises:
        UserError: unless batch >= 1, when no batch is known, and when the examples make fewer than two batches.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "second derivative")
    batch: int | None = None
    examples: int | None = field(default=256, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="train", kw_only=True)

    def __post_init__(self) -> None:
        if self.batch is not None and (type(self.batch) is not int or self.batch < 1):
            raise UserError("BatchSharpness: batch must be a whole number >= 1, or None for the training's; "
                            f"got {self.batch!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Batch sharpness, its error and the two edges."""
        size = "as in training" if self.batch is None else f"of {self.batch} examples"
        return (Metric("batch sharpness", "", "neither", f"mean gᵀHg/|g|² over batches {size}"),
                Metric("batch sharpness error", "", "neither", "standard error over the batches"),
                Metric("small-batch edge", "", "neither", "2(1 − β)/lr, where it settles in small batches"),
                Metric("large-batch edge", "", "neither", "2(1 + β)/lr, where it settles in large batches"))

    def measure(self, subject: Subject) -> Reading:
        """Take the gradient of each batch, and one Hessian product.

        Raises:
            UserError: when the batch is not known, or two of them are more examples than there are.
        """
        size = self.batch or subject.snapshot.batch
        if size is None:
            raise UserError("BatchSharpness: it is not known in which batches this model was trained: write their "
                            "size, BatchSharpness(batch=32)")
        count = len(subject.batch) // size
        if count < 2:
            raise UserError(f"BatchSharpness: its error needs two batches of {size} examples; got "
                            f"{len(subject.batch)} examples: raise examples or lower batch")
        whole = torch.arange(count * size, device=subject.device)
        ratios = []
        for batch in shuffled_parts(subject.take(whole), count):  # one Hessian at a time, as each keeps a graph
            hessian = Hessian(subject.model, subject.loss, batch.inputs, batch.targets, parameters=subject.trained,
                              call=subject.task.outputs)
            g = hessian.gradient()
            ratios.append(g @ hessian(g) / (g @ g))  # nan where the gradient is 0: no step, and no direction
        each = to_numpy(torch.stack(ratios).double())
        kept = each[np.isfinite(each)]
        if len(kept) < 2:
            return Reading({}, silence="fewer than two batches have a gradient other than 0")
        found = mean_interval(kept, CONFIDENCE)
        values: dict[str, Value] = {"batch sharpness": found.estimate,
                                    "batch sharpness error": float(kept.std(ddof=1) / np.sqrt(len(kept)))}
        edges = _edges(rule_in_use(subject.snapshot), steps_made(subject.snapshot))
        values |= dict(zip(("small-batch edge", "large-batch edge"), edges, strict=False))
        return Reading(values, {"batch sharpness interval": np.array([found.low, found.high]), "batches": each,
                                "batch size": np.array(size)})


def _edges(rule: Rule | None, step: int) -> tuple[float, ...]:
    """Return both edges of SGD or Momentum, also inside Scheduled and Rounded; none for other rules."""
    if rule is None:
        return ()
    try:
        inner, factor, decay = bare(rule, step)
        inner = practical(inner) if isinstance(inner, Momentum) else inner
        if not isinstance(inner, SGD) or inner.nesterov or decay or factor == 0:
            return ()
        return batch_edges(float(inner.lr) * factor, float(inner.momentum))  # type: ignore[arg-type]
    except (UserError, TypeError):  # one rule a member
        return ()
