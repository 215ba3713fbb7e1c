"""Taking probes: during training at some moments, or of what it left; what fails is said, not raised."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optscope.errors import UserError
from optscope.probes.probe import Memory, Probe, Reading
from optscope.tasks.fresh import seeded
from optscope.tasks.snapshot import Snapshot


@dataclass(frozen=True)
class Watch:
    """A probe that is taken during training, `moments` times, the end included.

    They are evenly spaced, or, if `logarithmic`, in the logarithm of the step, from the first step on.

    >>> from optscope.probes.accuracy import Accuracy
    >>> sorted(Watch(Accuracy(), 4).steps(100)), sorted(Watch(Accuracy(), 4, logarithmic=True).steps(100))
    ([25, 50, 75, 100], [1, 5, 22, 100])

    Raises:
        UserError: unless moments >= 1.
    """

    probe: Probe
    moments: int = 10
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if self.moments < 1:
            raise UserError(f"Watch: moments, how often the probe is taken, must be at least 1; got {self.moments}")

    def steps(self, total: int) -> frozenset[int]:
        """Return after how many of all steps it is taken; moments that fall together are one."""
        if self.logarithmic and self.moments > 1:
            return frozenset(round(float(step)) for step in np.geomspace(1, total, self.moments))
        return frozenset(round(total * (i + 1) / self.moments) for i in range(self.moments))


def take(probe: Probe, snapshot: Snapshot, memory: Memory | None = None) -> tuple[Reading, str, str]:
    """Return a reading, why the probe is silent about the model or a part of it, and how it failed: "" if not.

    `memory` is that of the probe's reading before, where a training is followed.
    """
    with seeded(snapshot.seed):
        try:
            reading = probe(snapshot, memory)
            return reading, reading.silence, ""
        except UserError as error:  # the probe does not fit this model: that is a result too
            return Reading({}), str(error).removeprefix(f"{type(probe).__name__}: "), ""  # readers name it
        except Exception as error:
            return Reading({}), "", f"{probe!r} stopped with {describe_error(error)}"


def describe_error(error: Exception) -> str:
    """Return an error's kind, words and place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
