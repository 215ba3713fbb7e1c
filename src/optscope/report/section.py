"""A section: what one analysis adds to a report, as data; a report is what its sections say together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.picture import Figure
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

    `warnings` are what a reader must know before believing it. An analysis that does not fit returns a section of
    nothing.
    """

    sentences: Sequence[str] = ()
    verdicts: Sequence[tuple[Claim, Verdict]] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    warnings: Sequence[str] = ()
    checks: Sequence[Check] = ()


def joined(sections: Iterable[Section]) -> Section:
    """Return all that the sections say, in their order, as one.

    >>> joined([Section(["a"], warnings=["x"]), Section(), Section(["b"])])
    Section(sentences=['a', 'b'], verdicts=[], figures=[], tables=[], warnings=['x'], checks=[])
    """
    found = list(sections)
    return Section([s for each in found for s in each.sentences], [v for each in found for v in each.verdicts],
                   [f for each in found for f in each.figures], [t for each in found for t in each.tables],
                   [w for each in found for w in each.warnings], [c for each in found for c in each.checks])
