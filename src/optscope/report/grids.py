"""Cells: small images and matrices, set out in rows and columns on one pair of axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from optscope.errors import UserError
from optscope.evidence.picture import Heatmap, ImageGrid
from optscope.report.style import clean, short

Array = NDArray[np.float64]


def draw_images(canvas: Canvas, grid: ImageGrid) -> None:
    """Set the images on one pair of axes, one unit a cell.

    Raises:
        UserError: unless there is an image for every pair of labels.
    """
    rows, columns = len(grid.images), max((len(row) for row in grid.images), default=0)
    if rows != len(grid.rows) or any(len(row) != len(grid.columns) for row in grid.images):
        raise UserError(f'figure "{grid.name}": images must be {len(grid.rows)} rows of {len(grid.columns)} '
                        f"to fit the labels, but there are {rows} rows of up to {columns}.")
    axes = canvas.add_subplot()
    for r, row in enumerate(grid.images):
        for c, image in enumerate(row):
            _draw_image(axes, np.asarray(image, dtype=np.float64), r, c, grid.name)
    _lay_cells(canvas, axes, grid.rows, grid.columns, largest=1.35)


def _draw_image(axes: Axes, image: Array, row: int, column: int, name: str) -> None:
    """Draw one image in its cell, centred, its longer side filling the cell."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise UserError(f'figure "{name}": an image must have shape (height, width) or (height, width, 3), '
                        f"but one has {image.shape}.")
    image = np.clip(np.nan_to_num(image, nan=0.5), 0, 1)
    height, width = (0.92 * side / max(image.shape[:2]) / 2 for side in image.shape[:2])
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="none",
                extent=(column - width, column + width, row + height, row - height))


def draw_matrix(canvas: Canvas, heatmap: Heatmap) -> None:
    """Draw the matrix with its numbers; shades diverge from 0 when there are numbers on both sides of it.

    Raises:
        UserError: unless there is a value for every pair of labels.
    """
    values = np.asarray(heatmap.values, dtype=np.float64)
    if values.shape != (len(heatmap.rows), len(heatmap.columns)):
        shape = len(heatmap.rows), len(heatmap.columns)
        raise UserError(f'figure "{heatmap.name}": values must have shape {shape} to fit the labels, '
                        f"but have {values.shape}.")
    axes = canvas.add_subplot()
    if values.size:
        shown = np.ma.masked_invalid(np.where(np.abs(values) < 1e100, values, np.nan))
        low, high = (float(shown.min()), float(shown.max())) if shown.count() else (0.0, 1.0)
        diverging = low < 0 < high
        if diverging:
            low, high = -max(-low, high), max(-low, high)
        colours = mpl.colormaps["PuOr" if diverging else "cividis"].with_extremes(bad="#DDDDDD")
        mesh = axes.imshow(shown, cmap=colours, vmin=low, vmax=high if high > low else low + 1,
                           interpolation="none", aspect="auto")
        _write_cells(axes, values, mesh.to_rgba(shown), heatmap.notes)
        bar = canvas.colorbar(mesh, ax=axes, pad=0.015, fraction=0.04, aspect=28)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.set_label(clean(heatmap.unit))
    _lay_cells(canvas, axes, heatmap.rows, heatmap.columns, largest=0.62)
    axes.vlines(np.arange(values.shape[1] + 1) - 0.5, -0.5, values.shape[0] - 0.5, color="white", linewidth=2)
    axes.hlines(np.arange(values.shape[0] + 1) - 0.5, -0.5, values.shape[1] - 0.5, color="white", linewidth=2)


def _write_cells(axes: Axes, values: Array, shades: Array, notes: Sequence[Sequence[str]]) -> None:
    """Write each cell's number, and its note, in black or white, whichever stands out more from its shade."""
    size = float(np.clip(88 / max(values.shape[1], 1), 4.5, 10))
    linear = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    luminance = linear[..., :3] @ np.array([0.2126, 0.7152, 0.0722])
    for (r, c), value in np.ndenumerate(values):
        ink = "white" if 1.05 / (luminance[r, c] + 0.05) > (luminance[r, c] + 0.05) / 0.05 else "black"
        text = f"{value:.0f}" if 99.5 <= abs(value) < 1e5 else f"{value:.3g}"
        axes.text(c, r - 0.15 * bool(notes), text.replace("-", "−"), ha="center", va="center", color=ink,
                  fontsize=size)
        if notes:
            axes.text(c, r + 0.25, short(notes[r][c], 24), ha="center", va="center", color=ink,
                      fontsize=0.75 * size)


def _lay_cells(canvas: Canvas, axes: Axes, rows: Sequence[str], columns: Sequence[str],
               largest: float) -> None:
    """Label rows and columns of cells and choose the figure's height; a cell is at most `largest` inches."""
    across, down = max(len(columns), 1), max(len(rows), 1)
    above = ["\n".join(textwrap.wrap(short(label, 60), max(6, 84 // across))) for label in columns]
    beside = [short(label, 30) for label in rows]
    axes.set_xticks(range(len(columns)), above)
    axes.set_yticks(range(len(rows)), beside)
    axes.set(xlim=(-0.5, across - 0.5), ylim=(down - 0.5, -0.5))
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    width = float(canvas.get_size_inches()[0])
    cell = min(largest, (width - 0.4 - 0.1 * max(map(len, beside), default=0)) / across)
    lines = max((label.count("\n") + 1 for label in above), default=1)
    canvas.set_size_inches(width, math.ceil(10 * (cell * down + 0.4 + 0.16 * lines)) / 10)
