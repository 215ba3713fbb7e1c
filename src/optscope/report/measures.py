"""Measures: what was measured on every seed of every arm, from which a page finds differences to any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from optscope.evidence.paired import SAME
from optscope.evidence.stats import paired_difference
from optscope.report.style import clean
from optscope.report.tables import Table, difference


@dataclass(frozen=True)
class Measure:
    """One thing that was measured, with its unit in its name: arm to seed to value, nan where a run left none."""

    name: str
    values: Mapping[str, Mapping[int, float]]


def seeds_of(measures: Sequence[Measure]) -> list[int]:
    """Return every seed of any arm, ascending."""
    return sorted({seed for each in measures for found in each.values.values() for seed in found})


def difference_table(measures: Sequence[Measure], baseline: str) -> Table:
    """Return a row a measure: the mean difference of every arm to one of them, with its 95 % interval."""
    arms = list(measures[0].values)
    seeds = seeds_of(measures)
    rows = [(each.name, *("–" if arm == baseline else _difference(each, arm, baseline, seeds) for arm in arms))
            for each in measures]
    return Table(f"Paired differences to {baseline}", ("arm − baseline", *arms), rows,
                 f"Mean difference on the same seeds with its 95 % t interval, over {len(seeds)} seeds where no n "
                 "is given. Intervals are not corrected for their number: the claims are.")


def _difference(measure: Measure, arm: str, baseline: str, seeds: Sequence[int]) -> str:
    ours, theirs = (np.array([measure.values[name].get(seed, math.nan) for seed in seeds])
                    for name in (arm, baseline))
    there = np.isfinite(ours + theirs)
    ours, theirs = ours[there], theirs[there]
    found = paired_difference(ours, theirs)
    if not found.n:
        return "not paired"
    text = difference(found, SAME * float(np.max(np.abs([ours, theirs]))))
    return text + (f" (n = {found.n})" if found.n < len(seeds) else "")


def embedded(measures: Sequence[Measure]) -> dict[str, Any]:
    """Return the numbers as JSON values, with the 97.5 % quantiles of Student's t from one degree of freedom on."""
    seeds = seeds_of(measures)
    arms = list(measures[0].values) if measures else []

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None
    return {"arms": [clean(arm) for arm in arms], "seeds": seeds,
            "t": [float(scipy.special.stdtrit(n, 0.975)) for n in range(1, max(len(seeds), 2))],
            "values": [[[number(float(each.values[arm].get(seed, math.nan))) for seed in seeds] for arm in arms]
                       for each in measures]}
