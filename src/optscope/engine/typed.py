"""Data whose floating-point numbers are of another type: as they are used, for examples that are not in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from optscope.tasks.examples import Examples
from optscope.tasks.task import Split
from optscope.tasks.tree import Batch


def typed(batch: Batch, dtype: torch.dtype) -> Batch:
    """Return a batch whose floating-point leaves have a type; whole numbers, such as labels, stay what they are."""
    return batch.mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)


def typed_part(part: Examples, dtype: torch.dtype) -> Any:
    """Return a part of a data set with its floating-point numbers of a type: a copy of one that is in memory."""
    return Split.of_batch(typed(part, dtype)) if isinstance(part, Split) else Typed(part, dtype)


@dataclass(frozen=True)
class Typed(Examples):
    """Examples that become of a type when they are drawn."""

    part: Examples
    dtype: torch.dtype

    @property
    def size(self) -> int | None:
        """How many examples there are; None of a stream."""
        return self.part.size

    @property
    def digest(self) -> str:
        """What their content is known by; the type belongs to the place."""
        return self.part.digest

    def batch(self, epoch: int, step: int, size: int, order: int) -> Batch:
        """Return batch number `step` of an epoch."""
        return typed(self.part.batch(epoch, step, size, order), self.dtype)

    def sample(self, n: int) -> Batch:
        """Return `n` examples from all over, the same each time."""
        return typed(self.part.sample(n), self.dtype)

    def first(self, n: int | None) -> Batch:
        """Return the first `n` examples, the same each time."""
        return typed(self.part.first(n), self.dtype)
