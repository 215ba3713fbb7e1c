"""What a comparison says: differences to the first arm, with intervals and corrected tests, as claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.floor import Floor, floor
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
    """One thing a comparison says about an arm and the first one.

    `lead` is the better arm of the two, `floor` what rounding alone does to their difference.
    """

    claim: Claim
    verdict: Verdict
    place: Place
    arm: str
    lead: str
    floor: Floor

    @property
    def drowned(self) -> bool:
        """Whether the mean difference is smaller than what rounding alone does to two single runs."""
        return self.floor.covers(self.verdict.effect)


def findings(comparison: Comparison, records: Records) -> list[Finding]:
    """Return what is said about each arm and the first: clean accuracy equal, all else better or worse.

    Which arm leads is read off the data, so its test is two-sided: the claim holds when the 95 % interval of
    the paired difference excludes 0 and the paired t test, Holm-corrected over *everything* that is said (all
    metrics and arms), does not take that back. The t test, because eight seeds give a sign-flip test no p small
    enough for such a family; the note has the sign-flip p too.
    """
    mine = records.where(experiment=comparison.name, phase=("final", "twin"))
    first, *others = [arm.name for arm in comparison.arms]
    shown = places(comparison, mine)
    equal = [_equal(mine, place, first, other) for place in shown if place.metric.name == CLEAN for other in others]
    better = [_better(mine, place, first, other) for place in shown for other in others]
    corrected = holm_corrected([finding.verdict for finding in better])
    found = [*equal, *(replace(f, verdict=verdict) for f, verdict in zip(better, corrected, strict=True))]
    return [replace(_floored(f), claim=replace(f.claim, id=f"F{i}")) for i, f in enumerate(found, start=1)]


def _floored(finding: Finding) -> Finding:
    """Return a finding whose note names the rounding floor, when there are twins to measure it."""
    floor, unit = finding.floor, finding.place.difference_unit
    if not np.isfinite(floor.value):
        return finding
    side = "smaller" if finding.drowned else "larger"
    note = (f"{finding.verdict.note} Rounding alone moves two single runs apart by up to {floor.value:.3g}"
            f"{f' {unit}' if unit else ''} (95 %, from {floor.runs} runs): the mean difference is {side}.")
    return replace(finding, verdict=replace(finding.verdict, note=note))


def _equal(records: Records, place: Place, first: str, other: str) -> Finding:
    a, b = records.pairs(first, other, place.metric.name, place.at)
    verdict = equivalent(a, b, MARGIN, what=f"{place.text}, {first} − {other}", unit="points")
    text = f"{first} and {other} reach the same {place.text} (within {MARGIN:g} points)"
    return Finding(_claim(text, "the difference's 95 % interval lies outside the margin"), verdict, place,
                   other, "", floor(records, first, other, place.metric.name, place.at))


def _better(records: Records, place: Place, first: str, other: str) -> Finding:
    a, b = records.pairs(first, other, place.metric.name, place.at)
    if place.metric.better == "lower":
        a, b = -a, -b
    gaps = (a - b)[np.isfinite(a - b)]
    lead, trail = (first, other) if float(gaps.sum()) >= 0 else (other, first)
    better, worse = (a, b) if lead == first else (b, a)
    side = "higher" if place.metric.better == "higher" else "lower"
    what = f"{place.text}, {lead} better than {trail} by"
    verdict = greater(better, worse, what=what, unit=place.difference_unit)
    text = f"{lead} has {side} {place.text} than {trail}"
    return Finding(_claim(text, "the paired difference's 95 % interval reaches 0"), verdict, place, other, lead,
                   floor(records, first, other, place.metric.name, place.at))


def _claim(text: str, falsified: str) -> Claim:
    return Claim("", text, "this comparison", _judged_already, falsified, scale="smoke")


def _judged_already(records: Records) -> Verdict:
    raise AssertionError("findings are judged when they are made")


def headline(comparison: Comparison, records: Records, found: Sequence[Finding]) -> str:
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
        said = [*_lost(records, comparison, first), *_lost(records, comparison, arm), *equal,
                *(better or ["no difference is shown"])]
        lines.append(f"{first} against {arm}: " + "; ".join(said) + ".")
    return "\n".join(lines)


def _lost(records: Records, comparison: Comparison, arm: str) -> list[str]:
    rows = records.where(experiment=comparison.name, phase="final", arm=arm)
    bad = {row.seed for row in rows if row.status != "ok"}
    return [f"{arm} diverged or failed on {len(bad)} of {len(rows.seeds(arm))} seeds"] if bad else []


def _amount(finding: Finding) -> str:
    found = finding.verdict
    unit = finding.place.difference_unit
    return (f"{finding.place.text} by {found.effect:.3g} [{found.low:.3g}, {found.high:.3g}]"
            + (f" {unit}" if unit else "") + (", less than rounding alone can do" if finding.drowned else ""))


_STATES = {"holds": "equal within", "fails": "differs by more than", "undecided": "not shown equal within"}
