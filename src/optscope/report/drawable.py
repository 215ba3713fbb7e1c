"""Points: what of a series of numbers can be drawn, and few enough of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError
from optscope.evidence.picture import Panel, Series

Array = NDArray[np.float64]

MOST_POINTS = 400
_HUGE, _TINY = 1e100, 1e-100  # numbers beyond them overflow in the arithmetic of axes


@dataclass(frozen=True)
class Points:
    """The numbers of a series that can be drawn, nan where they cannot."""

    x: Array
    y: Array
    low: Array
    high: Array

    @property
    def has_interval(self) -> bool:
        """Whether any point has an interval."""
        return bool(np.isfinite(self.low).any())

    def __getitem__(self, index: NDArray[np.intp]) -> Points:
        return Points(self.x[index], self.y[index], self.low[index], self.high[index])

    @classmethod
    def of(cls, series: Series, panel: Panel) -> Points:
        """Return what of a series can be drawn on a panel; on a logarithmic axis that is what is above 0.

        Raises:
            UserError: when x, y, low and high are not equally long.
        """
        x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (series.x, series.y))
        given = series.low is not None and series.high is not None
        low, high = (np.asarray(v, dtype=np.float64).ravel()
                     for v in ((series.low, series.high) if given else (y * np.nan, y * np.nan)))
        if not len(x) == len(y) == len(low) == len(high):
            raise UserError(f'series "{series.label}": x, y, low and high must be equally long, '
                            f"but have {len(x)}, {len(y)}, {len(low)} and {len(high)} numbers.")
        there = np.isfinite(drawable(x, panel.log_x)) & np.isfinite(drawable(y, panel.log_y))
        x, y = (np.where(there, drawable(v, log), np.nan)
                for v, log in ((x, panel.log_x), (y, panel.log_y)))
        if panel.log_y:  # an interval that reaches 0 has no end there; it is cut at the point's tenth
            low = np.where(low <= _TINY, y / 10, low)
        low = drawable(low, panel.log_y)
        high = drawable(high, panel.log_y)
        whole = there & np.isfinite(low) & np.isfinite(high)
        return cls(x, y, np.where(whole, low, np.nan), np.where(whole, high, np.nan))


def drawable(values: Array, log: bool) -> Array:
    """Return the numbers that an axis can show, nan for the others."""
    fits = np.abs(values) < _HUGE
    if log:
        return np.where(fits & (values > _TINY), values, np.nan)
    return np.where(fits, np.where(np.abs(values) < _TINY, 0.0, values), np.nan)


def thin(points: Points, log_x: bool = False, most: int = MOST_POINTS) -> Points:
    """Return at most `most` points: the ends, and the lowest and highest of equal stretches of the x axis.

    Peaks survive, which they would not if every n-th point were kept.
    """
    if len(points.x) <= most:
        return points
    finite = np.flatnonzero(np.isfinite(points.x))
    if len(finite) <= most:
        return points[finite]
    points = points[finite]
    place = np.log(points.x) if log_x else points.x
    if (np.diff(place) < 0).any():  # a path, not a function of x
        place = np.arange(len(place), dtype=np.float64)
    stretches = (most - 2) // 2
    edges = np.linspace(place[0], place[-1], stretches + 1)[1:-1]
    keep = {0, len(place) - 1}
    for part in np.split(np.arange(len(place)), np.searchsorted(place, edges)):
        if len(part):
            keep |= {int(part[points.y[part].argmin()]), int(part[points.y[part].argmax()])}
    return points[np.array(sorted(keep))]
