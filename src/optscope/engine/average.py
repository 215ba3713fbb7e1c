"""Averaged weights: what is measured is a mean over the way, while training goes on from the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optscope.errors import UserError


@dataclass(frozen=True)
class EMA:
    """An exponential moving average: after every step, mean ← decay · mean + (1 − decay) · weights.

    It begins at the weights after the first step.

    Raises:
        UserError: unless 0 < decay < 1.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not _number(self.decay) or not 0 < self.decay < 1:
            raise UserError(f"EMA: decay must be a number between 0 and 1; got {self.decay!r}")

    def share(self, step: int, total: int, per_epoch: int, averaged: int) -> float:
        """Return the share that the weights after `step` steps have in the new mean, of `averaged` before."""
        return 1 - self.decay if averaged else 1.0


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging: the mean of the weights after every epoch from a share `start` of the steps on.

    Until the first of these the weights themselves are measured. Izmailov et al. 2018, arXiv 1803.05407; the
    statistics of batch normalisation are averaged like weights, not estimated anew.

    Raises:
        UserError: unless 0 <= start < 1.
    """

    start: float = 0.75

    def __post_init__(self) -> None:
        if not _number(self.start) or not 0 <= self.start < 1:
            raise UserError(f"SWA: start must be a share of the training, from 0 to below 1; got {self.start!r}")

    def share(self, step: int, total: int, per_epoch: int, averaged: int) -> float:
        """Return the share that the weights after `step` steps have in the new mean, of `averaged` before."""
        counts = step >= self.start * total and (step % per_epoch == 0 or step == total)
        return 1 / (averaged + 1) if counts else 0.0


Average = EMA | SWA


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Averaged:
    """The mean of a model's weights so far: of trained parameters, and of buffers of real numbers."""

    def __init__(self, model: nn.Module, average: Average, total: int, per_epoch: int) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        buffers = [b for b in model.buffers() if b.is_floating_point() or b.is_complex()]
        self._raw = [t.detach() for t in (*trained, *buffers)]
        self._mean = [t.clone() for t in self._raw]
        self._average, self._total, self._per_epoch, self._count = average, total, per_epoch, 0

    def update(self, step: int) -> None:
        """Take the weights after `step` steps in."""
        share = self._average.share(step, self._total, self._per_epoch, self._count)
        if share:
            torch._foreach_lerp_(self._mean, self._raw, share)
            self._count += 1

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put the mean in the place of the weights meanwhile."""
        if not self._count:
            yield
            return
        kept = [t.clone() for t in self._raw]
        self.leave()
        try:
            yield
        finally:
            torch._foreach_copy_(self._raw, kept)

    def leave(self) -> None:
        """Put the mean in the place of the weights for good."""
        if self._count:
            torch._foreach_copy_(self._raw, self._mean)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean and of how many it is."""
        return {"mean": self._mean, "count": self._count}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from another mean of the same model."""
        for mine, theirs in zip(self._mean, saved["mean"], strict=True):
            mine.copy_(theirs)
        self._count = saved["count"]
