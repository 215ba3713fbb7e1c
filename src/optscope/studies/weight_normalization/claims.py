"""The claims C1 to C8 as tests on records, then ours; every margin and place is fixed here, before any run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval, median_interval, rank_correlation, wilson
from optscope.evidence.verdicts import all_of, close, equivalent, greater, holm_corrected, within

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
EQUAL = 1.5  # points of clean accuracy
AS_SPARSE = 0.05  # in log10: errors within 12 % of each other are equal


def _log_ratio(records: Records, arm: str, other: str, metric: str, at: float | None) -> Array:
    a, b = records.pairs(arm, other, metric, at)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log10(a) - np.log10(b))


def _largest(records: Records, experiment: str, metric: str, **fields: object) -> float:
    values = [row.value for row in records.where(experiment=experiment, metric=metric, **fields)]
    return float(np.max(values)) if values else math.nan


@dataclass(frozen=True)
class NearLeast:
    """C1: the polar limit's l1 norm is close to the least."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of E/Q at a fifth of the threshold."""
        values = records.where(experiment="cells").values(f"L={self.depth}, s=5, M=40, polar", "excess", 0.2)
        return within(median_interval(values), high=NEAR, what=f"L = {self.depth}: median excess E/Q of polar limits")


@dataclass(frozen=True)
class LessError:
    """C2: from below the threshold polar flow, or descent, ends with at most half the error of plain."""

    depth: int
    experiment: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of log10 of the error's ratio at 0.2 and 0.6 of the threshold, paired by seed."""
        mine = records.where(experiment=self.experiment)
        middle = f"L={self.depth}, s=5, M=40" if self.experiment == "cells" else f"L={self.depth}"
        parts = [within(median_interval(_log_ratio(mine, f"{middle}, polar", f"{middle}, plain", "error", share)),
                        high=HALF, what=f"L = {self.depth}, {share:g} of the threshold: log10 of polar over plain error")
                 for share in (0.2, 0.6)]
        unfinished = mine.where(metric="unfinished", value=1.0)
        verdict = replace(all_of(parts), effect=parts[0].effect, low=parts[0].low, high=parts[0].high, n=parts[0].n)
        if not unfinished:
            return verdict
        count = len(unfinished.where(arm=(f"{middle}, polar", f"{middle}, plain")))
        return replace(verdict, note=f"{verdict.note} {count} descents of all shares were unfinished and not scored.")


@dataclass(frozen=True)
class DoseResponse:
    """C3: the larger κ, the smaller the excess."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge, over seeds, the rank correlation of κ with E within a seed, where E is above rounding."""
        mine = records.where(experiment="dose", arm=f"L={self.depth}, polar")
        ranks = []
        for seed in mine.seeds(f"L={self.depth}, polar"):
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
        rows = records.where(experiment="descents", arm=f"L={self.depth}, polar", metric="distance to the limit")
        values = np.array([row.value for row in rows])
        return within(median_interval(values[np.isfinite(values)]), high=0.01,
                      what=f"L = {self.depth}: distance of finished descents from the plain limit at ρα, in ‖x*‖")


def flow_equivalence(records: Records) -> Verdict:
    """C3: the polar flow ends at the plain limit from ρ x0."""
    return within(_largest(records, "flows", "distance of the flow from the plain limit at ρ"), high=EXACT,
                  what="largest distance over depths, signs, ratios and seeds")


def invariants(records: Records) -> Verdict:
    """C4: the invariants stay."""
    return within(_largest(records, "flows", "drift of the invariants"), high=EXACT, what="largest relative drift")


def zero_loss(records: Records) -> Verdict:
    """C5: the polar flow ends at zero loss."""
    return within(_largest(records, "flows", "final residual"), high=EXACT, what="largest relative residual")


