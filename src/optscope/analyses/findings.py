"""What a comparison says: differences to the first arm, with intervals and corrected tests, as claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from optscope.analyses.examples import Right
from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.paired import example_interval
from optscope.evidence.records import Metric, Records
from optscope.evidence.rounding_floor import RoundingFloor, rounding_floor, shows
from optscope.evidence.stats import Interval, paired_difference
from optscope.evidence.verdicts import equivalent, greater, holm_corrected
from optscope.protocol.compared import Compared
from optscope.protocol.margin import Margin, margin_said

CLEAN = "accuracy"
FIRST = (CLEAN, "loss")
"""What an answer begins with: the first of these that was measured."""


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


def places(comparison: Compared, records: Records) -> list[Place]:
    """Return what arms are compared on: every metric with a better direction, at its middle coordinate.

    Accuracy comes first, or the loss where there is none; the others follow in the order of the probes. Where the
    comparison names metrics it is these alone.
    """
    found = []
    for metric in (m for probe in comparison.probes for m in probe.metrics
                   if not comparison.metrics or m.name in comparison.metrics):
        axis = records.axis(metric.name)
        if metric.better != "neither" and records.where(metric=metric.name):
            found.append(Place(metric, axis[len(axis) // 2] if axis else None))
    return sorted(found, key=lambda place: place != primary(found))


def primary(found: Sequence[Place]) -> Place | None:
    """Return the place that comes first in an answer: the accuracy, or else the loss; None where neither is."""
    return next((place for name in FIRST for place in found if place.metric.name == name), None)


@dataclass(frozen=True)
class Finding:
    """One thing a comparison says about an arm and the first one.

    `lead` is the better arm of the two ("" where the claim is that they are equal), `rounding_floor` what rounding
    alone does to their difference, `examples` the difference (first − other) with the interval that the number of
    test examples leaves, where that is known; `margin` is within what the two count as equal, its mean over pairs
    (nan where the claim is of a difference).
    """

    claim: Claim
    verdict: Verdict
    place: Place
    arm: str
    lead: str
    rounding_floor: RoundingFloor
    examples: Interval | None = None
    margin: float = math.nan

    @property
    def drowned(self) -> bool:
        """Whether the mean difference is smaller than what rounding alone does to two single runs."""
        return self.rounding_floor.covers(self.verdict.effect)


def findings(comparison: Compared, records: Records, margin: float | str | None = None,
             right: Right | None = None) -> list[Finding]:
    """Return what is said about each arm and the first: the accuracy equal, all else better or worse.

    Which arm leads is read off the data, so its test is two-sided. Each claim has one test, `paired_test`, and the
    p of all of them (all metrics and arms) are Holm-corrected together: a claim holds or fails if its corrected p
    is at most 0.05. `margin` is within what accuracies (losses, where there are none) count as equal; `right` tells
    which test examples each model was right about.
    """
    mine = records.where(experiment=comparison.name, phase=("final", "twin"))
    first, *others = [arm.name for arm in comparison.arms]
    shown = places(comparison, mine)
    equal = [_equal(mine, place, first, other, margin_said(margin, place.metric))
             for place in shown if place == primary(shown) for other in others]
    better = [_better(mine, place, first, other) for place in shown for other in others]
    found = [_sized(f, first, right or {}) for f in (*equal, *better)]
    corrected = holm_corrected([f.verdict for f in found])
    return [_floored(replace(f, verdict=verdict)) for f, verdict in zip(found, corrected, strict=True)]


def _floored(finding: Finding) -> Finding:
    """Return a finding that is decided, with the rounding floor in its note where that shows in a printed digit."""
    floor, unit = finding.rounding_floor, finding.place.difference_unit
    if finding.verdict.outcome == "undecided" or not shows(floor.value, finding.verdict.effect):
        return finding
    side = "smaller" if finding.drowned else "larger"
    note = (f"{finding.verdict.note} Rounding alone moves two single runs apart by up to {floor.value:.3g}"
            f"{f' {unit}' if unit else ''} (95 %, from {floor.runs} runs): the mean difference is {side}.")
    return replace(finding, verdict=replace(finding.verdict, note=note))


def _sized(finding: Finding, first: str, right: Right) -> Finding:
    """Return a finding about accuracy with what the number of test examples leaves open."""
    ours, theirs = (right.get(arm, {}) for arm in (first, finding.arm))
    seeds = sorted(ours.keys() & theirs.keys())
    if finding.place.metric.name != CLEAN or not seeds:
        return finding
    found = example_interval(*([arm[seed] for seed in seeds] for arm in (ours, theirs)))
    points = replace(found, **{name: 100 * getattr(found, name) for name in ("estimate", "low", "high")})
    sign = -1 if finding.lead not in ("", first) else 1
    low, high = sorted((sign * points.low, sign * points.high))
    note = (f"{finding.verdict.note} That interval is over seeds, on these {points.n} test examples; on others "
            f"drawn alike the same models would differ by {low:+.3g} to {high:+.3g} points (95 %, paired).")
    return replace(finding, verdict=replace(finding.verdict, note=note), examples=points)


def _equal(records: Records, place: Place, first: str, other: str, margin: Margin) -> Finding:
    a, b = records.pairs(first, other, place.metric.name, place.at)
    unit, within = place.difference_unit, margin.of(a, place.metric)
    paired = np.isfinite(a + b)
    if not paired.any() or within[paired].sum() > 0:
        verdict = equivalent(a, b, within, what=f"{place.text}, {first} − {other}", unit=unit)
    else:
        found = paired_difference(a, b)
        verdict = Verdict("undecided", f"{place.text}, {first} − {other}: {first} errs nowhere, and a share of no "
                          "error is no margin.", found.estimate, found.low, found.high, found.n)
    text = f"{first} and {other} reach the same {place.text} (within {margin.text(place.metric)})"
    return Finding(_claim(text, "a difference that is shown to lie outside the margin"), verdict, place, other, "",
                   rounding_floor(records, first, other, place.metric.name, place.at),
                   margin=float(within[paired].mean()) if paired.any() else math.nan)


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
    return Finding(_claim(f"{lead} has {side} {place.text} than {trail}",
                          f"a difference that is shown to be on the other side of 0, in favour of {trail}"),
                   verdict, place, other, lead, rounding_floor(records, first, other, place.metric.name, place.at))


def _claim(text: str, falsified: str) -> Claim:
    return Claim("", text, "this comparison", _judged_already, falsified, scale="smoke")


def _judged_already(records: Records) -> Verdict:
    raise AssertionError("findings are judged when they are made")
