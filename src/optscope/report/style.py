"""How marks look: one colour, marker and dash a label, the same in every panel and figure of a report."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from optscope.evidence.picture import Figure, Picture, Scorecard, Series

Dash = Literal["-"] | tuple[float, tuple[float, ...]]

# Okabe and Ito's palette, which stays apart under every common colour blindness. Its yellow is left out: on a
# white card it cannot be seen. Seven colours against eight markers and four dashes repeat together after 56.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Dash, ...] = ("-", (0, (7, 1.5)), (0, (7, 1.5, 1.5, 1.5)), (0, (12, 1.5, 3, 1.5)))
THEORY_DASH: Dash = (0, (3, 2))
THEORY_GREYS = ("#222222", "#6B6B6B", "#9A9A9A")
KNOWN = ("sgd", "adam", "rmsprop", "adamw", "muon", "lion", "soap")
"""Optimisers that look the same in every report, each in its own of the seven colours."""

# Text that would be read as mathematics, and every setting of the user's own matplotlibrc, are overruled, so
# that a figure depends on its data alone.
SETTINGS = {
    "svg.fonttype": "none", "svg.hashsalt": "optscope", "text.parse_math": False,
    "font.family": "DejaVu Sans", "font.size": 10.0,
    "text.color": "#1A1A1A", "axes.labelcolor": "#1A1A1A",
    "axes.edgecolor": "#777777", "axes.linewidth": 0.8, "axes.labelsize": 10.5, "axes.labelpad": 6.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 9.0,
    "axes.formatter.limits": (-4, 5), "axes.formatter.useoffset": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#E4E4E4", "grid.linewidth": 0.8,
    "xtick.color": "#777777", "ytick.color": "#777777", "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333", "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
    "xtick.major.size": 4.0, "ytick.major.size": 0.0, "xtick.minor.size": 2.0, "ytick.minor.size": 0.0,
    "legend.frameon": False, "legend.fontsize": 10.0, "legend.handlelength": 2.6,
    "legend.columnspacing": 1.8, "legend.borderaxespad": 0.2, "lines.linewidth": 1.7,
    "figure.facecolor": "white", "axes.facecolor": "none", "savefig.facecolor": "white",
    "hatch.linewidth": 0.6,
}

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Style:
    """The look of one label; `index` counts the measured labels of the report from 0."""

    index: int
    colour: str
    marker: str
    dash: Dash

    @property
    def ink(self) -> str:
        """The colour at 60 % of its brightness, for thin lines that cross marks of the colour."""
        return "#" + "".join(f"{int(self.colour[i:i + 2], 16) * 6 // 10:02x}" for i in (1, 3, 5))


@dataclass
class Styles:
    """The look of every label of a report.

    Optimisers that many reports hold have a look of their own; others get what is left, colours first, in order of
    first appearance. A theory takes the colour of the measured label it names ("theory, SGD" that of "SGD"), so
    that a prediction sits visibly on what it predicts, and is grey when it names none.
    """

    measured: dict[str, Style] = field(default_factory=dict)
    theories: dict[str, Style] = field(default_factory=dict)
    reserved: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, figures: Iterable[Figure]) -> Styles:
        """Return the styles for all series of all figures."""
        styles, given = cls(), list(figures)
        arms = [Series(arm, (), ()) for f in given if isinstance(f, Scorecard) for arm in f.arms]
        series = arms + [s for f in given if isinstance(f, Picture) for panel in f.panels for s in panel.series]
        taken = {s.label for s in series if s.mark != "theory" and s.label.lower() in KNOWN}
        styles.reserved = {KNOWN.index(label.lower()) for label in taken}
        for one in sorted(series, key=lambda s: s.mark == "theory"):
            styles.look(one)
        return styles

    def look(self, series: Series) -> Style:
        """Return the style of a series; a label never met before is given the next one."""
        if series.mark == "theory":
            if series.label not in self.theories:
                self.theories[series.label] = self._theory(series.label)
            return self.theories[series.label]
        if series.label not in self.measured:
            i = self._free(series.label.lower())
            self.reserved.add(i)
            self.measured[series.label] = Style(len(self.measured), COLOURS[i % len(COLOURS)],
                                                MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        return self.measured[series.label]

    def _free(self, name: str) -> int:
        """Return which look a label gets: its own, or the first that nobody has."""
        if name in KNOWN:
            return KNOWN.index(name)
        return next(i for i in itertools.count() if i not in self.reserved)

    def _theory(self, label: str) -> Style:
        named = [m for m in self.measured if m and re.search(rf"(?<!\w){re.escape(m)}(?!\w)", label)]
        if named:
            longest = self.measured[max(named, key=len)]
            return Style(longest.index, longest.colour, "", THEORY_DASH)
        grey = sum(style.index < 0 for style in self.theories.values())
        return Style(-1, THEORY_GREYS[grey % len(THEORY_GREYS)], "", THEORY_DASH)


def slug(name: str) -> str:
    """Return a name that is safe as a file name and as an id.

    >>> slug("../Drop per band (%)")
    'drop-per-band'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"


def clean(text: object) -> str:
    """Return text that XML, HTML and UTF-8 can all hold: control characters and lone surrogates become "�".

    >>> clean("lr" + chr(0) + " = 0.1")
    'lr� = 0.1'
    """
    return _UNPRINTABLE.sub("\ufffd", str(text))


def short(text: object, width: int = 44) -> str:
    """Return text of at most `width` characters on one line, with its middle left out when it is longer.

    >>> short("Adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08)", 20)
    'Adam(lr=0…eps=1e-08)'
    """
    line = " ".join(clean(text).split())
    if len(line) <= width:
        return line
    return f"{line[:width - width // 2 - 1]}…{line[-(width // 2):]}"
