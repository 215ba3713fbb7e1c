"""Work that was done, and what is written of it: the report, every number, and how they were made."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from optscope.analyses.caveats import together
from optscope.engine.numerics import numerics
from optscope.engine.place import CPU, Place
from optscope.engine.store import Store
from optscope.evidence.claims import Scale
from optscope.evidence.columns import write_csv
from optscope.evidence.records import Records
from optscope.files import to_json, write_atomically
from optscope.protocol.session import Results
from optscope.report.document import Document
from optscope.report.seal import sealed
from optscope.report.section import Section
from optscope.report.tables import runs_table
from optscope.result import Result


@dataclass(frozen=True)
class Done:
    """Experiments that have been run in a folder, how long this call of them took, and where they were done."""

    folder: Path
    results: Results
    seconds: float
    place: Place

    @property
    def store(self) -> Store:
        """The folder as what its runs are read from."""
        return Store(self.folder)

    def document(self, found: Section, known: Sequence[str] = (), left_out: Sequence[str] = (), *, title: str,
                 question: str, command: str, scale: Scale | None = None, next_steps: Sequence[str] = (),
                 rows: Records | None = None, about: Mapping[str, object] | None = None) -> Document:
        """Return the report of what was `found`.

        `rows` are shown run by run; `known` was told before the work began, and `left_out` is the study's.
        """
        results = self.results
        return Document(
            title, question, "\n".join(found.sentences),
            [*left_out, *together(results.failures), *results.inapplicable, *found.warnings, *known],
            found.verdicts, scale, next_steps, found.figures, found.tables, found.checks,
            environment(self.seconds, results.records, self.place) | dict(about or {}), command,
            runs_table(rows) if rows is not None else None, found.summaries, found.openers, found.details,
            dict(found.families), found.measures, dict(found.shown))

    def reported(self, document: Document) -> Result:
        """Write the folder's files beside the runs: the report, every number, and how they were made."""
        records, folder = self.results.records, self.folder
        answer = "\n".join([document.verdict_sentence, *document.details])
        write_csv(records, folder / "summary.csv")
        write_atomically(folder / "run.json", to_json(
            {"command": document.command, "answer": answer, **document.environment}))
        page = sealed(document, folder)  # it stays, if this code drew it and it says all this
        if page is None:
            from optscope.report.page import write  # matplotlib, which the runs need not wait for
            page = write(document, folder)
        return Result(records, document, page, self.results.failures)


def environment(seconds: float, records: Records, place: Place) -> dict[str, object]:
    """Return what a reader needs to get the same numbers: versions, processor, place of the runs, time."""
    packages = ("optscope", "torch", "numpy", "scipy")
    versions = {name: metadata.version(name) for name in packages}
    return {"optscope": versions.pop("optscope"), "python": platform.python_version(), **versions,
            "processor": f"{platform.machine()} {numerics()['cpu']}, {os.cpu_count()} cores",
            "device": numerics(place).get("device", "cpu"), "threads a run": place.threads,
            **({} if place == CPU else {"place": repr(place)}), "system": platform.system(),
            "time of this call [s]": round(seconds, 1),
            **({"time of all trainings [s]": round(spent, 1)} if (spent := _spent(records)) else {})}


def _spent(records: Records) -> float:
    """Return the seconds all runs took, each counted once."""
    return sum({row.run: row.value for row in records.where(metric="seconds")}.values())
