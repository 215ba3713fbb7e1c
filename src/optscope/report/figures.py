"""Figures: pictures as data become SVG text; the same data give the same bytes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from optscope.errors import UserError
from optscope.evidence.picture import KEPT, Figure, Heatmap, ImageGrid, Kept, Picture, Scorecard
from optscope.evidence.words import listed
from optscope.report.grids import draw_images, draw_matrix
from optscope.report.panels import draw_picture
from optscope.report.places import Places
from optscope.report.scorecard import draw_scorecard
from optscope.report.style import SETTINGS, Styles, clean, slug
from optscope.report.svg import as_image, headed, serialise

WIDTH, NARROW = 9.0, 4.2  # inches, shown at 100 px each
TITLE = 0.5
"""Inches that a title takes above what it is the title of."""


def draw(figure: Figure, path: str | Path | None = None, styles: Styles | None = None) -> str:
    """Return a figure as SVG with its title above it, and write it to `path` when there is one.

    `styles` holds the looks of the labels; share one between figures that are read together.

    Raises:
        UserError: When the arrays of the figure do not fit its labels.

    >>> from optscope.evidence.picture import Panel, Series
    >>> line = Series("SGD", [0, 1, 2], [0.9, 0.7, 0.4])
    >>> draw(Picture("fall", "Accuracy falls", [Panel("ε", "accuracy", [line])])).startswith("<svg")
    True
    """
    svg = headed(plain(figure, styles), clean(figure.title))
    if path is not None:
        Path(path).write_text(svg + "\n", encoding="utf-8", newline="\n")
    return svg


def plain(figure: Figure, styles: Styles | None = None, width: float = WIDTH) -> str:
    """Return a figure as SVG without its title, for a page that sets the title itself."""
    if isinstance(figure, Kept):
        return as_image(figure.svg, alt(figure))
    with _alike():
        canvas, places = _canvas(figure, styles or Styles.of([figure]), width)
        tables = [(0 if isinstance(figure, Scorecard) else i, each) for i, each in enumerate(places)]
        return serialise(canvas, slug(figure.name), clean(figure.title), alt(figure), tables)


def drawn(figure: Figure) -> Canvas:
    """Return a figure with its title as matplotlib's own."""
    with _alike():
        canvas, _ = _canvas(figure, Styles.of([figure]), WIDTH)
        canvas.suptitle(clean(figure.title), fontsize=11, wrap=True)
        width, height = canvas.get_size_inches()
        canvas.set_size_inches(width, height + TITLE)  # a drawing's height is that of its panels
    return canvas


@contextmanager
def _alike() -> Iterator[None]:
    """Draw as every figure is drawn, whatever the user's own settings are."""
    # Numbers too far apart for the arithmetic of one axis make a poor picture, which is no reason to stop.
    with mpl.style.context(["default", SETTINGS]), np.errstate(all="ignore"), warnings.catch_warnings():
        # Letters which matplotlib's own font lacks are drawn by the reader's fonts all the same.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _canvas(figure: Figure, styles: Styles, width: float) -> tuple[Canvas, list[Places]]:
    """Return a drawing, and where the numbers of its tables are."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.06)
    canvas = Canvas(figsize=(width, 4.5), layout=layout)
    places: list[Places] = []
    match figure:
        case Picture():
            places = draw_picture(canvas, figure, styles)
        case ImageGrid():
            draw_images(canvas, figure)
        case Heatmap():
            draw_matrix(canvas, figure)
        case Scorecard():
            places = draw_scorecard(canvas, figure, styles)
        case Kept():
            raise UserError(f"the numbers of {figure.name} are not here, only its drawing: take "
                            f"figures/{figure.name}.svg, or run the study again")
    return canvas, places


def alt(figure: Figure) -> str:
    """Return what a figure shows, in words, for readers who do not see it."""
    title = clean(figure.title).rstrip(".")
    match figure:
        case Picture():
            panels = [f"{f'{p.title}: ' if p.title else ''}{p.y_label or 'values'} against "
                      f"{p.x_label or ('categories' if p.categories else 'x')}, for "
                      f"{listed(dict.fromkeys(s.label for s in p.series)) or 'nothing'}"
                      for p in figure.panels]
            what = f"Chart{'' if len(panels) == 1 else f' with {len(panels)} panels'}. {'; '.join(panels)}"
        case ImageGrid():
            what = (f"Grid of images. Rows: {listed(figure.rows) or 'none'}. "
                    f"Columns: {listed(figure.columns) or 'none'}")
        case Heatmap():
            what = (f"Table of coloured cells{f' in {figure.unit}' if figure.unit else ''}. "
                    f"Rows: {listed(figure.rows)}. Columns: {listed(figure.columns)}")
        case Scorecard():
            what = (f"Scorecard of {listed(figure.arms)}, better to the right. A panel each: "
                    f"{listed(quality.name for quality in figure.qualities)}")
        case Kept():
            what = KEPT.rstrip(".")
    return " ".join(clean(f"{title}. {what}.").split())
