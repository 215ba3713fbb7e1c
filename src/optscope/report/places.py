"""Places: where in a drawing the numbers of its tables are, so that a page can say what is under the pointer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes


@dataclass(frozen=True)
class Spot:
    """Where the number in a row and column of a table is drawn, in the coordinates of its axes."""

    row: int
    column: int
    x: float
    y: float


@dataclass(frozen=True)
class Places:
    """The numbers of one table on their axes."""

    axes: Axes
    spots: Sequence[Spot]
    curves: bool = False
    """Whether they are curves over numbers, which one may want to see more closely."""


def panels_as_text(tables: Sequence[tuple[int, Places]]) -> str:
    """Return the curves of a drawing as JSON: which table, which axes, their ends in the SVG and in numbers.

    Of a logarithmic axis the ends are the logarithms, to base 10, and a 1 follows.
    """
    found = []
    for table, places in tables:
        axes = places.axes
        if places.curves:
            (left, _), (right, _) = axes.transData.transform([(x, axes.get_ylim()[0]) for x in axes.get_xlim()])
            log = axes.get_xscale() == "log"
            low, high = (math.log10(end) if log else end for end in axes.get_xlim())
            which = axes.figure.axes.index(axes) + 1
            found.append(f"[{table},{which},{left:.1f},{right:.1f},{low:.6g},{high:.6g}{',1' * log}]")
    return f"[{','.join(found)}]"


def as_text(table_of: Iterable[tuple[int, Places]], height: float) -> str:
    """Return the places of a drawing that is `height` points high, as JSON without words or spaces.

    It is a list a number: which table, row, column, and x and y in the units of the SVG.
    """
    found = []
    for table, places in table_of:
        spots = [spot for spot in places.spots if math.isfinite(spot.x) and math.isfinite(spot.y)]
        drawn = places.axes.transData.transform([(spot.x, spot.y) for spot in spots]) if spots else ()
        found += [f"[{table},{spot.row},{spot.column},{x:.1f},{height - y:.1f}]"
                  for spot, (x, y) in zip(spots, drawn, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return f"[{','.join(found)}]"
