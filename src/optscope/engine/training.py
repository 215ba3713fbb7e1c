"""Training is a state that advances: it can be looked at, stopped, saved, and resumed to the bit."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optscope.engine.deal import Deal
from optscope.engine.formats import fast_format, in_format
from optscope.engine.plan import Plan
from optscope.engine.stepping import Stepper
from optscope.engine.traces import Trace, pace
from optscope.engine.weights import load_into
from optscope.errors import UserError
from optscope.optim.rule import Rule
from optscope.optim.trial import check_on
from optscope.tasks.fresh import fresh_model, seeded, streams
from optscope.tasks.objective import Objective
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.tasks.tree import Batch


@dataclass(frozen=True)
class Trained:
    """What training left: the last snapshot, and the step at which it went non-finite (None: it did not).

    Of a game also `traces`, numbers of every round, and `metrics`, what they come to.
    """

    snapshot: Snapshot
    diverged_at: int | None
    traces: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def losses(self) -> Tensor:
        """The training loss of every step, `(steps,)`, of a game `(rounds, players)`; nan after divergence."""
        assert self.snapshot.losses is not None
        return self.snapshot.losses


class Training:
    """One training at one moment: all that changes its bits is here, and `advance` is the only way on.

    Initialisation, data order and training noise (dropout, augmentation, latent vectors) are streams that depend
    on `seed` alone, never on the rule: trainings of one seed are paired. The global random numbers that models draw
    are lent to the training while it advances, and put back. Same seed, thread count, torch and CPU kind give the
    same bits, however often it is stopped, looked at, or saved and loaded on the way.

    `step` counts the steps made (of a game, the rounds), of `total`; `diverged_at` is the first whose loss is not
    finite, or the last if only a weight is not, found once an epoch and at every stop.

    >>> from optscope.optim import SGD
    >>> x, y = torch.rand(60, 4), torch.arange(60) % 2
    >>> task = Task.from_tensors(lambda: nn.Linear(4, 2), (x, y), (x, y))
    >>> training, other = (Training(task, SGD(lr=0.1), Plan(epochs=2, batch=8), seed=1) for _ in range(2))
    >>> training.advance(5), training.step, training.total
    (True, 5, 12)
    >>> other.load_state_dict(training.state_dict())
    >>> training.advance(12) and other.advance(12) and torch.equal(training.losses, other.losses)
    True

    Raises:
        UserError: when the model has no parameters to train, a game has not one rule a player, or the rule holds an
            optimiser that is another one inside a combinator (`optscope.optim.trial.check_on`).
    """

    def __init__(self, task: Task, rule: Rule, plan: Plan, seed: int) -> None:
        self.task, self.rule, self.plan, self.seed = task, rule, plan, seed
        objectives = task.objectives
        try:
            rules = rule.by_player([objective.player for objective in objectives])
        except UserError as error:
            raise UserError(f"{task.name}: {error}") from error
        _, order, noise = streams(seed)
        self.model = fresh_model(task, seed)
        if not any(p.requires_grad for p in self.model.parameters()):
            raise UserError(f"{task.name}: the model has no parameters to train: let some require a gradient")
        self.deal = Deal(task, plan, seed)
        self.total, self.step = self.deal.total, 0
        self.diverged_at: int | None = None
        first = self.deal.part.first(plan.batch)
        if rule.foreign:
            with seeded(order):
                check_inside(task, rules, seed, first)
        self.model.train()
        self._sides = [Side(objective, self.model, rules[objective.player], order + 2 + i, first, self.total)
                       for i, objective in enumerate(objectives)]
        if len(self._sides) > 1:
            for side in self._sides:
                side.trace = Trace(side.params, self.total, side.objective.steps)
        self._finished = False
        with seeded(noise):
            self._numbers = _global_numbers()

    @property
    def losses(self) -> Tensor:
        """The training loss of every step so far, `(step,)`, of a game `(step, players)`."""
        return self._losses()[:self.step]

    def _losses(self) -> Tensor:
        columns = [side.losses for side in self._sides]
        return columns[0] if len(columns) == 1 else torch.stack(columns, dim=1)

    def advance(self, until: int, *, seconds: float = math.inf) -> bool:
        """Make steps up to `until`, or at least one and for about so many seconds; return whether all is finite."""
        until, deadline = min(until, self.total), time.monotonic() + seconds
        with self._lent_numbers():
            while self.step < until and self.diverged_at is None:
                if self.step % self.deal.per_epoch == 0 and not self._is_finite():
                    break
                self._round()
                if time.monotonic() >= deadline:
                    break
        if self.step == self.total:
            self._finish()
        if not self._is_finite():
            self._finish()
        return self.diverged_at is None

    def _round(self) -> None:
        round_, factor = self.step, self.plan.schedule(self.step / self.total)
        if self.task.simultaneous:
            batch, latent = self.deal.batch(round_), self.deal.latent()
            for side in self._sides:
                side.differentiate(self.model, batch, latent, round_)
            for side in self._sides:
                side.move(round_, factor)
        else:
            for side in self._sides:
                for j in range(side.objective.steps):
                    side.differentiate(self.model, self.deal.batch(round_, j), self.deal.latent(), round_, j)
                    side.move(round_, factor, j)
        self.step += 1

    def _is_finite(self) -> bool:
        if self.diverged_at is None:
            self.diverged_at = first_non_finite(self.losses, self.model)
        return self.diverged_at is None

    def _finish(self) -> None:
        """Leave the weights that the optimisers stand for."""
        if not self._finished:
            self._finished = True
            for side in self._sides:
                side.stepper.finish()

    @contextmanager
    def looked_at(self) -> Iterator[Snapshot]:
        """Show the model as it is now; what is done to it there does not change the training."""
        with ExitStack() as looks:
            for side in self._sides if not self._finished else ():
                looks.enter_context(side.stepper.looked_at())
            yield self._snapshot(self.losses)

    def snapshots(self, at: Collection[int]) -> Iterator[Snapshot]:
        """Advance to the end, and yield the snapshot after each number of steps in `at` that is reached."""
        for moment in sorted({*at, self.total}):
            if moment < self.step:
                continue
            if not self.advance(moment):
                return
            if moment in at:
                with self.looked_at() as snapshot:
                    yield snapshot

    def _snapshot(self, losses: Tensor) -> Snapshot:
        alone = self._sides[0].stepper.optimizer if len(self._sides) == 1 else None
        return Snapshot(self.model, self.task, self.seed, self.step, self.rule, alone, losses)

    def trained(self) -> Trained:
        """Return what a training that has ended left."""
        traces = {side.objective.player: side.trace for side in self._sides if side.trace}
        series = {f"{what} {player}": getattr(trace, what) for player, trace in traces.items()
                  for what in Trace.NAMES}
        metrics = pace(traces) if traces and self.diverged_at is None else {}
        losses = self._losses()
        return Trained(self._snapshot(losses), self.diverged_at, {"losses": losses, **series} if traces else {},
                       metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return all that another training of the same task, rule, plan and seed goes on from: it shares memory."""
        return {"step": self.step, "diverged_at": self.diverged_at, "finished": self._finished,
                "model": dict(self.model.state_dict()),
                "sides": [side.state_dict(self.step) for side in self._sides],
                "deal": self.deal.state_dict(), "numbers": self._numbers}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from the state of another training of the same task, rule, plan and seed."""
        load_into(self.model, saved["model"], own=True)
        for side, state in zip(self._sides, saved["sides"], strict=True):
            side.load_state_dict(state)
        self.deal.load_state_dict(saved["deal"])
        self.step, self.diverged_at, self._finished = saved["step"], saved["diverged_at"], saved["finished"]
        self._numbers = saved["numbers"]

    @contextmanager
    def _lent_numbers(self) -> Iterator[None]:
        """Lend the global generators to this training, and put back what they were."""
        theirs = _global_numbers()
        _set_global_numbers(self._numbers)
        try:
            yield
        finally:
            self._numbers = _global_numbers()
            _set_global_numbers(theirs)


class Side:
    """A player in action: its network, its optimiser, and what it has left behind."""

    def __init__(self, objective: Objective, model: nn.Module, rule: Rule, seed: int, first: Batch,
                 total: int) -> None:
        network = objective.network(model)
        self.objective = objective
        self.format = fast_format(network, first.inputs, rule)
        network.to(memory_format=self.format)  # type: ignore[call-overload]
        self.stepper = Stepper(rule, network, seed)
        self.params = [p for p in network.parameters() if p.requires_grad]
        # Alone, it is left to autograd where gradients go: checkpointed activations want it so.
        self._own = self.params if objective.player else None
        self.losses = torch.full((total,), torch.nan, device=self.params[0].device if self.params else None)
        self.trace: Trace | None = None

    def differentiate(self, model: nn.Module, batch: Batch, latent: Tensor | None, round_: int, j: int = 0) -> None:
        """Take the gradient of the player's loss by its own weights; None by those it does not use."""
        for p in self.params:
            p.grad = None
        loss = self.objective.loss(model, in_format(batch, self.format), latent)
        loss.backward(inputs=self._own)
        value = loss.detach()
        if self.objective.steps > 1:  # the mean of the round's
            value = value / self.objective.steps + (self.losses[round_] if j else 0)
        self.losses[round_] = value

    def move(self, round_: int, factor: float, j: int = 0) -> None:
        """Make one step at `factor` times the rate."""
        if self.trace is not None:
            self.trace.before()
        self.stepper.step(factor)
        if self.trace is not None:
            self.trace.after(round_, first=j == 0)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return the optimiser's state, the losses so far, and the trace."""
        return {"stepper": self.stepper.state_dict(), "losses": self.losses[:step],
                "trace": self.trace.state_dict() if self.trace else None}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what another side saved."""
        self.stepper.load_state_dict(saved["stepper"])
        self.losses[:len(saved["losses"])] = saved["losses"]
        if self.trace:
            self.trace.load_state_dict(saved["trace"])


def check_inside(task: Task, rules: Mapping[str, Rule], seed: int, batch: Batch) -> None:
    """Raise if a rule holds an optimiser that is another one inside a combinator, tried on fresh models."""
    deal = Deal(task, Plan(1, max(1, len(batch))), seed)
    for objective in task.objectives:
        model = fresh_model(task, seed).train()
        latent = deal.latent()
        check_on(rules[objective.player], objective.network(model),
                 partial(_of_whole, objective, model, batch.copy(), latent))


def _of_whole(objective: Objective, model: nn.Module, batch: Batch, latent: Tensor | None,
              network: nn.Module) -> Tensor:
    """Return a player's loss: its network is a part of the model."""
    return objective.loss(model, batch, latent)


def first_non_finite(losses: Tensor, model: nn.Module) -> int | None:
    """Return the first step whose loss, or the last if only a weight, is not finite; None if all are."""
    sums = [p.detach().sum() for p in model.parameters()]  # finite only if all values are, 30 times as fast to know
    if bool(torch.stack([torch.isfinite(each).all() for each in (losses, *sums)]).all()):
        return None
    bad = (~torch.isfinite(losses).reshape(len(losses), -1).all(1)).nonzero()
    if len(bad):
        return int(bad[0])
    return None if all(bool(torch.isfinite(p).all()) for p in model.parameters()) else len(losses) - 1


def _global_numbers() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_global_numbers(numbers: tuple[Any, ...]) -> None:
    torch.set_rng_state(numbers[0])
    np.random.set_state(numbers[1])
    random.setstate(numbers[2])
