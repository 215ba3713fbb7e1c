"""How the claims on weight normalisation are judged; every margin and place is fixed here, before any run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.claims import Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval, median_interval, rank_correlation, wilson
from optscope.evidence.verdicts import all_of, close, shown_by, within

Array = NDArray[np.float64]

DEPTHS = (2, 3, 4)
STRENGTH = 30.0
"""κ Σ|x*|^{2/L} of "polar": the ratio in units that do not depend on depth and instance."""
BELOW = (0.02, 0.2, 0.6)
"""Shares of the threshold, r0² over Σ|x*|^{2/L}, at which polar flow should help."""
ABOVE = 5.0
NEAR = 0.05
"""An excess E/Q of at most this much is close to the least l1 norm (C1)."""
HALF = math.log10(0.5)
"""Half the error, or half the iterations, is much less (C2, C6): log10 ratios are compared with this."""
EXACT = 1e-6


def log_ratio(records: Records, arm: str, other: str, metric: str, at: float | None) -> Array:
    """Return log10 of the ratio of two arms' values, paired by seed."""
    a, b = records.pairs(arm, other, metric, at)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log10(a) - np.log10(b))


def _log_times(records: Records, arm: str, other: str, metric: str, at: float) -> Array:
    """Return log10 of the ratio of iterations: infinite where one never arrives, 0 where neither does."""
    a, b = (np.where(np.isnan(times), np.inf, times) for times in records.pairs(arm, other, metric, at))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(np.log10(a) - np.log10(b), nan=0.0, posinf=np.inf, neginf=-np.inf))


def _usual(records: Records, depth: int) -> Records:
    """Return the limits of a depth on problems of 5 entries and 40 measurements, over all shares."""
    return records.where(experiment="cells", arm=("plain", "polar"), depth=depth, sparsity=5, measurements=40)


def _control(records: Records, depth: int, problem: str) -> Records:
    return records.where(experiment="controls", metric="error", depth=depth, problem=problem)


def largest(records: Records, experiment: str, metric: str) -> float:
    """Return the largest value of a metric in an experiment, nan without one."""
    values = [row.value for row in records.where(experiment=experiment, metric=metric)]
    return float(np.max(values)) if values else math.nan


@dataclass(frozen=True)
class NearLeast:
    """C1: the polar limit's l1 norm is close to the least."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of E/Q at a fifth of the threshold."""
        values = _usual(records, self.depth).values("polar", "excess", 0.2)
        return within(median_interval(values), high=NEAR, what=f"L = {self.depth}: median excess E/Q of polar "
                      "limits")


@dataclass(frozen=True)
class LessError:
    """C2: from below the threshold polar flow, or descent, ends with at most half the error of plain."""

    depth: int
    experiment: str
    shares: tuple[float, ...] = (0.2, 0.6)

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of log10 of the error's ratio at shares of the threshold, paired by seed."""
        mine = (_usual(records, self.depth) if self.experiment == "cells" else
                records.where(experiment=self.experiment, depth=self.depth))
        parts = [within(median_interval(log_ratio(mine, "polar", "plain", "error", share)), high=HALF,
                        what=f"L = {self.depth}, {share:g} of the threshold: log10 of polar over plain error")
                 for share in self.shares]
        unfinished = records.where(experiment=self.experiment, metric="unfinished", value=1.0)
        verdict = shown_by(all_of(parts), parts[0])
        if not unfinished:
            return verdict
        count = len(unfinished.where(depth=self.depth))
        return replace(verdict, note=f"{verdict.note} {count} descents of all shares were unfinished and not "
                       "scored.")


