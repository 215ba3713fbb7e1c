"""A report in one cell of a notebook: the answer, the table and the picture, without script or style sheet."""

from __future__ import annotations

from markupsafe import Markup, escape

from optscope.report.document import Document
from optscope.report.figures import plain
from optscope.report.forest import glance
from optscope.report.style import clean
from optscope.report.tables import Table, number


def inline(document: Document, path: str = "") -> str:
    """Return HTML that shows a document's answer at a glance wherever it is set, and where its page is.

    What users wrote is escaped; looks are those of the notebook, so that it is read on light and dark grounds.
    """
    parts = [Markup("<h3>{}</h3>").format(clean(document.title))]
    parts += [Markup("<p><strong>{}</strong></p>").format(clean(line))
              for line in document.verdict_sentence.splitlines() if line.strip()]
    count = sum(bool(warning.strip()) for warning in document.warnings)
    if count:
        parts.append(Markup("<p>{} reservation{}: see the report.</p>").format(count, "s" * (count != 1)))
    parts += [_table(table) for table in glance(document) if table.rows]
    parts += [Markup('<div style="background:#fff;max-width:900px;overflow-x:auto">{}</div>').format(
        Markup(plain(figure))) for figure in document.openers[:1]]
    if path:
        parts.append(Markup("<p>report: <code>{}</code></p>").format(clean(path)))
    return str(Markup("\n").join(parts))


def _table(table: Table) -> Markup:
    head = Markup("").join(Markup("<th>{}</th>").format(clean(cell)) for cell in table.header)
    body = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup("").join(
            Markup('<td style="text-align:left">{}</td>').format(escape(clean(number(cell)))) for cell in row))
        for row in table.rows)
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)