@dataclass(frozen=True)
class Exponential:
    """C5: the residual decays exponentially, at the predicted rate."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the worst ratio of measured to predicted slope, polar and plain."""
        arms = (f"L={self.depth}, signed", f"L={self.depth}, unsigned")
        values = np.array([row.value for name in ("plain", "polar") for row in records.where(
            experiment="flows", arm=arms, metric=f"rate over prediction, {name}")])
        missing = int(np.isnan(values).sum())
        worst = float(values[np.nanargmax(np.abs(values - 1))]) if missing < len(values) else math.nan
        verdict = close(worst, 1.0, 0.05, what=f"L = {self.depth}: measured over predicted rate, the worst of "
                        f"{len(values) - missing} flows")
        return replace(verdict, note=f"{verdict.note} {missing} flows did not reach the last phase.")


@dataclass(frozen=True)
class FasterAbove:
    """C6 (a): at the same start and step, from above the threshold, polar descent reaches zero loss sooner."""

    depth: int
    alpha: float

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of log10 of the ratio of iterations to residual 1e-5, κ = 10."""
        ratio = _log_ratio(records.where(experiment="table"), f"L={self.depth}, κ=10", f"L={self.depth}, plain",
                           "iterations to residual 1e-5", self.alpha)
        return within(median_interval(np.where(np.isnan(ratio), 0, ratio)), high=HALF,
                      what=f"L = {self.depth}, α = {self.alpha:g}: log10 of polar over plain iterations")


@dataclass(frozen=True)
class OnlyPolarArrives:
    """C6 (b): at the same start and step, from below the threshold, only polar descent comes near x*."""

    depth: int
    alpha: float

    def __call__(self, records: Records) -> Verdict:
        """Judge the share of seeds on which polar descent (κ = 10) reaches 5 % error and plain does not."""
        a, b = records.where(experiment="table").pairs(f"L={self.depth}, κ=10", f"L={self.depth}, plain",
                                                       "iterations to error 5 %", self.alpha)
        return within(wilson(float((np.isfinite(a) & np.isinf(b)).sum()), len(a)), low=0.5,
                      what=f"L = {self.depth}, α = {self.alpha:g}: share of seeds where polar alone reaches 5 % error")


@dataclass(frozen=True)
class FasterTuned:
    """C6 (c): with start, step and ratio tuned for each, polar descent needs at most half the iterations."""

    depth: int
    percent: float

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of log10 of the ratio of iterations to an error, on fresh seeds."""
        ratio = _log_ratio(records.where(experiment="speed"), f"L={self.depth}, polar", f"L={self.depth}, plain",
                           "iterations", self.percent)
        return within(median_interval(ratio), high=HALF, what=f"L = {self.depth}, to {self.percent:g} % error, tuned: "
                      "log10 of polar over plain iterations")


def in_most_cells(records: Records) -> Verdict:
    """C7: halving of the error over depths, sparsities, measurements and starts: in most cells."""
    mine = records.where(experiment="cells")
    names = sorted({arm.removesuffix(", polar") for arm in mine.arms() if arm.endswith(", polar")})
    medians = [float(np.median(_log_ratio(mine, f"{name}, polar", f"{name}, plain", "error", share)))
               for name in names for share in BELOW]
    less, more = sum(m < HALF for m in medians), sum(m > 0 for m in medians)
    verdict = within(wilson(less, len(medians)), low=0.5, what="share of cells (depth, sparsity, measurements, start) "
                     "whose median error polar flow halves")
    return replace(verdict, note=f"{verdict.note} In {more} of {len(medians)} cells it is larger.")


@dataclass(frozen=True)
class PlainNeedsSmallStarts:
    """C8: plain flow is near the least l1 norm from a tiny start only."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge E/Q from a fifth of the threshold (must be above 5 %) and from 1e-8 (must be below)."""
        large = records.where(experiment="cells").values(f"L={self.depth}, s=5, M=40, plain", "excess", 0.2)
        small = records.where(experiment="limits").values(f"L={self.depth}, plain", "excess", 1e-8)
        parts = [within(median_interval(large), low=NEAR, what=f"L = {self.depth}: plain E/Q, a fifth of the threshold"),
                 within(median_interval(small), high=NEAR, what=f"L = {self.depth}: plain E/Q from α = 1e-8")]
        return replace(all_of(parts), effect=parts[0].effect, low=parts[0].low, high=parts[0].high, n=parts[0].n)


