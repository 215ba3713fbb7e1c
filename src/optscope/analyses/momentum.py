"""Whether momentum earned its buffer: what a comparison of SGD with it and without it shows."""

from __future__ import annotations

import math
from dataclasses import replace

from optscope.analyses.choice import Standing
from optscope.analyses.findings import CLEAN, findings
from optscope.evidence.records import Records
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
    equal within the margin: by `findings`, against whichever of the two comes first, so that where it is the first
    arm of all the report's own rows say the same.
    """
    arms = [arm for arm in comparison.arms if isinstance(arm.rule, (SGD, Momentum))]
    plain = next((arm for arm in arms if momentum_of(arm.rule) == 0), None)
    with_it = next((arm for arm in arms if momentum_of(arm.rule) > 0), None)
    if plain is None or with_it is None:
        return ""
    first, other = (arm for arm in arms if arm in (plain, with_it))
    led = replace(comparison, arms=(first, *(arm for arm in comparison.arms if arm != first)))
    standing = Standing.of(other.name, findings(led, records, margin))
    if standing.equal is None or standing.equal.place.metric.name != CLEAN:
        return ""
    found, sign = standing.equal.verdict, -1 if first == plain else 1
    effect, low, high = sign * found.effect + 0.0, *sorted((sign * found.low + 0.0, sign * found.high + 0.0))
    bounds = f" [{low:+.2g}, {high:+.2g}]" if math.isfinite(low) else ""
    shown = "no seed has both" if math.isnan(effect) else (
        f"{effect:+.2g} points{bounds} against {plain.name}")
    buffer = f"its buffer of {size(buffer_bytes(comparison.task.model().parameters()))}"
    if standing.outcome == "open":
        return f"Whether {with_it.name} earned {buffer} is not shown ({shown})."
    if standing.outcome == "equal":
        within = margin_said(margin, standing.equal.place.metric).text(standing.equal.place.metric)
        return f"{with_it.name} did not earn {buffer}: its clean accuracy is equal within {within} ({shown})."
    earned_it = (standing.outcome == "better") == (other == with_it)
    return (f"{with_it.name} {'earned' if earned_it else 'did not earn'} {buffer}: its clean accuracy is "
            f"{'higher' if earned_it else 'lower'} ({shown}).")
