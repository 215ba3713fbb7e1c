"""B18: how long the claims of a report take to be judged from its numbers, by an index and by scanning rows."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import Contender, interleave, rows
from optscope.evidence.columns import read_csv
from optscope.evidence.records import FIELDS, Record, Records
from optscope.studies.marginal_momentum import STUDY

SUMMARY = Path(__file__).parents[1] / "results" / "marginal_momentum" / "summary.csv"
LONGEST = 3.0
"""Seconds in which the rows of the momentum study have to be judged."""


class Scanned(Records):
    """Records that look at every row for every question, as they did before factors."""

    def where(self, **wanted: object) -> Scanned:
        """Return the rows that have all that is wanted."""
        def fits(row: Record, name: str, value: object) -> bool:
            has = getattr(row, name) if name in FIELDS else row.factors.get(name)
            return has in value if isinstance(value, (list, tuple, set, frozenset)) else has == value
        return Scanned(row for row in self if all(fits(row, *each) for each in wanted.items()))

    def levels(self, name: str) -> list[Any]:
        """Return the values of a field or factor in these rows, ascending."""
        found = {getattr(row, name) if name in FIELDS else row.factors.get(name) for row in self}
        return sorted(found - {None}, key=lambda value: (isinstance(value, str), value))


def outcomes(records: Records) -> list[str]:
    """Return what every claim comes to."""
    return [verdict.outcome for _, verdict in STUDY.judge(records, "desk")]


def b18() -> dict[str, Any]:
    """Judge all claims from records whose indexes are not made yet; both ways find the same."""
    read = tuple(read_csv(SUMMARY))
    if outcomes(Records(read)) != outcomes(Scanned(read)):
        raise AssertionError("an index finds other rows than a scan")
    contenders = [Contender("optscope", version("optscope"), "", lambda: outcomes(Records(read))),
                  Contender("optscope, read from CSV besides", "", "", lambda: outcomes(read_csv(SUMMARY))),
                  Contender("every row for every question", "", "the same", lambda: outcomes(Scanned(read)))]
    times = interleave(contenders, rounds=5)
    whole = f"optscope, of {LONGEST:g} seconds"
    return {"bar": "B18", "work": f"{len(STUDY.claims)} claims on {len(read):,} rows",
            "rows": rows(contenders, times), "limit": {whole: 1.0},
            "ratio": {whole: times.median("optscope") / LONGEST,
                      contenders[2].who: times.ratio(contenders[2].who, "optscope")}}
