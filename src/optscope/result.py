"""What a door leaves in Python: numbers, verdicts and the page; it shows itself where it is looked at."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from optscope.errors import UserError, nearest
from optscope.evidence.claims import Claim, Outcome, Verdict
from optscope.evidence.records import Records
from optscope.report.document import Document
from optscope.report.style import slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

ANSWER_LINES = 7
"""So many lines of the answer are shown of a result."""
FRAMES = ("pandas", "polars")
"""Who makes a table of the records: the first that is there."""


class Verdicts(tuple[tuple[Claim, Verdict], ...]):
    """Claims with their verdicts, which show themselves a line each."""

    def __repr__(self) -> str:
        """Return of every claim its name, its outcome as it is read ("worse" holds, too) and its sentence."""
        return "\n".join(f"{claim.id:<5} {verdict.word:<10} {claim.text}" for claim, verdict in self)


@dataclass(frozen=True, repr=False)
class Result:
    """What a door leaves: every number, the report as data, the path of its page, and what failed."""

    records: Records
    document: Document
    report: Path
    failures: tuple[str, ...] = ()

    @property
    def verdicts(self) -> Verdicts:
        """Every claim with its verdict."""
        return Verdicts(self.document.verdicts)

    @property
    def summary(self) -> str:
        """The answer, and below it its lines in full."""
        return "\n".join([self.document.verdict_sentence, *self.document.details])

    def table(self) -> Any:
        """Return every number as a data frame, of pandas or else of polars: a row a record, as in `summary.csv`.

        Raises:
            UserError: when neither is installed.
        """
        for name in FRAMES:
            if importlib.util.find_spec(name):
                return importlib.import_module(name).DataFrame(self.records.columns())
        raise UserError("a table needs pandas or polars, and neither is there: pip install pandas, or take "
                        "records.columns(), a list a column")

    def figure(self, name: str = "scorecard") -> Canvas:
        """Return a figure of the report for matplotlib: to show, to change, to save.

        Its name is that of its file in the folder `figures`; the first of a comparison is the scorecard.

        Raises:
            UserError: when there is none of the name; it says the nearest, or all that there are.
        """
        from optscope.report.figures import drawn

        figures = {slug(figure.name): figure for figure in (*self.document.openers, *self.document.figures)}
        if name not in figures:
            raise UserError(f'no figure "{name}"; {nearest(name, figures)}')
        return drawn(figures[name])

    def __repr__(self) -> str:
        """Return the answer, what became of the claims, and where the page is, in ten lines at most."""
        words = Counter(verdict.word for outcome in get_args(Outcome) for _, verdict in self.verdicts
                        if verdict.outcome == outcome)
        counts = ", ".join(f"{count} {word}" for word, count in words.items())
        lines = self.summary.splitlines()
        return "\n".join([*lines[:ANSWER_LINES], *(["..."] if len(lines) > ANSWER_LINES else []),
                          f"{len(self.verdicts)} claims: {counts or 'none'}; {len(self.records)} records; "
                          f"{len(self.failures)} failures", f"report: {self.report}"])

    def _repr_html_(self) -> str:
        """Return the answer, the table and the picture for a notebook."""
        from optscope.report.inline import inline

        return inline(self.document, str(self.report))
