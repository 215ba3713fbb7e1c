"""Records: one tidy row for each number that was measured, and the few questions claims ask of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from operator import attrgetter
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError, nearest

Direction = Literal["higher", "lower", "neither"]
Phase = Literal["tune", "final", "twin"]
"""Why a run was made: to choose a learning rate, to compare arms, or to see what rounding alone changes."""
Factor = str | int | float
"""What a factor is set to: a number, or a word for what is no number."""

NO_FACTORS: Mapping[str, Factor] = {}


@dataclass(frozen=True)
class Metric:
    """What a number means: its name, its unit, and which direction is better.

    `axis` names the coordinate of metrics that are measured at several places (a radius, a band).
    """

    name: str
    unit: str = ""
    better: Direction = "neither"
    text: str = ""
    axis: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One measured number of one run.

    `at` is the coordinate on the metric's axis (None when it has none); `step` the training step it was taken
    at (None: after the last); `status` is "ok" or "diverged": a diverged run keeps its rows, with nan values.
    `factors` are what the experiment varied, and what this row has them at: rows of one run share one mapping.
    """

    experiment: str
    arm: str
    seed: int
    metric: str
    value: float
    at: float | None = None
    step: int | None = None
    phase: Phase = "final"
    rule: str = ""
    status: str = "ok"
    run: str = ""
    factors: Mapping[str, Factor] = field(default_factory=lambda: NO_FACTORS, hash=False)


FIELDS = tuple(f.name for f in fields(Record) if f.name != "factors")
"""The columns that every record has, in their order."""


