"""Steps to a target: when each run is first as good on validation data as the first arm is at the end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.paired import sooner_test
from optscope.evidence.picture import Panel, Picture, Series
from optscope.evidence.records import Records
from optscope.evidence.stats import Interval, holm, median_interval
from optscope.evidence.words import listed
from optscope.protocol.comparison import Comparison
from optscope.protocol.rehearse import count_of
from optscope.report.section import Section
from optscope.report.tables import Table, number

TIMED = ("CPU seconds are steps by the CPU seconds of an arm's step, the median over its runs: what a process "
         "spends on its steps alone. Other runs on the machine lengthen that by what they take of its caches.")
UNTIMED = "Seconds are not compared: those of a run hold its measurements, and runs share the machine."

Reached = Mapping[str, Mapping[int, float]]
"""Arm and seed to a step: inf where the target was never reached, nan where the run failed and says nothing."""


def target(comparison: Comparison, records: Records) -> Section:
    """Return how many steps every arm took to the first arm's mean final criterion, and the ratios to the first's.

    A run has reached it at the first moment at which its criterion is at least as good; nothing is interpolated.
    One that ended without, diverged runs included, never did, which counts as more steps than all others.
    """
    rows = readings(comparison, records)
    goal = aim(comparison, rows)
    if math.isnan(goal):
        return Section()
    found = {arm.name: reached(comparison, records, arm.name, goal) for arm in comparison.arms}
    moments = [int(step) for step in rows.levels("step")]
    return Section(tables=[_table(comparison, found, moments, goal, costs(comparison, records))],
                   figures=[_ratios(comparison, found, moments, goal)] if len(found) > 1 else [])


def readings(comparison: Comparison, records: Records) -> Records:
    """Return what validation gave of the criterion at the moments of the final runs, from the first step on.

    The moments of very short trainings begin before it.
    """
    return Records(row for row in records.where(experiment=comparison.name, phase="final",
                                                metric=comparison.criterion.metric) if row.step)


def aim(comparison: Comparison, rows: Records) -> float:
    """Return the target: the first arm's mean over seeds at its last moment; nan where none got there."""
    mine = rows.where(arm=comparison.arms[0].name, status="ok")
    last = max((row.step or 0 for row in mine), default=0)
    return statistics.fmean([row.value for row in mine if row.step == last] or [math.nan])


def reached(comparison: Comparison, records: Records, arm: str, goal: float) -> dict[int, float]:
    """Return for every seed of an arm the first moment [step] at which its criterion is at least as good as `goal`.

    It is inf for a run that ended without, and nan for one that failed or was lost.
    """
    sign = -1.0 if comparison.criterion.better == "higher" else 1.0
    mine = records.where(experiment=comparison.name, phase="final", arm=arm)
    found = {row.seed: math.inf if row.status in ("ok", "diverged") else math.nan for row in mine}
    for row in readings(comparison, mine):
        if sign * row.value <= sign * goal:
            found[row.seed] = min(found[row.seed], float(row.step or 0))
    return found


