"""Looks at what twenty instances left undecided: three each, on instances that no report had used before."""

from __future__ import annotations

from optscope.engine.run import Call
from optscope.protocol.comparison import Calls
from optscope.protocol.looks import Looks
from optscope.studies.weight_normalization.calculations import FIRST_TUNING_SEED, cells, tuned_speed
from optscope.studies.weight_normalization.judging import ABOVE, STRENGTH
from optscope.studies.weight_normalization.real_data import photographs

Seeds = tuple[int, ...]


def far_above(seeds: Seeds) -> Calls:
    """Return the limits at depth 3 from five times the threshold."""
    return Calls("cells", [Call(cells, {"depth": 3, "seeds": seeds, "sparsities": (5,), "measurements": (40,),
                                        "shares": (ABOVE,), "strength": STRENGTH})])


def patches(seeds: Seeds) -> Calls:
    """Return the photographs."""
    return Calls("photographs", [Call(photographs, {"seeds": seeds})])


def speed(seeds: Seeds) -> Calls:
    """Return the descents at depth 3 that were tuned for speed."""
    return Calls("speed", [Call(tuned_speed, {"depth": 3, "seeds": seeds, "iterations": 5000, "tuning": tuple(
        range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + 10))})])


def _looks(first: int, second: int, third: int) -> tuple[Seeds, Seeds, Seeds]:
    """Return the seeds of three looks after the first twenty."""
    return (tuple(range(21, 21 + first)), tuple(range(21 + first, 21 + first + second)),
            tuple(range(21 + first + second, 21 + first + second + third)))


LOOKS = (Looks(("T4 L=3",), _looks(20, 20, 40), far_above),
         Looks(("R photographs",), _looks(60, 60, 120), patches),
         Looks(("C6c L=3 1 %",), _looks(60, 60, 120), speed))
"""Of 20 instances as many would have decided, by `optscope show weight_normalization --power`: 33, 134 and 173."""
