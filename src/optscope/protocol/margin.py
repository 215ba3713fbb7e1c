"""The margin within which two scores count as equal: a number, a share of the baseline's error, or the smaller."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError
from optscope.evidence.records import Metric

POINTS, SHARE = 1.5, 20.0
"""The usual margin: the smaller of so many points and so many percent of the baseline's error."""


@dataclass(frozen=True)
class Margin:
    """At most `absolute`, in the unit of a difference, and at most `share` percent of the baseline's error.

    The error of a score in percent is what it lacks to 100, that of a loss the loss itself. Near the top a fixed
    number of points calls equal what errs twice as often as the other; a share of the error does not. 20 % either
    way is what two medicines may differ by to count as the same (80 to 125 %; FDA, Statistical approaches to
    establishing bioequivalence, 2001).
    """

    absolute: float = math.inf
    share: float = math.inf

    def of(self, baseline: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
        """Return the margin at each of the baseline's scores, in the unit of a difference.

        >>> Margin(1.5, 20.0).of(np.array([99.0, 90.0]), Metric("accuracy", "%", "higher")).round(6).tolist()
        [0.2, 1.5]
        """
        error = 100 - baseline if metric.unit == "%" else np.abs(baseline)
        share = error * (self.share / 100) if math.isfinite(self.share) else np.full_like(error, math.inf)
        return np.minimum(share, self.absolute)

    def text(self, metric: Metric) -> str:
        """Return the margin in words.

        >>> Margin(share=20.0).text(Metric("loss")), Margin(1.5, 20.0).text(Metric("accuracy", "%"))
        ("20 % of the baseline's loss", "1.5 points or 20 % of the baseline's error, whichever is less")
        """
        unit, error = (" points", "error") if metric.unit == "%" else ("", metric.name)
        absolute, share = f"{self.absolute:g}{unit}", f"{self.share:g} % of the baseline's {error}"
        return (absolute if math.isinf(self.share) else share if math.isinf(self.absolute) else
                f"{absolute} or {share}, whichever is less")


def margin_said(said: float | str | None, metric: Metric) -> Margin:
    """Return the margin that a setting says: a number, a share such as "20%", or None: the usual one.

    Raises:
        UserError: when it is neither.
    """
    if said is None:
        return Margin(POINTS if metric.unit == "%" else math.inf, SHARE)
    if isinstance(said, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", said)
        number = float(found[1]) if found else math.nan
        if number > 0:
            return Margin(share=number) if found and found[2] else Margin(absolute=number)
    elif said > 0 and math.isfinite(said):
        return Margin(absolute=float(said))
    raise UserError("margin must be a positive number (of points of accuracy), or a share of the baseline's error; "
                    f'got {said!r}: write for example 0.5 or "20%"')
