"""Rounding twins of every learning rate: trainings that differ in the rounding of their steps alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from optscope.engine.place import Place
from optscope.engine.plan import Plan
from optscope.engine.rehearsal import rehearse
from optscope.engine.run import Call
from optscope.engine.saving import Saving
from optscope.engine.weight_paths import log_spaced, weight_paths
from optscope.errors import UserError
from optscope.evidence.records import Record, measured
from optscope.optim import Rounded, Rule
from optscope.probes.probe import Memory, Reading
from optscope.protocol.comparison import TWINS, VALIDATION, Arm, Calls
from optscope.protocol.kits import kit_of
from optscope.protocol.rehearse import planned, smallest
from optscope.protocol.settings import Settings
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

KS = (1, *TWINS)
"""The divisors of the twins of one seed."""


def metric_of(task: Task) -> tuple[str, str]:
    """Return what is measured on validation data, and its unit."""
    return ("accuracy", "%") if task.about.pairs else ("loss", "")


def calls(task: Task, settings: Settings, arms: Sequence[Arm]) -> Calls:
    """Return the trainings of every arm at each of its learning rates, on every seed, with all divisors.

    Raises:
        UserError: when the task is a game, whose players have a rule each, or several ranks are asked for.
    """
    if not kit_of(task).twins:
        raise UserError(f"{task.name} is a game; rounding twins need one model and one rule: give another task")
    if settings.ranks > 1:
        raise UserError(f"rounding twins of one seed advance in turn, in one process; got ranks={settings.ranks}: "
                        "leave it out")
    plan, place = settings.plan, settings.place
    return Calls("rounding", [
        Call(twins, {"arm": arm.name, "task": task, "rule": rule, "plan": plan, "seed": seed, "place": place},
             place=place)
        for seed in range(1, settings.seeds + 1) for arm in arms for rule in arm.candidates() or [arm.rule]])


def rehearsed(task: Task, settings: Settings, arms: Sequence[Arm]) -> list[str]:
    """Let every arm and its twin make a few steps, and return what a reader should know first.

    Raises:
        UserError: naming an arm that cannot step a parameter or has no twins.
    """
    found = rehearse(task, {arm.name: smallest(arm) for arm in arms}, settings.plan, (VALIDATION,),
                     around=lambda rule: Rounded(rule, TWINS[0]), place=settings.place)
    for why in (*found.broken.values(), *found.silent.values(), *found.single.values()):
        raise UserError(f"{task.name}: {why}")
    return [f"{task.name}: {planned(task, settings.plan)}", *found.said]


def twins(arm: str, task: Task, rule: Rule, plan: Plan, seed: int,
          place: Place, saving: Saving | None = None) -> tuple[list[Record], Mapping[str, NDArray[Any]]]:
    """Train one rule with every divisor k, a factor, from one seed; rows have the learning rate as coordinate."""
    total, lr = plan.total(task.data().train.size), float(rule.lr)  # type: ignore[arg-type]
    metric, _ = metric_of(task)

    def look(i: int, snapshot: Snapshot, memory: Memory) -> Reading | None:
        return VALIDATION(snapshot) if snapshot.step == total else None

    rules = [Rounded(rule, k) for k in KS]
    found = weight_paths(task, rules, plan, seed, at={*log_spaced(total), total}, watch=look, saving=saving,
                         place=place)
    results = [float(seen[total].values[metric]) if total in seen else math.nan  # type: ignore[arg-type]
               for seen in found.seen]
    mean = found.distance.mean(0)
    rows = [measured(arm, seed, metric, results[i], lr, k=k) for i, k in enumerate(KS)]
    return ([*rows, measured(arm, seed, "distance", float(mean[-1]), at=lr)],
            {f"{arm}/{lr:g}/{seed}/steps": found.steps, f"{arm}/{lr:g}/{seed}/distance": mean})
