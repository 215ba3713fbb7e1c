"""What somebody's own loop leaves of one training: a file of lines that grows at its end, so a kill loses none.

A loop that goes on from a checkpoint, or is begun anew, opens a session that says what holds of those before it,
and nothing is taken away (`optscope.evidence.recorded` reads it).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import astuple
from pathlib import Path
from typing import Any

from optscope.engine.identity import digest
from optscope.engine.run_folder import SCHEMA
from optscope.files import RECORDED, Lines, to_line
from optscope.probes.probe import Probe, Reading


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


def _told(probe: Probe) -> dict[str, Any]:
    return {"probe": repr(probe), "part": probe.split, "metrics": [*map(astuple, probe.metrics)]}
