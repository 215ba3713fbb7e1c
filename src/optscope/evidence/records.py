"""Records: one tidy row for each number that was measured, and the few questions claims ask of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError

Direction = Literal["higher", "lower", "neither"]
Phase = Literal["tune", "final", "twin"]
"""Why a run was made: to choose a learning rate, to compare arms, or to see what rounding alone changes."""

_INDEXED = ("run", "metric", "arm", "experiment")
"""Fields by which rows are found at once, those that leave the fewest first."""


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


@dataclass(frozen=True)
class Record:
    """One measured number of one run.

    `at` is the coordinate on the metric's axis (None when it has none); `step` the training step it was taken
    at (None: after the last); `status` is "ok" or "diverged": a diverged run keeps its rows, with nan values.
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


class Records(Sequence[Record]):
    """All rows of a study or comparison.

    >>> rows = Records([Record("demo", "a", s, "accuracy", 0.9 + s / 100) for s in (1, 2)])
    >>> rows.by_seed("a", "accuracy")
    {1: 0.91, 2: 0.92}
    """

    def __init__(self, rows: Iterable[Record] = ()) -> None:
        self._rows = tuple(rows)
        self._places: dict[str, dict[object, list[Record]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._rows)

    def __getitem__(self, index: int | slice) -> Record | Records:  # type: ignore[override]
        return Records(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __add__(self, other: Iterable[Record]) -> Records:
        return Records((*self._rows, *other))

    def where(self, **fields: object) -> Records:
        """Return the rows whose fields equal all of `fields`; a tuple or set means any of its values."""
        def fits(row: Record) -> bool:
            return all(getattr(row, name) in value if isinstance(value, (tuple, set, frozenset))
                       else getattr(row, name) == value for name, value in fields.items())
        one = next((name for name in _INDEXED if isinstance(fields.get(name), str)), None)
        return Records(filter(fits, self._rows if one is None else self._of(one, fields[one])))

    def _of(self, name: str, value: object) -> Sequence[Record]:
        """Return the rows whose field `name` is `value`, found by an index that is made when it is first needed."""
        if name not in self._places:
            places: dict[object, list[Record]] = {}
            for row in self._rows:
                places.setdefault(getattr(row, name), []).append(row)
            self._places[name] = places
        return self._places[name].get(value, ())

    def arms(self) -> list[str]:
        """Return the arms in order of first appearance."""
        return list(dict.fromkeys(row.arm for row in self._rows))

    def metrics(self) -> list[str]:
        """Return the metrics in order of first appearance."""
        return list(dict.fromkeys(row.metric for row in self._rows))

    def axis(self, metric: str) -> list[float]:
        """Return the coordinates at which a metric was measured, ascending."""
        return sorted({row.at for row in self._of("metric", metric) if row.at is not None})

    def by_seed(self, arm: str, metric: str, at: float | None = None) -> dict[int, float]:
        """Return seed to value for the final phase of one arm and metric, measured after the last step.

        Raises:
            UserError: without `at`, when the metric was measured at several coordinates.
        """
        rows = [row for row in self._of("metric", metric)
                if row.arm == arm and row.phase == "final" and row.step is None
                and (at is None or (row.at is not None and math.isclose(row.at, at)))]
        if at is None and len({row.at for row in rows}) > 1:
            places = sorted({row.at for row in rows if row.at is not None})
            raise UserError(f'"{metric}" was measured at several coordinates; say which with at=: '
                            f"{', '.join(f'{place:g}' for place in places)}")
        return {row.seed: row.value for row in rows}

    def seeds(self, *arms: str) -> list[int]:
        """Return the seeds on which any of the arms was trained in the final phase, well or not."""
        return sorted({row.seed for arm in arms for row in self._of("arm", arm) if row.phase == "final"})

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
