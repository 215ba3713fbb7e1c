"""How the work goes, told in a notebook: a bar where ipywidgets is there, else one line that is written anew."""

from __future__ import annotations

import html
import importlib.util
import sys
import time
from typing import Any, TextIO

from optscope.protocol.events import Ended, Event, Listener, Moment, Named, Said, Tally, seen

PACE = 0.5
"""Seconds between two states that are shown: a notebook keeps what is sent to it."""


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
        """Show what has happened, unless something was shown just now."""
        tally = self._tally
        tally.hear(event)
        if isinstance(event, Said):
            self._say(event.sentence)
        elif isinstance(event, Ended) and event.outcome.status in ("failed", "lost"):
            self._say(f"{event.outcome.status}: {event.outcome.reason}")
        over = tally.done == tally.total
        if isinstance(event, (Ended, Moment)) and (over or time.monotonic() - self._wrote > PACE):
            state = f"{tally.stage}: {tally.done}/{tally.total} runs, {tally.outlook()}"
            self._show(state + (f"; {seen(event)}" if isinstance(event, Moment) else ""), over)
        elif isinstance(event, Named) and not over:
            self._show(f"{tally.stage}: {tally.done}/{tally.total} runs", over)

    def close(self) -> None:
        """End the line."""
        if self._width:
            self._write("", "\n")

    def _say(self, sentence: str) -> None:
        self._write(sentence, "\n")

    def _show(self, state: str, over: bool) -> None:
        self._write(state, "\n" if over else "")
        self._wrote = time.monotonic()

    def _write(self, text: str, end: str) -> None:
        """Write over the line; blanks cover what is left of a longer one."""
        self._file.write(f"\r{text:<{self._width}}{end}")
        self._file.flush()
        self._width = 0 if end else len(text)


class Bar(Line):
    """A listener that keeps a bar of ipywidgets up to date, of which a notebook keeps the last state."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._text: Any = None

    def close(self) -> None:
        """Mark a bar that is not full as stopped."""
        if self._bar is not None and self._tally.done < self._tally.total:
            self._bar.bar_style = "warning"

    def _show(self, state: str, over: bool) -> None:
        if self._bar is None:
            import ipywidgets
            from IPython.display import display

            self._bar, self._text = ipywidgets.IntProgress(), ipywidgets.HTML()
            display(ipywidgets.VBox([self._bar, self._text]))
        self._bar.max, self._bar.value = self._tally.total, self._tally.done
        self._bar.bar_style = "success" if over else ""
        self._text.value = html.escape(state)
        self._wrote = time.monotonic()


def listener() -> Listener:
    """Return a bar where ipywidgets is there, else a line."""
    return Bar() if importlib.util.find_spec("ipywidgets") else Line()
