"""The paper's claims C1 to C7 as tests on records; every margin and place is fixed here, before any run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval, rank_correlation, wilson
from optscope.evidence.verdicts import all_of, close, equivalent, greater, within
from optscope.studies.marginal_momentum.finetuning import FINE_TUNING, MARGIN_FINE, best_checkpoint
from optscope.studies.marginal_momentum.readings import (
    BETAS,
    Array,
    Pair,
    batches,
    cell_arm,
    cells,
    experiment,
    gap,
    method,
    products_and_ratios,
    slopes,
    svag_experiment,
    tuned_gap,
)

MARGINS = {"digits": 0.5, "fashion-mnist": 0.5, "cifar10": 1.0}
"""Test accuracies that differ by less than this, in points, count as equal."""
CALM = {"digits": 0.25, "fashion-mnist": 0.05, "cifar10": 0.025}
"""The effective rate, well below where SGD fails, at which both are compared on the smallest batches."""
LEVELS = (1, 2, 4, 8, 16)
RATES = tuple(2.0**-k for k in range(5, 10))
"""The rates η of the two wells."""
ALPHAS = {0.0: 0.5, 0.5: 1.0, 1.0: 1.0, 1.25: 1.0}
"""Exponents and scales of 1 − β = scale · η^alpha."""
VALLEY = (0.1, 0.05, 0.025)
"""The rates η of the valley."""


def _value(records: Records, arm: str, metric: str, at: float | None = None) -> float:
    """Return the number that a calculation found, nan if there is none."""
    return records.by_seed(arm, metric, at).get(0, math.nan)


def _column(records: Records, arm: str, metric: str, at: tuple[float, ...]) -> Array:
    return np.array([_value(records, arm, metric, x) for x in at])


@dataclass(frozen=True)
class Exact:
    """C1: an identity of momentum holds to rounding."""

    name: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the largest error in float64."""
        return within(_value(records.where(experiment="identities"), self.name, "largest error"), high=1e-12,
                      what=f"largest error, {self.name}")


def _order(records: Records, alpha: float, metric: str) -> float:
    errors = _column(records.where(experiment="two wells"), f"alpha {alpha:g}", metric, RATES)
    # Written out: a slope of missing numbers is missing.
    return float(np.polyfit(np.log(RATES), np.log(errors), 1)[0]) if np.isfinite(errors).all() else math.nan


@dataclass(frozen=True)
class Order:
    """C1: with 1 − β of the order η^alpha, momentum comes near SGD as η^((1 − alpha)/2)."""

    alpha: float

    def __call__(self, records: Records) -> Verdict:
        """Judge the slope of the coupled RMS distance on the rate, log against log."""
        return close(_order(records, self.alpha, "coupled distance"), (1 - self.alpha) / 2, 0.1,
                     what=f"order of the coupled distance at alpha = {self.alpha:g}")


def no_approximation(records: Records) -> Verdict:
    """C7: where 1 − β falls as fast as η or faster, momentum does not come near SGD."""
    return all_of([
        within(_order(records, 1.0, "weak distance"), -0.2, 0.2, what="order of |E x − E z| at alpha = 1"),
        within(_order(records, 1.25, "weak distance"), high=0.2, what="the same at alpha = 1.25")])


def same_drift(records: Records) -> Verdict:
    """C2: along the valley, momentum drifts as the slow equation says."""
    mine, rate = records.where(experiment="valley"), min(VALLEY)
    seen, limit = (_value(mine, arm, "u² − v² at time 1", rate) for arm in (method(0.9), "limit"))
    return close(seen / limit, 1.0, 0.02, what=f"u² − v² of momentum 0.9 over its limit at η = {rate:g}")


def drift_gap_shrinks(records: Records) -> Verdict:
    """C2: halving the rate brings momentum's drift nearer to SGD's, each time."""
    mine = records.where(experiment="valley")
    sgd, momentum = (_column(mine, method(beta), "u² − v² at time 1", VALLEY) for beta in BETAS)
    gaps = np.abs(momentum - sgd)
    return all_of([within(float(after / before), high=0.75,
                          what=f"gap at η = {rate:g} over the gap at twice that")
                   for rate, before, after in zip(VALLEY[1:], gaps[:-1], gaps[1:], strict=True)])


@dataclass(frozen=True)
class Calm:
    """C1: at small batches and a calm rate, SGD and momentum of the same η reach the same accuracy."""

    data: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference by equivalence."""
        found = batches(records, self.data)
        mine, rate = records.where(experiment=experiment(self.data, min(found, default=0))), CALM[self.data]
        return equivalent(*gap(mine, cell_arm(BETAS[1], rate), cell_arm(BETAS[0], rate)), MARGINS[self.data],
                          what=f"accuracy at batch {min(found, default=0)}, η = {rate:g}, momentum 0.9 − SGD",
                          unit="points")


@dataclass(frozen=True)
class NoiseRules:
    """C1: in that calm run noise does more to the loss of a step than curvature, at every moment looked at."""

    data: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the largest ratio of the two terms along the watched run of momentum."""
        found = batches(records, self.data)
        watched = records.where(experiment=experiment(self.data, min(found, default=0), "watched"))
        _, ratio = products_and_ratios(watched, BETAS[1], CALM[self.data])
        return within(float(ratio.max()) if len(ratio) else math.nan, high=1.0,
                      what="largest curvature-induced over noise-induced term")


