"""The paper's claims C1 to C7 as tests on records; every margin and place is fixed here, before any run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval, rank_correlation, wilson
from optscope.evidence.verdicts import all_of, equivalent, greater, within
from optscope.studies.marginal_momentum.finetuning import (
    CHARACTERS,
    FINE_TUNING,
    MARGIN_FINE,
    MARGIN_NATS,
    best_checkpoint,
)
from optscope.studies.marginal_momentum.readings import (
    BETAS,
    Pair,
    batches,
    cell_arm,
    cells,
    experiment,
    gap,
    method,
    on_the_way,
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
        _, curved, noisy = on_the_way(watched, BETAS[1], CALM[self.data])
        ratio = np.abs(curved) / np.maximum(np.abs(noisy), 1e-300)
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


def helps_where_curved(records: Records) -> Verdict:
    """C6: over all cells, momentum's gain goes with the curvature-induced term's share."""
    found = cells(records, MARGINS)
    return within(rank_correlation([cell.share for cell in found], [cell.gap for cell in found]), low=0.0,
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
        Claim("C6 curvature", "Over all batches and rates, momentum gains where curvature, not noise, limits a "
              "step", "conclusion", helps_where_curved, "a rank correlation shown below 0"),
        Claim("A1", "One momentum run predicts whether momentum changes the accuracy (our own claim)", "optscope",
              advice_is_right, "agreement shown in fewer than half of the cells that are decided")]
    found += [Claim(f"C4 {setting}", f"Fine-tuning {text}, SGD and momentum 0.9 are equally accurate (within "
                    f"{MARGIN_FINE:g} point)", "abstract", FineTuned(setting),
                    "a difference shown outside the margin", "long") for setting, text in FINE_TUNING.items()]
    found.append(Claim(
        "C4 characters", "Fine-tuning a character transformer from Shakespeare's plays to his verse, SGD and "
        f"momentum 0.9 reach the same loss (within {MARGIN_NATS:g} nats a character)", "abstract", same_characters,
        "a difference shown outside the margin", "long"))
    return tuple(sorted(found, key=lambda claim: claim.id))


CLAIMS = _claims()
