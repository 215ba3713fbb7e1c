"""Training is a state that advances: it can be looked at, stopped, saved, and resumed to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from optscope.engine.average import SWA, Averaged
from optscope.engine.compiled import Compiled, check_taken
from optscope.engine.deal import Deal
from optscope.engine.place import CPU, Place, memory_told
from optscope.engine.plan import Plan
from optscope.engine.seat import ALONE, Seat
from optscope.engine.side import Side
from optscope.engine.traces import Trace, pace
from optscope.engine.weights import load_into
from optscope.errors import UserError
from optscope.optim.rates import has_modes
from optscope.optim.rule import Rule
from optscope.optim.trial import check_on
from optscope.tasks.fresh import Numbers, fresh_model, seeded, streams
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
    same bits, however often it is stopped, looked at, or saved and loaded on the way. `place` says on which device
    and how the numbers are made; what is drawn here is drawn on the CPU and moved, and no step waits for a device.

    `step` counts the steps made (of a game, the rounds), of `total`; `diverged_at` is the first whose loss is not
    finite, or the last if only a weight is not, found once an epoch and at every stop.

    Where the place has several ranks, this is the training of one of them, in its `seat`
    (`optscope.engine.ranks.ranked`); all have the same model after every step.

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
            optimiser that is another one inside a combinator (`optscope.optim.trial.check_on`); when the model lies
            on another device than the place, cannot be compiled as that asks, does not take its numbers, or the
            device's memory is short; when several ranks are to train what they cannot (`check_ranked`).
    """

    def __init__(self, task: Task, rule: Rule, plan: Plan, seed: int, place: Place = CPU, *,
                 seat: Seat = ALONE) -> None:
        self.place, self._seat = place, seat
        if place.ranks > 1:
            check_ranked(task, rule, place.ranks)
        if seat.count != place.ranks:
            raise UserError(f"{task.name}: this trains in one process; got a place of {place.ranks} ranks, which "
                            "the runs of a comparison (optscope.engine.run.Run) begin: give ranks=1")
        with place.hold(), memory_told(task.name, place, plan):
            self._begin(place.task(task), rule, plan, seed, place)

    def _begin(self, task: Task, rule: Rule, plan: Plan, seed: int, place: Place) -> None:
        self.task, self.rule, self.plan, self.seed = task, rule, plan, seed
        objectives, device = task.objectives, torch.device(place.device)
        try:
            rules = rule.by_player([objective.player for objective in objectives])
        except UserError as error:
            raise UserError(f"{task.name}: {error}") from error
        _, order, self._noise = streams(seed)
        self.model = place.model(fresh_model(task, seed), task.name)
        if not any(p.requires_grad for p in self.model.parameters()):
            raise UserError(f"{task.name}: the model has no parameters to train: let some require a gradient")
        self.deal = Deal(task, plan, seed, place, self._seat)
        self.total, self.step = self.deal.total, 0
        self.diverged_at: int | None = None
        first = place.moved(self.deal.part.first(plan.batch))
        few = first.first(plan.micro_batch)
        if rule.foreign:
            with seeded(order):
                check_inside(task, rules, seed, few)
        self.model.train()
        self._sides = [Side(objective, self.model, rules[objective.player], order + 2 + i, few, self.total, plan,
                            place, self._seat) for i, objective in enumerate(objectives)]
        check_taken(task, self.model, self._sides, few, place)
        if len(self._sides) > 1:
            for side in self._sides:
                side.trace = Trace(side.params, self.total, side.objective.steps)
        self._average = self._averaged() if plan.average else None
        self._compiled = Compiled(task, self.model, self._sides, first, place)
        self._finished = False
        with seeded(self._noise):
            self._numbers = Numbers(device)

    def _averaged(self) -> Averaged:
        if any(has_modes(side.stepper.optimizer) for side in self._sides):
            raise UserError(f"{self.task.name}: {self.rule!r} stands for averaged weights of its own, which "
                            "Plan(average=...) would average again: leave one of them away")
        assert self.plan.average is not None
        if isinstance(self.plan.average, SWA) and self.deal.part.size is None:
            raise UserError(f"{self.task.name}: a stream has no epochs, which SWA goes by: give EMA(decay=...)")
        return Averaged(self.model, self.plan.average, self.total, self.deal.per_epoch)

    @property
    def evaluations(self) -> int:
        """How many gradients have been taken, of all players together."""
        return sum(side.evaluations for side in self._sides)

    @property
    def uncompiled(self) -> str:
        """Why the model is not compiled though its place would have it so, or ""."""
        return self._compiled.failed

    @property
    def slowed(self) -> bool:
        """Whether an optimiser that cannot step channels-last weights keeps convolutions from being fast."""
        return any(side.slowed for side in self._sides)

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
        more = self.step < until and self.diverged_at is None
        with (self._seat.stepping(self.state_dict, self.step) if more else nullcontext(),
              memory_told(self.task.name, self.place, self.plan), self.place.hold(), self._compiled.on(),
              self._numbers):
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
        self._seat.draw(self._noise, round_)
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
        self._seat.compare(self.task.name, self.model, now=self.step % self.deal.per_epoch == 0)
        if self._average is not None:
            self._average.update(self.step)

    def _is_finite(self) -> bool:
        if self.diverged_at is None:
            self.diverged_at = first_non_finite(self.losses, self.model)
        return self.diverged_at is None

    def _finish(self) -> None:
        """Leave the weights that the optimisers stand for, or their mean."""
        if not self._finished:
            self._finished = True
            self._seat.end()
            for side in self._sides:
                side.stepper.finish()
            if self._average is not None:
                self._average.leave()

    @contextmanager
    def looked_at(self) -> Iterator[Snapshot]:
        """Show the model as it is now; what is done to it there does not change the training."""
        with ExitStack() as looks:
            for side in self._sides if not self._finished else ():
                looks.enter_context(side.stepper.looked_at())
            if self._average is not None and not self._finished:
                looks.enter_context(self._average.shown())
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
        return Snapshot(self.model, self.task, self.seed, self.step, self.rule, alone, losses, self.plan.batch)

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
                "deal": self.deal.state_dict(), "numbers": self._numbers.state,
                "average": self._average.state_dict() if self._average else None}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from the state of another training of the same task, rule, plan and seed."""
        self._seat.end()
        load_into(self.model, saved["model"], own=True)
        for side, state in zip(self._sides, saved["sides"], strict=True):
            side.load_state_dict(state)
        self.deal.load_state_dict(saved["deal"])
        self.step, self.diverged_at, self._finished = saved["step"], saved["diverged_at"], saved["finished"]
        self._numbers.state = saved["numbers"]
        if self._average:
            self._average.load_state_dict(saved["average"])


def check_ranked(task: Task, rule: Rule, ranks: int) -> None:
    """Raise unless several ranks can train a task together by a rule.

    Raises:
        UserError: saying why.
    """
    if len(task.objectives) > 1:
        raise UserError(f"{task.name}: a game is trained by one process; got {ranks} ranks: give ranks=1")
    if rule.keeps_graph:
        raise UserError(f"{task.name}: {rule!r} differentiates its gradient, which ranks do not send: give ranks=1")


def check_inside(task: Task, rules: Mapping[str, Rule], seed: int, batch: Batch) -> None:
    """Raise if a rule holds an optimiser that is another one inside a combinator, tried on fresh models.

    Raises:
        UserError: naming it.
    """
    drawn = task.draw_latent(len(batch), torch.Generator().manual_seed(streams(seed)[2] + 1))
    for objective in task.objectives:
        model = fresh_model(task, seed).train()
        latent = None if drawn is None else drawn.to(next(model.parameters()).device)
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