@dataclass(frozen=True)
class TunedEqual:
    """C3: at the smallest batch, tuned SGD is as accurate as tuned momentum."""

    data: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference by equivalence."""
        batch = min(batches(records, self.data), default=0)
        return equivalent(*tuned_gap(records, self.data, batch), MARGINS[self.data], unit="points",
                          what=f"tuned accuracy at batch {batch}, momentum 0.9 − SGD")


@dataclass(frozen=True)
class TunedBetter:
    """C3: at the largest batch, tuned momentum is more accurate than tuned SGD."""

    data: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference."""
        batch = max(batches(records, self.data), default=0)
        return greater(*tuned_gap(records, self.data, batch), unit="points",
                       what=f"tuned accuracy at batch {batch}, momentum 0.9 − SGD")


@dataclass(frozen=True)
class Grows:
    """C3: what tuned momentum gains over tuned SGD grows with the batch."""

    data: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the mean over seeds of the gap's slope on log2 of the batch size."""
        sizes = batches(records, self.data)
        gaps = [tuned_gap(records, self.data, batch) for batch in sizes]
        return within(mean_interval(slopes(gaps, sizes)), low=0.0, unit="points",
                      what="slope of the tuned gap, momentum 0.9 − SGD, a doubling of the batch")


def _svag_gaps(records: Records, data: str) -> dict[int, Pair]:
    """Return the accuracies of momentum and SGD at each SVAG level there is."""
    found = {level: gap(records.where(experiment=svag_experiment(data, level)), method(BETAS[1]), method(BETAS[0]))
             for level in LEVELS}
    return {level: pair for level, pair in found.items() if len(pair[0])}


@dataclass(frozen=True)
class Meet:
    """C5: at SVAG level 1 momentum is more accurate; at the highest level the two are equal; the gap shrinks."""

    data: str

    def __call__(self, records: Records) -> Verdict:
        """Judge superiority at level 1, equivalence at the highest, and the gap's slope on log2 of the level."""
        gaps = _svag_gaps(records, self.data)
        last = max(gaps, default=1)
        none: Pair = (np.array([]), np.array([]))
        first = greater(*gaps.get(1, none), what="accuracy at level 1, momentum 0.9 − SGD", unit="points")
        parts = [first, equivalent(*gaps.get(last, none), MARGINS[self.data], unit="points",
                                   what=f"accuracy at level {last}, momentum 0.9 − SGD"),
                 within(mean_interval(slopes(list(gaps.values()), list(gaps))), high=0.0, unit="points",
                        what="slope of that gap, a doubling of the level")]
        return replace(all_of(parts), effect=first.effect, low=first.low, high=first.high)


def variance_as_predicted(records: Records) -> Verdict:
    """C6: on a quadratic, SGD's and momentum's variances are the closed form's."""
    found = records.where(experiment="quadratic", metric="variance over closed form")
    worst = max((abs(row.value - 1) for row in found), default=math.nan)
    return within(worst, high=0.02, what=f"largest relative error over {len(found)} cases")


def momentum_is_stable(records: Records) -> Verdict:
    """C6: between their stability limits (ηh = 2 and 38) SGD diverges and momentum 0.9 does not."""
    mine = records.where(experiment="stability")
    return all_of([
        within(_value(mine, "β 0", "log10 |x| at the end", 2.5), low=1, what="SGD at ηh = 2.5, log10 |x|"),
        within(_value(mine, "β 0.9", "log10 |x| at the end", 2.5), high=-1, what="momentum 0.9 there"),
        within(_value(mine, "β 0.9", "log10 |x| at the end", 39), low=1, what="momentum 0.9 at ηh = 39")])


def noise_stays(records: Records) -> Verdict:
    """C6: averaging gradients does not reduce the noise of the weights over many steps."""
    mine = records.where(experiment="pure noise")
    return all_of([close(_value(mine, "β 0.9", "variance ratio", k)
                         / _value(mine, "β 0.9", "variance ratio, closed form", k), 1.0, 0.02,
                         what=f"variance ratio after {k} steps over its closed form") for k in (20, 200, 2000)]
                  + [within(_value(mine, "β 0.9", "variance ratio", 2000), 0.97, 1.03,
                            what="momentum's variance over SGD's after 2000 steps")])


def helps_where_curved(records: Records) -> Verdict:
    """C6: over all cells, momentum's gain goes with the curvature-induced term's share."""
    found = cells(records, MARGINS)
    return within(rank_correlation([cell.ratio for cell in found], [cell.gap for cell in found]), low=0.0,
                  what="rank correlation of curvature- over noise-induced term with the accuracy gap, over cells")


