"""What grafts show: the matrix of every length on every direction, and which half earns the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from optscope.analyses.findings import CLEAN, places
from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.picture import Heatmap
from optscope.evidence.records import Metric, Records
from optscope.evidence.stats import mean_interval
from optscope.evidence.verdicts import greater
from optscope.optim.sign import Per
from optscope.protocol.comparison import Comparison
from optscope.protocol.grafts import graft_name, grafted_per, grafted_rules
from optscope.report.section import Section

Array = NDArray[np.float64]

WHOSE: Mapping[Per, str] = {"layer": "each layer's", "module": "each module's", "model": "the whole model's"}
"""Whose step has the length that a graft takes."""


def grafts(comparison: Comparison, records: Records) -> Section:
    """Return the graft matrices of what is measured, and whether length or direction earns the result."""
    final = records.where(experiment=comparison.name, phase="final")
    rules = grafted_rules(comparison.arms)
    metrics = [p.metric for p in places(comparison, final) if p.at is None]
    named = (CLEAN, comparison.criterion.metric)
    first = next((metric for metric in metrics if metric.name in named), Metric(comparison.criterion.metric))
    claim = Claim("G", f"Step length explains more of the differences in {first.name} than direction",
                  "this comparison", partial(length_earns_more, rules=rules, metric=first.name),
                  "direction explains more", scale="smoke")
    return Section(verdicts=[(claim, claim.judge(final, "desk"))],
                   figures=[graft_matrix(final, rules, metric, whose=WHOSE[grafted_per(comparison.arms)])
                            for metric in metrics])


def graft_matrix(records: Records, rules: Sequence[str], metric: Metric, at: float | None = None,
                 whose: str = WHOSE["layer"]) -> Heatmap:
    """Return the matrix of a metric's means with 95 % intervals: a row a magnitude, a column a direction."""
    found = [[mean_interval(records.values(graft_name(m, d), metric.name, at)) for d in rules] for m in rules]
    values = np.array([[cell.estimate for cell in row] for row in found])
    notes = [[f"{cell.low:.3g} … {cell.high:.3g}" for cell in row] for row in found]
    length, direction = (s for s in shares(records, rules, metric.name, at)[:2])
    title = f"{metric.name[:1].upper()}{metric.name[1:]} of every length on every direction"
    if np.isfinite(length).any():
        title += (f": length explains {100 * np.nanmean(length):.0f} % of the differences, direction "
                  f"{100 * np.nanmean(direction):.0f} %")
    better = {"higher": "; higher is better", "lower": "; lower is better"}.get(metric.better, "")
    return Heatmap(f"grafts-{metric.name.replace(' ', '-')}", title, [f"{m}'s length" for m in rules],
                   [f"{d}'s direction" for d in rules], values, metric.unit or metric.name,
                   f"Mean over seeds at tuned learning rates, below it the 95 % t interval{better}. The diagonal "
                   f"holds the rules themselves. Lengths are those of {whose} step.", notes)


def shares(records: Records, rules: Sequence[str], metric: str,
           at: float | None = None) -> tuple[Array, Array, Array]:
    """Return what length, direction and their interaction explain, one share a seed, `(seeds,)` each.

    Of each seed's table T (length × direction) the two-way sums of squares about the mean, by their total:
    k Σ_m (T_m· − T··)², k Σ_d (T·d − T··)², and the rest. nan for a seed that lacks an entry or has no differences.
    """
    names = [[graft_name(m, d) for d in rules] for m in rules]
    by_seed = {name: records.by_seed(name, metric, at) for row in names for name in row}
    seeds = sorted(set().union(*by_seed.values()))
    tables = np.array([[[by_seed[name].get(seed, np.nan) for name in row] for row in names] for seed in seeds])
    return two_way(tables.reshape(len(seeds), len(rules), len(rules)))


def two_way(tables: Array) -> tuple[Array, Array, Array]:
    """Return the shares of rows, columns and interaction in tables `(..., k, k)`.

    >>> rows, columns, rest = two_way(np.array([[1.0, 1.0], [3.0, 3.0]]))
    >>> float(rows), float(columns), float(rest)
    (1.0, 0.0, 0.0)
    """
    k = tables.shape[-1]
    centred = tables - tables.mean((-2, -1), keepdims=True)
    rows, columns = (k * (centred.mean(axis) ** 2).sum(-1) for axis in (-1, -2))
    total = (centred**2).sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (np.where(total > 0, part / total, np.nan) for part in (rows, columns))
    return first, second, 1 - first - second


def length_earns_more(records: Records, rules: Sequence[str], metric: str, at: float | None = None) -> Verdict:
    """Judge over seeds whether the length of steps explains more of a metric's differences than their direction."""
    length, direction, _ = shares(records, rules, metric, at)
    return greater(length, direction, what=f"share of the differences in {metric}, length − direction")
