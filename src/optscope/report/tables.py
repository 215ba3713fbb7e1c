"""Tables as data: arms against metrics, one row a run, and the numbers behind a figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.claims import Verdict
from optscope.evidence.paired import SAME
from optscope.evidence.picture import Figure, Heatmap, Kept, Panel, Picture, Scorecard
from optscope.evidence.records import Metric, Record, Records
from optscope.evidence.rounding_floor import rounding_floor
from optscope.evidence.stats import Interval, mean_interval, paired_difference
from optscope.evidence.words import seeds_said

Cell = str | int | float
MOST_ROWS = 60
"""So many numbers of a series stand in a figure's table."""
MOST_RUNS, MOST_CELLS = 2_000, 60_000
"""So many runs are shown, and so many numbers of runs; a page of more would be slow to open."""
_SIGNS = {"better": "\u00a0▲", "worse": "\u00a0▼", "": ""}
_ARROWS = {"higher": "\u00a0↑", "lower": "\u00a0↓", "neither": ""}


@dataclass(frozen=True)
class Table:
    """A titled table; a line break in a cell starts a second line, `note` says how to read the numbers.

    `samples` says of every column over which seeds its numbers are.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    samples: Sequence[str] = ()


def number(value: Cell, digits: int = 4, padded: bool = False) -> str:
    """Return a cell as it is read: text as it is, a number with a true minus and few digits.

    `padded` keeps the zeros at the end, for columns of numbers.

    >>> number(-0.0312345), number(1234567.0), number(12), number(0.5), number(0.5, padded=True)
    ('−0.03123', '1.235e6', '12', '0.5', '0.5000')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer):
        return str(value).replace("-", "−")
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if math.isnan(value):
        return "nan"
    mantissa, _, exponent = (f"{value:#.{digits}g}" if padded else f"{value:.{digits}g}").partition("e")
    return (mantissa + (f"e{int(exponent)}" if exponent else "")).replace("-", "−")


