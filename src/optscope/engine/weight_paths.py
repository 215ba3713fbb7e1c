"""Weight paths: trainings that differ in their rule alone, and how far their weights part on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optscope.engine.place import CPU, Place
from optscope.engine.plan import Plan
from optscope.engine.saving import Saving
from optscope.engine.training import Trained, Training
from optscope.errors import UserError
from optscope.optim.rule import Rule
from optscope.probes.probe import Memory, Reading
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import InMemory, Task

Array = NDArray[np.float64]

CHUNK = 2**14
"""Weights are compared so many at a time: larger temporaries are given back to the system and cost page faults."""
TURN = 20
"""How many steps each makes before the next one does, where somebody waits to save them."""


Watcher = Callable[[int, Snapshot, Memory], Reading | None]
"""Who looks at a training on the way: its rule's number, a snapshot, and the memory of its reading before."""


@dataclass(frozen=True)
class WeightPaths:
    """What trainings of several rules from one seed left, and how far each had gone from the first.

    `distance` and `relative` are `(rules − 1, moments)`, after `steps` steps `(moments,)`: the mean over weights of
    2|w₁ − w|/(|w₁| + |w|), from 0 (equal) to 2 (opposite), and ‖w₁ − w‖/‖w₁‖; nan once either has diverged.
    `seen` are the readings of a watcher for each rule, by step.
    """

    steps: NDArray[np.int64]
    distance: Array
    relative: Array
    trained: tuple[Trained, ...]
    seen: tuple[Mapping[int, Reading], ...]


def ignore(rule: int, snapshot: Snapshot, memory: Memory) -> None:
    """Watch nothing."""


class Together:
    """Trainings of several rules from one seed, which advance in turn and are compared at every moment.

    Initialisation, batches and noise depend on the seed alone, so the trainings see the same. As one `Training` can
    be, they can be stopped, saved and resumed to the bit; one that diverges stays where it is, and they end when
    all have.

    Raises:
        UserError: for fewer than two rules.
    """

    def __init__(self, task: Task, rules: Sequence[Rule], plan: Plan, seed: int, *,
                 at: Collection[int] | None = None, watch: Watcher = ignore, place: Place = CPU) -> None:
        if len(rules) < 2:
            raise UserError(f"paths are compared of two rules or more; got {len(rules)}")
        self.members = [Training(task, rule, plan, seed, place) for rule in rules]
        self.model = nn.ModuleList(each.model for each in self.members)
        self.step, self.total = 0, self.members[0].total
        self.moments = sorted(log_spaced(self.total) if at is None else at)
        self._watch = watch
        self._found = np.full((2, len(rules) - 1, len(self.moments)), math.nan)
        self._seen: list[dict[int, Reading]] = [{} for _ in rules]
        self._memory: list[Memory] = [{} for _ in rules]

    @property
    def diverged_at(self) -> int | None:
        """The last step at which one diverged, if all have."""
        ends = [each.diverged_at for each in self.members]
        return None if None in ends else max(end for end in ends if end is not None)

    def advance(self, until: int, *, seconds: float = math.inf) -> bool:
        """Make steps up to `until`, or at least one and for about so many seconds; return whether any goes on."""
        until, deadline = min(until, self.total), time.monotonic() + seconds
        while self.step < until and self.diverged_at is None:
            ahead = [moment for moment in self.moments if moment > self.step]
            goal = min(until, *ahead[:1], self.total if math.isinf(seconds) else self.step + TURN)
            for each in self.members:
                each.advance(goal)
            self.step = goal
            if goal in self.moments:
                self._compare(self.moments.index(goal))
            if time.monotonic() >= deadline:
                break
        return self.diverged_at is None

    def _compare(self, moment: int) -> None:
        first = None
        for i, each in enumerate(self.members):
            if each.diverged_at is not None:
                continue
            with each.looked_at() as snapshot:
                weights = flat(snapshot.model)
                if i == 0:
                    first = weights
                elif first is not None:
                    self._found[:, i - 1, moment] = apart(first, weights)
                reading = self._watch(i, snapshot, self._memory[i])
            if reading is not None:
                self._seen[i][self.step], self._memory[i] = replace(reading, memory={}), reading.memory

    @contextmanager
    def looked_at(self) -> Iterator[Snapshot]:
        """Show the first."""
        with self.members[0].looked_at() as snapshot:
            yield snapshot

    def state_dict(self) -> dict[str, Any]:
        """Return all that the same trainings go on from."""
        seen = [[[step, dict(r.values), dict(r.arrays), r.silence] for step, r in each.items()]
                for each in self._seen]
        return {"step": self.step, "found": self._found, "seen": seen, "memory": [dict(m) for m in self._memory],
                "members": [each.state_dict() for each in self.members]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from the state of the same trainings."""
        for each, state in zip(self.members, saved["members"], strict=True):
            each.load_state_dict(state)
        self.step, self._found, self._memory = saved["step"], saved["found"], saved["memory"]
        self._seen = [{step: Reading(*reading) for step, *reading in each} for each in saved["seen"]]

    def paths(self) -> WeightPaths:
        """Return what they left."""
        return WeightPaths(np.array(self.moments), self._found[0], self._found[1],
                           tuple(each.trained() for each in self.members), tuple(self._seen))


def weight_paths(task: Task, rules: Sequence[Rule], plan: Plan, seed: int, *, at: Collection[int] | None = None,
                 watch: Watcher = ignore, saving: Saving | None = None, place: Place = CPU) -> WeightPaths:
    """Train by every rule from one seed, and compare weights with the first's after `at` steps.

    Moments are spaced evenly in the logarithm unless given. `watch` is called with a rule's number and its snapshot
    at every moment; its readings are kept. With the `saving` of a call, a killed one goes on from where it was.

    Raises:
        UserError: for fewer than two rules.
    """
    task = replace(task, data=InMemory(task.data()))
    make = partial(Together, task, rules, plan, seed, at=at, watch=watch, place=place)
    together = saving.advanced(make) if saving else make()
    together.advance(together.total)
    return together.paths()


def log_spaced(total: int, per_decade: int = 12) -> list[int]:
    """Return numbers of steps from 1 to `total`, evenly spaced in the logarithm, without repetition.

    >>> log_spaced(10, per_decade=3)
    [1, 2, 5, 10]
    """
    count = max(2, round(per_decade * math.log10(max(total, 1))) + 1)
    return sorted({round(total ** (i / (count - 1))) for i in range(count)})


def flat(model: nn.Module) -> Tensor:
    """Return a copy of the trained parameters of a model, joined, `(P,)`; frozen ones would dilute distances."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


def apart(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return mean 2|a − b|/(|a| + |b|), 0 where both are 0, and ‖a − b‖/‖a‖, of two vectors `(P,)`.

    >>> apart(torch.tensor([1.0, 0.0, -2.0]), torch.tensor([1.0, 0.0, 2.0]))
    (0.6666..., 1.7888...)
    """
    mean = square = whole = 0.0
    for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
        gap, size = (x - y).abs_(), x.abs().add_(y.abs())
        square += float(gap.square().sum(dtype=torch.float64))
        whole += float(x.square().sum(dtype=torch.float64))
        mean += float(gap.div_(size.clamp_min_(torch.finfo(size.dtype).tiny)).sum(dtype=torch.float64))
    return 2 * mean / len(a), math.sqrt(square / whole) if whole else math.nan
