"""Interleaved timing: contenders take turns, so what else the machine does falls on all of them alike.

Times are CPU-seconds of this process (`time.process_time`): work that waits for a busy core costs nothing.
Their absolute value still depends on the machine and its neighbours; ratios within one run are what to quote.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One way to do the work, with the answer it was found to give before any clock ran."""

    who: str
    version: str
    answer: object
    run: Callable[[], object]
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Times:
    """CPU-seconds by contender, one a round, in the order of the rounds."""

    rounds: Mapping[str, tuple[float, ...]]

    def median(self, who: str) -> float:
        """Return the median CPU-seconds of one contender."""
        return statistics.median(self.rounds[who])

    def ratio(self, who: str, rival: str) -> float:
        """Return the median over rounds of one contender's time over another's in the same round."""
        pairs = zip(self.rounds[who], self.rounds[rival], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def interleave(contenders: Iterable[Contender], *, rounds: int = 7, warm_up: int = 1,
               clock: Callable[[], float] = time.process_time) -> Times:
    """Run the contenders in turn, A B C A B C ..., and return the times of all rounds after the warm-up.

    `clock` is another one for work that is done elsewhere, as on a GPU.
    """
    contenders = list(contenders)
    times: dict[str, list[float]] = {c.who: [] for c in contenders}
    gc.collect()
    gc.disable()
    try:
        for turn in range(warm_up + rounds):
            for contender in contenders:
                start = clock()
                contender.run()
                elapsed = clock() - start
                if turn >= warm_up:
                    times[contender.who].append(elapsed)
    finally:
        gc.enable()
    return Times({who: tuple(values) for who, values in times.items()})


def rows(contenders: Iterable[Contender], times: Times) -> list[dict[str, Any]]:
    """Return one row a contender for a bar's result."""
    return [{"who": c.who, "version": c.version, "answer": c.answer, "median_s": times.median(c.who),
             "counts": dict(c.counts)} for c in contenders]