@dataclass(frozen=True)
class FadesAbove:
    """T4: at five times the threshold the gain is all but gone."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of polar over plain error."""
        name = f"L={self.depth}, s=5, M=40"
        ratio = _log_ratio(records.where(experiment="cells"), f"{name}, polar", f"{name}, plain", "error", ABOVE)
        return within(median_interval(10**ratio), 0.8, 1.05,
                      what=f"L = {self.depth}: polar over plain error at {ABOVE:g} times the threshold")


@dataclass(frozen=True)
class DenseFails:
    """T5: a dense x* is not found."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median error."""
        values = records.where(experiment="controls").values(f"L={self.depth}, dense, polar", "error")
        return within(median_interval(values), low=0.5, what=f"L = {self.depth}: error of polar limits, dense x*")


@dataclass(frozen=True)
class TinyIsWorse:
    """T5: from a tiny start, κ = 1 is worse than plain flow."""

    depth: int

    def __call__(self, records: Records) -> Verdict:
        """Judge the median of log10 of the error's ratio."""
        name = f"L={self.depth}, tiny start"
        ratio = _log_ratio(records.where(experiment="controls"), f"{name}, κ=1", f"{name}, plain", "error", None)
        return within(median_interval(ratio), low=0.0,
                      what=f"L = {self.depth}, α = 1e-6: log10 of polar (κ = 1) over plain error")


def plain_control(records: Records) -> Verdict:
    """T5: κ = 1/r² is the plain flow."""
    return within(_largest(records, "flows", "distance of the flow at κ=1/r² from plain flow"), high=EXACT,
                  what="largest distance of the ends")


def torch_never_magnifies(records: Records) -> Verdict:
    """κ = 1/r0² never magnifies the start."""
    rows = records.where(experiment="limits", metric="log10 effective start")
    worst = [row.value - math.log10(row.at or math.nan) for row in rows if row.arm.endswith(", torch")]
    return within(max(worst, default=math.nan), high=1e-9, what="largest log10 ρ over depths, starts and seeds")


def bounds(records: Records) -> Verdict:
    """B: the l1 bounds hold."""
    return within(_largest(records, "limits", "excess less bound"), high=1e-9, what="largest excess less its bound")


@dataclass(frozen=True)
class Against:
    """A difference between networks trained by an arm and by SGD, in the named metric."""

    arm: str
    metric: str
    at: float | None = None
    sign: float = 1.0

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference."""
        ours, theirs = records.where(experiment="network").pairs(self.arm, "SGD", self.metric, self.at)
        side = f"{self.arm} − SGD" if self.sign > 0 else f"SGD − {self.arm}"
        return greater(self.sign * ours, self.sign * theirs, what=f"{self.metric}, {side}")


@dataclass(frozen=True)
class AsAccurate:
    """Networks trained by an arm are as accurate as SGD's."""

    arm: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference by equivalence."""
        return equivalent(*records.where(experiment="network").pairs(self.arm, "SGD", "accuracy"), EQUAL,
                          what=f"clean accuracy, {self.arm} − SGD", unit="points")


@dataclass(frozen=True)
class FollowsFlow:
    """The tuned steps lengthen no direction by more than 10 %."""

    arm: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the median over seeds of the largest stretch at the end of training."""
        rows = records.where(experiment="network", arm=self.arm, metric="direction stretch", phase="final")
        last = max((row.step or 0 for row in rows), default=0)
        return within(median_interval([row.value for row in rows if row.step == last]), high=10.0,
                      what=f"{self.arm}: largest stretch of a direction", unit="%")


