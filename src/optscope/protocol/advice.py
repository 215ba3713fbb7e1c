"""The momentum advisor: whether a task needs momentum, foretold by one short run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from optscope.engine.place import CPU, Place
from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.engine.watch import Watch
from optscope.errors import UserError
from optscope.optim import SGD, Momentum, Rule, matched
from optscope.optim.momentum import momentum_of
from optscope.probes.curvature import TopEigenvalues
from optscope.probes.gradient_noise import DescentSplit, effective_rate
from optscope.probes.probe import Memory
from optscope.probes.rule_in_use import rule_in_use
from optscope.tasks.check import check_task
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.theory.momentum import Regime, noise_left, regime

MOMENTS = 8
"""How often along the run curvature and noise are measured."""

_FORETOLD: dict[Regime, str] = {
    "noise": "gradient noise limits this run; SGD without momentum should do as well",
    "between": "neither noise nor curvature clearly limits this run, or it is too short to tell (under 20/(1 − β) "
               "steps); only a comparison can",
    "curvature": "curvature is above twice what SGD of this rate bears, so SGD may well fail at it; keep momentum, "
                 "lower the rate, or compare"}


@dataclass(frozen=True)
class Advice:
    """What one run with momentum showed.

    `product` is the largest ηλ on the way, of the effective rate and the largest eigenvalue of the Hessian; the
    terms are what curvature and noise add to the loss in one step, means over the moments; `memories` is the length
    of the run, in steps times 1 − β; `memory` is what the buffer takes, in bytes; `instead` is the SGD that moves
    alike.
    """

    rule: Rule
    instead: Rule
    product: float
    curvature_induced: float
    noise_induced: float
    memories: float
    memory: int

    @property
    def predicted(self) -> Regime:
        """What limits the run."""
        return regime(self.product, self.curvature_induced, self.noise_induced, self.memories)

    def __str__(self) -> str:
        return (f"{self.rule!r}\n"
                f"largest ηλ on the way: {self.product:.2g} (on a quadratic SGD is stable up to 2; above 4 it "
                f"mostly fails)\n"
                f"added to the loss in a step: {self.noise_induced:.2g} by noise, {self.curvature_induced:.2g} by "
                f"curvature\n"
                f"foretold: {_FORETOLD[self.predicted]}\n"
                f"the buffer takes {size(self.memory)}; the SGD that moves alike is {self.instead!r}")


def advise(task: Task, rule: Rule, plan: Plan, seed: int = 0, *, place: Place = CPU) -> Advice:
    """Train once with momentum, and foretell whether SGD of the same effective rate would do as well.

    It costs the run and eight looks at curvature and noise. How often such predictions are right, under decaying
    rates on images of ten classes, is told by the study `marginal_momentum`.

    Raises:
        UserError: when the task will not do, the rule has no momentum, or the run diverges.
    """
    if not isinstance(rule, (SGD, Momentum)) or momentum_of(rule) == 0:
        raise UserError(f"the advisor needs SGD with momentum, such as SGD(lr=0.01, momentum=0.9); got {rule!r}")
    instead = matched(rule)
    instead = instead.with_(lr=float(f"{instead.lr:.6g}"))  # a rate one can type again
    check_task(task)
    examples = task.data().train.size
    if examples is None:
        raise UserError(f"{task.name}: the advisor needs to know how many training examples there are; got a "
                        "stream: give a part of it, Split.of(list(itertools.islice(stream, n)))")
    batch = min(plan.batch, examples)
    sharp, split = TopEigenvalues(rel=0.05, margin=2), DescentSplit(batch=batch)
    memory: Memory = {}
    products: list[float] = []
    terms: list[tuple[float, float]] = []

    def look(snapshot: Snapshot) -> None:
        nonlocal memory
        top, parts = sharp(snapshot, memory), split(snapshot).values
        memory = top.memory
        rate = effective_rate(rule_in_use(snapshot))
        if rate is None:  # where a schedule is at 0 nothing moves, and there is nothing to foretell
            return
        products.append(rate * float(top.values["sharpness"]))  # type: ignore[arg-type]
        terms.append((float(parts["curvature-induced"]), float(parts["noise-induced"])))  # type: ignore[arg-type]

    total = plan.total(examples)
    trained = train(task, rule, plan, seed, watch=look, at=Watch(sharp, MOMENTS).steps(total), place=place)
    if trained.diverged_at is not None:
        raise UserError(f"{rule!r} diverged at step {trained.diverged_at}: try a smaller learning rate")
    curved, noisy = (statistics.fmean(values) for values in zip(*terms, strict=True))
    return Advice(rule, instead, max(products), curved, noise_left(examples, batch) * noisy,
                  total * (1 - momentum_of(rule)), buffer_bytes(trained.snapshot.model.parameters()))


def buffer_bytes(parameters: Iterable[Tensor]) -> int:
    """Return the memory of one number a trained weight."""
    return sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)


def size(count: int) -> str:
    """Return bytes as they are read.

    >>> size(36_392), size(1_420_000_000)
    ('36.4 kB', '1.42 GB')
    """
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
