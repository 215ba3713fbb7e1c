"""How our own claims are judged: a small network, two real data sets, and the rule against torch's modules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optscope.evidence.claims import Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import median_interval
from optscope.evidence.verdicts import equivalent, greater, holm_corrected, within
from optscope.studies.weight_normalization.judging import largest

EQUAL = 1.5
"""Clean accuracies within this many points are equal."""
AS_SPARSE = 0.05
"""Errors within 12 % of each other, 0.05 in log10, are equal."""


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
    return within(largest(records, "identity", "largest difference of the weights"), high=1e-10,
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
