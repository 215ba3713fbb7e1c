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
from optscope.probes.rule_in_use import rule_in_use
from optscope.theory.stability import batch_edges


@dataclass(frozen=True, repr=False)
class BatchSharpness(Probe):
    """Measure the mean over batches B of `batch` examples of g_Bᵀ H_B g_B / |g_B|², with its standard error.

    g_B and H_B are gradient and Hessian of the loss of one batch, in eval mode; the examples are shuffled and cut
    into as many batches as there are. Under SGD it settles at about 2/lr, where the full sharpness does not
    (Andreyev and Beneventano 2024, arXiv 2412.20553); with momentum β about the "small-batch edge" 2(1 − β)/lr in
    small batches, and the "large-batch edge" 2(1 + β)/lr in large ones (arXiv 2604.14108). Both are given where the
    rule in use is SGD without Nesterov's momentum, or Momentum; which holds at a batch size has no closed form.

    Arrays: "batch sharpness interval", 95 % (low, high) by Student's t, and "batches", the number of each, `(k,)`.
    It takes one Hessian product a batch. Give `batch` the plan's.

    Raises:
        UserError: unless batch >= 1, and when the examples make fewer than two batches.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "second derivative")
    batch: int = 32
    examples: int | None = field(default=256, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="train", kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise UserError(f"BatchSharpness: batch must be a whole number >= 1; got {self.batch!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Batch sharpness, its error and the two edges."""
        return (Metric("batch sharpness", "", "neither", f"mean gᵀHg/|g|² over batches of {self.batch} examples"),
                Metric("batch sharpness error", "", "neither", "standard error over the batches"),
                Metric("small-batch edge", "", "neither", "2(1 − β)/lr, where it settles in small batches"),
                Metric("large-batch edge", "", "neither", "2(1 + β)/lr, where it settles in large batches"))

    def measure(self, subject: Subject) -> Reading:
        """Take the gradient of each batch, and one Hessian product."""
        count = len(subject.batch) // self.batch
        if count < 2:
            raise UserError(f"BatchSharpness: its error needs two batches of {self.batch} examples; got "
                            f"{len(subject.batch)} examples: raise examples or lower batch")
        whole = torch.arange(count * self.batch, device=subject.device)
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
        edges = _edges(rule_in_use(subject.snapshot), subject.snapshot.step or 0)
        values |= dict(zip(("small-batch edge", "large-batch edge"), edges, strict=False))
        return Reading(values, {"batch sharpness interval": np.array([found.low, found.high]), "batches": each})


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
