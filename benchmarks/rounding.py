"""B10: how much rounding does to a training, against one training and against two by hand."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from benchmarks.timing import Contender, interleave, rows
from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.engine.weight_paths import apart, flat, log_spaced, weight_paths
from optscope.optim import SGD, Rounded
from optscope.tasks.fresh import epoch_permutation, fresh_model, streams
from optscope.tasks.images import FashionMNIST
from optscope.tasks.models import MLP
from optscope.tasks.task import Task

TASK = Task("fashion-mnist", MLP(), FashionMNIST())
RULE = SGD(lr=0.1, momentum=0.9)
PLAN = Plan(epochs=2, batch=128)
SEED, K, LR, MOMENTUM = 1, 3, 0.1, 0.9
NEAR = 3.0
"""Distances of two programs that round alike but not equally agree within this factor."""


def one() -> object:
    """Train once."""
    return train(TASK, RULE, PLAN, SEED)


def twins() -> list[float]:
    """Train twins, and return their distance at the moments of `log_spaced`."""
    found = weight_paths(TASK, [Rounded(RULE, 1), Rounded(RULE, K)], PLAN, SEED)
    return [float(d) for d in found.distance[0]]


def by_hand(k: int = K) -> list[float]:
    """Train twins as one writes it: two models in one loop, the step divided by k, compared as often as ours."""
    part = TASK.data().train
    models = [fresh_model(TASK, SEED) for _ in range(2)]
    buffers: list[list[torch.Tensor | None]] = [[None for _ in model.parameters()] for model in models]
    order, distances = streams(SEED)[1], []
    per_epoch, moments = PLAN.per_epoch(len(part)), log_spaced(PLAN.total(len(part)))
    for step in range(PLAN.total(len(part))):
        if step % per_epoch == 0:
            permutation = epoch_permutation(len(part), order, step // per_epoch)
        first = (step % per_epoch) * PLAN.batch
        batch = permutation[first:first + PLAN.batch]
        x, y = part.inputs[batch], part.targets[batch]
        for model, buffer, divisor in zip(models, buffers, (1, k), strict=True):
            model.zero_grad()
            TASK.loss(model(x), y).backward()
            with torch.no_grad():
                for i, p in enumerate(model.parameters()):
                    assert p.grad is not None
                    kept = buffer[i]
                    buffer[i] = d = p.grad.clone() if kept is None else kept.mul_(MOMENTUM).add_(p.grad)
                    p.add_(d / divisor, alpha=-LR * divisor)
        if step + 1 in moments:
            distances.append(apart(flat(models[0]), flat(models[1]))[0])
    return distances


def b10() -> dict[str, Any]:
    """Measure twins, once their distance is found near that of the loop by hand, and the control's zero."""
    ours, theirs = twins(), by_hand()
    ratio = max(ours[0] / theirs[0], theirs[0] / ours[0])
    control = weight_paths(TASK, [Rounded(RULE, 1), Rounded(RULE, 2)], PLAN, SEED).distance.max()
    if not (ratio < NEAR and control == 0 and max(by_hand(2)) == 0):
        raise AssertionError(f"after one step twins are {ours[0]:.1e} apart, by hand {theirs[0]:.1e}; "
                             f"the control is {control:.1e}")
    answer = f"{ours[0]:.1e} apart after one step, {ours[-1]:.1e} after {PLAN.total(8000)}; k = 2: 0"
    contenders = [
        Contender("optscope, one training", version("optscope"), "", one),
        Contender("optscope, rounding twins", version("optscope"), answer, twins),
        Contender("twins in a loop by hand", torch.__version__, f"{theirs[0]:.1e} apart after one step", by_hand)]
    times = interleave(contenders, rounds=7)
    return {"bar": "B10", "work": "rounding twins of an MLP, two epochs of 8,000 images; ratios to one training",
            "rows": rows(contenders, times),
            "ratio": {c.who: times.ratio(c.who, contenders[0].who) for c in contenders[1:]},
            "limit": {contenders[1].who: 2.2}}