@dataclass(frozen=True)
class DoseResponse:
    """C3: the larger κ, the smaller the excess."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge, over seeds, the rank correlation of κ with E within a seed, where E is above rounding."""
        mine = records.where(experiment="dose", arm="polar", depth=self.depth)
        ranks = []
        for seed in mine.seeds("polar"):
            points = [(row.at, row.value) for row in mine.where(seed=seed) if row.value > 1e-9]
            strengths, excesses = [at or math.nan for at, _ in points], [value for _, value in points]
            ranks.append(rank_correlation(strengths, excesses).estimate if len(points) > 2 else math.nan)
        return within(mean_interval(ranks), high=-0.9, what=f"L = {self.depth}: rank correlation of E with κ")


@dataclass(frozen=True)
class Collapse:
    """C3: finished polar descents end where plain flow from ρα does, with ρ from their own norms."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median distance to the plain limit, over seeds and shares of the threshold."""
        rows = records.where(experiment="descents", arm="polar", metric="distance to the limit", depth=self.depth)
        values = np.array([row.value for row in rows])
        return within(median_interval(values[np.isfinite(values)]), high=0.01,
                      what=f"L = {self.depth}: distance of finished descents from the plain limit at ρα, in ‖x*‖")


def flow_equivalence(records: Records) -> Verdict:
    """C3: the polar flow ends at the plain limit from ρ x0."""
    return within(largest(records, "flows", "distance of the flow from the plain limit at ρ"), high=EXACT,
                  what="largest distance over depths, signs, ratios and seeds")


def invariants(records: Records) -> Verdict:
    """C4: the invariants stay."""
    return within(largest(records, "flows", "drift of the invariants"), high=EXACT, what="largest relative drift")


def zero_loss(records: Records) -> Verdict:
    """C5: the polar flow ends at zero loss."""
    return within(largest(records, "flows", "final residual"), high=EXACT, what="largest relative residual")


@dataclass(frozen=True)
class Exponential:
    """C5: the residual decays exponentially, at the predicted rate."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the worst ratio of measured to predicted slope, polar and plain."""
        values = np.array([row.value for name in ("plain", "polar") for row in records.where(
            experiment="flows", metric=f"rate of {name} flow over prediction", depth=self.depth)])
        missing = int(np.isnan(values).sum())
        worst = float(values[np.nanargmax(np.abs(values - 1))]) if missing < len(values) else math.nan
        verdict = close(worst, 1.0, 0.05, what=f"L = {self.depth}: measured over predicted rate, the worst of "
                        f"{len(values) - missing} flows")
        return replace(verdict, note=f"{verdict.note} {missing} flows did not reach the last phase.")


