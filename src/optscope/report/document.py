"""A document: everything a report says, as data, before it becomes a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.picture import Figure
from optscope.report.measures import Measure
from optscope.report.section import Check
from optscope.report.tables import Table


@dataclass(frozen=True)
class Document:
    """Everything a report says, in the order in which it says it.

    `verdict_sentence` is the answer; a line break in it starts another. `summaries` and `openers` show it at
    a glance, `details` are its lines in full. `warnings` are what a reader must know before believing it.
    `verdicts` were judged at `scale`, where there are several; `families` says what those are about whose ids
    share the first word, `shown` how the names of figures begin that show them. `measures` are what arms can
    be compared on, seed by seed, all of the same arms.
    """

    title: str
    question: str
    verdict_sentence: str
    warnings: Sequence[str] = ()
    verdicts: Sequence[tuple[Claim, Verdict]] = ()
    scale: Scale | None = None
    next_steps: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    checklist: Sequence[Check] = ()
    environment: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    runs_table: Table | None = None
    summaries: Sequence[Table] = ()
    openers: Sequence[Figure] = ()
    details: Sequence[str] = ()
    families: Mapping[str, str] = field(default_factory=dict)
    measures: Sequence[Measure] = ()
    shown: Mapping[str, Sequence[str]] = field(default_factory=dict)
