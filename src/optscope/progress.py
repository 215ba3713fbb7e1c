"""How the work goes, told to a person: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from optscope.protocol.events import Ended, Event, Moment, Named, Said, Tally, seen

QUIET = 10.0
"""Seconds between plain lines."""


class Display:
    """A listener that tells a person how the work goes, on the console it is given."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._tally = Tally()
        self._said = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._waiting: list[str] = []

    def hear(self, event: Event) -> None:
        """Show what has happened; sentences wait for the first stage that has anything to do."""
        self._tally.hear(event)
        if isinstance(event, Said):
            self._waiting.append(event.sentence)
        elif isinstance(event, Named) and event.done < event.total:
            self._begin()
        elif isinstance(event, Moment) and self._bar is not None and self._task is not None:
            self._bar.update(self._task, seen=seen(event))
        elif isinstance(event, Ended):
            self._end_of_job(event)

    def close(self) -> None:
        """End the bar, which hides the terminal's cursor."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _begin(self) -> None:
        """Start a stage."""
        tally, self._said = self._tally, time.monotonic()
        while self._waiting:
            self.console.print(self._waiting.pop(0), markup=False, soft_wrap=True, highlight=False)
        if tally.done:
            self.console.print(f"{tally.stage}: {tally.done} of {tally.total} runs are there already")
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[seen]}", style="dim"))
            self._bar = Progress(*columns, console=self.console)
            self._bar.start()
            self._task = self._bar.add_task(tally.stage, total=tally.total, completed=tally.done, rate="", seen="")
        else:
            left = tally.total - tally.done
            self.console.print(f"{tally.stage}: {left} run{'s' * (left != 1)} to do")

    def _end_of_job(self, event: Ended) -> None:
        """Count one job, and say so if it gave nothing."""
        tally = self._tally
        if event.outcome.status in ("failed", "lost"):
            self.console.print(f"{event.outcome.status}: {event.outcome.reason}", markup=False, soft_wrap=True)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=tally.done, rate=tally.outlook())
        elif time.monotonic() - self._said > QUIET or tally.done == tally.total:
            self._said = time.monotonic()
            self.console.print(f"{tally.stage}: {tally.done}/{tally.total} runs, {tally.outlook()}")
        if tally.done == tally.total:
            self.close()
