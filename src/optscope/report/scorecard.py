"""Scorecards: many qualities at a glance, a small panel each, better to the right."""

from __future__ import annotations

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from optscope.evidence.picture import Quality, Scorecard, Series
from optscope.report.drawable import drawable
from optscope.report.panels import log_ticks
from optscope.report.places import Places, Spot
from optscope.report.style import Styles, short

ROOM = 2.1
"""Inches a panel takes at least."""
WIDE = 30.0
"""From this ratio of the largest number to the least on, all above 0, the axis is logarithmic."""


def draw_scorecard(canvas: Canvas, card: Scorecard, styles: Styles) -> list[Places]:
    """Draw a panel a quality, arms from top to bottom; marks are full where a difference to the first is shown.

    Return where the numbers of its table are.
    """
    places = []
    width = float(canvas.get_size_inches()[0])
    count = max(1, len(card.qualities))
    rows = math.ceil(count / max(1, int(width / ROOM)))
    columns = math.ceil(count / rows)  # so that the last row is about as full as the others
    for i, quality in enumerate(card.qualities):
        axes = canvas.add_subplot(rows, columns, i + 1)
        _draw_quality(axes, quality, card, styles)
        places.append(Places(axes, [Spot(i, row + 1, float(x), row) for row, x in enumerate(quality.estimates)]))
        names = [short(arm, int(2.9 * width)) for arm in card.arms] if i % columns == 0 else []
        axes.set_yticks(range(len(card.arms)) if names else [], names)
    canvas.set_size_inches(width, math.ceil(10 * (0.1 + rows * (0.72 + 0.19 * max(3, len(card.arms))))) / 10)
    return places


def _draw_quality(axes: Axes, quality: Quality, card: Scorecard, styles: Styles) -> None:
    numbers = np.array([quality.estimates, quality.lows, quality.highs], dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    log = finite.size > 0 and finite.min() > 0 and finite.max() > WIDE * finite.min()
    middle, low, high = (drawable(row, log) for row in numbers)
    if log:
        axes.set_xscale("log")
    if np.isfinite(middle[0]):
        axes.axvline(middle[0], color="#777777", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        if quality.floor > 0 and not log:
            axes.axvspan(middle[0] - quality.floor, middle[0] + quality.floor, color="#E4E4E4", linewidth=0,
                         zorder=0)
    for row, arm in enumerate(card.arms):
        style = styles.look(Series(arm, (), ()))
        if np.isfinite(low[row]) and np.isfinite(high[row]):
            axes.plot([low[row], high[row]], [row, row], color=style.ink, linewidth=1.4, solid_capstyle="butt",
                      zorder=3, gid=f"series-{style.index}-whiskers")
        full = row == 0 or bool(quality.shown[row])
        axes.plot(middle[row:row + 1], [row], linestyle="", marker=style.marker, markersize=7, color=style.colour,
                  markerfacecolor=style.colour if full else "white", markeredgewidth=0.8 if full else 1.4,
                  markeredgecolor="white" if full else style.colour, zorder=4, gid=f"series-{style.index}")
    axes.set_ylim(len(card.arms) - 0.5, -0.5)
    axes.set_title("\n".join(textwrap.wrap(short(quality.name, 60), 20)), fontsize=9, loc="left")
    if log:
        log_ticks(axes.xaxis, 3)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    if not quality.higher_is_better:
        axes.invert_xaxis()
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", labelsize=9)
