"""How many seeds would show a difference: the power of the paired t test."""

from __future__ import annotations

import math

from scipy import stats

from optscope.errors import UserError
from optscope.evidence.paired import FEWEST


def spread_of(low: float, high: float, n: int) -> float:
    """Return the standard deviation of n values behind their 95 % t interval, (high − low) √n / (2 t₀.₉₇₅).

    >>> round(spread_of(1.0, 3.0, 8), 3)
    1.196
    """
    return (high - low) / 2 * math.sqrt(n) / float(stats.t.ppf(0.975, n - 1)) if n > 1 else math.nan


def power(n: int, effect: float, alpha: float = 0.05) -> float:
    """Return how often the two-sided t test over n pairs is significant with the right sign.

    P(T > t_{1−α/2, n−1}) for T noncentral with n − 1 degrees of freedom and noncentrality effect·√n, where `effect`
    is the mean difference over its standard deviation (Cohen, Statistical Power Analysis, 1988, chapter 2).
    """
    found = float(stats.nct.sf(stats.t.ppf(1 - alpha / 2, n - 1), n - 1, abs(effect) * math.sqrt(n)))
    return 1.0 if math.isnan(found) else found  # so far out that scipy has no number for it


def seeds_to_show(spread: float, difference: float, alpha: float = 0.05, most: int = 1000,
                  share: float = 0.8) -> int | None:
    """Return the fewest seeds, at least six, that show a difference in a `share` of cases; None beyond `most`.

    `spread` is the standard deviation of paired differences; below six pairs no difference can be shown
    (`optscope.evidence.paired`).

    >>> seeds_to_show(2.0, 1.0), seeds_to_show(1.0, 10.0), seeds_to_show(10.0, 0.1)
    (34, 6, None)

    Raises:
        UserError: unless spread and difference are positive.
    """
    if not spread > 0 or not difference > 0:
        raise UserError(f"expected a positive spread and difference, got {spread} and {difference}")
    low, high = FEWEST, most
    if power(high, difference / spread, alpha) < share:
        return None
    while low < high:  # power rises with n
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference / spread, alpha) >= share else (middle + 1, high)
    return low
