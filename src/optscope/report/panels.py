"""Panels: how series of numbers become lines, bands, points and bars on one pair of axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from optscope.evidence.picture import Panel, Picture, Series
from optscope.report.drawable import Points, drawable, thin
from optscope.report.places import Places, Spot
from optscope.report.style import Style, Styles, short
from optscope.report.tables import panel_cells

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw_picture(canvas: Canvas, picture: Picture, styles: Styles) -> list[Places]:
    """Draw all panels of a picture, and one legend for them; return where the numbers of its tables are."""
    count = max(len(picture.panels), 1)
    columns = picture.columns or (count if count <= 2 else 2 if count == 4 else 3)
    rows = math.ceil(count / columns)
    height = {1: 4.3 if rows == 1 else 2.9, 2: 3.6}.get(columns, 3.2) * rows
    handles: dict[tuple[str, bool], Artist] = {}
    places = []
    for i, panel in enumerate(picture.panels):
        axes = canvas.add_subplot(rows, columns, i + 1)
        found = draw_panel(axes, panel, styles, width=float(canvas.get_size_inches()[0]) / columns)
        curves = not panel.categories and any(s.mark in ("line", "theory") for s in panel.series)
        places += [Places(axes, found, curves)] if found else []
        for series in panel.series:
            handles.setdefault((series.label, series.mark == "theory"), _handle(series, styles.look(series)))
    height += _legend(canvas, handles)
    canvas.set_size_inches(canvas.get_size_inches()[0], height)
    return places


def _legend(canvas: Canvas, handles: dict[tuple[str, bool], Artist]) -> float:
    """Draw the legend above the panels, theories last; return the inches it takes."""
    keys = sorted((key for key in handles if key[0]), key=lambda key: key[1])
    if not keys:
        return 0.0
    labels = [short(label) for label, _ in keys]
    rows = math.ceil(len(keys) / max(1, int(106 / (max(map(len, labels)) + 7))))
    columns = math.ceil(len(keys) / rows)
    # matplotlib fills legends column by column; readers read row by row.
    order = [i for c in range(columns) for i in range(c, len(keys), columns)]
    # A label that starts with "_" would be left out, by a convention of matplotlib's.
    canvas.legend([handles[keys[i]] for i in order],
                  [f"\u200b{labels[i]}" if labels[i].startswith("_") else labels[i] for i in order],
                  loc="outside upper left", ncols=columns)
    return 0.1 + 0.21 * rows


def _handle(series: Series, style: Style) -> Artist:
    line = Line2D([], [], color=style.colour, marker=style.marker, markersize=6.5, markeredgecolor="white",
                  markeredgewidth=0.7, linestyle=style.dash)
    if series.mark == "theory":
        line.set(color=style.ink, linewidth=1.2, marker="")
    elif series.mark != "line":
        line.set_linestyle("")
        line.set_markersize(8)
    line.set_gid(f"series-{style.index}")
    return line


def draw_panel(axes: Axes, panel: Panel, styles: Styles, width: float) -> list[Spot]:
    """Draw one panel, `width` inches wide, with a note on what could not be drawn; return where its numbers are."""
    panel = replace(panel, log_x=panel.log_x and not panel.categories)
    drawn = [(series, Points.of(series, panel)) for series in panel.series]
    _scale(axes, panel, drawn)
    side_by_side, slot = _slots(panel, drawn)
    shifts = [(side_by_side.index(series.label) - (len(side_by_side) - 1) / 2) * slot
              if series.label in side_by_side else 0.0 for series, _ in drawn]
    for (series, points), shift in zip(drawn, shifts, strict=True):
        style = styles.look(series)
        points = _shifted(points, shift, panel.log_x)
        _draw_runs(axes, series, panel, style)
        shown = points if series.mark == "cloud" else thin(points, panel.log_x)
        _MARKS[series.mark](axes, shown, style, slot or 0.8 * _gap(drawn))
    for name, value in panel.levels.items():
        if np.isfinite(drawable(np.array([value]), panel.log_y)).all():
            _level(axes, name, float(value), inside=width < 4)
    if any(s.mark == "bars" for s, _ in drawn) and not panel.log_y:
        axes.axhline(0, color="#777777", linewidth=0.8, zorder=1)
    axes.set_title("\n".join(textwrap.wrap(short(panel.title, 120), int((width - 0.6) * 10))))
    axes.set_ylabel(short(panel.y_label, 60))
    lost = textwrap.wrap(_lost(panel, drawn), int((width - 0.6) * 13))
    axes.set_xlabel("\n".join((short(panel.x_label, 90), *lost)))
    _ticks(axes, panel, width)
    return [Spot(row, i + 1, x * 10 ** shifts[i] if panel.log_x else x + shifts[i], y)
            for row, (x, cells) in enumerate(panel_cells(panel)) for i, (_, y, *_) in cells.items()]


def _scale(axes: Axes, panel: Panel, drawn: Sequence[tuple[Series, Points]]) -> None:
    if panel.log_x and any((p.x > 0).any() for _, p in drawn):
        axes.set_xscale("log")
    if panel.log_y and any((p.y > 0).any() for _, p in drawn):
        axes.set_yscale("log")
    if any(s.mark in ("line", "theory") for s in panel.series) and not panel.categories:
        axes.margins(x=0.02)


def _slots(panel: Panel, drawn: Sequence[tuple[Series, Points]]) -> tuple[list[str], float]:
    """Return the labels that stand side by side at each place of the x axis, and how far apart.

    Numbers on the x axis are measurements unless several series share them all: only then are marks moved.
    """
    marks = [(s, p) for s, p in drawn if s.mark in ("bars", "points")]
    labels = list(dict.fromkeys(s.label for s, _ in marks))
    if panel.categories:
        return labels, 0.8 / max(len(labels), 1)
    places = [np.unique(p.x[np.isfinite(p.x)]) for _, p in marks]
    if len(labels) < 2 or len(places[0]) < 2 or not all(np.array_equal(places[0], x) for x in places):
        return [], 0.0
    steps = np.diff(np.log10(places[0]) if panel.log_x else places[0])
    slot = 0.8 * float(steps.min()) / len(labels)
    return labels, slot if any(s.mark == "bars" for s, _ in marks) else min(slot, 0.016 * float(steps.sum()))


def _shifted(points: Points, shift: float, log: bool) -> Points:
    return replace(points, x=points.x * 10 ** shift if log else points.x + shift) if shift else points


def _gap(drawn: Sequence[tuple[Series, Points]]) -> float:
    places = np.unique(np.concatenate([p.x[np.isfinite(p.x)] for _, p in drawn]))
    return float(np.diff(places).min()) if len(places) > 1 else 1.0


def _draw_line(axes: Axes, points: Points, style: Style, slot: float) -> None:
    every = max(1, math.ceil(len(points.x) / 9))
    # Markers of different labels start at different points, so that curves which agree stay visible.
    start = 0 if every == 1 else (style.index * max(1, every // 4)) % every
    axes.plot(points.x, points.y, color=style.colour, linestyle=style.dash, marker=style.marker,
              markevery=(start, every), markersize=6.5, markeredgecolor="white", markeredgewidth=0.7,
              zorder=3, gid=f"series-{style.index}")
    _draw_band(axes, points, style)


def _draw_runs(axes: Axes, series: Series, panel: Panel, style: Style) -> None:
    """Draw the seeds of a series as faint lines, as one line with gaps."""
    if series.runs:
        y = drawable(np.array([[*run, np.nan] for run in series.runs], dtype=np.float64), panel.log_y)
        x = drawable(np.array([*series.x, np.nan], dtype=np.float64), panel.log_x)
        axes.plot(np.tile(x, len(y)), y.ravel(), color=style.colour, linewidth=0.7, alpha=0.3, zorder=1.8,
                  gid=f"series-{style.index}-runs", scaley=False)


def _draw_theory(axes: Axes, points: Points, style: Style, slot: float) -> None:
    axes.plot(points.x, points.y, color=style.ink, linestyle=style.dash, linewidth=1.2, zorder=4,
              gid=f"series-{style.index}")
    _draw_band(axes, points, style)


def _draw_band(axes: Axes, points: Points, style: Style) -> None:
    if points.has_interval:
        axes.fill_between(points.x, points.low, points.high, color=style.colour, alpha=0.16, linewidth=0,
                          zorder=2, gid=f"series-{style.index}-band")


def _draw_points(axes: Axes, points: Points, style: Style, slot: float) -> None:
    if points.has_interval:
        # One line with gaps: a collection of lines takes several times as long, and as much room.
        gap = np.full_like(points.x, np.nan)
        axes.plot(np.repeat(points.x, 3), np.column_stack((points.low, points.high, gap)).ravel(), color=style.ink,
                  linewidth=1.4, solid_capstyle="butt", zorder=5, gid=f"series-{style.index}-whiskers")
    axes.plot(points.x, points.y, color=style.colour, linestyle="", marker=style.marker, markersize=7,
              markeredgecolor="white", markeredgewidth=0.8, zorder=4, gid=f"series-{style.index}")


def _draw_bars(axes: Axes, points: Points, style: Style, slot: float) -> None:
    """Draw pale bars with the label's marker at the end of each, which tells them apart without colour."""
    points = points[np.flatnonzero(np.isfinite(points.y))]
    for bar in axes.bar(points.x, points.y, width=0.9 * slot, color=style.colour, alpha=0.3, zorder=2):
        bar.set_gid(f"series-{style.index}-bar")
    _draw_points(axes, points, style, slot)


