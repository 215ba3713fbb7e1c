"""Where a rising function crosses zero, without the libraries of optimisation, which take long to load."""

from __future__ import annotations

import math
from collections.abc import Callable


def crossing(rising: Callable[[float], float], low: float, high: float, within: float) -> float:
    """Return where a function goes from below zero to above, in [low, high], to `within`: by halving.

    >>> crossing(lambda x: x * x - 2, 0.0, 2.0, 1e-9)
    1.41421356...
    """
    if rising(low) >= 0:
        return low
    width = high - low
    while True:
        width /= 2
        middle = low + width
        value = rising(middle)
        if value < 0:
            low = middle
        if value == 0 or width < within + 4 * math.ulp(middle):
            return middle