def identity(records: Records) -> Verdict:
    """PolarSGD without a ratio is torch's weight_norm under SGD."""
    return within(_largest(records, "identity", "largest difference of the weights"), high=1e-10,
                  what="largest difference of the weights after training both")


def as_basis_pursuit(records: Records) -> Verdict:
    """R: the polar limit reconstructs photographs as well as basis pursuit."""
    a, b = records.where(experiment="photographs").pairs("polar limit", "basis pursuit", "error")
    return equivalent(np.log10(a), np.log10(b), AS_SPARSE, what="log10 error, polar limit − basis pursuit")


def better_than_plain(records: Records) -> Verdict:
    """From the same start the polar limit reconstructs photographs better than the plain one."""
    a, b = records.where(experiment="photographs").pairs("plain limit", "polar limit", "error")
    return greater(np.log10(a), np.log10(b), what="log10 error, plain limit − polar limit")


def lasso_predicts_better(records: Records) -> Verdict:
    """Interpolation overfits noisy data: the cross-validated lasso predicts better."""
    return greater(*records.where(experiment="polynomials").pairs("lasso", "polar limit", "R²"),
                   what="R² of people not fitted, lasso − polar limit")


ARMS = ("weight norm", "slow norm")
MEASURES = (("effective density", None, -1.0, "sparser (its weights' effective density is lower)"),
            ("sharpness", None, -1.0, "flatter (its loss's largest curvature is lower)"),
            ("boundary distance", None, 1.0, "further from its decision boundary (median distance to first order)"),
            ("accuracy under l2 attack", 0.5, 1.0, "more robust to l2 attack"))
FAMILY = {(arm, metric): Against(arm, metric, at, sign) for arm in ARMS for metric, at, sign, _ in MEASURES}


@dataclass(frozen=True)
class Corrected:
    """One difference of the family of all that are tested on networks, with Holm's correction."""

    arm: str
    metric: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the whole family, and return this member's verdict."""
        verdicts = holm_corrected([member(records) for member in FAMILY.values()])
        return dict(zip(FAMILY, verdicts, strict=True))[self.arm, self.metric]


