"""Training: a lean loop from a seed to a trained model; it knows no probe, and lets others look."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from optscope.engine.stepping import Stepper
from optscope.errors import UserError
from optscope.optim.rule import Rule
from optscope.optim.schedules import Constant, Schedule
from optscope.optim.trial import check_on
from optscope.tasks.fresh import fresh_model, seeded, streams
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

MOST_STEPS = 10**8
"""Steps a run may have: the losses of more would take over 400 MB, and the training weeks."""


@dataclass(frozen=True)
class Plan:
    """How long and how a task is trained: the same for every arm of a comparison.

    An epoch is ⌊n / batch⌋ steps over a fresh permutation of the n training examples; the few left over wait
    for another epoch. `schedule` multiplies the rule's learning rate.

    Raises:
        UserError: unless epochs >= 1 and batch >= 1, or when it comes to more than `MOST_STEPS` steps.
    """

    epochs: int = 30
    batch: int = 128
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch", self.batch)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"Plan: {name} must be a whole number >= 1; got {value!r}")
        self.steps(1)

    def steps(self, examples: int) -> int:
        """Return how many steps a training set of that size gets."""
        total = self.epochs * self.steps_per_epoch(examples)
        if total > MOST_STEPS:
            raise UserError(f"Plan: {self.epochs} epochs are at least {total} steps of training; a run keeps the "
                            f"loss of each and has at most {MOST_STEPS}: give fewer epochs or larger batches")
        return total

    def steps_per_epoch(self, examples: int) -> int:
        """Return ⌊examples / batch⌋, at least 1."""
        return max(1, examples // self.batch)


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


def ignore(snapshot: Snapshot) -> None:
    """Watch nothing."""


def train(task: Task, rule: Rule, plan: Plan, seed: int, *, watch: Callable[[Snapshot], None] = ignore,
          at: Collection[int] = ()) -> Trained:
    """Train a fresh model of `task` by `rule`, and call `watch` when the number of steps made is in `at`.

    Initialisation, data order and training noise (dropout, augmentation) are three streams that depend on
    `seed` alone, never on the rule: runs with the same seed are paired. The global random state is left as it
    was. Same seed, thread count, torch and CPU kind give the same bits.

    Raises:
        UserError: when the task is a game, which `play` plays, or the rule holds an optimiser that is another one
            inside a combinator (`optscope.optim.trial.check_on`), or the model has no parameters to train.
    """
    if task.kind == "game":
        raise UserError(f"{task.name} is a game: play it with optscope.engine.play.play and a rule for each player")
    _, order, noise = streams(seed)
    model = fresh_model(task, seed)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"{task.name}: the model has no parameters to train: let some require a gradient")
    with seeded(noise):
        return _loop(task, model, rule, plan, seed, order, watch, at)


def _loop(task: Task, model: nn.Module, rule: Rule, plan: Plan, seed: int, order: int,
          watch: Callable[[Snapshot], None], at: Collection[int]) -> Trained:
    part = task.data().train
    inputs, targets = part.inputs, part.targets
    if rule.foreign:
        x, y = inputs[:plan.batch].clone(), targets[:plan.batch].clone()
        with seeded(order):
            check_on(rule, fresh_model(task, seed).train(), lambda fresh: task.loss(fresh(x), y))
    memory_format = fast_format(model, inputs[:plan.batch], rule)
    model.to(memory_format=memory_format).train()  # type: ignore[call-overload]
    stepper = Stepper(rule, model, order + 2)
    optimizer = stepper.optimizer
    per_epoch, total = plan.steps_per_epoch(len(inputs)), plan.steps(len(inputs))
    losses = torch.full((total,), torch.nan)
    augment_noise = torch.Generator().manual_seed(order + 1)

    def snapshot(step: int) -> Snapshot:
        return Snapshot(model, task, seed, step, rule, optimizer, losses[:step])

    for step in range(total):
        if (step % per_epoch == 0 or step in at) and first_non_finite(losses[:step], model) is not None:
            break
        if step in at:
            with stepper.looked_at():
                watch(snapshot(step))
        if step % per_epoch == 0:
            permutation = epoch_permutation(len(inputs), order, step // per_epoch)
        first = (step % per_epoch) * plan.batch
        batch = permutation[first:first + plan.batch]
        x, y = inputs.index_select(0, batch), targets.index_select(0, batch)
        if task.augment is not None:
            x = task.augment(x, augment_noise)
        if x.dim() == 4:
            x = x.contiguous(memory_format=memory_format)
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        loss.backward()
        stepper.step(plan.schedule(step / total))
        losses[step] = loss.detach()
    stepper.finish()
    diverged = first_non_finite(losses, model)
    if diverged is None and total in at:
        watch(snapshot(total))
    return Trained(snapshot(total), diverged)


def epoch_permutation(examples: int, order: int, epoch: int) -> Tensor:
    """Return the order of the examples in one epoch: a function of the seed and the epoch's number alone."""
    state = np.random.SeedSequence((order, epoch)).generate_state(1)[0]
    return torch.randperm(examples, generator=torch.Generator().manual_seed(int(state)))


def fast_format(model: nn.Module, inputs: Tensor, rule: Rule) -> torch.memory_format:
    """Return channels-last for models that convolve (1.3 to 1.5 times faster on a CPU), else contiguous.

    Some models need contiguous images, for example those that flatten by `view`, and some optimisers contiguous
    weights: a copy of the model tries.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return torch.contiguous_format
    try:
        with seeded(0), torch.no_grad():
            trial = copy.deepcopy(model).train()
            trial.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            trial(inputs.clone(memory_format=torch.channels_last if inputs.dim() == 4 else torch.preserve_format))
            for each in rule.walk():  # by itself, so that an arm and its rounding twins get the same
                if each.foreign and next(each.held(), None) is None:
                    _try_steps(each, trial)
    except Exception:  # whatever their authors chose to raise; what has other causes is raised again in training
        return torch.contiguous_format
    return torch.channels_last


def _try_steps(rule: Rule, model: nn.Module) -> None:
    """Make three steps from gradients that lie in memory as the weights do."""
    stepper = Stepper(rule, model, 0)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.rand_like(p) if p.requires_grad else None
        stepper.step(1.0)


def first_non_finite(losses: Tensor, model: nn.Module) -> int | None:
    """Return the first step whose loss, or the last if only a weight, is not finite; None if all are."""
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        return int(bad[0])
    return None if all(map(_finite, model.parameters())) else len(losses) - 1


def _finite(values: Tensor) -> bool:
    """Return whether all values are finite: so they are if their sum is, which is 30 times as fast to know."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
