"""Whether momentum earned its buffer: what a comparison of SGD with it and without it shows."""

from __future__ import annotations

from optscope.analyses.findings import CLEAN
from optscope.evidence.records import Metric, Records
from optscope.evidence.verdicts import equivalent, greater
from optscope.optim import SGD, Momentum
from optscope.optim.momentum import momentum_of
from optscope.protocol.advice import buffer_bytes, size
from optscope.protocol.comparison import Comparison
from optscope.protocol.margin import margin_said
from optscope.report.section import Section


def momentum(comparison: Comparison, records: Records, margin: float | str | None = None) -> Section:
    """Return what `earned` says."""
    said = earned(comparison, records, margin)
    return Section(details=[said] if said else [])


def earned(comparison: Comparison, records: Records, margin: float | str | None = None) -> str:
    """Return one sentence on whether momentum earned its buffer; nothing without both kinds of SGD, or accuracy.

    It did if the clean accuracy is shown to be higher than that of SGD without it, and did not if the two are shown
    equal within the margin, as in `findings`.
    """
    arms = [arm for arm in comparison.arms if isinstance(arm.rule, (SGD, Momentum))]
    plain = next((arm.name for arm in arms if momentum_of(arm.rule) == 0), "")
    with_it = next((arm.name for arm in arms if momentum_of(arm.rule) > 0), "")
    mine = records.where(experiment=comparison.name, phase="final")
    if not plain or not with_it or not mine.where(metric=CLEAN):
        return ""
    pair = mine.pairs(with_it, plain, CLEAN)
    accuracy = Metric(CLEAN, "%", "higher")
    within = margin_said(margin, accuracy)
    equal = equivalent(*pair, within.of(pair[1], accuracy), what="clean accuracy", unit="points")
    better = greater(*pair)
    buffer = f"its buffer of {size(buffer_bytes(comparison.task.model().parameters()))}"
    shown = f"{equal.effect:+.2g} points [{equal.low:+.2g}, {equal.high:+.2g}] against {plain}"
    if equal.outcome == "holds":
        return (f"{with_it} did not earn {buffer}: its clean accuracy is equal within {within.text(accuracy)} "
                f"({shown}).")
    if better.outcome == "holds":
        return f"{with_it} earned {buffer}: its clean accuracy is higher ({shown})."
    if better.outcome == "fails":
        return f"{with_it} did not earn {buffer}: its clean accuracy is lower ({shown})."
    return f"Whether {with_it} earned {buffer} is not shown ({shown})."
