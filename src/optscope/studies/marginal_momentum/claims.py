"""The paper's claims C1 to C7 as tests on records; every margin and place is fixed here, before any run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval, rank_correlation, wilson
from optscope.evidence.verdicts import all_of, equivalent, greater, holm_corrected, shown_by, within
from optscope.studies.marginal_momentum.finetuning import (
    CALM_FINE,
    CHARACTERS,
    FEW_SHOT,
    FINE_TUNING,
    MARGIN_FINE,
    MARGIN_NATS,
    best_checkpoint,
    equal_rates,
)
from optscope.studies.marginal_momentum.readings import (
    BETAS,
    CHANCE,
    Pair,
    batches,
    cell_arm,
    cells,
    experiment,
    gap,
    method,
    on_the_way,
    rates,
    slopes,
    svag_experiment,
    tuned_gap,
)
from optscope.studies.marginal_momentum.theory_claims import THEORY_CLAIMS

MARGINS = {"digits": 0.5, "fashion-mnist": 0.5, "cifar10": 1.0}
"""Test accuracies that differ by less than this, in points, count as equal."""
CALM = {"digits": 0.25, "fashion-mnist": 0.05, "cifar10": 0.025}
"""The effective rate, well below where SGD fails, at which both are compared on the smallest batches."""
LEVELS = (1, 2, 4, 8, 16)
SHORT = "(in 100 to 144 steps, so that the 9 by which momentum trails count against it)"
IN_STEPS = "in 300 steps"
BEST = "test accuracy at the best dev checkpoint"


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
class Corrected:
    """A test on one data set or setting, corrected by Holm for the same test on the others."""

    test: Callable[[str], Callable[[Records], Verdict]]
    data: str
    family: tuple[str, ...] = tuple(MARGINS)

    def __call__(self, records: Records) -> Verdict:
        """Judge every member of the family, and return what is left of this one's verdict."""
        return holm_corrected([self.test(each)(records) for each in self.family])[self.family.index(self.data)]


@dataclass(frozen=True)
class NoiseRules:
    """C1: in one such run noise does more to the loss of a step than curvature, at every moment looked at."""

    data: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the largest ratio of the two terms along the watched run of momentum."""
        batch = min(batches(records, self.data), default=0)
        _, _, curved, noisy = on_the_way(records, self.data, batch, BETAS[1], CALM[self.data])
        ratio = np.maximum(curved, 0) / np.maximum(noisy, 1e-300)
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
        """Judge superiority at level 1, equivalence at the highest, and the gap's slope on log2 of the level.

        Where level 1 shows no gap there is none to close, and nothing is decided; momentum shown to be worse there
        fails.
        """
        gaps = _svag_gaps(records, self.data)
        none: Pair = (np.array([]), np.array([]))
        first = greater(*gaps.get(1, none), what="accuracy at level 1, momentum 0.9 − SGD", unit="points")
        last = max(gaps, default=1)
        if first.outcome == "fails":
            return first
        if first.outcome == "undecided" or last == 1:
            return replace(first, outcome="undecided", note=f"{first.note} No gap at level 1 that could close.")
        parts = [first, equivalent(*gaps[last], MARGINS[self.data], unit="points",
                                   what=f"accuracy at level {last}, momentum 0.9 − SGD"),
                 within(mean_interval(slopes(list(gaps.values()), list(gaps))), high=0.0, unit="points",
                        what="slope of that gap, a doubling of the level")]
        both = shown_by(all_of(parts), first)
        if float(np.nanmean(gaps[1][1])) < 2 * CHANCE:
            both = replace(both, note=f"{both.note} At level 1 SGD does not train at all, so its runs are not in "
                                      "one basin with momentum's.")
        return both


@dataclass(frozen=True)
class GrowsWithRate:
    """C6: at equal rates, what momentum gains over SGD grows with the rate, at every batch size."""

    data: str

    def __call__(self, records: Records) -> Verdict:
        """Judge, for each batch size, the mean over seeds of the gap's slope on log2 of the rate."""
        parts = []
        for batch in batches(records, self.data):
            mine = records.where(experiment=experiment(self.data, batch))
            tried = rates(mine, BETAS[1])
            gaps = [gap(mine, *(cell_arm(beta, rate) for beta in reversed(BETAS))) for rate in tried]
            parts.append(within(mean_interval(slopes(gaps, tried)), low=0.0, unit="points",
                                what=f"slope of the gap at batch {batch}, a doubling of the rate"))
        return all_of(parts)


def helps_where_curved(records: Records) -> Verdict:
    """C6: over the cells of each data set, momentum's gain goes with the curvature-induced term's share."""
    found = cells(records, MARGINS)
    parts = []
    for data in MARGINS:
        mine = [cell for cell in found if cell.data == data]
        parts.append(within(rank_correlation([cell.share for cell in mine], [cell.gap for cell in mine]), low=0.0,
                            what=f"rank correlation of curvature- over noise-induced term with the accuracy gap, "
                                 f"cells of {data}"))
    return all_of(parts)


def advice_is_right(records: Records) -> Verdict:
    """A1: where one run predicts a regime and the seeds decide, the two agree more often than not."""
    found = cells(records, MARGINS)
    judged = [cell for cell in found if cell.agrees is not None]
    right = sum(bool(cell.agrees) for cell in judged)
    verdict = within(wilson(right, len(judged)) if judged else math.nan, low=0.5,
                     what="share of cells in which the prediction agrees with the test")
    commonest = max(sum(cell.outcome == each for cell in judged) for each in ("equal", "helps", "hurts"))
    unsure = sum(cell.predicted == "between" for cell in found)
    return replace(verdict, note=f"{verdict.note} {len(judged)} of {len(found)} cells are decided, {unsure} were "
                                 f"not predicted; always saying the commonest outcome is right in {commonest}.")


