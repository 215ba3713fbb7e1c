"""What a recorder has left of a training, read from its file of lines: torch is not needed for it.

Each opening of the file is a session, which says where in the training it begins: of what earlier ones recorded
beyond that place nothing counts, nor what they write later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optscope.errors import UserError
from optscope.evidence.records import Metric, Record
from optscope.files import RECORDED

USES = ("watched", "compared", "described")
"""What probes are taken for: at every look; in the end, to test differences in them; in the end, to be shown."""
Place = tuple[str, str, float | None, int | None]
"""The probe and the metric of a number, where on its axis, and after which step (None: of what was trained)."""
Stamp = tuple[str, int, int]
"""A file's name, length and time of change."""
LOSS = Metric("training loss", "", "lower", "mean since the look before")


@dataclass(frozen=True)
class Meant:
    """What a recorded probe was, on which part of the data, and what it measures, as a report needs it."""

    probe: str
    part: str
    metrics: tuple[Metric, ...]


@dataclass
class Recorded:
    """What a file holds of one training."""

    run: str
    task: str = ""
    arm: str = ""
    seed: int = 0
    time: float = math.inf
    probes: dict[str, tuple[Meant, ...]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    values: dict[Place, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    ended: int | None = None
    rule: str = ""

    @property
    def last(self) -> int:
        """The last step of which anything is known."""
        return max([*self.losses, *(step for *_, step in self.values if step), self.ended or 0])

    @property
    def diverged(self) -> bool:
        """Whether the last loss is not finite."""
        return bool(self.losses) and not math.isfinite(self.losses[max(self.losses)])

    def records(self) -> list[Record]:
        """Return every number, and of each whether the training diverged."""
        status = "diverged" if self.diverged else "ok"
        values = {(LOSS.name, LOSS.name, None, step): loss for step, loss in self.losses.items()} | self.values
        return [Record(self.task, self.arm, self.seed, metric, value if math.isfinite(value) else math.nan, at,
                       step, "final", self.rule or self.arm, status, self.run)
                for (_, metric, at, step), value in values.items()]

    def hear(self, line: Mapping[str, Any]) -> None:
        """Take in a line of the session that holds."""
        what: str = line["what"]
        step: Any = line.get("step")
        if what == "begun":
            self.task, self.arm, self.seed = line["task"], line["arm"], line["seed"]
            self.time = min(self.time, line["time"])
            self.probes = {use: tuple(map(_meant, line[use])) for use in USES}
            self.losses = {at: loss for at, loss in self.losses.items() if at <= line["start"]}
            self.values = {key: value for key, value in self.values.items()
                           if key[-1] is not None and key[-1] <= line["start"]}
            self.ended = None
        elif what == "loss":
            self.losses[step] = float(line["value"])
        elif what == "ended":
            self.ended, self.rule = step, line["rule"]
        else:
            self.values |= {(line["probe"], metric, at, step): float(value) for metric, at, value in line["values"]}
            self.reasons += [f"{line['probe']}: {line['why']}"] if line["why"] else []


def recorded_in(folder: Path) -> list[Recorded]:
    """Return what was recorded in an output folder, the training that was begun first before the others.

    Raises:
        UserError: naming a file that is not what a recorder writes.
    """
    return sorted((_read(path) for path in (folder / "runs").glob(f"*/{RECORDED}")), key=lambda each: each.time)


def recorded_at(folder: Path) -> tuple[Stamp, ...]:
    """Return names, lengths and times of the files of recorders in a folder: others mean that more came."""
    found = ((path.parent.name, path.stat()) for path in sorted((folder / "runs").glob(f"*/{RECORDED}")))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _read(path: Path) -> Recorded:
    found, session = Recorded(path.parent.name), ""
    try:
        for text in path.read_bytes().split(b"\n")[:-1]:  # what follows the last end of a line is being written
            line = json.loads(text)
            session = line["session"] if line["what"] == "begun" else session
            if line["session"] == session:
                found.hear(line)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what a recorder writes ({type(error).__name__}): move it away, and what "
                        "the others hold is reported") from error
    return found


def _meant(told: Mapping[str, Any]) -> Meant:
    return Meant(told["probe"], told["part"], tuple(Metric(*metric) for metric in told["metrics"]))