def _paired(found: Reached, arm: str, first: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    seeds = sorted(found[arm].keys() | found[first].keys())
    ours, theirs = (np.array([found[name].get(seed, math.nan) for seed in seeds]) for name in (arm, first))
    return ours, theirs


def _beyond(moments: Sequence[int]) -> int:
    """Return the first moment at which a run that never reached the target could have been seen to."""
    return moments[-1] + (moments[-1] - moments[-2] if len(moments) > 1 else moments[-1])


def ratio(found: Reached, arm: str, first: str, moments: Sequence[int]) -> Interval:
    """Return the median over seeds of an arm's steps by the first arm's, with its order-statistic interval.

    Never counts as the moment after the end, so that ratios with it are bounds, no farther from 1 than what they
    bound. Bounds are nan below six seeds.
    """
    ours, theirs = (np.where(np.isinf(steps), _beyond(moments), steps) for steps in _paired(found, arm, first))
    return median_interval(ours / theirs)


def costs(comparison: Comparison, records: Records) -> dict[str, float]:
    """Return the CPU seconds of a step of every arm, the median over its runs; nothing unless all have it."""
    mine = records.where(experiment=comparison.name, phase="final", status="ok", metric="CPU seconds a step")
    found = {arm.name: [row.value for row in mine.where(arm=arm.name)] for arm in comparison.arms}
    return {arm: statistics.median(values) for arm, values in found.items()} if all(found.values()) else {}


def _table(comparison: Comparison, found: Reached, moments: Sequence[int], goal: float,
           cost: Mapping[str, float]) -> Table:
    first, *others = found
    tests = {arm: sooner_test(*_paired(found, arm, first)) for arm in others}
    adjusted = dict(zip(others, holm([test.p for test in tests.values()]), strict=True))
    rows = []
    for arm in found:
        steps, times = median_interval(list(found[arm].values())), ratio(found, arm, first, moments)
        row = [arm, _share(found[arm]), _steps(steps), *([_steps(_scaled(steps, cost[arm]))] if cost else [])]
        if arm != first:
            row += [_times(times), *([_times(_scaled(times, cost[arm] / cost[first]))] if cost else []),
                    _order(*_paired(found, arm, first)),
                    f"{adjusted[arm]:.2g} ({tests[arm].test})" if math.isfinite(adjusted[arm]) else ""]
        rows.append(tuple(row + [""] * (3 + bool(cost)) * (arm == first)))
    return Table(f"Steps to the target: {_goal_said(comparison, goal)}",
                 ("arm", "runs that reached it", "steps, median", *(["CPU seconds, median"] if cost else []),
                  f"steps by {first}'s, median", *([f"CPU seconds by {first}'s"] if cost else []),
                  f"sooner, alike, later than {first}", "p"), rows, _note(comparison, moments, bool(cost)))


def _scaled(found: Interval, factor: float) -> Interval:
    return replace(found, **{name: factor * getattr(found, name) for name in ("estimate", "low", "high")})


def _note(comparison: Comparison, moments: Sequence[int], timed: bool) -> str:
    first = comparison.arms[0].name
    dear = listed(f"{arm.name} {arm.rule.evaluations}" for arm in comparison.arms if arm.rule.evaluations > 1)
    return (f"The rule of the target was fixed before the runs: {first}'s mean over seeds at the end, which about "
            f"half of {first}'s own runs miss where they still improve. {_resolution(moments)} Medians have "
            "order-statistic 95 % intervals, from six seeds on. A run that never reached the target, or diverged "
            "before, counts as later than all that did, and in ratios as one that does at step "
            f"{_beyond(moments)}. p is that of the paired test on the steps (where a run never got there of the "
            "exact sign test, which knows their order alone), Holm-corrected over this table and apart from the "
            f"claims.{f' Gradients a step: {dear}, else 1.' if dear else ''} {TIMED if timed else UNTIMED}")


def _resolution(moments: Sequence[int]) -> str:
    """Return at which steps was looked, in words.

    >>> _resolution([30, 60, 90])
    'Runs are looked at 3 times, every 30 steps: what is read is late by less than that.'
    """
    gap = int(max(np.diff([0, *moments])))
    return (f"Runs are looked at {count_of(len(moments), 'time')}, every {count_of(gap, 'step')}: what is read is "
            "late by less than that.")


def _goal_said(comparison: Comparison, goal: float) -> str:
    side = "at least" if comparison.criterion.better == "higher" else "at most"
    return (f"validation {comparison.criterion.metric} of {side} {number(goal)}, "
            f"{comparison.arms[0].name}'s mean at the end")


def _share(steps: Mapping[int, float]) -> str:
    known = [step for step in steps.values() if not math.isnan(step)]
    return f"{sum(map(math.isfinite, known))} of {len(known)}"


def _steps(found: Interval) -> str:
    """Return a median number of steps with its interval, inf as the word it stands for.

    >>> _steps(Interval(40.0, 20.0, math.inf, 8)), _steps(Interval(math.inf, math.nan, math.nan, 3))
    ('40 [20, never]', 'never')
    """
    words = ["never" if math.isinf(value) else number(value) for value in (found.estimate, found.low, found.high)]
    return words[0] if math.isnan(found.low) else f"{words[0]} [{words[1]}, {words[2]}]"


def _times(found: Interval) -> str:
    words = [number(value, 3) for value in (found.estimate, found.low, found.high)]
    return words[0] if math.isnan(found.low) else f"{words[0]} [{words[1]}, {words[2]}]"


def _order(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> str:
    return ", ".join(str(int(count.sum())) for count in (ours < theirs, ours == theirs, ours > theirs))


def _ratios(comparison: Comparison, found: Reached, moments: Sequence[int], goal: float) -> Picture:
    """Return the median ratio of every arm's steps to the first's, with its interval."""
    first, *others = found
    each = [ratio(found, arm, first, moments) for arm in others]
    said = listed(f"{arm} {number(r.estimate, 3)}" for arm, r in zip(others, each, strict=True))
    series = Series.over("", list(range(len(others))), each, "points", seeds=sorted(set().union(*found.values())))
    return Picture("steps-to-target", f"Steps to {first}'s mean final validation {comparison.criterion.metric} "
                   f"({number(goal)}), relative to {first}'s: {said}",
                   [Panel("", f"steps / steps of {first}", [series], log_y=True, categories=others,
                          levels={"as many": 1.0})],
                   "Median over seeds of the paired ratio with its order-statistic 95 % interval, from six seeds "
                   f"on: below 1 an arm gets there sooner. {_resolution(moments)} Never counts as step "
                   f"{_beyond(moments)}: ratios with such runs are bounds, no farther from 1 than what they bound.")
