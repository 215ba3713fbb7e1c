"""A report for programs: the question, the answer, the verdicts, the numbers and the files, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from optscope.evidence.picture import Figure
from optscope.report.document import Document
from optscope.report.forest import glance
from optscope.report.style import clean
from optscope.report.tables import Table

SCHEMA = 1
"""The version of the form; a name that is added does not change it."""


def manifest(document: Document) -> dict[str, Any]:
    """Return what a report says as JSON values; its figures have the names of their files."""
    return {
        "schema": SCHEMA, "title": clean(document.title), "question": clean(document.question),
        "answer": [clean(line) for line in document.verdict_sentence.splitlines() if line.strip()],
        "details": [clean(line) for line in document.details],
        "reservations": [clean(warning) for warning in document.warnings if warning.strip()],
        "scale": document.scale, "summary": [_table(table) for table in glance(document)],
        "verdicts": verdict_rows(document),
        "figures": [_figure(figure) for figure in (*document.openers, *document.figures)],
        "protocol": [{"text": clean(check.text), "met": bool(check.met), "note": clean(check.note)}
                     for check in document.checklist],
        "command": clean(document.command),
        "environment": {clean(name): _value(value) for name, value in document.environment.items()},
        "files": {"page": "report.html", "verdicts": "verdicts.json", "numbers": "summary.csv"}}


def verdict_rows(document: Document) -> list[dict[str, Any]]:
    """Return the verdicts as plain data; numbers a test has no use for, and bounds it has not, are None."""
    return [{"claim": clean(claim.id), "text": clean(claim.text), "source": clean(claim.source),
             "outcome": verdict.outcome,
             **{name: _value(float(getattr(verdict, name))) for name in ("effect", "low", "high")},
             "n": int(verdict.n), "p": _value(float(verdict.p)), "test": verdict.test, "scale": document.scale,
             "note": clean(verdict.note), "said": verdict.word, "unit": clean(verdict.unit),
             **{name: _value(float(getattr(verdict, name))) for name in ("least", "most")}}
            for claim, verdict in document.verdicts]


def as_json(value: Any) -> str:
    r"""Return JSON text that can stand in a file, or within a page: it holds no markup.

    >>> print(as_json({"a": "</script>"}))
    {"a": "\u003c/script>"}
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _table(table: Table) -> dict[str, Any]:
    return {"header": [clean(cell) for cell in table.header],
            "rows": [[_value(cell) for cell in row] for row in table.rows], "note": clean(table.note)}


def _figure(figure: Figure) -> dict[str, str]:
    return {"name": clean(figure.name), "title": clean(figure.title), "caption": clean(figure.caption),
            "file": f"figures/{figure.name}.svg"}


def _value(value: object) -> Sequence[Any] | str | int | float | bool | None:
    """Return a value as JSON knows it; what is no finite number is None."""
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return clean(value)
