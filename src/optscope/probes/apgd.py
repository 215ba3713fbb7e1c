"""APGD: projected gradient ascent that chooses its own steps, untargeted or towards each rival class in turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from optscope.probes.attack import Attack, Batch, check_counts, in_turn, worth_leaving
from optscope.probes.attack_losses import AttackLoss, CrossEntropy, TargetedDLR
from optscope.probes.perturbation import per_example

Objective = Callable[[Tensor, Tensor], Tensor]
"""The losses `(m,)` from the logits `(m, C)` of the images `where` `(m,)` of a batch."""

MOMENTUM, RHO = 0.75, 0.75  # arXiv 2003.01690, section 3.1 and 3.2


@final
@dataclass(frozen=True, repr=False)
class APGD(Attack):
    """Gradient ascent with momentum whose step eta starts at 2 eps and is halved where progress stalls.

    z = P(x_k + eta u),  x_{k+1} = P(x_k + alpha (z - x_k) + (1 - alpha) (x_k - x_{k-1})),  alpha = 0.75.
    At each checkpoint eta is halved, and the search goes on from the best point, when fewer than 75 % of the
    steps since the last one raised the loss, or when neither eta nor the best loss has changed since then.
    arXiv 2003.01690, algorithm 1.

    Raises:
        UserError: unless steps and restarts are whole numbers >= 1.
    """

    loss: AttackLoss = CrossEntropy()  # noqa: RUF009 - frozen
    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        check_counts(self, "steps", "restarts")

    def search(self, batch: Batch) -> Tensor:
        """Return the first fooling iterate of each image, else the one of largest loss."""
        return in_turn(batch, [self._climb] * self.restarts)

    def longer(self, times: int) -> APGD:
        """Return the attack with `times` the steps."""
        return replace(self, steps=times * self.steps)

    def _climb(self, batch: Batch) -> Tensor:
        labels = batch.labels
        return climb(batch, lambda logits, where: self.loss(logits, labels[where]), self.steps)


@final
@dataclass(frozen=True, repr=False)
class TargetedAPGD(Attack):
    """APGD on the targeted ratio of logits, towards each of the `rivals` classes likeliest on the clean image.

    Any mistake counts, not only the class aimed at. arXiv 2003.01690, section 4.

    Raises:
        UserError: unless rivals and steps are whole numbers >= 1.
    """

    rivals: int = 9
    steps: int = 100

    def __post_init__(self) -> None:
        check_counts(self, "rivals", "steps")

    def search(self, batch: Batch) -> Tensor:
        """Return the first fooling iterate of each image, else the best one on the way to its last rival."""
        others = batch.logits(batch.inputs[:1]).shape[1] - 1
        return in_turn(batch, [partial(self._towards, rank) for rank in range(1, min(self.rivals, others) + 1)])

    def longer(self, times: int) -> TargetedAPGD:
        """Return the attack with `times` the steps."""
        return replace(self, steps=times * self.steps)

    def _towards(self, rank: int, batch: Batch) -> Tensor:
        goals = batch.logits(batch.inputs).argsort(dim=1, descending=True)[:, rank]
        labels, loss = batch.labels, TargetedDLR()
        return climb(batch, lambda logits, where: loss(logits, labels[where], goals[where]), self.steps)


@dataclass
class _Climb:
    """Where the images that have not left yet stand; every tensor has one row an image."""

    done: Tensor  # (m,) whether it is fooled
    found: Tensor  # where it first was
    where: Tensor  # (m,) their places in the batch
    x: Tensor
    before: Tensor  # the iterate before x
    gradient: Tensor
    loss: Tensor  # (m,) at x
    best: Tensor
    best_loss: Tensor  # (m,)
    best_gradient: Tensor
    eta: Tensor  # (m, 1, ...) length of a step in radii
    rises: Tensor  # (m,) steps that raised the loss since the last checkpoint
    last_best: Tensor  # (m,) best loss at the last checkpoint
    halved: Tensor  # (m,) whether eta was halved there

    def take(self, places: Tensor) -> _Climb:
        return _Climb(**{name: value[places] for name, value in vars(self).items()})

    def keep(self, fooled: Tensor) -> None:
        """Note who is fooled for the first time, and where."""
        self.found = torch.where(per_example(self.done, self.found), self.found, self.x)
        self.done = self.done | fooled

    def advance(self, batch: Batch, objective: Objective, alpha: float) -> Tensor:
        """Take one step and return which images are fooled there, `(m,)`."""
        z = batch.step(self.x, batch.ball.steepest(self.gradient), self.eta)
        x = batch.ball.project(self.x + alpha * (z - self.x) + (1 - alpha) * (self.x - self.before))
        fooled, loss, gradient = batch.ascent(x, lambda logits: objective(logits, self.where))
        self.rises = self.rises + (loss > self.loss)
        better = loss > self.best_loss
        self.best = torch.where(per_example(better, x), x, self.best)
        self.best_gradient = torch.where(per_example(better, x), gradient, self.best_gradient)
        self.best_loss = torch.maximum(loss, self.best_loss)
        self.before, self.x, self.loss, self.gradient = self.x, x, loss, gradient
        return fooled

    def check(self, window: int) -> None:
        """Halve the steps of the images whose search stalled over the last `window` steps."""
        stalled = (self.rises < RHO * window) | (~self.halved & (self.best_loss <= self.last_best))
        wide = per_example(stalled, self.x)
        self.eta = torch.where(wide, self.eta / 2, self.eta)
        self.x = torch.where(wide, self.best, self.x)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.loss = torch.where(stalled, self.best_loss, self.loss)
        self.rises = torch.zeros_like(self.rises)
        self.last_best, self.halved = self.best_loss, stalled


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which APGD looks back: w_j = ceil(p_j steps), p_{j+1} - p_j shrinking from 0.22 to 0.06.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    before, at, found = 0.0, 0.22, []
    while (step := math.ceil(round(at * steps, 9))) <= steps:
        found.append(step)
        before, at = at, at + max(at - before - 0.03, 0.06)
    return found


def climb(batch: Batch, objective: Objective, steps: int) -> Tensor:
    """Return the first fooling iterate of each image on APGD's path from a random start, else its best one."""
    found = x = batch.ball.sample(batch.generator)
    where = torch.arange(len(batch), device=x.device)
    fooled, loss, gradient = batch.ascent(x, lambda logits: objective(logits, where))
    state = _Climb(torch.zeros_like(fooled), x, where, x, x, gradient, loss, x, loss, gradient,
                   torch.full_like(batch.ball.eps, 2), torch.zeros_like(where), loss, torch.ones_like(fooled))
    checks, last = checkpoints(steps), 0
    for step in range(steps + 1):
        if step > 0:
            fooled = state.advance(batch, objective, MOMENTUM if step > 1 else 1.0)
        state.keep(fooled)
        if (stay := worth_leaving(state.done, step)) is not None:
            found = found.index_copy(0, state.where, state.found)
            state, batch = state.take(stay), batch.take(stay)
            if len(batch) == 0:
                return found
        if step in checks:
            state.check(step - last)
            last = step
    last_of = torch.where(per_example(state.done, state.best), state.found, state.best)
    return found.index_copy(0, state.where, last_of)
