"""How the work goes, told in a notebook: one line that is written anew, by nothing but `print`."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from optscope.protocol.events import Ended, Event, Moment, Named, Said, Tally, seen

PACE = 0.5
"""Seconds between two states of the line: a notebook keeps what is sent to it."""


class Line:
    """A listener that keeps one line up to date; what a person must read is written above it and stays.

        compare(task, "runs/mine", listener=Line())

    It needs no package: a carriage return takes the writer back to the line's start, as notebooks know.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._tally = Tally()
        self._width = 0
        self._wrote = -PACE

    def hear(self, event: Event) -> None:
        """Write what has happened, unless the line was written just now."""
        tally = self._tally
        tally.hear(event)
        if isinstance(event, Said):
            self._write(event.sentence, "\n")
        elif isinstance(event, Ended) and event.outcome.status in ("failed", "lost"):
            self._write(f"{event.outcome.status}: {event.outcome.reason}", "\n")
        over = tally.done == tally.total
        if isinstance(event, (Ended, Moment)) and (over or time.monotonic() - self._wrote > PACE):
            state = f"{tally.stage}: {tally.done}/{tally.total} runs, {tally.outlook()}"
            self._write(state + (f"; {seen(event)}" if isinstance(event, Moment) else ""), "\n" if over else "")
        elif isinstance(event, Named) and not over:
            self._write(f"{tally.stage}: {tally.done}/{tally.total} runs", "")

    def close(self) -> None:
        """End the line."""
        if self._width:
            self._write("", "\n")

    def _write(self, text: str, end: str) -> None:
        """Write over the line; blanks cover what is left of a longer one."""
        self._file.write(f"\r{text:<{self._width}}{end}")
        self._file.flush()
        self._width = 0 if end else len(text)
        self._wrote = time.monotonic()
