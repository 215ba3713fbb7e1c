"""One claim a difference: that two arms are equal, and that one is better, are two tests and one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optscope.analyses.choice import Standing
from optscope.analyses.findings import Finding
from optscope.evidence.claims import Claim, Verdict

WORDS = {"equal": "equal", "better": "better", "worse": "worse", "open": "not shown"}
"""What a joined row says of an arm, by how it stands against the first."""


def claims(found: Sequence[Finding], first: str) -> list[tuple[Claim, Verdict]]:
    """Return a claim and its verdict a difference: where equality is tested as well, the two tests are one claim.

    Both tests have their p corrected among those of all findings; the row says what `Standing` makes of them.
    """
    equals = {f.arm: f for f in found if not f.lead}
    rows = []
    for f in found:
        twin = equals.get(f.arm)
        if not f.lead:
            differs = next(g for g in found if g.lead and (g.arm, g.place) == (f.arm, f.place))
            rows.append(_joined(f, differs, first, Standing.of(f.arm, found).outcome))
        elif twin is None or twin.place != f.place:
            rows.append((f.claim, f.verdict))
    return [(replace(claim, id=f"F{i}"), verdict) for i, (claim, verdict) in enumerate(rows, start=1)]


def _joined(equal: Finding, differs: Finding, first: str, standing: str) -> tuple[Claim, Verdict]:
    """Return what is said of an arm against the first in what comes first; the effect: the arm's − the first's."""
    margin = equal.claim.text.rpartition(" (within ")[2].rstrip(")")
    decided = [equal, differs] if standing == "open" else [equal] if standing == "equal" else [differs]
    more = " A difference is shown as well, and lies within." if (
        standing == "equal" and differs.verdict.outcome == "holds") else ""
    found = decided[-1].verdict
    claim = replace(equal.claim, text=f"{equal.arm} against {first}: {equal.place.text} (equal within {margin})",
                    falsified="; or ".join(f.claim.falsified for f in decided))
    effect, low, high = (0.0 - number for number in (  # of 0 that is 0, and not −0
        equal.verdict.effect, equal.verdict.high, equal.verdict.low))
    return claim, replace(
        equal.verdict, outcome="undecided" if standing == "open" else "holds", said=WORDS[standing],
        note=" ".join(f.verdict.note for f in decided) + more, effect=effect, low=low, high=high, p=found.p,
        test=found.test)
