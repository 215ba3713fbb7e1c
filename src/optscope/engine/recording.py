"""What somebody's own loop leaves of one training: a file of lines that grows at its end, so a kill loses none.

Each opening of the file is a session, which says where in the training it begins: of what earlier ones recorded
beyond that place nothing counts, nor what they write later. So a loop that goes on from a checkpoint, or is begun
anew, says what holds, and nothing is taken away.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from optscope.engine.identity import digest
from optscope.engine.run_folder import SCHEMA
from optscope.errors import UserError
from optscope.evidence.records import Metric, Record
from optscope.files import RECORDED, Lines, to_line
from optscope.probes.probe import Probe, Reading

USES = ("watched", "compared", "described")
"""What probes are taken for: at every look; in the end, to test differences in them; in the end, to be shown."""
Place = tuple[str, str, float | None, int | None]
"""The probe and the metric of a number, where on its axis, and after which step (None: of what was trained)."""
LOSS = Metric("training loss", "", "lower", "mean since the look before")


@dataclass(frozen=True)
class Meant:
    """What a recorded probe was, on which part of the data, and what it measures, as a report needs it."""

    probe: str
    part: str
    metrics: tuple[Metric, ...]


class Recording:
    """The file of one arm and seed below an output folder, open for a session that begins after `start` steps.

    `probes` are given by their `USES`.
    """

    def __init__(self, folder: Path, task: str, arm: str, seed: int, start: int,
                 **probes: Sequence[Probe]) -> None:
        run = digest({"recorded": task, "arm": arm, "seed": seed})
        (folder / "runs" / run).mkdir(parents=True, exist_ok=True)
        self._path, self._session = folder / "runs" / run / RECORDED, secrets.token_hex(4)
        self._append("begun", {"schema": SCHEMA, "task": task, "arm": arm, "seed": seed, "start": start,
                               "time": time.time(), **{use: [*map(_told, some)] for use, some in probes.items()}})

    def loss(self, step: int, mean: float) -> None:
        """Write the mean training loss since the look before."""
        self._append("loss", {"step": step, "value": mean})

    def reading(self, step: int | None, probe: str, reading: Reading, why: str) -> None:
        """Write what a probe found after a step (None: of the trained model), or why it found nothing."""
        rows = [[metric, at, float(number)] for metric, value in reading.values.items()
                for at, number in (value.items() if isinstance(value, Mapping) else [(None, value)])]
        self._append("reading", {"step": step, "probe": probe, "values": rows, "why": why})

    def end(self, step: int, rule: str) -> None:
        """Write that the training has ended, and what trained it."""
        self._append("ended", {"step": step, "rule": rule})

    def _append(self, what: str, told: Mapping[str, Any]) -> None:
        with closing(Lines(self._path)) as lines:  # opened anew: a sweep in one process has many recorders
            lines.append(to_line({"what": what, "session": self._session, **told}))


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

    def records(self) -> list[Record]:
        """Return every number; one whose last loss is not finite has diverged."""
        lost = bool(self.losses) and not math.isfinite(self.losses[max(self.losses)])
        status = "diverged" if lost else "ok"
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


def _told(probe: Probe) -> dict[str, Any]:
    return {"probe": repr(probe), "part": probe.split, "metrics": [*map(astuple, probe.metrics)]}


def _meant(told: Mapping[str, Any]) -> Meant:
    return Meant(told["probe"], told["part"], tuple(Metric(*metric) for metric in told["metrics"]))
