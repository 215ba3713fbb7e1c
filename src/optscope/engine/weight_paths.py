"""Weight paths: trainings that differ in their rule alone, and how far their weights part on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.engine.training import Trained
from optscope.errors import UserError
from optscope.optim.rule import Rule
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import InMemory, Task

Array = NDArray[np.float64]

CHUNK = 2**14
"""Weights are compared so many at a time: larger temporaries are given back to the system and cost page faults."""


@dataclass(frozen=True)
class WeightPaths:
    """What trainings of several rules from one seed left, and how far each had gone from the first.

    `distance` and `relative` are `(rules − 1, moments)`, after `steps` steps `(moments,)`: the mean over weights of
    2|w₁ − w|/(|w₁| + |w|), from 0 (equal) to 2 (opposite), and ‖w₁ − w‖/‖w₁‖; nan once either has diverged.
    """

    steps: NDArray[np.int64]
    distance: Array
    relative: Array
    trained: tuple[Trained, ...]


def ignore(rule: int, snapshot: Snapshot) -> None:
    """Watch nothing."""


def weight_paths(task: Task, rules: Sequence[Rule], plan: Plan, seed: int, *, at: Collection[int] | None = None,
                 watch: Callable[[int, Snapshot], None] = ignore) -> WeightPaths:
    """Train by every rule from one seed, and compare weights with the first's after `at` steps.

    Initialisation, batches and noise depend on the seed alone, so the trainings see the same; as they repeat to
    the bit, they are made one after the other, and only the weights of the first at the moments are kept (four
    bytes a parameter and moment). Moments are spaced evenly in the logarithm unless given. `watch` is called with
    a rule's number and its snapshot at every moment.

    Raises:
        UserError: for fewer than two rules.
    """
    if len(rules) < 2:
        raise UserError(f"paths are compared of two rules or more; got {len(rules)}")
    task = replace(task, data=InMemory(task.data()))
    total = plan.total(task.data().train.size)
    moments = sorted(log_spaced(total) if at is None else at)
    first: dict[int, Tensor] = {}
    found = np.full((2, len(rules) - 1, len(moments)), math.nan)
    trained = []
    for i, rule in enumerate(rules):
        def look(snapshot: Snapshot, i: int = i) -> None:
            step, weights = int(snapshot.step or 0), flat(snapshot.model)
            if i == 0:
                first[step] = weights
            elif step in first:
                found[:, i - 1, moments.index(step)] = apart(first[step], weights)
            watch(i, snapshot)

        trained.append(train(task, rule, plan, seed, watch=look, at=frozenset(moments)))
    return WeightPaths(np.array(moments), found[0], found[1], tuple(trained))


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
