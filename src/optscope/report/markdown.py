"""The report as Markdown: the same words and tables for places that show no HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from optscope.evidence.picture import KEPT, Figure, Kept
from optscope.report.document import Document
from optscope.report.forest import glance
from optscope.report.style import clean
from optscope.report.tables import Cell, Table, interval, number, on_halves


def markdown(document: Document) -> str:
    """Return the report; its figures have the names of their files."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_lines(document))) + "\n"


def _lines(document: Document) -> Iterator[str]:
    yield f"# {_text(document.title)}\n"
    yield f"*{_text(document.question)}*\n" if document.question.strip() else ""
    for sentence in document.verdict_sentence.splitlines():
        yield f"**{_text(sentence)}**\n" if sentence.strip() else ""
    for table in glance(document):
        yield f"### {_text(table.title)}\n" if table.title and table.rows else ""
        yield from _table(table)
        yield f"{_text(table.note)}\n"
    yield from _figures(document.openers)
    if any(document.warnings):
        yield "## Read this first\n"
        yield from (f"* {_text(warning)}" for warning in document.warnings if warning.strip())
    if document.next_steps:
        yield "\n## What to do next\n"
        yield from (f"* {_text(step)}" for step in document.next_steps)
    if document.figures:
        yield "\n## Figures\n"
    yield from _figures(document.figures)
    if document.verdicts:
        yield "\n## Claims and verdicts\n"
        yield from (f"* {_text(line)}" for line in document.details)
        judged = f"Judged at {document.scale} scale. " if document.scale else ""
        yield f"\n{judged}Effects carry 95 % intervals.\n"
        yield from _table(_claims(document))
    if document.tables:
        yield "\n## Tables\n"
    for table in document.tables:
        yield f"### {_text(table.title)}\n"
        yield from _table(table)
        yield f"\n{_text(table.note)}\n"
    if document.checklist:
        yield "\n## Protocol\n"
        yield from (f"* [{'x' if c.met else ' '}] {_text(c.text)}{': ' if c.note else ''}{_text(c.note)}"
                    for c in document.checklist)
    yield "\n## Reproduce\n"
    yield from _code(document.command)
    yield from _table(Table("", ("environment", ""), [(k, str(v)) for k, v in document.environment.items()]))


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    for figure in figures:
        yield f"### {_text(figure.title)}\n\n![{_text(figure.title)}](figures/{figure.name}.svg)\n"
        yield f"{_text(figure.caption)}\n"
        yield f"{KEPT}\n" if isinstance(figure, Kept) else ""


def _claims(document: Document) -> Table:
    rows = [(claim.id, claim.text, claim.source, v.word,
             "" if math.isnan(v.effect) else interval(v.effect, v.low, v.high), v.n,
             "" if math.isnan(v.p) else number(v.p, 2), f"{v.note} {on_halves(v)}".strip())
            for claim, v in document.verdicts]
    return Table("", ("claim", "sentence", "source", "verdict", "effect", "n", "p", "found"), rows)


def _table(table: Table) -> Iterator[str]:
    if table.rows:
        yield _row(table.header)
        yield "|" + " --- |" * len(table.header)
        yield from map(_row, table.rows)
        yield ""


def _row(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join("<br>".join(map(_text, number(cell).split("\n"))) for cell in cells) + " |"


def _text(text: str) -> str:
    """Return text on one line in which nothing is read as Markdown or HTML."""
    line = " ".join(clean(text).split())
    return re.sub(r"([\\`*_\[\]#|~!$])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;"))


def _code(command: str) -> Iterator[str]:
    if command.strip():
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", command)), default=0))
        yield f"{fence}\n{clean(command)}\n{fence}\n"
