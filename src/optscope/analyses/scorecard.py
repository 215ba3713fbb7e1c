"""The answer at a glance: how every arm does in what is compared, as a small table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optscope.analyses.findings import Finding, Place, places
from optscope.evidence.picture import Quality, Scorecard
from optscope.evidence.records import Records
from optscope.evidence.stats import Interval, mean_interval
from optscope.protocol.compared import Compared
from optscope.report.tables import Table, plus_minus

DRAWN, TABLED = 8, 5
"""So many qualities are drawn, and stand in the table: the first, in the order of the probes."""
EQUAL, BETTER, WORSE, DROWNED = "=", "▲", "▼", "≈"


def scorecard(comparison: Compared, records: Records, found: Sequence[Finding]) -> tuple[Table, Scorecard]:
    """Return the table and the picture of what arms are compared on."""
    mine = records.where(experiment=comparison.name, phase="final")
    shown = places(comparison, mine)
    arms = [arm.name for arm in comparison.arms]
    return _table(mine, shown[:TABLED], arms, found), _picture(mine, shown, arms, found)


def _table(records: Records, shown: Sequence[Place], arms: Sequence[str], found: Sequence[Finding]) -> Table:
    signs = {(f.arm, f.place): _sign(f) for f in found if f.lead}
    signs |= {(f.arm, f.place): EQUAL for f in found if not f.lead and f.verdict.outcome == "holds"}
    rows = []
    for place in shown:
        cells = []
        for arm in arms:
            found_of = _interval(records, arm, place)
            sign = signs.get((arm, place), "")
            cells.append((plus_minus(found_of) if found_of.n + found_of.missing else "not measured")
                         + f"\u00a0{sign}" * bool(sign))
        rows.append((f"{quality_name(place)}\u00a0{'↑' if place.metric.better == 'higher' else '↓'}", *cells))
    return Table("", ("quality", *arms), rows, "Mean over seeds ± half of the 95 % t interval. Against "
                 f"{arms[0]}: {BETTER} shown better, {WORSE} shown worse, {EQUAL} shown equal within the margin, "
                 f"{DROWNED} less than rounding alone can do; no sign: nothing is shown. ↑ higher is better, "
                 "↓ lower is better.")


def quality_name(place: Place) -> str:
    """Return what a quality is called, with its unit."""
    return place.text + (f" [{place.metric.unit}]" if place.metric.unit else "")


def _interval(records: Records, arm: str, place: Place) -> Interval:
    values = records.values(arm, place.metric.name, place.at)
    return mean_interval(np.where(np.isfinite(values), values, np.nan))


def _sign(finding: Finding) -> str:
    if finding.verdict.outcome != "holds":
        return ""
    return DROWNED if finding.drowned else BETTER if finding.lead == finding.arm else WORSE


def _picture(records: Records, shown: Sequence[Place], arms: Sequence[str], found: Sequence[Finding]) -> Scorecard:
    first, *others = arms
    words = {BETTER: "better", WORSE: "worse"}
    said = {(f.arm, f.place): words.get(_sign(f), "") for f in found if f.lead}
    qualities = []
    for place in shown[:DRAWN]:
        intervals = [_interval(records, arm, place) for arm in arms]
        floors = [f.rounding_floor.value for f in found if f.lead and f.place == place]
        qualities.append(Quality(
            quality_name(place), [i.estimate for i in intervals], [i.low for i in intervals],
            [i.high for i in intervals], [said.get((arm, place), "") for arm in arms],
            place.metric.better == "higher", max((f for f in floors if np.isfinite(f)), default=0.0),
            [i.n for i in intervals]))
    counts = {word: sum(each == word for each in said.values()) for word in ("better", "worse")}
    title = f"{sum(counts.values())} of {len(others) * len(shown)} differences to {first} are shown"
    told = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    title += f": {told}" if told else ""
    more = f" The first {DRAWN} of {len(shown)} qualities." if len(shown) > DRAWN else ""
    return Scorecard("scorecard", title, arms, qualities,
                     "Mean over seeds with 95 % t intervals; in every panel better is to the right. A full mark: "
                     f"the difference to {first}, at the dotted line, is shown, and is more than rounding can do; "
                     f"the grey band is what rounding alone does to two runs.{more}",
                     [records.seeds(arm) for arm in arms])