def _claims() -> tuple[Claim, ...]:
    found: list[tuple[str, str, str, Callable[[Records], Verdict], str]] = []
    for depth in DEPTHS:
        L = f"L={depth}"
        found += [
            (f"C1 {L}", f"Polar flow ends near the least l1 norm: {L}, E/Q at most {NEAR:g} at κ Σ|x*|^(2/L) = "
             f"{STRENGTH:g}, from a fifth of the threshold", "abstract", NearLeast(depth), f"a median above {NEAR:g}"),
            (f"C2 flow {L}", f"At starts where plain flow errs, polar flow has at most half its error ({L}; exact limits)",
             "abstract", LessError(depth, "cells"), "polar flow not better at a fifth of the threshold"),
            (f"C2 descent {L}", f"At starts where plain descent errs, polar descent has at most half its error ({L})",
             "abstract", LessError(depth, "descents"), "polar descent not better at a fifth of the threshold"),
            (f"C3 dose {L}", f"The larger κ, the smaller the excess ({L})", "abstract: magnification",
             DoseResponse(depth), "a rank correlation above -0.9"),
            (f"C3 collapse {L}", f"Finished polar descents end where plain flow from ρα does ({L})",
             "abstract: magnification; formula derived", Collapse(depth), "a median distance above 1 % of ‖x*‖"),
            (f"C5 rate {L}", f"The residual decays exponentially, at the predicted rate ({L})",
             "abstract (L = 2); formula derived", Exponential(depth), "a slope off by more than 5 %"),
            (f"C8 {L}", f"Plain flow needs a tiny start for the same bias ({L})", "abstract",
             PlainNeedsSmallStarts(depth), f"E/Q below {NEAR:g} at a fifth of the threshold"),
            (f"T4 {L}", f"At five times the threshold polar flow gains at most a fifth ({L})", "derived",
             FadesAbove(depth), "a large gain there")]
    for depth, alpha in ((2, 3e-2), (3, 1e-2)):
        found.append((f"C6a L={depth}", f"Same start above the threshold, same step: polar descent needs at most half the "
                      f"iterations to zero loss (L={depth}, α={alpha:g})", "abstract: convergence speed",
                      FasterAbove(depth, alpha), "a median ratio above one half"))
    for depth, alpha in ((2, 1e-3), (3, 1e-3)):
        found.append((f"C6b L={depth}", f"Same start, same step: only polar descent comes within 5 % of x* (L={depth}, "
                      f"α={alpha:g})", "abstract: convergence speed", OnlyPolarArrives(depth, alpha),
                      "on most seeds both arrive, or neither"))
    for depth in (2, 3):
        for percent in (5.0, 1.0):
            found.append((f"C6c L={depth} {percent:g} %", "Start, step and ratio tuned for each: polar descent needs at most "
                          f"half the iterations to {percent:g} % error (L={depth})", "abstract: convergence speed",
                          FasterTuned(depth, percent), "a median ratio above one half"))
    for depth in (2, 3):
        found += [(f"T5 dense L={depth}", f"A dense x* is not recovered by polar flow (L={depth})", "negative control",
                   DenseFails(depth), "an error below one half"),
                  (f"T5 tiny L={depth}", f"From a tiny start, polar flow with κ = 1 is worse than plain (L={depth})",
                   "negative control", TinyIsWorse(depth), "a smaller error")]
    found += [
        ("C3 flow", "The polar flow ends exactly where the plain flow from ρ x0 does", "derived", flow_equivalence,
         f"a distance above {EXACT:g}"),
        ("C4", "The flow keeps its invariants", "abstract; formulas derived", invariants, f"a drift above {EXACT:g}"),
        ("C5 zero", "The polar flow ends at zero loss", "abstract", zero_loss, f"a residual above {EXACT:g}"),
        ("C7", "Over depths, sparsities, numbers of measurements and starts, polar flow halves the error in most cells",
         "abstract: experiments", in_most_cells, "fewer than half of the cells"),
        ("T5 plain", "With κ = 1/r² the polar flow is the plain flow", "negative control", plain_control,
         f"a distance above {EXACT:g}"),
        ("B bounds", "The l1 bounds of both flows hold", "derived", bounds, "an excess above its bound"),
        ("B torch", "The ratio of torch's weight_norm, 1/r0², never magnifies the start", "derived",
         torch_never_magnifies, "a magnification above 1"),
        ("N identity", "PolarSGD without a ratio is SGD on torch's weight_norm", "ours", identity,
         "a difference above 1e-10"),
        ("R photographs", "The polar limit reconstructs photographs as well as basis pursuit (errors within 12 %)", "ours",
         as_basis_pursuit, "errors that differ by more"),
        ("R start", "From the same start the polar limit reconstructs photographs better than the plain limit", "ours",
         better_than_plain, "an interval below 0"),
        ("R noise", "On noisy data (diabetes) the lasso predicts better than interpolation of the least l1 norm", "ours",
         lasso_predicts_better, "an interval below 0")]
    for arm in ARMS:
        found += [(f"N equal {arm}", f"A small CNN trained with {arm} is as accurate as SGD's (within {EQUAL:g} points)",
                   "ours", AsAccurate(arm), "a difference outside the margin"),
                  (f"N flow {arm}", f"At its chosen learning rate, {arm} follows its flow (stretch at most 10 %)", "ours",
                   FollowsFlow(arm), "a median stretch above 10 %")]
        found += [(f"N {metric} {arm}", f"A small CNN trained with {arm} is {text} than SGD's", "ours",
                   Corrected(arm, metric), "an interval below 0") for metric, _, _, text in MEASURES]
    return tuple(sorted((Claim(*each) for each in found), key=lambda claim: claim.id))


CLAIMS = _claims()
