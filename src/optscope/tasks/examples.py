"""What batches are drawn from, wherever it lies: in memory, in mapped files, in a `Dataset`, or in a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

from optscope.errors import UserError
from optscope.tasks.tree import Batch


class DataError(UserError):
    """An example that a data set does not give."""


class Examples(ABC):
    """A part of a data set that batches are drawn from; `optscope.tasks.task.Split` is the one in memory."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """How many examples there are; None of a stream."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """What the content is known by, in every process: with `source` a part of a run's identity."""

    @property
    def source(self) -> object:
        """What else decides the numbers: functions, classes and settings, whose code and values count."""
        kind = type(self)
        found = {name: value for name, value in vars(self).items()
                 if not isinstance(getattr(kind, name, None), cached_property)}
        return kind, found

    @abstractmethod
    def batch(self, epoch: int, step: int, size: int, order: int) -> Batch:
        """Return batch number `step` of an epoch; `order` seeds the order of the examples, and their noise."""

    def sample(self, n: int) -> Batch:
        """Return `n` examples from all over in memory, or all if there are fewer, the same each time."""
        return self.batch(0, 0, n, 0)

    @abstractmethod
    def first(self, n: int | None) -> Batch:
        """Return the first `n` examples in memory (all when `n` is None), the same each time."""
