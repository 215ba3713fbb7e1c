"""A seat: one rank's part of every batch, and the mean of all ranks' gradients, by which every rank steps alike."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from optscope.engine.place import CPU, Place
from optscope.errors import UserError

MEETING, LOOKING = timedelta(minutes=1), timedelta(days=365)
"""How long ranks wait for each other when they meet, and then: the first may look at its model for hours."""
OWN = ("what a model keeps of examples is there of its own part of each batch, as the running statistics of batch "
       "norm are: take a layer that keeps nothing, such as GroupNorm, or give ranks=1")


class LeftError(RuntimeError):
    """Another rank has left in the middle of a step."""


class Seat:
    """One of the processes that train one model together: which examples are its, and what they come to.

    Rank r of R takes the examples r, r + R, r + 2R, ... of every batch, n_r of n. Gradients become Σ_r (n_r/n) g_r,
    the whole batch's where the loss is a mean over examples, with the same bits in every rank. Each then makes the
    same step, and nothing else is sent. Sums are taken by gloo on the CPU, from where a rank that dies is noticed.

    With several ranks the random numbers of training are begun anew for every step and rank, not drawn from one
    stream: who begins at a step draws what was drawn there before. Alone, a seat does nothing.
    """

    def __init__(self, rank: int = 0, place: Place = CPU) -> None:
        self.rank, self.count = rank, place.ranks
        self._share, self._compared = 1.0, False
        self._group: Any = None

    def join(self, meeting: str) -> None:
        """Meet the other ranks at a file, which nobody needs afterwards."""
        store = distributed.FileStore(meeting, self.count)  # type: ignore[attr-defined]
        store.set_timeout(MEETING)
        try:  # a group of its own, not the process's one: a training that is tried beside this one has another
            self._group = distributed.ProcessGroupGloo(store, self.rank, self.count, timeout=MEETING)
        except RuntimeError as error:
            raise LeftError(str(error)) from error
        self._compared = False
        self._all(torch.zeros(1, device="cpu"))  # until all have met all

    def leave(self) -> None:
        """Let the other ranks see that this one makes no more steps."""
        self._group = None

    def stepping(self, state: Callable[[], Mapping[str, Any]], step: int) -> AbstractContextManager[None]:
        """Within it all ranks step from `step` on; who has them begins them there, from a `state`."""
        return contextlib.nullcontext()

    def end(self) -> None:
        """Let the other ranks go, if this one has them."""

    def rows(self, examples: int) -> slice:
        """Return which examples of a batch are this rank's; the next gradient is taken of those."""
        rows = slice(self.rank, None, self.count)
        self._share = len(range(examples)[rows]) / examples
        return rows

    def draw(self, noise: int, step: int) -> None:
        """Begin the random numbers of a step."""
        if self.count > 1:
            state = int(np.random.SeedSequence((noise, step, self.rank)).generate_state(1)[0])
            torch.manual_seed(state)
            np.random.seed(state)
            random.seed(state)

    def mean(self, params: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Put the whole batch's gradient in the place of this part's, and return the whole's loss.

        A parameter has none where no rank's part has. All is sent as one tensor, of float32 or more.

        Raises:
            UserError: for gradients that are sparse or complex.
        """
        if self.count == 1:
            return loss
        if any(p.grad.is_sparse or p.grad.is_complex() for p in params if p.grad is not None):
            raise UserError("ranks send gradients of real numbers, all of them; got sparse or complex ones: give "
                            "Embedding(sparse=False), or ranks=1")
        given = [p.grad is not None for p in params]
        dtype = reduce(torch.promote_types, {loss.dtype, *(p.dtype for p in params)}, torch.float32)
        parts = [loss, *(torch.zeros_like(p) if p.grad is None else p.grad for p in params)]
        sent = torch.cat([loss.new_tensor(given, dtype=dtype),
                          *(part.detach().flatten().to(dtype) for part in parts)])
        sent[len(params):] *= self._share
        told, value, *means = self._all(sent).split([len(params), 1, *(p.numel() for p in params)])
        used = given if all(given) else told.tolist()  # on a device to read is to wait, which is seldom needed
        for p, mean, some in zip(params, means, used, strict=True):
            if p.grad is not None:
                p.grad.copy_(mean.view_as(p))
            elif some:
                p.grad = torch.empty_like(p).copy_(mean.view_as(p))
        whole: Tensor = value.view(()).to(loss.dtype)
        return whole

    def compare(self, owner: str, model: nn.Module, *, now: bool) -> None:
        """Compare the model with the other ranks', if asked for `now` or not yet done since they met.

        Raises:
            UserError: naming the first weights, or the buffer, that differ.
        """
        if self.count == 1 or (self._compared and not now):
            return
        self._compared = True
        weights = {f"the weights of {name}": p for name, p in model.named_parameters()}
        buffers = {f"the buffer {name}": b for name, b in model.named_buffers()}
        tensors = [t.detach() for t in (*weights.values(), *buffers.values())]
        numbers = torch.cat([(torch.view_as_real(t) if t.is_complex() else t).flatten().float().nan_to_num()
                             for t in tensors])
        most = self._all(torch.cat([numbers, -numbers]), distributed.ReduceOp.MAX)
        apart = (most[:len(numbers)] != -most[len(numbers):]).split([t.numel() << t.is_complex() for t in tensors])
        for name, differ in zip((*weights, *buffers), apart, strict=True):
            if bool(differ.any()):
                why = OWN if name in buffers else (
                    "an optimiser, a model or a loss draws numbers that no seed decides, or goes by the time: give "
                    "ranks=1")
                raise UserError(f"{owner}: its {self.count} ranks differ in {name}; {why}")

    def _all(self, sent: Tensor, how: Any = distributed.ReduceOp.SUM) -> Tensor:
        """Return what all ranks' tensors come to."""
        options = distributed.AllreduceOptions()
        options.reduceOp, options.timeout = how, LOOKING
        there = sent.cpu()
        try:
            self._group.allreduce([there], options).wait()
        except RuntimeError as error:
            raise LeftError(str(error)) from error
        return there.to(sent.device)


ALONE = Seat()
