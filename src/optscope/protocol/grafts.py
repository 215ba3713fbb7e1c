"""The graft matrix: every rule's step length on every rule's direction, tuned, and which half earns the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError
from optscope.evidence.claims import Verdict
from optscope.evidence.picture import Heatmap
from optscope.evidence.records import Metric, Records
from optscope.evidence.stats import mean_interval
from optscope.evidence.verdicts import greater
from optscope.optim.graft import Graft
from optscope.optim.players import Players
from optscope.optim.rule import Rule
from optscope.optim.sign import Per
from optscope.protocol.comparison import Arm

Array = NDArray[np.float64]


def graft_name(magnitude: str, direction: str) -> str:
    """Return the name of the arm that steps as far as one rule, where another would go.

    >>> graft_name("Adam", "SGD"), graft_name("SGD", "SGD")
    ('Adam length, SGD direction', 'SGD')
    """
    return magnitude if magnitude == direction else f"{magnitude} length, {direction} direction"


def graft_arms(arms: Sequence[Arm], per: Per = "layer") -> tuple[Arm, ...]:
    """Return every arm's magnitude with every arm's direction; its rates are those of the magnitude.

    A rule grafted on itself is the rule. Rules of a game are grafted player by player.

    Raises:
        UserError: with fewer than two arms, or when a game's arm meets another.
    """
    if len(arms) < 2:
        raise UserError("a graft matrix needs two optimisers or more; "
                        f"got {', '.join(arm.name for arm in arms) or 'none'}")
    return tuple(Arm(graft_name(m.name, d.name), m.rule if m is d else _grafted(m.rule, d.rule, per), m.search,
                     m.task, {**m.factors, "length": m.name, "direction": d.name})
                 for m in arms for d in arms)


def _grafted(magnitude: Rule, direction: Rule, per: Per) -> Rule:
    if isinstance(magnitude, Players) and isinstance(direction, Players):
        direction.check_players(magnitude.by_name)
        return Players(**{name: Graft(rule, direction.by_name[name], per) for name, rule in magnitude.rules})
    if isinstance(magnitude, Players) or isinstance(direction, Players):
        raise UserError(f"rules of a game graft only on rules of a game; got {magnitude!r} and {direction!r}")
    return Graft(magnitude, direction, per)


def grafted_rules(arms: Sequence[Arm]) -> list[str]:
    """Return the names of the rules behind the arms of a graft matrix: its diagonal."""
    return [arm.name for arm in arms if arm.factors["length"] == arm.factors["direction"]]


def graft_matrix(records: Records, rules: Sequence[str], metric: Metric, at: float | None = None) -> Heatmap:
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
                   "holds the rules themselves.", notes)


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
