"""Training in one call, for whoever does not stop on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection

from optscope.engine.place import CPU, Place
from optscope.engine.plan import Plan
from optscope.engine.training import Trained, Training
from optscope.optim.rule import Rule
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task


def ignore(snapshot: Snapshot) -> None:
    """Watch nothing."""


def train(task: Task, rule: Rule, plan: Plan, seed: int, *, watch: Callable[[Snapshot], None] = ignore,
          at: Collection[int] = (), place: Place = CPU) -> Trained:
    """Train a fresh model of `task` by `rule`, and call `watch` when the number of steps made is in `at`.

    A game needs a rule for each player, `Players`. See `optscope.engine.training.Training`, which this advances to
    its end.

    Raises:
        UserError: see `Training`.
    """
    training = Training(task, rule, plan, seed, place)
    for snapshot in training.snapshots(at):
        watch(snapshot)
    return training.trained()
