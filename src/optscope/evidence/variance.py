"""Which part of a spread is there already within a row: spreads of repeats against spreads of single runs."""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike

from optscope.evidence.level import level
from optscope.evidence.stats import Interval


def spread_ratio(table: ArrayLike, confidence: float | None = None) -> Interval:
    """Return σ/√(σ² + τ²) of a table `(rows, K)`, whose rows (seeds) spread by τ and its repeats in a row by σ.

    The share of a single run's standard deviation that repeats of one row have: 1 − ratio² is the intraclass
    correlation. With F = MS_between/MS_within, ratio² = K/(F + K − 1), and F over its quantiles gives an interval
    that is exact for normal values (Shrout and Fleiss, Psychol. Bull. 86 (1979) 420, case 1). Sampling can take
    the ratio above 1, where rows differ less than repeats do. Rows with nan are left out and counted.

    >>> spread_ratio([[1.0, 2.0, 3.0], [1.1, 2.1, 2.9], [0.9, 2.0, 3.2]])
    Interval(estimate=1.2..., low=1.21..., high=1.22..., n=3, missing=0)
    """
    values = np.asarray(table, dtype=np.float64)
    kept = values[np.isfinite(values).all(1)]
    (n, k), missing = kept.shape, len(values) - len(kept)
    # From the first repeat on, so that equal ones are 0 apart and not a rounding error.
    within = float((kept - kept[:, :1]).var(axis=1, ddof=1).mean()) if n and k > 1 else math.nan
    if n < 2 or not within > 0:
        return Interval(math.nan, math.nan, math.nan, n, missing)
    between, tail = k * float(kept.mean(axis=1).var(ddof=1)), _tail(confidence)
    f = between / within
    quantile = float(scipy.special.fdtri(n - 1, n * (k - 1), tail))
    inverse = float(scipy.special.fdtri(n * (k - 1), n - 1, tail))
    estimate, high, low = (math.sqrt(k / (each + k - 1)) for each in (f, f / quantile, f * inverse))
    return Interval(estimate, low, high, n, missing)


def deviation_ratio(a: float, a_freedom: int, b: float, b_freedom: int,
                    confidence: float | None = None) -> Interval:
    """Return the ratio a/b of two independent standard deviations with its F interval, exact for normal values.

    >>> deviation_ratio(2.0, 10, 1.0, 20)
    Interval(estimate=2.0, low=1.2..., high=3.6..., n=21, missing=0)
    """
    if not (a > 0 and b > 0 and a_freedom > 0 and b_freedom > 0):
        return Interval(math.nan, math.nan, math.nan, 0)
    tail, ratio = _tail(confidence), a / b
    low = ratio / math.sqrt(float(scipy.special.fdtri(a_freedom, b_freedom, tail)))
    high = ratio * math.sqrt(float(scipy.special.fdtri(b_freedom, a_freedom, tail)))
    return Interval(ratio, low, high, b_freedom + 1)


def _tail(confidence: float | None) -> float:
    """Return up to which share the upper bound lies; without a confidence as the level of the tests asks."""
    return (1 + (1 - level() if confidence is None else confidence)) / 2
