"""How long and how a task is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from optscope.errors import UserError
from optscope.optim.schedules import Constant, Schedule

MOST_STEPS = 10**8
"""Steps a run may have: the losses of more would take over 400 MB, and the training weeks."""


@dataclass(frozen=True)
class Plan:
    """How long and how a task is trained: the same for every arm of a comparison.

    An epoch is ⌊n / batch⌋ steps over a fresh permutation of the n training examples; the few left over wait
    for another epoch. `schedule` multiplies the rule's learning rate. Of a game a step is one round.

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