def _draw_cloud(axes: Axes, points: Points, style: Style, slot: float) -> None:
    """Draw dots as one image within the picture: as shapes, thousands would make a file of megabytes."""
    axes.plot(points.x, points.y, color=style.colour, linestyle="", marker=".", markersize=2, markeredgewidth=0,
              alpha=0.5, zorder=3, rasterized=True, gid=f"series-{style.index}")


def _draw_rings(axes: Axes, points: Points, style: Style, slot: float) -> None:
    axes.plot(points.x, points.y, linestyle="", marker="o", markersize=14, markerfacecolor="none",
              markeredgecolor=style.ink, markeredgewidth=1.5, zorder=5, gid=f"series-{style.index}-ring")


_MARKS: dict[str, Callable[[Axes, Points, Style, float], None]] = {
    "line": _draw_line, "theory": _draw_theory, "points": _draw_points, "bars": _draw_bars,
    "cloud": _draw_cloud, "rings": _draw_rings}


def _level(axes: Axes, name: str, value: float, inside: bool) -> None:
    """Draw a level with its name to the right of the panel, or above the line where panels are narrow."""
    axes.axhline(value, color="#555555", linewidth=1, linestyle=(0, (1, 2)), zorder=1.5)
    text = axes.annotate(short(name, 40) if inside else "\n".join(textwrap.wrap(short(name, 40), 14)), (1, value),
                         xycoords=("axes fraction", "data"), xytext=(-1, 3) if inside else (4, 0),
                         textcoords="offset points", ha="right" if inside else "left",
                         va="bottom" if inside else "center", fontsize=9, color="#555555", zorder=6)
    if inside:
        text.set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1})


