"""A document as files: one offline HTML page, its Markdown twin, verdicts as JSON and the figures as SVG."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from optscope.evidence.claims import Outcome
from optscope.evidence.picture import KEPT, Figure, Kept, Picture, Scorecard
from optscope.files import write_atomically
from optscope.report.document import Document
from optscope.report.figures import NARROW, alt, plain
from optscope.report.forest import forest
from optscope.report.manifest import as_json, manifest, verdict_rows
from optscope.report.markdown import markdown
from optscope.report.measures import difference_table, embedded
from optscope.report.seal import seal
from optscope.report.style import Styles, clean, slug
from optscope.report.svg import headed
from optscope.report.tables import Table, figure_tables, interval, number, on_halves

SCRIPTS = [Path(__file__).with_name(name) for name in ("page.js", "figures.js")]
"""What makes the page interactive: tables, and figures; without it all is there to be read."""
OUTCOMES: Sequence[Outcome] = ("holds", "fails", "undecided")
"""In what order verdicts are counted."""
REFUTED = {"holds": "What would refute it", "fails": "What refutes it", "undecided": "What would refute it"}
"""What stands before the result that refutes a claim."""


@dataclass(frozen=True)
class Drawing:
    """A figure as the template needs it."""

    figure: Figure
    svg: str
    alt: str
    tables: Sequence[Table]
    narrow: str = ""
    """The figure once more, for a narrow screen, where it is drawn otherwise there."""

    @property
    def note(self) -> str:
        """What is said below a figure whose numbers are not here."""
        return KEPT if isinstance(self.figure, Kept) else ""

    @property
    def chart(self) -> bool:
        """Whether its colours may be turned on a dark page: those of images may not."""
        return isinstance(self.figure, Picture | Scorecard)


def render(document: Document) -> str:
    """Return the report as one HTML page that loads nothing, from anywhere."""
    return _page(document, *_drawings(document))


def write(document: Document, folder: str | Path) -> Path:
    """Write `report.html`, `.md` and `.json`, `verdicts.json` and `figures/*.svg`; return the path of the page.

    `report.json`, with its seal, comes last: then all others are there.
    """
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawings, styles = _drawings(document)
    page, named = _page(document, drawings, styles), _named(document, drawings)
    _save(folder / "report.html", page)
    _save(folder / "report.md", markdown(named))
    _save(folder / "verdicts.json", json.dumps(verdict_rows(document), indent=1, ensure_ascii=False,
                                               allow_nan=False) + "\n")
    for drawing in drawings:
        alone = (drawing.figure.svg if isinstance(drawing.figure, Kept) else
                 headed(drawing.svg, clean(drawing.figure.title)) + "\n")
        _save(folder / "figures" / f"{drawing.figure.name}.svg", alone)
    _save(folder / "report.json", as_json(manifest(named) | {"seal": seal(document, page)}) + "\n")
    return folder / "report.html"


def _named(document: Document, drawings: Sequence[Drawing]) -> Document:
    """Return the document with figures under the names of their files."""
    figures, openers = [drawing.figure for drawing in drawings], len(document.openers)
    return replace(document, openers=figures[:openers], figures=figures[openers:])


def _save(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


def _drawings(document: Document) -> tuple[list[Drawing], Styles]:
    """Draw all figures, the openers first, in one set of styles; figures of one name are numbered."""
    figures = [*document.openers, *document.figures]
    styles = Styles.of(figures)
    taken: set[str] = set()
    drawings = []
    for figure in figures:
        name, n = slug(figure.name), 1
        while name in taken:
            n += 1
            name = f"{slug(figure.name)}-{n}"
        taken.add(name)
        figure = replace(figure, name=name)
        drawings.append(Drawing(
            figure, plain(figure, styles), alt(figure), figure_tables(figure),
            plain(replace(figure, name=f"{name}-narrow"), styles, NARROW) if isinstance(figure, Scorecard) else ""))
    return drawings, styles


def _page(document: Document, drawings: Sequence[Drawing], styles: Styles) -> str:
    tally = Counter((verdict.outcome, verdict.word) for _, verdict in document.verdicts)
    openers, names = len(document.openers), [drawing.figure.name for drawing in drawings]
    figures_of, claims_of = _led(document, names)
    return _templates().get_template("template.html").render(
        d=document, openers=drawings[:openers], drawings=drawings[openers:], labels=styles.measured,
        tally=sorted(tally.items(), key=lambda each: OUTCOMES.index(each[0][0])), forest=forest(document),
        script="\n".join(script.read_text(encoding="utf-8") for script in SCRIPTS),
        seeds=_seeds_are_drawn(document), figures_of=figures_of, claims_of=claims_of,
        numbers={name: max(i - openers + 1, 0) for i, name in enumerate(names)},
        differences=difference_table(document.measures, next(iter(document.measures[0].values)))
        if document.measures else None, measures=as_json(embedded(document.measures)) if document.measures else "",
        joined=any(verdict.said for _, verdict in document.verdicts),
        manifest=as_json(manifest(_named(document, drawings))))


def _led(document: Document, names: Sequence[str],
         ) -> tuple[dict[int, list[str]], dict[str, list[tuple[str, int]]]]:
    """Return the figures that show each claim, by its place, and of figures the first claims of their families."""
    figures: dict[int, list[str]] = {}
    claims: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    for place, (claim, _) in enumerate(document.verdicts, start=1):
        family = claim.id.partition(" ")[0]
        figures[place] = [name for name in names if name.startswith(tuple(document.shown.get(family, ())))]
        for name in figures[place]:
            if family not in dict(claims[name]):
                claims[name].append((family, place))
    return figures, claims


def _seeds_are_drawn(document: Document) -> bool:
    return any(series.runs for figure in (*document.openers, *document.figures) if isinstance(figure, Picture)
               for panel in figure.panels for series in panel.series)


def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value)
    found.filters.update(number=number, interval=lambda v: interval(v.effect, v.low, v.high), p=_p_value,
                         parts=_parts, refuted=REFUTED.__getitem__, halves=on_halves, csp_hash=_csp_hash,
                         markup=Markup)
    return found


def _csp_hash(script: str) -> Markup:
    """Return the source expression that lets a page run this very script and no other."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")


def _parts(note: str) -> list[str]:
    """Return a verdict's note as lines: the notes of a combined verdict's parts stand apart.

    >>> _parts("1 of 2 hold: [holds] a. [fails] b.")
    ['1 of 2 hold:', '[holds] a.', '[fails] b.']
    """
    return re.split(r" (?=\[(?:holds|fails|undecided)\] )", note)


def _p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"= {p:.3f}"
