"""The answer of a study at a glance: what every family of claims is about, and what of it holds."""

from __future__ import annotations

from collections.abc import Sequence

from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.words import listed
from optscope.protocol.study import Study
from optscope.report.section import Section
from optscope.report.tables import Table

NAMED = 4
"""So many claims of a family are named in a cell."""


def answered(study: Study, verdicts: Sequence[tuple[Claim, Verdict]], scale: Scale) -> Section:
    """Return how many claims hold, fail and are undecided, in a sentence and by family."""
    outcomes = [verdict.outcome for _, verdict in verdicts]
    failing = [claim.id for claim, verdict in verdicts if verdict.outcome == "fails"]
    named = f" ({listed(failing)})" if 0 < len(failing) <= NAMED else ""
    summary = (f"Of {len(verdicts)} claims {outcomes.count('holds')} hold, {outcomes.count('fails')} fail{named} "
               f"and {outcomes.count('undecided')} are undecided at {scale} scale.")
    return Section([summary], verdicts, summaries=[families(study, verdicts)])


def families(study: Study, verdicts: Sequence[tuple[Claim, Verdict]]) -> Table:
    """Return a row a family of claims: what it is about, how many hold, and which do not."""
    members: dict[str, dict[str, list[str]]] = {}
    for claim, verdict in verdicts:
        family, _, member = claim.id.partition(" ")
        members.setdefault(family, {}).setdefault(verdict.outcome, []).append(member)
    return Table("", ("claims about", "hold", "fail", "undecided"),
                 [(f"{family}. {study.families[family]}", str(len(found.get("holds", ())) or ""),
                   *(_cell(found.get(outcome, ())) for outcome in ("fails", "undecided")))
                  for family, found in members.items()])


def _cell(names: Sequence[str]) -> str:
    """Return how many claims there are and what they are called.

    >>> _cell([]), _cell([""]), _cell(["ring", "digits"]), _cell(list("abcdef"))
    ('', '1', '2: ring, digits', '6: a, b, c, d ...')
    """
    named = [name for name in names if name]
    more = " ..." if len(named) > NAMED else ""
    return f"{len(names) or ''}" + (f": {listed(named[:NAMED])}{more}" if named else "")
