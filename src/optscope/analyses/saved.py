"""What is said of saved models: where seeds pair them, their differences; else each for itself, and no test."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from optscope.analyses.caveats import failed_checks
from optscope.analyses.charts import along_axis
from optscope.analyses.choice import RULE
from optscope.analyses.differences import Differences, measured
from optscope.analyses.examples import Right, right
from optscope.analyses.findings import places
from optscope.analyses.scorecard import DRAWN, TABLED, quality_name
from optscope.engine.store import Store
from optscope.evidence.picture import Picture, Quality, Scorecard
from optscope.evidence.records import Records
from optscope.evidence.words import listed
from optscope.protocol.compared import Compared
from optscope.protocol.probing import Probing
from optscope.report.section import Section, joined
from optscope.report.tables import Table, number

UNTUNED = ("what is compared are these trainings: whether the rate of each was chosen with equal effort is not "
           "known here")
"""What is said of every difference between trainings that are not ours."""


def saved(probing: Probing, records: Records, store: Store, margin: float | str | None) -> Section:
    """Return what a page says of saved models."""
    several = probing.paired and len(probing.arms) > 1
    answer = paired(probing, records, margin, right(probing, records, store)) if several else (
        _one_by_one(probing, records))
    return joined([answer, Section(warnings=failed_checks(probing, records)), measured(probing, records),
                   along_axes(probing, records)])


def paired(compared: Compared, records: Records, margin: float | str | None, right: Right) -> Section:
    """Return the differences to the first arm over seeds, without a choice: nobody knows how arms were tuned."""
    said = Differences(margin, lambda compared, records: right)(compared, records)
    return replace(said, sentences=said.details, details=(), warnings=[f"{compared.name}: {UNTUNED}."],
                   checks=[check for check in said.checks if check.note != RULE])


def _one_by_one(probing: Probing, records: Records) -> Section:
    """Return a row a model of what has a better side, and a picture of the same where there are several."""
    shown, arms = places(probing, records), [arm.name for arm in probing.arms]
    values = {place: {arm: float(records.values(arm, place.metric.name, place.at).mean())
                      for arm in arms if len(records.values(arm, place.metric.name, place.at))} for place in shown}
    table = Table("", ("model", *(f"{quality_name(place)}\u00a0{'↑' if place.metric.better == 'higher' else '↓'}"
                                  for place in shown[:TABLED])),
                  [(arm, *(number(values[place][arm]) if arm in values[place] else "not measured"
                           for place in shown[:TABLED])) for arm in arms],
                  "↑ higher is better, ↓ lower is better.")
    if len(arms) == 1:
        first = listed(f"{p.text} {number(values[p][arms[0]], 3)} {p.metric.unit}".strip()
                       for p in shown[:3] if values[p])
        return Section([f"{arms[0]}: {first or 'nothing that has a better side was measured'}."], summaries=[table])
    nowhere = [math.nan] * len(arms)
    qualities = [Quality(quality_name(p), [values[p].get(arm, math.nan) for arm in arms], nowhere, nowhere,
                         [""] * len(arms), p.metric.better == "higher") for p in shown[:DRAWN]]
    card = Scorecard("scorecard", f"{len(arms)} models, one a mark; better is to the right", arms, qualities,
                     f"One model each, so there are no intervals over seeds. The dotted line is {arms[0]}.")
    ends = {Path(arm).suffix for arm in arms}  # "" of folders
    pattern = f"{{arm}}-{{seed}}{ends.pop() if len(ends) == 1 else ''}"
    said = (f"{len(arms)} models, each measured for itself: between single trainings no difference is tested. If "
            "several arms were trained from the same seeds, group says how their names tell, such as "
            f'--group "{pattern}", and differences are tested over seeds.')
    return Section([said], summaries=[table], openers=[card] if qualities else [])


def along_axes(compared: Compared, records: Records) -> Section:
    """Return what was measured along an axis."""
    arms = [arm.name for arm in compared.arms]
    return Section(figures=[Picture(
        p.metric.name.replace(" ", "-"), f"{p.metric.name[:1].upper()}{p.metric.name[1:]} over {p.metric.axis}",
        [along_axis(records, p.metric, arms)], "Mean over seeds with 95 % t intervals." * (len(compared.seeds) > 1))
        for p in places(compared, records) if p.at is not None])
