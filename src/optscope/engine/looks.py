"""What is seen during a training, told from its worker to whoever waits: a line a look, in a file of the run.

A line costs its writer some 30 microseconds (`RunFolder.tell`), and nobody waits for it to be read. The file goes
when the run has ended, for then the readings hold all it says; what a kill leaves of it is swept next time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from optscope.engine.executor import Look
from optscope.engine.run_folder import LOOKS
from optscope.files import from_json, make_folder, names_in

PACE = 0.5
"""Seconds between two times that looks are gathered."""


class Tail:
    """The looks of one run in the order in which they were told, each given once."""

    def __init__(self, runs: Path, run: str) -> None:
        self._path, self._run, self._place = runs / run / LOOKS, run, 0

    def new(self) -> Iterator[Look]:
        """Yield the looks since the last time; a line that is still being written waits."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                text = file.read()
        except OSError:  # none yet
            return
        whole, end, _ = text.rpartition(b"\n")
        self._place += len(whole) + len(end)
        yield from filter(None, map(self._look, whole.split(b"\n")))

    def _look(self, line: bytes) -> Look | None:
        """Return what a line tells; nothing where it is not one of ours."""
        try:
            step, values = from_json(line)
            return Look(self._run, int(step), {metric: float(value) for metric, value in values.items()})
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    def begin(self) -> None:
        """Make the file, empty: so a worker elsewhere says that it has begun."""
        make_folder(self._path.parent)
        self._path.touch()

    def has_begun(self) -> bool:
        """Return whether its worker has begun the run, by the folder's list: a shared disk remembers absences."""
        return self._path.name in names_in(self._path.parent)

    def close(self) -> None:
        """Remove the file: the run has ended, or its worker has died and begins anew."""
        with contextlib.suppress(OSError):  # of a disk that may not be written any more: others say so
            self._path.unlink(missing_ok=True)
        self._place = 0
