"""How long and how a task is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from optscope.engine.average import Average
from optscope.errors import UserError
from optscope.optim.schedules import Constant, Schedule

EPOCHS = 30
MOST_STEPS = 10**8
"""Steps a run may have: the losses of more would take over 400 MB, and the training weeks."""


@dataclass(frozen=True)
class Plan:
    """How long and how a task is trained: the same for every arm of a comparison.

    An epoch is ⌊n / batch⌋ steps over a fresh permutation of the n training examples; the few left over wait
    for another epoch. `schedule` multiplies the rule's learning rate. Of a game a step is one round. With `steps`
    instead of `epochs` (30, if neither is given), training ends after so many, in the middle of an epoch if need
    be; a stream has no epochs and needs them.

    With `micro_batch` the gradient of a batch is added up over parts of that many examples, which need less memory:
    the same to rounding where the loss is a mean over examples; batch normalisation takes its statistics of each
    part. `clip` is the most that the norm of a gradient, over all parameters, may have before a step: longer ones
    are shortened. With `average` the weights that are measured and kept are the mean that it says; training goes on
    from the weights themselves.

    Raises:
        UserError: unless epochs, steps and batch are at least 1, 1 <= micro_batch <= batch and clip > 0, when both
            epochs and steps are given, or when it comes to more than `MOST_STEPS` steps.
    """

    epochs: int | None = None
    batch: int = 128
    schedule: Schedule = field(default_factory=Constant)
    steps: int | None = field(default=None, kw_only=True)
    micro_batch: int | None = field(default=None, kw_only=True)
    clip: float | None = field(default=None, kw_only=True)
    average: Average | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError(f"Plan: give epochs or steps, not both; got {self.epochs} epochs, {self.steps} steps")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "epochs", EPOCHS)
        for name, value in (("epochs", self.epochs), ("batch", self.batch), ("steps", self.steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError(f"Plan: {name} must be a whole number >= 1; got {value!r}")
        micro, clip = self.micro_batch, self.clip
        if not (micro is None or (type(micro) is int and 1 <= micro <= self.batch)):
            raise UserError(f"Plan: micro_batch must be a whole number from 1 to the batch, {self.batch}, or None; "
                            f"got {micro!r}")
        if not (clip is None or (type(clip) in (int, float) and 0 < clip < math.inf)):
            raise UserError(f"Plan: clip, the longest gradient, must be a finite number > 0, or None; got {clip!r}")
        if not (self.average is None or isinstance(self.average, Average)):
            raise UserError(f"Plan: average must be EMA(decay=...), SWA(start=...) or None; got {self.average!r}")
        self.total(1)

    def total(self, examples: int | None) -> int:
        """Return how many steps a training set of that size gets, or a stream (None).

        Raises:
            UserError: when a stream has no number of steps, or they are too many.
        """
        if self.epochs is None:
            total, what = self.steps or 0, "steps"
        elif examples is None:
            raise UserError(f"a stream has no epochs: say how many steps are made of it, Plan(steps=1000, "
                            f"batch={self.batch}), or --steps 1000")
        else:
            total, what = self.epochs * self.per_epoch(examples), "epochs"
        if total > MOST_STEPS:
            raise UserError(f"Plan: {self.epochs or self.steps} {what} are at least {total} steps of training; a "
                            f"run keeps the loss of each and has at most {MOST_STEPS}: give fewer {what} or larger "
                            "batches")
        return total

    def per_epoch(self, examples: int | None) -> int:
        """Return ⌊examples / batch⌋, at least 1; a stream is one epoch, longer than any training."""
        return MOST_STEPS if examples is None else max(1, examples // self.batch)