def interval(estimate: float, low: float, high: float, signed: bool = False) -> str:
    """Return "estimate [low, high]" with digits to match the interval's width; no brackets without bounds.

    >>> interval(0.03127, 0.01234, 0.0502, signed=True), interval(0.9, float("nan"), float("nan"))
    ('+0.031 [+0.012, +0.050]', '0.9')
    """
    if math.isnan(low) and math.isnan(high):
        return _sign(estimate, signed) + number(estimate)
    shown = [_rounded(v, (high - low) / 2, signed) for v in (estimate, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def on_halves(verdict: Verdict) -> str:
    """Return what was found on either half of the seeds, nothing where no halves were taken."""
    found = [half.word + (f", {number(half.effect, 3)}" if math.isfinite(half.effect) else "") + f" (n = {half.n})"
             for half in verdict.halves]
    return f"On one half of the seeds and on the other: {'; '.join(found)}." if found else ""


def _sign(value: float, signed: bool) -> str:
    return "+" if signed and value > 0 else ""


def _rounded(value: float, uncertainty: float, signed: bool = False) -> str:
    """Return a value rounded to the second digit of its uncertainty."""
    if not (math.isfinite(value) and math.isfinite(uncertainty)) or uncertainty <= 0:
        return _sign(value, signed) + number(value)
    places = 1 - math.floor(math.log10(uncertainty))
    if not 0 <= places <= 8:
        return _sign(value, signed) + number(value)
    return _sign(value, signed) + f"{value:.{places}f}".replace("-", "−")


def metric_table(records: Records, metrics: Sequence[Metric], baseline: str = "") -> Table:
    """Return arms against metrics: mean ± half the 95 % t interval over seeds, final phase, last step.

    With a `baseline` each other arm has a second line: the paired difference to it, arm - baseline, with its
    95 % interval. Metrics with an axis stand once for each coordinate, arms once for each experiment; rows are
    those of the two of which there are more.
    """
    columns = [(m, at) for m in dict.fromkeys(metrics) for at in _places(records, m)]
    by_metric = {m.name: records.where(metric=m.name) for m in metrics}
    experiments = list(dict.fromkeys(row.experiment for row in records))
    rows = []
    for experiment in experiments:
        own = {name: found.where(experiment=experiment) for name, found in by_metric.items()}
        for arm in records.where(experiment=experiment).arms():
            name = f"{experiment}: {arm}" if len(experiments) > 1 else arm
            rows.append((name, *(_cell(own[m.name], arm, m.name, at, baseline) for m, at in columns)))
    note = ("Mean over seeds ± half of the 95 % t interval." +
            (f" Second line: paired difference to {baseline} on the same seeds, with its 95 % interval; an "
             "interval that holds 0 is no evidence of a difference." if baseline else "") +
            (" ≈ marks a difference smaller than what rounding alone does to two runs (95 %)."
             if baseline and records.where(phase="twin") else "") +
            " ↑ higher is better, ↓ lower is better.")
    title = ": ".join(["Arms and metrics", *(experiments if len(experiments) == 1 else [])])
    header = ("arm", *(_heading(m, at) for m, at in columns))
    if len(columns) > len(rows):
        header, *rows = zip(("metric", *header[1:]), *rows, strict=True)
    return Table(title, header, rows, note)


def _places(records: Records, metric: Metric) -> list[float | None]:
    return [*records.axis(metric.name)] or [None]


def _heading(metric: Metric, at: float | None) -> str:
    place = "" if at is None else f" at {metric.axis}{' = ' if metric.axis else ''}{number(at)}"
    unit = f" [{metric.unit}]" if metric.unit else ""
    return f"{metric.name}{place}{unit}{_ARROWS[metric.better]}"


def _cell(records: Records, arm: str, metric: str, at: float | None, baseline: str) -> str:
    values = records.values(arm, metric, at)
    if not len(values):
        return "not measured"
    found = mean_interval(_finite(values))
    text = plus_minus(found)
    if baseline and arm != baseline:
        ours, theirs = map(_finite, records.pairs(arm, baseline, metric, at))
        paired = paired_difference(ours, theirs)
        if paired.n:
            text += f"\n{difference(paired, SAME * float(np.nanmax(np.abs([ours, theirs]))))}"
            text += " ≈" if rounding_floor(records, arm, baseline, metric, at).covers(paired.estimate) else ""
    return text


def difference(found: Interval, least: float) -> str:
    """Return a difference with its interval; nothing in it that is at most `least` is more than rounding."""
    ends = [end for end in (found.estimate, found.low, found.high) if not math.isnan(end)]
    return ("0" if max(map(abs, ends)) <= least else
            interval(found.estimate, found.low, found.high, signed=True))


def plus_minus(found: Interval) -> str:
    """Return a mean ± half of its interval, with how many values were not finite."""
    total = found.n + found.missing
    if not found.n:
        return f"none finite (of {total})"
    half = (found.high - found.low) / 2
    half = 0.0 if half <= SAME * abs(found.estimate) else half  # of equal values: no spread but rounding
    text = number(found.estimate) if found.n < 2 else \
        f"{_rounded(found.estimate, half)} ± {_rounded(half, half)}"
    if found.missing:
        return f"{text} ({found.missing} of {total} not finite)"
    return text if found.n > 1 else f"{text} (1 seed)"


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)


def runs_table(records: Records) -> Table:
    """Return one row a run with all that was measured on it after its last step; diverged runs stay in.

    Of more than `MOST_RUNS` runs the diverged ones are shown and the first of the others, in their order; of many
    runs as many columns as make `MOST_CELLS` numbers, the first.
    """
    runs: dict[tuple[Cell, ...], dict[str, float]] = {}
    diverged = set()
    for row in records:
        key = (row.experiment, row.arm, row.seed, row.phase, row.rule, row.run)
        values = runs.setdefault(key, {})
        if row.status != "ok":
            diverged.add(key)
        if row.step is None:
            values[_column(row)] = row.value
    first = {*sorted(runs, key=lambda key: key not in diverged)[:MOST_RUNS]}
    shown = {key: values for key, values in runs.items() if key in first}
    columns = list(dict.fromkeys(name for values in shown.values() for name in values))
    left = columns[max(1, MOST_CELLS // max(len(shown), 1)):]
    columns = columns[:len(columns) - len(left)]
    # The rule and the run's own name are shown where they say more than the arm and the seed do.
    kept = [i for i in range(6) if i in (1, 2) or len({key[i] for key in runs}) > 1]
    kept = [i for i in kept if i != 4 or any(key[4] != key[1] for key in runs)]
    names = ("experiment", "arm", "seed", "phase", "rule", "run")
    rows = [(*(key[i] for i in kept), "diverged" if key in diverged else "ok",
             *(values.get(name, "") for name in columns)) for key, values in shown.items()]
    notes = [f"{len(runs)} runs, {len(diverged)} of them diverged.",
             f"{len(shown)} are shown, diverged ones before others; every run is in summary.csv."
             if len(shown) < len(runs) else "",
             f"{len(left)} more columns are in summary.csv, from \"{left[0]}\" on." if left else ""]
    return Table("Every run", (*(names[i] for i in kept), "status", *columns), rows,
                 " ".join(filter(None, notes)) if any(notes[1:]) else f"{notes[0]} Nothing is left out.")


def _column(row: Record) -> str:
    return row.metric if row.at is None else f"{row.metric} at {number(row.at)}"


def figure_tables(figure: Figure, most: int = MOST_ROWS) -> list[Table]:
    """Return the numbers behind a figure; of a longer series every n-th, so that at most `most` are left."""
    rows: list[tuple[Cell, ...]]
    match figure:
        case Picture():
            return [_panel_table(panel, most) for panel in figure.panels]
        case Heatmap():
            rows = [(label, *map(float, values))
                    for label, values in zip(figure.rows, figure.values, strict=False)]
            return [Table(figure.unit, ("", *figure.columns), rows)]
        case Scorecard():
            return [_card_table(figure)]
        case Kept():
            return []
    rows = [(label, *map(_brightness, images))
            for label, images in zip(figure.rows, figure.images, strict=False)]
    return [Table("Mean brightness of each image (darkest to brightest)", ("", *figure.columns), rows)]


def _card_table(card: Scorecard) -> Table:
    """Return qualities against arms, each cell a number with its interval and what is shown of it."""
    counts = [[q.n[i] for q in card.qualities if q.n] for i in range(len(card.arms))]
    seeds = card.seeds or [()] * len(card.arms)
    rows = [(q.name, *(_over(counts[i], q.n[i] if q.n else 0, q.estimates[i], q.lows[i], q.highs[i])
                       + _SIGNS[q.shown[i]] for i in range(len(card.arms)))) for q in card.qualities]
    return Table("", ("quality", *card.arms), rows, "After a number its 95 % interval.",
                 ("", *map(_sample, counts, seeds)))


def _over(counts: Sequence[int], n: int, estimate: float, low: float, high: float) -> str:
    """Return a number with its interval, and with its n where that is not the same in all of a column."""
    return interval(estimate, low, high) + f" (n = {n})" * (len(set(counts)) > 1)


def _sample(counts: Sequence[int], seeds: Sequence[int]) -> str:
    """Return how many seeds, and which, the numbers of a column are over; cells that differ say their n.

    >>> _sample([8, 8], range(1, 9)), _sample([8, 7], range(1, 9)), _sample([7, 7], ()), _sample([], ())
    ('n = 8: seeds 1–8', 'of seeds 1–8', 'n = 7', '')
    """
    which, alike = seeds_said(seeds), len(set(counts)) == 1
    n = f"n = {counts[0]}" if alike else ""
    if not which or not counts:
        return n or which
    return f"{n}: {which}" if alike and counts[0] == len(seeds) else f"{n} of {which}".strip()


def _brightness(image: NDArray[np.float64]) -> str:
    mean, low, high = (number(float(v), 2) for v in (np.mean(image), np.min(image), np.max(image)))
    return f"{mean} ({low} to {high})"


def _panel_table(panel: Panel, most: int) -> Table:
    """Return places on the x axis against series, each cell a number and its interval where it has one."""
    rows = [(_place(panel, x), *(_over(series.n, *row[i]) if i in row else ""
                                 for i, series in enumerate(panel.series))) for x, row in panel_cells(panel, most)]
    counts = {n for series in panel.series for n in series.n}
    notes = (("After a number its 95 % interval.", any(s.low is not None for s in panel.series)),
             (f"n = {' to '.join(str(n) for n in sorted({min(counts), max(counts)}))} seeds." if counts else "",
              counts),
             (f"Of longer series every n-th number, {most} at most.",
              any(len(s.x) > most for s in panel.series)))
    return Table(panel.title or panel.y_label, (panel.x_label or "x", *(s.label for s in panel.series)), rows,
                 " ".join(note for note, needed in notes if needed),
                 ("", *(_sample(series.n, series.seeds) for series in panel.series)))


def panel_cells(panel: Panel, most: int = MOST_ROWS,
                ) -> list[tuple[float, dict[int, tuple[int, float, float, float]]]]:
    """Return the rows of a panel's table: a place on the x axis, and by series n, the number and its interval."""
    cells: dict[tuple[float, int], dict[int, tuple[int, float, float, float]]] = {}
    for i, series in enumerate(panel.series):
        every = max(1, math.ceil(len(series.x) / most))
        nowhere = [math.nan] * len(series.y)
        low, high = (nowhere if v is None else v for v in (series.low, series.high))
        met: Counter[float] = Counter()
        for x, n, *numbers in list(zip(series.x, series.n or [0] * len(series.y), series.y, low, high,
                                       strict=False))[::every]:
            y, lower, upper = map(float, numbers)
            # A path may come by the same place more than once.
            cells.setdefault((float(x), met[float(x)]), {})[i] = n, y, lower, upper
            met[float(x)] += 1
    return [(x, row) for (x, _), row in sorted(cells.items())]


def _place(panel: Panel, x: float) -> Cell:
    """Return the category a number stands for, or the number."""
    if x.is_integer() and 0 <= x < len(panel.categories):
        return panel.categories[int(x)]
    return x
