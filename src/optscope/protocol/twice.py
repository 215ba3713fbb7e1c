"""Seen twice: a number of a study, found in two ways which share no code, and by how much they may differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from optscope.errors import UserError
from optscope.evidence.records import Records


@dataclass(frozen=True)
class Twice:
    """A number in two ways.

    `numbers` reads both from records, `(first, second)`, nan where one was not measured; `allowed` is fixed before
    the runs: the largest difference between them, or with `relative` that over the second.

    Raises:
        UserError: unless allowed > 0.
    """

    text: str
    first: str
    second: str
    numbers: Callable[[Records], tuple[float, float]]
    allowed: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.allowed < math.inf:
            raise UserError(f'"{self.text}": the allowed difference must be above 0; got {self.allowed}')

    def difference(self, records: Records) -> float:
        """Return how far the two numbers are apart, nan where one is missing."""
        first, second = self.numbers(records)
        return abs(first - second) / (abs(second) if self.relative else 1.0)
