"""How claims on unequal starts, a norm a part and a convolution are judged, by the margins of other claims."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from optscope.evidence.claims import Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import median_interval
from optscope.evidence.verdicts import within
from optscope.studies.weight_normalization.judging import HALF, LessError, log_ratio

ONE_PERCENT = 0.01


@dataclass(frozen=True)
class Predicted:
    """The filters that a rule trains end where the theory of the diagonal model says."""

    arm: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the median distance of the spectrum from the exact limit."""
        values = records.where(experiment="convolution").values(self.arm, "distance to the limit")
        return within(median_interval(values), high=ONE_PERCENT,
                      what=f"{self.arm}: distance of the trained spectrum from its limit, in ‖x*‖")


def polar_filters_err_less(records: Records) -> Verdict:
    """D: trained with norms apart, filters have at most half the error."""
    ratio = log_ratio(records.where(experiment="convolution"), "PolarSGD", "SGD", "error", None)
    return within(median_interval(ratio), high=HALF, what="log10 of PolarSGD's over SGD's error of the spectrum")


@dataclass(frozen=True)
class Waiting:
    """A claim on descents, with how long the flows take that they follow."""

    claim: LessError

    def __call__(self, records: Records) -> Verdict:
        """Judge the claim; say after how many steps the flow itself has fitted, where it was integrated."""
        verdict, metric = self.claim(records), "steps to a residual of 1 percent"
        mine = records.where(experiment="waits", metric=metric)
        mine = mine.where(depth=self.claim.depth)
        said = [f"from {share:g} of the threshold {np.isfinite(steps).sum()} of {len(steps)} fit to 1 %, after "
                f"{np.nanmedian(steps):.2g} steps in the median" for share in mine.axis(metric)
                if np.isfinite(steps := mine.values("polar", metric, share)).any()]
        if not said:
            return verdict
        return replace(verdict, note=f"{verdict.note} The flow itself waits at saddles, for one entry after the "
                       f"other to grow: integrated implicitly, {'; '.join(said)}.")
