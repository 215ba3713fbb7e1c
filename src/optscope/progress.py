"""How a comparison's progress is told: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from optscope.engine.execute import Outcome

QUIET = 10.0
"""Seconds between plain lines."""


class Display:
    """A listener that tells a person how the work goes, on the console it is given."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._waiting: list[str] = []

    def begin(self, stage: str, total: int, done: int) -> None:
        """Start a stage of `total` jobs, of which `done` are finished."""
        self._stage, self._total, self._before, self._done = stage, total, done, done
        self._problems = 0
        self._start = self._said = time.monotonic()
        if done == total:
            return
        while self._waiting:
            self.console.print(self._waiting.pop(0), markup=False, soft_wrap=True, highlight=False)
        if done:
            self.console.print(f"{stage}: {done} of {total} runs are there already")
        if self.console.is_terminal:
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                 TimeElapsedColumn(), TextColumn("{task.fields[rate]}"), console=self.console)
            self._bar.start()
            self._task = self._bar.add_task(stage, total=total, completed=done, rate="")
        else:
            self.console.print(f"{stage}: {total - done} runs to do")

    def say(self, sentence: str) -> None:
        """Print a sentence before the first stage that has anything to do."""
        self._waiting.append(sentence)

    def end_of_job(self, outcome: Outcome) -> None:
        """Count one job, and say so if it did not end well."""
        self._done += 1
        if outcome.status in ("failed", "lost"):
            self._problems += 1
            self.console.print(f"{outcome.status}: {outcome.reason}", markup=False, soft_wrap=True)
        elif outcome.status == "diverged":
            self._problems += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=self._outlook())
        elif time.monotonic() - self._said > QUIET or self._done == self._total:
            self._said = time.monotonic()
            self.console.print(f"{self._stage}: {self._done}/{self._total} runs, {self._outlook()}")

    def finish(self) -> None:
        """End the stage."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _outlook(self) -> str:
        spent = time.monotonic() - self._start
        each = spent / max(1, self._done - self._before)
        left = each * (self._total - self._done)
        problems = f", {self._problems} diverged or failed" if self._problems else ""
        return f"{60 / each:.0f} runs/min, {left / 60:.1f} min left{problems}"
