"""How hyperparameters were chosen: what was spent on it, and how every candidate did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optscope.engine.plan import Plan
from optscope.evidence.picture import Panel, Picture, Series
from optscope.evidence.records import Records
from optscope.evidence.words import listed
from optscope.protocol.comparison import Comparison
from optscope.protocol.rehearse import count_of

WIDE = 10.0
"""From this ratio of the worst criterion to the best on, both above 0, the axis is logarithmic."""


def gradients(comparison: Comparison, records: Records) -> dict[str, int]:
    """Return how many gradients were spent on choosing each arm's hyperparameters; none on one that stands."""
    tried, steps = comparison.tried(records), _steps(comparison, comparison.tuning_plan or comparison.plan)
    return {arm.name: sum(rule.evaluations for rule in tried[arm.name]) * steps * len(comparison.tuning_seeds)
            for arm in comparison.arms}


def budget_said(comparison: Comparison, records: Records) -> str:
    """Return what was spent on choosing, on training, and how often the search was widened, in words."""
    steps, tuning = _steps(comparison, comparison.plan), gradients(comparison, records)
    seeds = len(comparison.tuning_seeds)
    rounds = comparison.rounds(records)
    trials = {arm.name: len(rounds[0][arm.name]) for arm in comparison.arms}
    what = "learning rates" if all(arm.search is None or arm.search.space.names == ("lr",)
                                   for arm in comparison.arms) else "candidates"
    said = [f"{_alike(trials)} {what} × {count_of(seeds, 'seed')} each, chosen by clean validation "
            f"{comparison.criterion.metric}"
            + (f" after the shorter {comparison.tuning_plan!r}" if comparison.tuning_plan else "")]
    if len(rounds) > 1:
        said.append(f"then {count_of(len(rounds) - 1, 'round')} more, since a best rate lay at an end of those "
                    "tried: those at an end went on beyond it, the others between the best and its neighbour, each "
                    "round at one cost for all")
    said.append(f"gradients taken: {_alike(tuning)} for choosing, "
                f"{_alike({arm.name: arm.rule.evaluations * steps for arm in comparison.arms})} in each training")
    return "; ".join(said)


def _alike(counts: Mapping[str, int]) -> str:
    """Return a number that all arms share, or each arm's."""
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,}"
    return "; ".join(f"{count:,} ({name})" for name, count in counts.items())


def _steps(comparison: Comparison, plan: Plan) -> int:
    return plan.total(comparison.task.data().train.size)


def learning_rates(comparison: Comparison, records: Records) -> Picture:
    """Return how every candidate did on validation data over its learning rate, and which was chosen."""
    mine = records.where(experiment=comparison.name)
    criterion, chosen, tried = comparison.criterion, comparison.chosen(mine), comparison.tried(mine)
    sign = -1.0 if criterion.better == "higher" else 1.0
    curves = {arm.name: sorted((float(rule.lr), sign * comparison.score(mine, arm, rule))  # type: ignore[arg-type]
                               for rule in tried[arm.name]) for arm in comparison.arms if arm.search}
    finite = {name: [point for point in curve if math.isfinite(point[1])] for name, curve in curves.items()}
    scores = [y for curve in finite.values() for _, y in curve]
    log_y = bool(scores) and min(scores) > 0 and max(scores) > WIDE * min(scores)
    end = _beyond(scores, sign, log_y)
    tuned, series, lost = comparison.tuning_seeds, [], False
    for name, curve in curves.items():
        diverged = [x for x, y in curve if not math.isfinite(y)]
        lost |= bool(diverged)
        one_each = len({x for x, _ in curve}) == len(curve)  # else others are searched too, and no line joins them
        series.append(Series(name, [x for x, _ in finite[name]], [y for _, y in finite[name]],
                             mark="line" if one_each else "points", n=[len(tuned)] * len(finite[name]),
                             seeds=tuned))
        series.append(Series(name, diverged, [end] * len(diverged), mark="points", seeds=tuned))
        best = [(x, y) for x, y in finite[name] if x == float(chosen[name].lr)]  # type: ignore[arg-type]
        series.append(Series(name, [x for x, _ in best[:1]], [sign * min((sign * y for _, y in best), default=0.0)
                                                              for _ in best[:1]], mark="rings"))
    picks = listed(f"{name} {float(rule.lr):.4g}" for name, rule in chosen.items())  # type: ignore[arg-type]
    panel = Panel("learning rate", f"validation {criterion.metric} at the end", [s for s in series if len(s.x)],
                  log_x=True, log_y=log_y, levels={"diverged": end} if lost else {})
    return Picture("learning-rates", f"Learning rates chosen on validation data: {picks}", [panel],
                   f"Every candidate's validation {criterion.metric}, mean over "
                   f"{count_of(len(comparison.tuning_seeds), 'tuning seed')} that the comparison does not use. A "
                   "ring is around the one chosen; those that diverged or failed stand on the dotted line.")


def _beyond(scores: Sequence[float], sign: float, log: bool) -> float:
    """Return where those that diverged are drawn: beyond the worst score."""
    if not scores:
        return 1.0
    best, worst = (min(scores), max(scores)) if sign > 0 else (max(scores), min(scores))
    if log:
        return worst * math.pow(worst / best, 0.1)
    return worst + 0.1 * ((worst - best) or sign * (abs(worst) or 1.0))
