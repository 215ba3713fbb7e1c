"""What is known of a comparison before it trains: whether every arm can step, what is measured, how long."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from optscope.engine.plan import Plan
from optscope.engine.rehearsal import Rehearsal, rehearse
from optscope.errors import UserError
from optscope.optim.rounding import Rounded
from optscope.optim.rule import Rule
from optscope.probes.probe import Probe
from optscope.protocol.comparison import TWINS, Arm, Comparison
from optscope.tasks.task import Task

FEW = 200
"""A training of fewer steps is said to be short."""


@dataclass(frozen=True)
class Rehearsed:
    """A comparison that can be run, and sentences on it.

    `known` belongs into a report too; `before` is told before the work starts, for afterwards more is known.
    `seconds` is the time of a step of each arm.
    """

    comparison: Comparison
    known: Sequence[str]
    before: Sequence[str]
    seconds: Mapping[str, float]


def rehearsed(comparison: Comparison, rehearse: Callable[..., Rehearsal] = rehearse) -> Rehearsed:
    """Return the comparison without what cannot be measured, and what is to be said of it.

    On every task its arms make a few steps, and every probe is taken of an untrained model. Probes that stop with
    an error, and twins of arms whose step cannot be taken inside a combinator, are left out. `rehearse` finds that,
    or looks into a folder that knows it (`Remembered.rehearse`).

    Raises:
        UserError: naming an arm that cannot step a parameter, or saying why validation measures nothing.
    """
    by_task: dict[int, tuple[Task, list[Arm]]] = {}
    for arm in comparison.arms:
        task = arm.task or comparison.task
        by_task.setdefault(id(task), (task, []))[1].append(arm)
    known: list[str] = []
    before: list[str] = []
    broken: dict[Probe, str] = {}
    single: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for task, arms in by_task.values():
        found = rehearse(task, {arm.name: smallest(arm) for arm in arms}, comparison.plan,
                         (comparison.validation, *comparison.probes, *comparison.described),
                         (*comparison.watched, *comparison.at_end),
                         (lambda rule: Rounded(rule, TWINS[0])) if comparison.twin_seeds else None,
                         comparison.place)
        _check_validation(comparison, task, found)
        before.append(f"{comparison.name}: {planned(task, comparison.plan)}")
        before += [f"{task.name}: nothing is measured of an untrained model by {_listed(probes)}: {why}"
                   for why, probes in _by_reason(found.silent).items()]
        known += [*(f"{comparison.name}: {short}" for short in _short(task, comparison.plan)), *found.said]
        broken |= found.broken
        single |= found.single
        seconds |= found.seconds
    before.append(f"{comparison.name}: {trainings(replace(comparison, single=tuple(single)))}")
    known += [f"{probe!r} is left out: of an untrained model, {why}" for probe, why in broken.items()]
    known += [f"{arm} has no rounding twins: {why}" for arm, why in single.items()]
    probes, described, watched, at_end = (tuple(probe for probe in probes if probe not in broken) for probes in (
        comparison.probes, comparison.described, comparison.watched, comparison.at_end))
    left = replace(comparison, probes=probes, described=described, watched=watched, at_end=at_end,
                   single=tuple(single))
    return Rehearsed(left, list(dict.fromkeys(known)), list(dict.fromkeys(before)), seconds)


def _by_reason(silent: Mapping[Probe, str]) -> dict[str, list[Probe]]:
    found: dict[str, list[Probe]] = {}
    for probe, why in silent.items():
        found.setdefault(why, []).append(probe)
    return found


def _listed(probes: Sequence[Probe]) -> str:
    *first, last = map(repr, probes)
    return f"{', '.join(first)} and {last}" if first else last


def smallest(arm: Arm) -> Rule:
    """Return the candidate of an arm with the lowest learning rate."""
    return min(arm.candidates() or [arm.rule], key=lambda rule: float(rule.lr))  # type: ignore[arg-type]


def _check_validation(comparison: Comparison, task: Task, found: Rehearsal) -> None:
    why = found.broken.get(comparison.validation) or found.silent.get(comparison.validation)
    if why:
        raise UserError(f"{task.name}: learning rates are chosen by {comparison.validation!r}, which measures "
                        f"nothing of an untrained model: {why}")


def planned(task: Task, plan: Plan) -> str:
    """Return what a plan makes of a task: epochs, steps, and the examples left out."""
    examples = task.data().train.size
    if examples is None or plan.epochs is None:
        batch = min(plan.batch, examples or plan.batch)
        return f"{count_of(plan.total(examples), 'step')} on {batch} examples each"
    batch, each = min(plan.batch, examples), plan.per_epoch(examples)
    left = examples - each * batch
    waiting = f"; {left} of {examples} examples, others each time, are left out of an epoch" if left else ""
    return (f"{count_of(plan.epochs, 'epoch')} of {count_of(each, 'step')} on {batch} examples each make "
            f"{count_of(plan.total(examples), 'step')}{waiting}")


def trainings(comparison: Comparison) -> str:
    """Return how many trainings a comparison takes, and what each is for."""
    choosing = sum(len(arm.candidates()) for arm in comparison.arms) * len(comparison.tuning_seeds)
    compared = len(comparison.arms) * len(comparison.seeds)
    twins = (len(comparison.arms) - len(comparison.single)) * len(comparison.twin_seeds) * len(TWINS)
    more = ", and more while a best rate lies at an end" if choosing and comparison.widen else ""
    parts = [f"{choosing} to choose learning rates{more}" * bool(choosing), f"{compared} that are compared",
             f"{twins} with steps rounded otherwise" * bool(twins)]
    return f"{count_of(choosing + compared + twins, 'training')}: {'; '.join(part for part in parts if part)}"


def _short(task: Task, plan: Plan) -> list[str]:
    examples = task.data().train.size
    steps = plan.total(examples)
    found = []
    if examples is not None and plan.batch > examples:
        found.append(f"a batch of {plan.batch} was asked for; there are {examples} training examples, "
                     "and every step sees all of them.")
    if steps < FEW:
        found.append(f"{count_of(steps, 'step')} in all, fewer than {FEW}, may be too few for any optimiser: "
                     f"{_longer(plan, examples)}.")
    return found


def _longer(plan: Plan, examples: int | None) -> str:
    """Return by what a plan that is too short makes enough steps: the fewest epochs, or the largest batch."""
    if examples is None or plan.epochs is None:
        return f"give {FEW} steps or more"
    epochs = math.ceil(FEW / plan.per_epoch(examples))
    batch = examples // math.ceil(FEW / plan.epochs)
    return f"give {epochs} epochs or more" + f", or a batch of {batch} or fewer" * (batch > 0)


def count_of(n: int, what: str) -> str:
    """Return a number with its noun: 1 step, 2 steps."""
    return f"{n} {what}{'s' * (n != 1)}"
