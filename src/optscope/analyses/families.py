"""The answer of a study in a few lines, its claims by family, and how far it is from its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optscope.evidence.claims import SCALES, Claim, Scale, Verdict
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
    """Return what became of the families that answer its question, how many claims hold, and the claims."""
    outcomes = [verdict.outcome for _, verdict in verdicts]
    failing = [claim.id for claim, verdict in verdicts if verdict.outcome == "fails"]
    named = f" ({listed(failing)})" if 0 < len(failing) <= NAMED else ""
    beyond = {claim.id for claim, verdict in verdicts if not verdict.measured and verdict.outcome == "undecided"
              and SCALES.index(claim.scale) > SCALES.index(scale)}
    summary = (f"Of {len(verdicts)} claims {outcomes.count('holds')} hold, {outcomes.count('fails')} fail{named} "
               f"and {outcomes.count('undecided')} are undecided at {scale} scale"
               f"{f', {len(beyond)} of which it does not measure' if beyond else ''}.")
    by = {name: {claim.id: verdict for claim, verdict in verdicts if claim.id.split()[0] == name}
          for name in study.answers}
    lines = [f"Not measured here. {study.families[name]} ({len(found)} claim{'s' * (len(found) > 1)})."
             if found.keys() <= beyond else said(study.families[name], list(found.values()))
             for name, found in by.items() if found]
    return Section([*lines, summary], verdicts, families=list(study.families.items()),
                   shown=list(study.shown.items()), summaries=[gap_table(study)])


def said(about: str, verdicts: Sequence[Verdict]) -> str:
    """Return whether what a family is about holds, in a line: yes or no only where all its claims say so.

    >>> yes, no, open = (Verdict(outcome, "") for outcome in ("holds", "fails", "undecided"))
    >>> for found in ([yes, yes], [yes, no, open], [no, no], [no, open], [open, open]):
    ...     print(said("It rains", found))
    Yes. It rains (2 of 2 claims hold).
    In part. It rains (1 of 3 claims hold, 1 undecided).
    No. It rains (0 of 2 claims hold).
    Not shown. It rains (0 of 2 claims hold, 1 undecided).
    Undecided. It rains (0 of 2 claims hold, 2 undecided).
    """
    outcomes = [verdict.outcome for verdict in verdicts]
    holds, open_, n = outcomes.count("holds"), outcomes.count("undecided"), len(outcomes)
    word = ("Yes" if holds == n else "Undecided" if open_ == n else "In part" if holds else
            "Not shown" if open_ else "No")
    rest = f", {open_} undecided" if open_ else ""
    return f"{word}. {about} ({holds} of {n} claims hold{rest})."


def gap_table(study: Study) -> Table:
    """Return what differs between a study and its paper, a row each."""
    return Table("How far this is from the paper", ("what differs", "the paper", "here", "what closing it costs"),
                 [(gap.differs, gap.paper, gap.ours, gap.costs) for gap in study.gaps])
