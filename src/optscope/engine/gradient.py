"""A player's gradient: of a batch at once or in parts, in the model's own precision or a lower one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from optscope.engine.place import DTYPES, Place
from optscope.engine.plan import Plan
from optscope.tasks.objective import Objective
from optscope.tasks.tree import Batch


class Gradient:
    """How the gradient of an objective is taken.

    With the plan's `micro_batch` it is added up over parts of the batch, each part's mean loss weighted by its
    share of the examples: the whole batch's gradient to rounding, where the loss is a mean over examples. Batch
    normalisation sees one part at a time.

    `inputs` are the parameters whose gradient is wanted; None: all that autograd finds.
    """

    def __init__(self, objective: Objective, plan: Plan, place: Place, inputs: Sequence[Tensor] | None) -> None:
        self._loss, self._inputs, self._size = objective.loss, inputs, plan.micro_batch
        self._kind, self._lower = place.kind, DTYPES[place.autocast] if place.autocast else None
        self._plain = self._size is None and self._lower is None
        self.scaler = torch.amp.GradScaler(place.kind) if place.autocast == "float16" else None
        """Scales losses so that small gradients do not vanish in float16."""
        self.keeps_graph = False
        """Whether an optimiser differentiates the gradient."""

    def take(self, model: nn.Module, batch: Batch, latent: Tensor | None) -> Tensor:
        """Add the gradient to the parameters', and return the mean loss."""
        if self._plain:
            loss = self._loss(model, batch, latent)
            self._back(loss)
            return loss.detach()
        n, size = len(batch), self._size or len(batch)
        latents = [None] * -(-n // size) if latent is None else latent.split(size)
        total: Tensor | None = None
        for part, drawn in zip(batch.split(size), latents, strict=True):
            with torch.autocast(self._kind, self._lower) if self._lower else nullcontext():
                loss = self._loss(model, part, drawn)
            share = loss * (len(part) / n)
            self._back(share if self.scaler is None else self.scaler.scale(share))
            total = share.detach() if total is None else total + share.detach()
        assert total is not None
        return total

    def _back(self, loss: Tensor) -> None:
        if not self.keeps_graph:
            loss.backward(inputs=self._inputs)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a circle of references, which the stepper breaks
            loss.backward(inputs=self._inputs, create_graph=True)
