"""The answer of a comparison in a line an arm, in an order that is fixed before anything is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from optscope.analyses.findings import CLEAN, Finding, places
from optscope.evidence.paired import FEWEST
from optscope.evidence.records import Records
from optscope.evidence.words import listed
from optscope.protocol.compared import Compared

ORDER = ("the accuracy comes first (the loss where there is none), shown or not; then every other difference that "
         "is shown, in the order of the probes")
"""The rule of the answer's order."""


def headline(comparison: Compared, records: Records, found: Sequence[Finding]) -> str:
    """Return the answer, a line an arm: the accuracy and its difference, then who is shown to be better at what."""
    first = comparison.arms[0].name
    lines = []
    for arm in [arm.name for arm in comparison.arms[1:]]:
        mine = [finding for finding in found if finding.arm == arm]
        equal = next((f for f in mine if not f.lead), None)
        place = equal.place if equal else None
        rest = [f for f in mine if f.lead and f.place != place and f.verdict.outcome == "holds"]
        parts = [", ".join(_amount(f) for f in rest if f.lead == lead) for lead in (first, arm)]
        better = [f"{lead} is better in {part}" for lead, part in zip((first, arm), parts, strict=True) if part]
        nothing = "nothing else is shown to differ" if equal else "no difference is shown"
        said = [*_lost(records, comparison, first), *_lost(records, comparison, arm),
                *([f"{first}'s " + _first_said(equal, next(f for f in mine if f.lead and f.place == place))]
                  if equal else []),
                *(better or [nothing])]
        lines.append(f"{first} against {arm}: " + "; ".join(said) + ".")
    return "\n".join(lines)


def nothing_to_compare(comparison: Compared, records: Records) -> str:
    """Return why nothing can be compared: all runs failed, or no arm is shown to have learnt; else nothing.

    An arm has learnt if at least half of its seeds left a model that passed the test against chance, which an arm
    that learns nothing does in 5 of 100 cases at most (`optscope.probes.chance`). Where no model could be held
    against chance, nothing is said.
    """
    mine = records.where(experiment=comparison.name, phase="final")
    runs = {row.run: row.status for row in mine}
    if all(status != "ok" for status in runs.values()):
        return f"Nothing can be compared: all {len(runs)} final runs failed or diverged."
    if not any(np.isfinite(mine.values(arm.name, place.metric.name, place.at)).any()
               for place in places(comparison, mine) for arm in comparison.arms):
        return f"Nothing can be compared: of {len(runs)} final runs no model could be measured."
    checks = {arm.name: list(mine.by_seed(arm.name, "better than chance").values()) for arm in comparison.arms}
    known = {arm: each for arm, each in checks.items() if each}
    if not known or any(2 * sum(each) >= len(mine.seeds(arm)) for arm, each in known.items()):
        return ""
    metric, blind = ((CLEAN, "accuracy of the commonest class") if mine.where(metric=CLEAN) else
                     ("loss", "loss of the mean"))
    unit = " %" if metric == CLEAN else ""

    def mean(arm: str, name: str) -> str:
        values = mine.values(arm, name)
        return f"{np.nanmean(values):.4g}{unit}" if np.isfinite(values).any() else "none"
    scores = listed(f"{arm.name} {mean(arm.name, metric)}" for arm in comparison.arms)
    return ("Nothing can be compared: no optimiser is shown to do better than an answer that never looks at the "
            f"input. The {blind} is {mean(next(iter(known)), blind)}; mean {metric} over seeds: {scores}.")


def _first_said(equal: Finding, better: Finding) -> str:
    """Return the difference in what comes first (the first arm less the other), and what of it is shown."""
    found, unit, name = equal.verdict, equal.place.difference_unit, equal.place.text
    if math.isnan(found.effect):
        return f"{name} not compared"
    sign, side = (1, "higher") if found.effect > 0 else (-1, "lower")
    low, high = sorted((sign * found.low, sign * found.high))
    size = (f"{side} by {abs(found.effect):.3g}" + (f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) else "")
            + (f" {unit}" if unit else "") if found.effect else "the same")
    margin = equal.claim.text.rpartition(" (within ")[2].rstrip(")")
    shown = {(True, True): f"shown, and equal within {margin}", (True, False): "shown",
             (False, True): f"equal within {margin}"}.get(
        (better.verdict.outcome == "holds", found.outcome == "holds"),
        f"undecided: it takes {FEWEST} seeds to show a difference" if found.n < FEWEST else
        "undecided: neither a difference nor equality is shown" if found.outcome == "undecided" else
        f"differs by more than {margin}")
    text = f"{name} {size} over {found.n} seed{'s' if found.n > 1 else ''}, {shown}"
    return text + _on_examples(equal, better) + (", less than rounding alone can do" if better.drowned and
                                                 better.verdict.outcome == "holds" else "")


def _on_examples(equal: Finding, better: Finding) -> str:
    """Return what the number of test examples takes back of a difference that is shown over seeds."""
    spread = equal.examples
    if spread is None or better.verdict.outcome != "holds" or not spread.low <= 0 <= spread.high:
        return ""
    return f" (not by {spread.n} test examples: on others {spread.low:+.3g} to {spread.high:+.3g})"


def lost(records: Records, comparison: Compared, arm: str) -> tuple[int, int]:
    """Return on how many seeds an arm diverged or failed, and of how many."""
    rows = records.where(experiment=comparison.name, phase="final", arm=arm)
    return len({row.seed for row in rows if row.status != "ok"}), len(rows.seeds(arm))


def _lost(records: Records, comparison: Compared, arm: str) -> list[str]:
    bad, total = lost(records, comparison, arm)
    return [f"{arm} diverged or failed on {bad} of {total} seeds"] if bad else []


def _amount(finding: Finding) -> str:
    found = finding.verdict
    unit = finding.place.difference_unit
    return (f"{finding.place.text} by {found.effect:.3g} [{found.low:.3g}, {found.high:.3g}]"
            + (f" {unit}" if unit else "") + (", less than rounding alone can do" if finding.drowned else ""))
