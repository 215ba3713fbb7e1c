"""What is said of trainings that others recorded: differences over seeds that all arms have, and curves."""

from __future__ import annotations

from optscope.analyses.caveats import failed_checks
from optscope.analyses.charts import edge, over_time
from optscope.analyses.differences import measured
from optscope.analyses.saved import along_axes, paired
from optscope.evidence.picture import Panel, Picture
from optscope.evidence.records import Records
from optscope.evidence.words import listed
from optscope.protocol.recordings import Recordings
from optscope.report.section import Section, joined


def of_recordings(recordings: Recordings, margin: float | str | None) -> Section:
    """Return what a page says of recorded trainings."""
    records, arms = recordings.records, [arm.name for arm in recordings.arms]
    shared = Records(row for row in records if row.seed in recordings.seeds)
    if len(arms) > 1 and recordings.seeds:
        answer = paired(recordings, shared, margin, {})
    else:
        why = "there is one arm" if len(arms) == 1 else "no seed has ended in every arm"
        last = max((row.step or 0 for row in records), default=0)
        answer = Section([f"{listed(arms)}, recorded over {last} steps: no difference is tested, as {why}."])
    return joined([answer, Section(warnings=failed_checks(recordings, shared)), _curves(recordings),
                   edge(recordings, records), along_axes(recordings, shared), measured(recordings, records)])


def _curves(recordings: Recordings) -> Section:
    """Return the training loss, and what else was measured at every look, over steps."""
    panels = []
    for name, metric in recordings.curves.items():
        rows = Records(row for row in recordings.records.where(metric=metric.name) if row.step is not None)
        series = [over_time(rows.where(arm=arm.name), arm.name) for arm in recordings.arms]
        panels += [Panel("step", f"{name} [{metric.unit}]" if metric.unit else name, series)] if rows else []
    return Section(figures=[Picture(
        "training", "During training", panels,
        "Means over seeds; bands are 95 % t intervals. The training loss is the mean since the look before.",
    )] if panels else [])