def check_factors(factors: Mapping[str, Factor], owner: str) -> None:
    """Look at what an arm or a row calls its factors; `owner` says whose they are.

    Raises:
        UserError: unless every name is a word that is no column of a record, and every value a finite number, or
            text that does not read as one.
    """
    for name, value in factors.items():
        if not (isinstance(name, str) and name.isidentifier()) or name.lower() in (*FIELDS, "factors"):
            raise UserError(f"{owner}: a factor's name is one word that is none of {', '.join(FIELDS)}; "
                            f"got {name!r}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number and not (isinstance(value, str) and value and not _reads_as_number(value)):
            raise UserError(f"{owner}: the factor {name} is a finite number, or a word for what is no number; "
                            f"got {value!r}")


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def measured(arm: str, seed: int, metric: str, value: float, at: float | None = None, step: int | None = None,
             **factors: Factor) -> Record:
    """Return a number that a call found; what the call was made for (experiment, run) is filled in by the folder.

    >>> measured("polar", 1, "error", 0.5, depth=2).factors
    {'depth': 2}

    Raises:
        UserError: when a factor has the name of a column, or is neither a number nor a word.
    """
    check_factors(factors, f'the row "{metric}" of {arm or "a call"}')
    return Record("", arm, seed, metric, value, at, step, factors=factors or NO_FACTORS)


class Records(Sequence[Record]):
    """All rows of a study or comparison, or those of them that were asked for.

    >>> rows = Records([Record("demo", "a", s, "accuracy", 0.9 + s / 100, factors={"keep": 30}) for s in (1, 2)])
    >>> rows.by_seed("a", "accuracy")
    {1: 0.91, 2: 0.92}
    >>> len(rows.where(keep=30, seed=2))
    1
    """

    def __init__(self, rows: Iterable[Record] = (), whole: Records | None = None) -> None:
        self._rows = tuple(rows)
        self._whole = self if whole is None else whole
        self._parts: dict[str, dict[object, Sequence[Record]]] = {}
        self._factors: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        return Records(self._rows[index], self._whole) if isinstance(index, slice) else self._rows[index]

    def __add__(self, other: Iterable[Record]) -> Records:
        return Records((*self._rows, *other))

    def where(self, **wanted: object) -> Records:
        """Return the rows whose fields and factors equal all that is wanted; a list, tuple or set means any of it.

        A row that has not the factor has it at nothing. Rows are found by an index, which is made when it is first
        needed and kept: asking again costs nothing, in whatever order.

        Raises:
            UserError: for a name that is no field of a record and no factor of any of these.
        """
        found = self
        for name in _in_order(tuple(wanted)):
            if found:  # of no rows anything may be asked: an experiment that gave none has no factors to know
                found = found._at(name, wanted[name])
        return found

    def _at(self, name: str, value: object) -> Records:
        if name not in self._parts and name not in FIELDS and name not in self._whole.factors():
            raise UserError(f'no field or factor of records is called "{name}"; '
                            f"{nearest(name, (*FIELDS, *self._whole.factors()))}")
        if isinstance(value, (list, tuple, set, frozenset)):
            return Records((row for row in self._rows if _read(row, name) in value), self._whole)
        if name not in self._parts:
            parts: dict[object, Any] = {}
            read = attrgetter(name) if name in FIELDS else partial(_read, name=name)
            for row in self._rows:
                parts.setdefault(read(row), []).append(row)
            self._parts[name] = parts
        part = self._parts[name].get(value, ())
        if not isinstance(part, Records):
            part = self._parts[name][value] = Records(part, self._whole)
        return part

    def factors(self) -> tuple[str, ...]:
        """Return the names of the factors of these rows, in order of first appearance."""
        if self._factors is None:
            different = {id(row.factors): row.factors for row in self._rows}.values()
            self._factors = tuple(dict.fromkeys(name for factors in different for name in factors))
        return self._factors

    def levels(self, name: str) -> list[Any]:
        """Return the values that a field or factor takes in these rows, ascending, numbers before words.

        Raises:
            UserError: for a name that is no field of a record and no factor of any of these.
        """
        if self._rows:
            self._at(name, None)
        found = {key for key, rows in self._parts.get(name, {}).items() if rows} - {None}
        return sorted(found, key=lambda value: (isinstance(value, str), value))

    def varied(self) -> list[str]:
        """Return the factors that are not at one level in all of these rows."""
        return [name for name in self.factors() if len({row.factors.get(name) for row in self._rows}) > 1]

    def header(self) -> list[str]:
        """Return the names of the columns: the fields of a record, then the factors."""
        return [*FIELDS, *self.factors()]

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """Yield every row as it stands under the header, None where it has not got a factor.

        A column of numbers and words is one of words; one of whole and of other numbers is one of floats.
        """
        fields_of, kinds = attrgetter(*FIELDS), {name: self._kind(name) for name in self.factors()}
        known: dict[int, tuple[Any, ...]] = {}  # of a mapping that many rows share, what it says
        for row in self._rows:
            said = known.get(id(row.factors))
            if said is None:
                found = ((row.factors.get(name), kind) for name, kind in kinds.items())
                said = known[id(row.factors)] = tuple(v if v is None or kind is None else kind(v)
                                                      for v, kind in found)
            yield (*fields_of(row), *said)

    def _kind(self, name: str) -> type[str] | type[float] | None:
        """Return of what a column of a factor is, where its values are not of one kind."""
        different = {id(row.factors): row.factors for row in self._rows}.values()
        kinds = {type(factors[name]) for factors in different if name in factors}
        return str if str in kinds else float if float in kinds else None

    def columns(self) -> dict[str, list[Any]]:
        """Return a list a column, one value a row: what `pandas.DataFrame` and `polars.DataFrame` take.

        The columns are those of the header, their values those of the lines.
        """
        columns = zip(*self.lines(), strict=True) if self._rows else ([] for _ in self.header())
        return {name: list(values) for name, values in zip(self.header(), columns, strict=True)}

    def arms(self) -> list[str]:
        """Return the arms in order of first appearance."""
        return list(dict.fromkeys(row.arm for row in self._rows))

    def metrics(self) -> list[str]:
        """Return the metrics in order of first appearance."""
        return list(dict.fromkeys(row.metric for row in self._rows))

    def axis(self, metric: str) -> list[float]:
        """Return the coordinates at which a metric was measured, ascending."""
        return self.where(metric=metric).levels("at")

    def by_seed(self, arm: str, metric: str, at: float | None = None) -> dict[int, float]:
        """Return seed to value for the final phase of one arm and metric, measured after the last step.

        Raises:
            UserError: without `at`, when the metric was measured at several coordinates; when it was at several
                levels of a factor, which `where` tells apart.
        """
        rows: Sequence[Record] = self.where(arm=arm, metric=metric, step=None, phase="final")
        if at is not None:
            rows = [row for row in rows if row.at is not None and math.isclose(row.at, at)]
        elif len(places := {row.at for row in rows}) > 1:
            raise UserError(f'"{metric}" was measured at several coordinates; say which with at=: '
                            f"{', '.join(f'{place:g}' for place in sorted(p for p in places if p is not None))}")
        found = {row.seed: row.value for row in rows}
        varied = Records(rows).varied() if len(found) < len(rows) else []
        if varied:
            raise UserError(f'"{metric}" of {arm} was measured at several levels of {varied[0]}; say which with '
                            f"where({varied[0]}=...): {', '.join(map(str, Records(rows).levels(varied[0])))}")
        return found

    def seeds(self, *arms: str) -> list[int]:
        """Return the seeds on which any of the arms was trained in the final phase, well or not."""
        return sorted({seed for arm in arms for seed in self.where(arm=arm, phase="final").levels("seed")})

    def values(self, arm: str, metric: str, at: float | None = None) -> NDArray[np.float64]:
        """Return one value a seed the arm was trained on, nan where a run left none."""
        found = self.by_seed(arm, metric, at)
        return np.array([found.get(s, math.nan) for s in self.seeds(arm)], dtype=np.float64)

    def pairs(self, arm: str, other: str, metric: str,
              at: float | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return both arms' values on every seed either was trained on, nan where a run left none.

        Seeds that diverge are not missing by chance, so tests have to know of them.
        """
        seeds = self.seeds(arm, other)
        a, b = self.by_seed(arm, metric, at), self.by_seed(other, metric, at)
        return (np.array([a.get(s, math.nan) for s in seeds], dtype=np.float64),
                np.array([b.get(s, math.nan) for s in seeds], dtype=np.float64))


class Watched(Records):
    """Records that note the final runs of which rows are read, one by one, in the set `runs`."""

    def __init__(self, records: Records, runs: set[str]) -> None:
        super().__init__(records._rows, records._whole)
        self._plain, self._parts, self.runs = records, records._parts, runs

    def __iter__(self) -> Iterator[Record]:
        self.runs.update(row.run for row in self._rows if row.phase == "final")
        return super().__iter__()

    def _at(self, name: str, value: object) -> Records:
        return Watched(self._plain._at(name, value), self.runs)


def _read(row: Record, name: str) -> object:
    """Return what a row has a field or factor at, None where it has not got the factor."""
    return getattr(row, name) if name in FIELDS else row.factors.get(name)


@cache
def _in_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names in the order in which rows are searched for them."""
    return tuple(sorted(names, key=_place))


def _place(name: str) -> tuple[int, str]:
    """Return where a name comes in a search: fields in their order, to share indexes; factors last."""
    return (FIELDS.index(name), "") if name in FIELDS else (len(FIELDS), name)
