"""Pictures as data: what a figure says, from records, before anything draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.stats import Interval

Mark = Literal["line", "points", "theory", "bars", "cloud", "rings"]


@dataclass(frozen=True)
class Series:
    """One labelled set of points with optional intervals.

    A `theory` is drawn as a thin dashed line, a `cloud` as thousands of dots without intervals,
    `rings` as circles around points of other series, which they pick out.

    `x` holds numbers, or indices into the panel's `categories`. Series with the same label share a colour and
    a marker in all panels of a picture. `n` counts the seeds behind each point, `seeds` says which were asked;
    `runs` are the seeds' own `y`, one after the other, drawn faintly.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    mark: Mark = "line"
    n: Sequence[int] = ()
    runs: Sequence[Sequence[float]] = ()
    seeds: Sequence[int] = ()

    @classmethod
    def over(cls, label: str, x: Sequence[float], found: Sequence[Interval], mark: Mark = "line",
             runs: Sequence[Sequence[float]] = (), seeds: Sequence[int] = ()) -> Series:
        """Return a series of estimates with their intervals, each from so many seeds."""
        return cls(label, x, [f.estimate for f in found], [f.low for f in found], [f.high for f in found], mark,
                   [f.n for f in found], runs, seeds)


@dataclass(frozen=True)
class Panel:
    """One pair of axes: labels carry units; `bands` are horizontal lines with a name (a margin, a floor)."""

    x_label: str
    y_label: str
    series: Sequence[Series]
    title: str = ""
    log_x: bool = False
    log_y: bool = False
    categories: Sequence[str] = ()
    levels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A figure: `title` states the finding, `caption` how to read it, `name` is its file name.

    Panels stand in so many `columns` (0: as suits their number); in one column they share their x axis.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    caption: str = ""
    columns: int = 0


@dataclass(frozen=True)
class ImageGrid:
    """A figure made of small images, `images[row][column]` with values in [0, 1], grey or RGB."""

    name: str
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    images: Sequence[Sequence[NDArray[np.float64]]]
    caption: str = ""


@dataclass(frozen=True)
class Heatmap:
    """A figure made of a matrix, `values[row, column]`, each cell labelled with its number.

    `notes[row][column]`, where there are some, stand below the number in small print: an interval, a word.
    """

    name: str
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: NDArray[np.float64]
    unit: str = ""
    caption: str = ""
    notes: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Quality:
    """One thing that arms are held against: a mean with its interval an arm, and what is shown of each.

    `shown` says of each arm whether it is "better" or "worse" than the first ("" where nothing is shown). Within
    `floor` of the first arm's mean a difference is no more than rounding. `n` counts the seeds behind each mean.
    """

    name: str
    estimates: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    shown: Sequence[str]
    higher_is_better: bool = True
    floor: float = 0.0
    n: Sequence[int] = ()


@dataclass(frozen=True)
class Scorecard:
    """A figure of many qualities at a glance: a panel each, in which every arm is a mark on a line of its own.

    `seeds` are those of each arm, where marks stand for several trainings.
    """

    name: str
    title: str
    arms: Sequence[str]
    qualities: Sequence[Quality]
    caption: str = ""
    seeds: Sequence[Sequence[int]] = ()


KEPT = "As it was drawn when the study ran: its arrays are not here."
"""What is said below a figure that only its drawing is left of."""


@dataclass(frozen=True)
class Kept:
    """A figure that only its drawing is left of: the text of its SVG file, which nothing is read from."""

    name: str
    title: str
    svg: str
    caption: str = ""


Figure = Picture | ImageGrid | Heatmap | Scorecard | Kept