@dataclass(frozen=True)
class FineTuned:
    """C4: fine-tuned with SGD and with momentum, a language model is equally accurate."""

    setting: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference, over subsets or seeds, of test accuracies at the best dev checkpoint."""
        return _equal([best_checkpoint(records, self.setting, method(BETAS[1]), method(BETAS[0]))], BEST)


def few_shot(records: Records) -> Verdict:
    """C4: so it is on average over all few-shot subsets."""
    return _equal([best_checkpoint(records, setting, method(BETAS[1]), method(BETAS[0])) for setting in FEW_SHOT],
                  BEST)


def at_equal_rates(records: Records) -> Verdict:
    """C4: so it is on average over all few-shot subsets at the end of training at one calm rate for both."""
    return _equal([equal_rates(records, setting, CALM_FINE) for setting in FEW_SHOT],
                  f"test accuracy at the end, η = {CALM_FINE:g}")


def _equal(pairs: Sequence[Pair], what: str) -> Verdict:
    momentum, sgd = np.concatenate(pairs, axis=1)
    return equivalent(momentum, sgd, MARGIN_FINE, unit="points", what=f"{what}, momentum 0.9 − SGD")


def same_characters(records: Records) -> Verdict:
    """C4: fine-tuned on verse, the character transformer reaches the same loss with SGD and with momentum."""
    pair = best_checkpoint(records, CHARACTERS, method(BETAS[1]), method(BETAS[0]), "loss")
    return equivalent(*pair, MARGIN_NATS, unit="nats a character",
                      what="test loss at the best dev checkpoint, momentum 0.9 − SGD")


def _claims() -> tuple[Claim, ...]:
    found: list[Claim] = list(THEORY_CLAIMS)
    for data, margin in MARGINS.items():
        found += [
            Claim(f"C1 {data}", f"On {data}, at a small batch and a calm rate, SGD and momentum 0.9 of the same "
                  f"effective rate are equally accurate (within {margin:g} points)", "abstract",
                  Corrected(Calm, data), "a difference shown outside the margin"),
            Claim(f"C1 {data} terms", f"On {data}, in one such run the noise-induced term of a step outweighs the "
                  "curvature-induced one at each of 8 moments (point estimates)", "lemma 2.4", NoiseRules(data),
                  "a moment at which it does not"),
            Claim(f"C3 {data} small", f"On {data}, at the smallest batch tuned SGD is as accurate as tuned "
                  f"momentum (within {margin:g} points)", "abstract; figure 1", Corrected(TunedEqual, data),
                  "a difference shown outside the margin"),
            Claim(f"C3 {data} large", f"On {data}, at the largest batch tuned momentum is more accurate than tuned "
                  f"SGD {SHORT}", "figure 1", Corrected(TunedBetter, data),
                  "an interval of the difference below 0"),
            Claim(f"C3 {data} grows", f"On {data}, what tuned momentum gains grows with the batch {SHORT}",
                  "figure 1", Grows(data), "a slope shown below 0"),
            Claim(f"C5 {data}", f"On {data}, at a large rate momentum is more accurate at SVAG level 1, and with "
                  "rising level the two meet", "figure 2", Meet(data), "momentum worse at level 1, a gap there "
                  "that does not shrink, or one shown outside the margin at the highest level"),
            Claim(f"C6 {data} rates", f"On {data}, what momentum gains over SGD of the same effective rate grows "
                  "with the rate, at every batch size", "conclusion", GrowsWithRate(data), "a slope shown below 0")]
    found += [
        Claim("C6 curvature", "On every data set, momentum gains more where the curvature-induced term of a step "
              "is larger against the noise-induced one (cells of one batch size share seeds, so the intervals are "
              "too narrow)", "conclusion", helps_where_curved, "a rank correlation shown below 0"),
        Claim("A1", "One momentum run predicts whether momentum changes the accuracy more often than not, where it "
              "commits itself (our own claim)", "optscope", advice_is_right, "agreement shown in fewer than half "
              "of the cells that are decided")]
    outside = "a difference shown outside the margin"
    found += [Claim(f"C4 {setting}", f"Fine-tuning {text}, SGD and momentum 0.9 are equally accurate (within "
                    f"{MARGIN_FINE:g} point, {IN_STEPS})", "abstract",
                    Corrected(FineTuned, setting, tuple(FINE_TUNING)), outside, "long")
              for setting, text in FINE_TUNING.items()]
    found += [
        Claim("C4 few-shot", "On average over all subsets of 16 and 128 texts a class MiniLM is as accurate "
              f"fine-tuned with SGD as with momentum 0.9 (within {MARGIN_FINE:g} point, {IN_STEPS}; "
              "intervals are for these test texts, which subsets share)", "abstract", few_shot, outside, "long"),
        Claim("C4 equal rates", "On average over all few-shot subsets MiniLM is as accurate with both at one rate, "
              f"η = {CALM_FINE:g}, at the end of training (within {MARGIN_FINE:g} point)", "abstract",
              at_equal_rates, outside, "long")]
    found.append(Claim(
        "C4 characters", "Fine-tuning a character transformer from Shakespeare's plays to his verse, SGD and "
        f"momentum 0.9 reach the same loss (within {MARGIN_NATS:g} nats a character)", "abstract", same_characters,
        "a difference shown outside the margin", "long"))
    return tuple(sorted(found, key=lambda claim: claim.id))


CLAIMS = _claims()