def _ticks(axes: Axes, panel: Panel, width: float) -> None:
    if panel.categories:
        count = len(panel.categories)
        room = max(4, int((width - 0.8) * 13.5 / count))
        labels = [short(c, 48) for c in panel.categories]
        wrapped = ["\n".join(textwrap.wrap(label, room, break_long_words=False)) for label in labels]
        fits = all(len(line) <= room for label in wrapped for line in label.split("\n"))
        axes.set_xticks(range(count), wrapped if fits else labels)
        if not fits:
            axes.tick_params(axis="x", rotation=35)
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.55, count - 0.45)
    for axis, most in ((axes.xaxis, 5 if width < 4 else 8), (axes.yaxis, 8)):
        if axis.get_scale() == "log":
            log_ticks(axis, most)
    if width < 4 and not panel.categories and axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(4))  # more labels than that run into each other


def log_ticks(axis: Axis, most: int) -> None:
    """Place ticks at powers of ten, at 1, 2, 5 between few of them, evenly where there is not even one."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    axis.set_major_locator(AutoLocator() if decades < 0.5 else
                           LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=most))
    plain = low > 5e-4 and high < 5e4
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(value, plain)))
    axis.set_minor_formatter(NullFormatter())
    if decades < 0.5:
        axis.set_minor_locator(NullLocator())


def power(value: float, plain: bool = False) -> str:
    """Return the label of a tick on a logarithmic axis, written out when `plain`.

    >>> power(1e-5), power(2e6), power(0.01), power(0.01, plain=True)
    ('10⁻⁵', '2·10⁶', '10⁻²', '0.01')
    """
    if plain or value <= 0:
        return f"{value:.6g}".replace("-", "−")
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0 ** exponent:.3g}"
    return ("" if factor == "1" else f"{factor}·") + f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def _lost(panel: Panel, drawn: Sequence[tuple[Series, Points]]) -> str:
    """Return how many points are missing and why: a diverged run must not vanish in silence."""
    total = sum(len(p.x) for _, p in drawn)
    lost = sum(int(np.isnan(p.x).sum()) for _, p in drawn)
    cut = sum(int((np.asarray(s.low) <= 0).sum()) for s, _ in drawn if panel.log_y and s.low is not None)
    why = "not finite, or not above 0 on a logarithmic axis" if panel.log_x or panel.log_y else "not finite"
    notes = (("nothing to draw", not total), (f"{lost} of {total} points not drawn ({why})", lost),
             (f"{cut} of {total} intervals reach 0 and are cut", cut))
    return "; ".join(note for note, needed in notes if needed)