def advice_is_right(records: Records) -> Verdict:
    """A1: where one run predicts a regime and the seeds decide, the two agree more often than not."""
    judged = [cell.agrees for cell in cells(records, MARGINS) if cell.agrees is not None]
    return within(wilson(sum(judged), len(judged)) if judged else math.nan, low=0.5,
                  what="share of cells in which the prediction agrees with the test")


@dataclass(frozen=True)
class FineTuned:
    """C4: fine-tuned with SGD and with momentum, a language model is equally accurate."""

    setting: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference, over subsets and seeds, of test accuracies at the best dev checkpoint."""
        return equivalent(*best_checkpoint(records, self.setting, method(BETAS[1]), method(BETAS[0])),
                          MARGIN_FINE, what="test accuracy at the best dev checkpoint, momentum 0.9 − SGD",
                          unit="points")


def _claims() -> tuple[Claim, ...]:
    smoke: Scale = "smoke"
    exact = (("two forms", "Momentum in its averaged form at rate η is the practical form at γ = η(1 − β)",
              "equations 1 and 3"),
             ("coupling", "y = x − ηβ/(1 − β) m moves exactly as SGD does on the same gradients",
              "proof of theorem 3.5"),
             ("averaged rates", "Under changing rates and β, momentum ends where SGD with the averaged rates does",
              "theorem 3.5"))
    found = [Claim(f"C1 {name}", text, source, Exact(name), "an error above 1e-12", smoke)
             for name, text, source in exact]
    found += [Claim(f"C1 order {alpha:g}", "In two wells with noise of scale η^(-1/2), momentum with 1 − β of the "
                    f"order η^{alpha:g} comes near SGD at order (1 − {alpha:g})/2", "theorem 3.5", Order(alpha),
                    "an order off by more than 0.1") for alpha in (0.0, 0.5)]
    for data, margin in MARGINS.items():
        found += [
            Claim(f"C1 {data}", f"On {data}, at a small batch and a calm rate, SGD and momentum 0.9 of the same "
                  f"effective rate are equally accurate (within {margin:g} points)", "abstract", Calm(data),
                  "a difference shown outside the margin"),
            Claim(f"C1 {data} terms", f"On {data}, in that run the noise-induced term of a step outweighs the "
                  "curvature-induced one", "lemma 2.4", NoiseRules(data), "a moment at which it does not"),
            Claim(f"C3 {data} small", f"On {data}, at the smallest batch tuned SGD is as accurate as tuned "
                  f"momentum (within {margin:g} points)", "abstract; figure 1", TunedEqual(data),
                  "a difference shown outside the margin"),
            Claim(f"C3 {data} large", f"On {data}, at the largest batch tuned momentum is more accurate than tuned "
                  "SGD", "figure 1", TunedBetter(data), "an interval of the difference below 0"),
            Claim(f"C3 {data} grows", f"On {data}, what tuned momentum gains grows with the batch", "figure 1",
                  Grows(data), "a slope shown below 0"),
            Claim(f"C5 {data}", f"On {data}, at a large rate momentum is more accurate at SVAG level 1, and with "
                  "rising level the two meet", "figure 2", Meet(data), "a gap that does not shrink")]
    found += [
        Claim("C2 limit", "Along a valley of minima, over 1/η² steps, momentum 0.9 drifts as the slow equation "
              "says (within 2 % at η = 0.025)", "theorem 4.5", same_drift, "a larger difference"),
        Claim("C2 gap", "The gap between momentum's and SGD's drift shrinks with the rate", "theorem 4.5",
              drift_gap_shrinks, "a halving of η that leaves more than three quarters of the gap"),
        Claim("C6 variance", "On a quadratic, weights settle at (ησ²/h)/(2 − ηh(1 − β)/(1 + β)), the same for "
              "every β when ηh is small", "derived", variance_as_predicted, "an error above 2 %"),
        Claim("C6 stability", "Momentum 0.9 is stable at curvatures up to 19 times those that SGD of the same "
              "effective rate bears", "derived", momentum_is_stable, "another limit"),
        Claim("C6 noise", "Averaging gradients does not reduce the noise of the weights over many steps",
              "warm-up example", noise_stays, "a variance ratio off its closed form, or below 0.97 in the end"),
        Claim("C6 curvature", "Over all batches and rates, momentum gains where curvature, not noise, limits a "
              "step", "conclusion", helps_where_curved, "a rank correlation shown below 0"),
        Claim("C7", "Where 1 − β falls as fast as η or faster, momentum does not come near SGD",
              "remark after theorem 3.5", no_approximation, "an order above 0.2"),
        Claim("A1", "One momentum run predicts whether momentum changes the accuracy (our own claim)", "optscope",
              advice_is_right, "agreement shown in fewer than half of the cells that are decided")]
    found += [Claim(f"C4 {setting}", f"Fine-tuning {text}, SGD and momentum 0.9 are equally accurate (within "
                    f"{MARGIN_FINE:g} point)", "abstract", FineTuned(setting),
                    "a difference shown outside the margin", "long") for setting, text in FINE_TUNING.items()]
    return tuple(sorted(found, key=lambda claim: claim.id))


CLAIMS = _claims()
