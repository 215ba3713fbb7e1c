"""What a seed deals to a training, whatever the rules are: batches in an order of their own, and latent vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optscope.engine.place import CPU, Place
from optscope.engine.plan import Plan
from optscope.engine.seat import ALONE, Seat
from optscope.tasks.fresh import epoch_permutation, streams
from optscope.tasks.task import Split, Task
from optscope.tasks.tree import Batch


class Deal:
    """The examples and latent vectors of every step.

    Batches follow the plan's epochs over the training part. Step j of any player in a round gets the round's j-th
    batch, so a round takes as many batches as its busiest player makes steps; a task has one player, of one step.

    All is drawn on the CPU and then moved to the place, so that every device sees the same numbers. A training part
    in memory that is not augmented and fits lies on an accelerator as a whole; only the order of an epoch is moved.
    Of every batch a rank gets what its seat says.
    """

    def __init__(self, task: Task, plan: Plan, seed: int, place: Place = CPU, seat: Seat = ALONE) -> None:
        self.part = task.data().train
        self.total = plan.total(self.part.size)
        self.per_epoch = plan.per_epoch(self.part.size)
        self._task, self._size, self._place, self._moves = task, plan.batch, place, place.accelerated
        self._seat = seat
        self._each = max(objective.steps for objective in task.objectives)
        _, self._order, noise = streams(seed)
        self._augmenting = torch.Generator().manual_seed(self._order + 1)
        self._latent = torch.Generator().manual_seed(noise + 1)
        whole = self.part if place.accelerated and task.augment is None and isinstance(self.part, Split) else None
        self._there = place.moved(whole) if whole is not None and place.holds(whole) else None
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64, device="cpu")

    def batch(self, round_: int, step: int = 0) -> Batch:
        """Return the examples of one step of a round."""
        epoch, place = divmod(round_ * self._each + step, self.per_epoch)
        if self._there is not None:
            if epoch != self._epoch:
                order = epoch_permutation(len(self._there), self._order, epoch)
                self._epoch, self._permutation = epoch, self._place.sent(order)
            index = self._permutation[place * self._size:(place + 1) * self._size]
            return self._there.take(index[self._seat.rows(len(index))])
        batch = self.part.batch(epoch, place, self._size, self._order)
        if self._task.augment is not None:
            batch = Batch(self._task.augment(batch.inputs, self._augmenting), batch.targets)
        if self._seat.count > 1:
            rows = self._seat.rows(len(batch))
            batch = batch.mapped(lambda leaf: leaf[rows])
        return self._place.moved(batch) if self._moves else batch

    def latent(self) -> Tensor | None:
        """Return fresh latent vectors, as many as a batch has examples, in games that have them."""
        drawn = self._task.draw_latent(min(self._size, self.part.size or self._size), self._latent)
        return self._place.sent(drawn) if self._moves and drawn is not None else drawn

    def state_dict(self) -> dict[str, Any]:
        """Return what has been drawn: the order of the examples is a function of the seed."""
        return {"augmenting": self._augmenting.get_state(), "latent": self._latent.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on drawing where another deal of the same seed was."""
        self._augmenting.set_state(saved["augmenting"])
        self._latent.set_state(saved["latent"])
