"""What happens in a session, as values; whoever listens, a terminal, a notebook or a file, is told the same."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from optscope.engine.executor import Outcome
from optscope.engine.rows import Use
from optscope.files import Lines, to_line
from optscope.pace import outlook, rate

SCHEMA = 1
"""The version of what `EventFile` writes, which stands in each of its lines."""


@dataclass(frozen=True)
class Said:
    """What should be known before the work starts."""

    sentence: str


@dataclass(frozen=True)
class Named:
    """A stage was named: it has `total` jobs, of which `done` were finished before.

    `runs` are the names of all of them, and `criteria` say of comparisons by which metric their learning rates are
    chosen, and whether "lower" or "higher" is better.
    """

    stage: str
    total: int
    done: int
    runs: tuple[str, ...] = field(default=(), compare=False, repr=False)
    criteria: Mapping[str, tuple[str, str]] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Started:
    """A job was begun, for the `attempt`-th time: its worker may have died before."""

    use: Use
    attempt: int = 1


@dataclass(frozen=True)
class Moment:
    """What was seen during a training after `step` steps: metrics that are one number, by name."""

    use: Use
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Ended:
    """A job ended: what it found is in the session's records."""

    use: Use
    outcome: Outcome


Event = Said | Named | Started | Moment | Ended


class Listener(Protocol):
    """Someone who is told how the work goes."""

    def hear(self, event: Event) -> None:
        """Hear what has happened."""

    def close(self) -> None:
        """Let go of all that is held, as of a terminal's cursor; also when the work was stopped."""


class Quiet:
    """A listener that says nothing."""

    def hear(self, event: Event) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Hold nothing."""


@dataclass
class Tally:
    """How far a stage is: what every display counts."""

    stage: str = ""
    total: int = 0
    done: int = 0
    problems: int = 0
    start: float = field(default_factory=time.monotonic)
    ends: list[float] = field(default_factory=list)

    def hear(self, event: Event) -> None:
        """Count a job that ended; a stage that is named starts anew."""
        if isinstance(event, Named):
            self.stage, self.total, self.done = event.stage, event.total, event.done
            self.problems, self.start, self.ends = 0, time.monotonic(), []
        elif isinstance(event, Ended):
            self.done += 1
            self.ends.append(time.monotonic())
            self.problems += event.outcome.status != "ok"

    def outlook(self) -> str:
        """Return the rate, the time left, and how many jobs gave no good result."""
        problems = f", {self.problems} diverged or failed" if self.problems else ""
        return outlook(rate(self.ends, self.start, time.monotonic()), self.total - self.done) + problems


class EventFile:
    """A listener that appends every event to `events.jsonl` in an output folder, one line each, with the time.

    A line is a JSON mapping with "schema", "time" (UTC), "event" (its name) and what the event holds.
    """

    def __init__(self, folder: Path) -> None:
        self._lines = Lines(folder / "events.jsonl")

    def hear(self, event: Event) -> None:
        """Append a line."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._lines.append(to_line({"schema": SCHEMA, "time": now, "event": type(event).__name__.lower(),
                                    **told(event)}))

    def close(self) -> None:
        """Let the file go."""
        self._lines.close()


def told(event: Event) -> dict[str, Any]:
    """Return what an event holds, as plain values; of a job its place in the experiment and its run."""
    found = dict(vars(event))
    use, outcome = found.pop("use", None), found.pop("outcome", None)
    if use is not None:
        found |= {name: value for name, value in vars(use).items() if name != "probes"}
    if outcome is not None:
        found |= {name: value for name, value in vars(outcome).items() if name != "id"}
    return found


def seen(event: Moment) -> str:
    """Return what was seen during a training in a few words: its place, step, and first metric."""
    metric, value = next(iter(event.values.items()), ("", 0.0))
    number = f", {metric} {value:.3g}" if metric else ""
    return f"{event.use.arm} seed {event.use.seed}, step {event.step}{number}"
