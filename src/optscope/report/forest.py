"""Claims as one forest plot: every effect with its interval against the bounds of its claim, family by family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optscope.evidence.claims import Outcome, Verdict
from optscope.evidence.words import listed
from optscope.report.document import Document
from optscope.report.tables import Table, interval, number

ALIKE = 20.0
"""Rows share a scale unless one reaches so many times as far as another, which could not be seen beside it."""
BRIEF = 23
"""So many characters have room beside a row."""
ROOM = 46.0
"""Per cent of a row's width on either side of its middle."""
NAMED = 4
"""So many claims of a family are named in a cell of the table."""


@dataclass(frozen=True)
class Row:
    """A claim as it is drawn: places are per cent of the row's width, nan where there is nothing to draw.

    The claim holds from `least` to `most`. One bound stands in the middle, and the claim holds to the right of it,
    whichever way its numbers grow; of two bounds the middle between them stands there.
    """

    place: int
    name: str
    verdict: Verdict
    least: float
    most: float
    effect: float
    low: float
    high: float

    @property
    def number(self) -> str:
        """The effect with its interval."""
        found = self.verdict
        if math.isnan(found.effect):
            return "in parts" if "needed:" in found.note else "not measured"
        return interval(found.effect, found.low, found.high)

    @property
    def brief(self) -> str:
        """The same within `BRIEF` characters: in three digits, or the effect alone."""
        found = self.verdict
        ends = [number(end, 3) for end in (found.effect, found.low, found.high)]
        forms = self.number, f"{ends[0]} [{ends[1]}, {ends[2]}]", ends[0]
        return next(text for text in forms if len(text) <= BRIEF)

    @property
    def text(self) -> str:
        """The effect with its interval, in its unit."""
        return f"{self.number} {self.verdict.unit}".rstrip()

    @property
    def asked(self) -> str:
        """Within what the claim holds."""
        return _asked(self.verdict)


@dataclass(frozen=True)
class Family:
    """Claims whose ids share the first word, and what they are about."""

    name: str
    about: str
    rows: Sequence[Row]

    @property
    def unit(self) -> str:
        """The unit of all its effects; "" where they have several."""
        units = {row.verdict.unit for row in self.rows if not math.isnan(row.verdict.effect)}
        return units.pop() if len(units) == 1 else ""

    def count(self, outcome: Outcome) -> int:
        """Return how many of its claims come out so."""
        return sum(row.verdict.outcome == outcome for row in self.rows)


def forest(document: Document) -> list[Family]:
    """Return the claims of a document by family; none where it knows no families."""
    found: dict[str, list[tuple[int, str, Verdict]]] = {name: [] for name in document.families}
    for place, (claim, verdict) in enumerate(document.verdicts, start=1):
        first, _, rest = claim.id.partition(" ")
        found.get(first, []).append((place, rest, verdict))
    return [Family(name, document.families[name], [
        _row(place, rest, verdict, _scale(verdict, [other for *_, other in members]))
        for place, rest, verdict in members]) for name, members in found.items() if members]


def _scale(found: Verdict, family: Sequence[Verdict]) -> float:
    """Return how far a row reaches: as far as all that ask for the same in one unit, where all can be seen so."""
    alike = [each for each in family
             if (each.least, each.most, each.unit) == (found.least, found.most, found.unit)]
    reaches = [reach for reach in map(_reach, alike) if reach > 0]
    shared = max(reaches, default=1.0)
    return shared if shared <= ALIKE * min(reaches, default=1.0) else _reach(found) or 1.0


def _middle(found: Verdict) -> float:
    """Return what stands in the middle of a row: the one bound, between two; 0 without any."""
    ends = [end for end in (found.least, found.most) if math.isfinite(end)]
    return sum(ends) / len(ends) if ends else 0.0


def _reach(found: Verdict) -> float:
    """Return how far from the middle a row has to reach: to its effect, its interval and its bounds."""
    middle = _middle(found)
    ends = [abs(end - middle) for end in (found.effect, found.low, found.high, found.least, found.most)]
    return max((end for end in ends if math.isfinite(end)), default=0.0)


def _row(place: int, name: str, found: Verdict, scale: float) -> Row:
    middle, bounded = _middle(found), math.isfinite(found.least) or math.isfinite(found.most)
    turned = -1.0 if bounded and math.isinf(found.least) else 1.0

    def at(value: float) -> float:
        return 50 + turned * ROOM * (value - middle) / scale if math.isfinite(value) else math.nan

    low, high = sorted((at(found.low), at(found.high)))
    least, most = sorted(100.0 if math.isinf(end) else at(end) for end in (found.least, found.most))
    return Row(place, name, found, least if bounded else math.nan, most, at(found.effect), low, high)


def _asked(found: Verdict) -> str:
    """Return within what a claim holds, in a few characters.

    >>> _asked(Verdict("holds", "", least=-1.5, most=1.5)), _asked(Verdict("holds", "", most=0.05))
    ('within ±1.5', '≤ 0.05')
    """
    low, high = found.least, found.most
    if math.isinf(low) and math.isinf(high):
        return ""
    return (f"≥ {number(low)}" if math.isinf(high) else f"≤ {number(high)}" if math.isinf(low) else
            f"within ±{number(high)}" if low == -high else f"{number(low)} to {number(high)}")


def glance(document: Document) -> list[Table]:
    """Return the tables that show an answer at a glance; of families how many claims hold, and which do not."""
    families = [(f"{family.name}. {family.about}", str(family.count("holds") or ""),
                 *(_cell([row.name or family.name for row in family.rows if row.verdict.outcome == outcome],
                         len(family.rows)) for outcome in ("fails", "undecided"))) for family in forest(document)]
    own = [Table("", ("claims about", "hold", "fail", "undecided"), families)] if families else []
    return [*own, *document.summaries]


def _cell(names: Sequence[str], of: int) -> str:
    """Return how many of a family's claims there are and what they are called, where it has others.

    >>> _cell([], 2), _cell(["C4"], 1), _cell(["ring", "digits"], 3), _cell(list("abcdef"), 6)
    ('', '1', '2: ring, digits', '6: a, b, c, d ...')
    """
    more = " ..." if len(names) > NAMED else ""
    return f"{len(names) or ''}" + (f": {listed(names[:NAMED])}{more}" if names and of > 1 else "")
