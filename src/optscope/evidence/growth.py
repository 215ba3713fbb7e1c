"""How fast a small distance grows: the rate of its exponential rise, with an interval."""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike

from optscope.evidence.stats import Interval


def growth_rate(steps: ArrayLike, distance: ArrayLike, low: float, high: float) -> Interval:
    """Return the slope of log distance a step while it rises from `low` to `high`, with its 95 % interval.

    The rise ends where the distance first reaches `high` and begins where it last was at most `low` before; a
    distance that never reaches `high` has no rise, and all is nan, as with fewer than three points. The interval
    is that of the least-squares line with n − 2 degrees of freedom, and takes its residuals for independent.

    >>> growth_rate([0, 1, 2, 3, 4], [1e-8, 1e-7, 1.1e-6, 1e-5, 1e-4], 1e-7, 1e-4)
    Interval(estimate=2.29..., low=2.1..., high=2.4..., n=4, missing=0)
    """
    t, d = np.asarray(steps, dtype=np.float64), np.asarray(distance, dtype=np.float64)
    reached = np.flatnonzero(d >= high)
    if not len(reached):
        return Interval(math.nan, math.nan, math.nan, 0)
    end = int(reached[0])
    below = np.flatnonzero(d[:end] <= low)
    part = slice(int(below[-1]) if len(below) else 0, end + 1)
    t, d = t[part], d[part]
    t, d = t[d > 0], d[d > 0]
    if len(t) < 3:
        return Interval(math.nan, math.nan, math.nan, len(t))
    line = scipy.stats.linregress(t, np.log(d))
    half = float(scipy.special.stdtrit(len(t) - 2, 0.975)) * float(line.stderr)
    return Interval(float(line.slope), float(line.slope) - half, float(line.slope) + half, len(t))
