"""How many pairs decide: the power of the paired t test, and what it would take where a verdict is undecided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import scipy

from optscope.bisection import crossing
from optscope.errors import UserError
from optscope.evidence.claims import Verdict
from optscope.evidence.paired import FEWEST

SHARE = 0.8
"""Pairs are said to show something when they do so in this share of cases."""
MOST = 1000
"""More pairs than that nobody is told to run."""


def spread_of(low: float, high: float, n: int, alpha: float = 0.05) -> float:
    """Return the standard deviation of n values behind their t interval, (high − low) √n / (2 t_{1−α/2}).

    >>> round(spread_of(1.0, 3.0, 8), 3)
    1.196
    """
    if n <= 1:
        return math.nan
    return (high - low) / 2 * math.sqrt(n) / float(scipy.special.stdtrit(n - 1, 1 - alpha / 2))


def power(n: int, effect: float, alpha: float = 0.05) -> float:
    """Return how often the two-sided t test over n pairs is significant with the right sign.

    P(T > t_{1−α/2, n−1}) for T noncentral with n − 1 degrees of freedom and noncentrality effect·√n, where `effect`
    is the mean difference over its standard deviation (Cohen, Statistical Power Analysis, 1988, chapter 2).
    """
    least = float(scipy.special.stdtrit(n - 1, 1 - alpha / 2))
    found = float(scipy.special.nctdtr(n - 1, -abs(effect) * math.sqrt(n), -least))  # P(T > t) = P(-T < -t)
    return 1.0 if math.isnan(found) else found  # so far out that scipy has no number for it


def seeds_to_show(spread: float, difference: float, alpha: float = 0.05) -> int | None:
    """Return the fewest seeds, at least six, that show a difference in four of five cases; None beyond `MOST`.

    `spread` is the standard deviation of paired differences; below six pairs no difference can be shown
    (`optscope.evidence.paired`).

    >>> seeds_to_show(2.0, 1.0), seeds_to_show(1.0, 10.0), seeds_to_show(10.0, 0.1)
    (34, 6, None)

    Raises:
        UserError: unless spread and difference are positive.
    """
    if not spread > 0 or not difference > 0:
        raise UserError(f"expected a positive spread and difference, got {spread} and {difference}")
    return _fewest(lambda n: power(n, difference / spread, alpha))


@dataclass(frozen=True)
class Outlook:
    """What an undecided verdict's n could have shown, and what would decide it.

    `reach` is the distance from a bound of the claim that its n shows in four of five cases, infinite below six
    pairs. `pairs` decide it in four of five, if the effect and its spread are as found: None beyond `MOST`. The
    claim would then hold (`holds`) or fail.
    """

    reach: float
    pairs: int | None
    holds: bool


def outlook(verdict: Verdict) -> Outlook | None:
    """Return what it would take to decide a verdict; None where nobody can tell.

    The interval is taken for that of a t test over n pairs, whose spread it gives; where it is another's (of a
    median, a rank correlation, a bootstrap) this is an approximation, in which widths shrink with √n. With d the
    distance of the effect from a bound, over that spread, a bound is shown to be kept or broken with probability
    `power(n, d)`; two bounds are kept at least as often as the sum of what is lost at either allows:

        1 − Σ (1 − power(n, d_bound))

    The level is the verdict's, and as much a bound for two one-sided tests, divided by its `tests` (Bonferroni,
    which Holm's method is at least as good as).
    """
    spread = spread_of(verdict.low, verdict.high, verdict.n, verdict.level)
    bounds = [bound for bound in (verdict.least, verdict.most) if math.isfinite(bound)]
    if not bounds or not spread > 0 or not math.isfinite(verdict.effect):
        return None
    holds = verdict.least <= verdict.effect <= verdict.most
    level = verdict.level * (2 if holds and "one-sided" in verdict.test else 1) / verdict.tests
    if not holds:
        bounds = [min(bounds, key=lambda bound: abs(verdict.effect - bound))]
    gaps = [abs(verdict.effect - bound) / spread for bound in bounds]
    reach = (crossing(lambda gap: power(verdict.n, gap, level) - SHARE, 0.0, 1e4, 1e-9)
             if verdict.n >= FEWEST else math.inf)
    return Outlook(spread * reach,
                   _fewest(lambda n: 1 - sum(1 - power(n, gap, level) for gap in gaps)), holds)


def _fewest(shown: Callable[[int], float]) -> int | None:
    """Return the fewest n, at least six, that show something in four of five cases; `shown` rises with n."""
    low, high = FEWEST, MOST
    if shown(high) < SHARE:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) >= SHARE else (middle + 1, high)
    return low