@dataclass(frozen=True)
class Faster:
    """C6: polar descent needs at most half the iterations of plain descent.

    (a) At the same start and step, from above the threshold, to zero loss; (c) with start, step and ratio tuned for
    each, to an error.
    """

    depth: int
    experiment: str
    polar: str
    metric: str
    at: float
    where: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of log10 of the ratio of iterations, paired by seed."""
        mine = records.where(experiment=self.experiment, metric=self.metric, depth=self.depth)
        ratio = _log_times(mine, self.polar, "plain", self.metric, self.at)
        return within(median_interval(ratio), high=HALF,
                      what=f"L = {self.depth}, {self.where}: log10 of polar over plain iterations")


@dataclass(frozen=True)
class OnlyPolarArrives:
    """C6 (b): at the same start and step, from below the threshold, only polar descent comes near x*."""

    depth: int
    alpha: float

    def __call__(self, records: Records) -> Verdict:
        """Judge the share of seeds on which polar descent (κ = 10) reaches 5 % error and plain does not."""
        metric = "iterations to error 5 %"
        mine = records.where(experiment="table", metric=metric, depth=self.depth)
        a, b = mine.pairs("κ=10", "plain", metric, self.alpha)
        return within(wilson(float((np.isfinite(a) & np.isnan(b)).sum()), len(a)), low=0.5,
                      what=f"L = {self.depth}, α = {self.alpha:g}: share of seeds where polar alone reaches 5 % "
                      "error")


def in_most_cells(records: Records) -> Verdict:
    """C7: halving of the error over depths, sparsities, measurements and starts: in most cells."""
    mine = records.where(experiment="cells")
    tried = mine.where(arm="polar")
    cells = [mine.where(depth=depth, sparsity=sparsity, measurements=measurements)
             for depth in tried.levels("depth") for sparsity in tried.levels("sparsity")
             for measurements in tried.levels("measurements")]
    places = [(cell, share) for cell in cells for share in BELOW]
    medians = [float(np.median(log_ratio(cell, "polar", "plain", "error", share))) for cell, share in places]
    less, more = sum(m < HALF for m in medians), sum(m > 0 for m in medians)
    off = [m for m, (cell, _) in zip(medians, places, strict=True)
           if np.mean(cell.values("linear programme", "l1 minimiser is the target")) < 0.5]
    verdict = within(wilson(less, len(medians)), low=0.5, what="share of cells (depth, sparsity, measurements, "
                     "start) whose median error polar flow halves")
    return replace(verdict, note=f"{verdict.note} In {more} cells it is larger. Of the {len(off)} cells where the "
                   "l1 minimiser is not x* on most instances, so that no bias to it can find x*, it halves "
                   f"{sum(m < HALF for m in off)} and enlarges {sum(m > 0 for m in off)}.")


@dataclass(frozen=True)
class PlainNeedsSmallStarts:
    """C8: plain flow is near the least l1 norm from a tiny start only."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge E/Q from a fifth of the threshold (must be above 5 %) and from 1e-8 (must be below)."""
        large = _usual(records, self.depth).values("plain", "excess", 0.2)
        limits = records.where(experiment="limits", metric="excess", depth=self.depth)
        small = limits.values("plain", "excess", 1e-8)
        parts = [within(median_interval(large), low=NEAR, what=f"L = {self.depth}: plain E/Q, a fifth of the "
                        "threshold"),
                 within(median_interval(small), high=NEAR, what=f"L = {self.depth}: plain E/Q from α = 1e-8")]
        return shown_by(all_of(parts), parts[0])


@dataclass(frozen=True)
class FadesAbove:
    """T4: at five times the threshold the gain is all but gone."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of polar over plain error."""
        ratio = log_ratio(_usual(records, self.depth), "polar", "plain", "error", ABOVE)
        return within(median_interval(10**ratio), 0.8, 1.05,
                      what=f"L = {self.depth}: polar over plain error at {ABOVE:g} times the threshold")


@dataclass(frozen=True)
class DenseFails:
    """T5: a dense x* is not found."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median error."""
        values = _control(records, self.depth, "dense").values("polar", "error")
        return within(median_interval(values), low=0.5, what=f"L = {self.depth}: error of polar limits, dense x*")


@dataclass(frozen=True)
class TinyIsWorse:
    """T5: from a tiny start, κ = 1 is worse than plain flow."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of log10 of the error's ratio."""
        ratio = log_ratio(_control(records, self.depth, "tiny start"), "κ=1", "plain", "error", None)
        return within(median_interval(ratio), low=0.0,
                      what=f"L = {self.depth}, α = 1e-6: log10 of polar (κ = 1) over plain error")


def plain_control(records: Records) -> Verdict:
    """T5: κ = 1/r² is the plain flow."""
    return within(largest(records, "flows", "distance of the flow at κ=1/r² from plain flow"), high=EXACT,
                  what="largest distance of the ends")


def torch_never_magnifies(records: Records) -> Verdict:
    """κ = 1/r0² never magnifies the start."""
    rows = records.where(experiment="limits", arm="torch", metric="log10 effective start")
    worst = [row.value - math.log10(row.at or math.nan) for row in rows]
    return within(max(worst, default=math.nan), high=1e-9, what="largest log10 ρ over depths, starts and seeds")


def bounds(records: Records) -> Verdict:
    """B: the l1 bounds hold."""
    return within(largest(records, "limits", "excess less bound"), high=1e-9, what="largest excess less its bound")
