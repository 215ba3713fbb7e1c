"""The answer of a study in a sentence, its claims by family, and how far it is from its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.records import Records
from optscope.evidence.words import listed
from optscope.protocol.study import Arrays, Study
from optscope.report.section import Section
from optscope.report.tables import Table

NAMED = 4
"""So many claims that fail are named."""


def judged(study: Study, records: Records, arrays: Arrays, scale: Scale) -> Section:
    """Return what a study says: its answer and its first picture, its claims, its other pictures."""
    pictures = study.pictures(records, arrays)
    return replace(answered(study, study.judge(records, scale), scale), openers=pictures[:1], figures=pictures[1:])


def answered(study: Study, verdicts: Sequence[tuple[Claim, Verdict]], scale: Scale) -> Section:
    """Return how many claims hold, fail and are undecided, the claims, and what their families are about."""
    outcomes = [verdict.outcome for _, verdict in verdicts]
    failing = [claim.id for claim, verdict in verdicts if verdict.outcome == "fails"]
    named = f" ({listed(failing)})" if 0 < len(failing) <= NAMED else ""
    summary = (f"Of {len(verdicts)} claims {outcomes.count('holds')} hold, {outcomes.count('fails')} fail{named} "
               f"and {outcomes.count('undecided')} are undecided at {scale} scale.")
    return Section([summary], verdicts, families=list(study.families.items()), shown=list(study.shown.items()),
                   summaries=[gap_table(study)])


def gap_table(study: Study) -> Table:
    """Return what differs between a study and its paper, a row each."""
    return Table("How far this is from the paper", ("what differs", "the paper", "here", "what closing it costs"),
                 [(gap.differs, gap.paper, gap.ours, gap.costs) for gap in study.gaps])
