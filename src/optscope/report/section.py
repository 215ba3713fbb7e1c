"""A section: what one analysis adds to a report, as data; a report is what its sections say together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.picture import Figure
from optscope.report.measures import Measure
from optscope.report.tables import Table


@dataclass(frozen=True)
class Check:
    """One rule of the protocol, whether it was kept, and what was done."""

    text: str
    met: bool
    note: str = ""


@dataclass(frozen=True)
class Section:
    """What one analysis says of a comparison: lines of the answer, and what they rest on.

    `summaries` and `openers` are the table and the picture that show the answer at a glance, `details` its
    lines in full. `families` says of claims whose ids share the first word what they are about, where there
    are such, `shown` how the names of figures begin that show them, `measures` what arms can be compared on,
    seed by seed.
    `warnings` are what a reader must know before believing it. An analysis that does not fit returns a
    section of nothing.
    """

    sentences: Sequence[str] = ()
    verdicts: Sequence[tuple[Claim, Verdict]] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    warnings: Sequence[str] = ()
    checks: Sequence[Check] = ()
    summaries: Sequence[Table] = ()
    openers: Sequence[Figure] = ()
    details: Sequence[str] = ()
    families: Sequence[tuple[str, str]] = ()
    shown: Sequence[tuple[str, Sequence[str]]] = ()
    measures: Sequence[Measure] = ()


def joined(sections: Iterable[Section]) -> Section:
    """Return all that the sections say, in their order, as one.

    >>> found = joined([Section(["a"], warnings=["x"]), Section(), Section(["b"])])
    >>> found.sentences, found.warnings, found.figures
    (['a', 'b'], ['x'], [])
    """
    found = list(sections)
    return Section(*([part for each in found for part in getattr(each, field.name)] for field in fields(Section)))
