"""What a comparison says: differences to the first arm, with intervals and corrected tests, as claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.records import Metric, Records
from optscope.evidence.verdicts import equivalent, greater, holm_corrected
from optscope.study.comparison import Comparison

Values = NDArray[np.float64]
CLEAN = "accuracy"
MARGIN = 1.5
"""Clean accuracies closer than this, in points, count as equal (fixed before any run)."""

@dataclass(frozen=True)
class Place:
    """A metric at one coordinate: what two arms are compared on."""

    metric: Metric
    at: float | None

    @property
    def text(self) -> str:
        """How it is called in a sentence."""
        place = "" if self.at is None else f" ({self.metric.axis} {self.at:g})"
        return self.metric.name + place

    @property
    def difference_unit(self) -> str:
        """The unit of a difference: percentages differ by points."""
        return "points" if self.metric.unit == "%" else self.metric.unit


def places(comparison: Comparison, records: Records) -> list[Place]:
    """Return what arms are compared on: every metric with a better direction, at its middle coordinate."""
    found = []
    for metric in (m for probe in comparison.probes for m in probe.metrics):
        axis = records.axis(metric.name)
        if metric.better != "neither" and records.where(metric=metric.name):
            found.append(Place(metric, axis[len(axis) // 2] if axis else None))
    return found


@dataclass(frozen=True)
class Finding:
    """One thing a comparison says about an arm and the first one; `lead` is the better arm of the two."""

    claim: Claim
    verdict: Verdict
    place: Place
    arm: str
    lead: str


def findings(comparison: Comparison, records: Records) -> list[Finding]:
    """Return what is said about each arm and the first: clean accuracy equal, all else better or worse.

    Which arm leads is read off the data, so its test is two-sided: the claim holds when the 95 % interval of
    the paired difference excludes 0 and the sign-flip test, Holm-corrected over the arms, does not take that
    back.
    """
    mine = records.where(experiment=comparison.name, phase="final")
    first, *others = [arm.name for arm in comparison.arms]
    found: list[Finding] = []
    for place in places(comparison, mine):
        if place.metric.name == CLEAN:
            found.extend(_equal(mine, place, first, other) for other in others)
        family = [_better(mine, place, first, other) for other in others]
        corrected = holm_corrected([finding.verdict for finding in family])
        found.extend(replace(f, verdict=verdict) for f, verdict in zip(family, corrected, strict=True))
    return [replace(f, claim=replace(f.claim, id=f"F{i}")) for i, f in enumerate(found, start=1)]


def _pairs(records: Records, place: Place, first: str, other: str) -> tuple[Values, Values]:
    """Return both arms' values on every seed either was trained on, nan where a run left none.

    Seeds that diverge are not missing by chance, so tests have to know of them.
    """
    seeds = sorted({row.seed for row in records if row.arm in (first, other)})
    a, b = (records.by_seed(arm, place.metric.name, place.at) for arm in (first, other))
    return np.array([a.get(s, math.nan) for s in seeds]), np.array([b.get(s, math.nan) for s in seeds])


def _equal(records: Records, place: Place, first: str, other: str) -> Finding:
    a, b = _pairs(records, place, first, other)
    verdict = equivalent(a, b, MARGIN, what=f"{place.text}, {first} − {other}", unit="points")
    text = f"{first} and {other} reach the same {place.text} (within {MARGIN:g} points)"
    return Finding(_claim(text, "the difference's 95 % interval lies outside the margin"), verdict, place,
                   other, "")


def _better(records: Records, place: Place, first: str, other: str) -> Finding:
    a, b = _pairs(records, place, first, other)
    if place.metric.better == "lower":
        a, b = -a, -b
    gaps = (a - b)[np.isfinite(a - b)]
    lead, trail = (first, other) if float(gaps.sum()) >= 0 else (other, first)
    better, worse = (a, b) if lead == first else (b, a)
    side = "higher" if place.metric.better == "higher" else "lower"
    what = f"{place.text}, {lead} better than {trail} by"
    verdict = greater(better, worse, what=what, unit=place.difference_unit)
    text = f"{lead} has {side} {place.text} than {trail}"
    return Finding(_claim(text, "the paired difference's 95 % interval reaches 0"), verdict, place, other, lead)


def _claim(text: str, falsified: str) -> Claim:
    return Claim("", text, "this comparison", _judged_already, falsified, scale="smoke")


def _judged_already(records: Records) -> Verdict:
    raise AssertionError("findings are judged when they are made")


def headline(comparison: Comparison, found: Sequence[Finding]) -> str:
    """Return the answer, a line an arm: is clean accuracy equal, and who is better at what, by how much."""
    first = comparison.arms[0].name
    lines = []
    for arm in [arm.name for arm in comparison.arms[1:]]:
        equal = [f"clean accuracy {_STATES[f.verdict.outcome]} {MARGIN:g} points"
                 for f in found if f.arm == arm and not f.lead]
        parts = [", ".join(_amount(f) for f in found
                           if f.arm == arm and f.lead == lead and f.verdict.outcome == "holds")
                 for lead in (first, arm)]
        better = [f"{lead} is better in {part}" for lead, part in zip((first, arm), parts, strict=True) if part]
        said = equal + (better or ["no difference is shown"])
        lines.append(f"{first} against {arm}: " + "; ".join(said) + ".")
    return "\n".join(lines)


def _amount(finding: Finding) -> str:
    found = finding.verdict
    unit = finding.place.difference_unit
    return (f"{finding.place.text} by {found.effect:.3g} [{found.low:.3g}, {found.high:.3g}]"
            + (f" {unit}" if unit else ""))


_STATES = {"holds": "equal within", "fails": "differs by more than", "undecided": "not shown equal within"}
