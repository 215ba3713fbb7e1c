"""The rounding floor: how far two runs may differ because their steps were rounded differently, and no more."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import scipy

from optscope.evidence.records import Records


@dataclass(frozen=True)
class RoundingFloor:
    """What rounding alone does to a metric of two arms.

    `deviations` are the standard deviations of each arm's rounding twins of one seed; `value` is the difference
    between single runs of the two arms on one seed that rounding alone stays below in 95 of 100 cases; `runs` is
    how many runs this stands on. All is nan without twins.
    """

    value: float
    deviations: tuple[float, float]
    runs: int

    def covers(self, difference: float) -> bool:
        """Return whether a difference is smaller than what rounding alone does to two runs."""
        return abs(difference) < self.value


def shows(floor: float, number: float) -> bool:
    """Return whether a rounding floor changes a number as it is printed, with three digits.

    >>> shows(2e-15, 12.4), shows(0.2, 12.4)
    (False, True)
    """
    last_digit = 10.0 ** (math.floor(math.log10(abs(number))) - 2) if number else 0.0
    return floor >= last_digit / 2


def rounding_floor(records: Records, arm: str, other: str, metric: str, at: float | None = None) -> RoundingFloor:
    """Return the rounding floor under a difference of two arms, t · √(s₁² + s₂²).

    s² is the variance of a metric among the runs of one seed, the final one and its twins, pooled over seeds; t
    the 97.5 % quantile of Student's distribution with Welch and Satterthwaite's degrees of freedom (Welch,
    Biometrika 34 (1947) 28), so that few twins make a high floor.
    """
    variances, freedoms, runs = zip(*(_within(records, each, metric, at) for each in (arm, other)), strict=True)
    total = sum(variances)
    deviations = (math.sqrt(variances[0]), math.sqrt(variances[1]))
    if not min(freedoms) or not total > 0:
        return RoundingFloor(0.0 if total == 0 and min(freedoms) else math.nan, deviations, sum(runs))
    freedom = total**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return RoundingFloor(float(scipy.special.stdtrit(freedom, 0.975)) * math.sqrt(total), deviations, sum(runs))


def _within(records: Records, arm: str, metric: str, at: float | None) -> tuple[float, int, int]:
    """Return the pooled variance within seeds, its degrees of freedom, and the number of runs."""
    by_seed: dict[int, dict[str, float]] = defaultdict(dict)
    for row in records.where(arm=arm, metric=metric, step=None, phase=("final", "twin")):
        if at is None or (row.at is not None and math.isclose(row.at, at)):
            by_seed[row.seed][f"{row.phase} {row.rule}"] = row.value
    groups = [list(group.values()) for group in by_seed.values()
              if len(group) > 1 and np.isfinite(list(group.values())).all()]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return math.nan, 0, 0
    squares = sum((len(group) - 1) * float(np.var(group, ddof=1)) for group in groups)
    return squares / freedom, freedom, sum(map(len, groups))
