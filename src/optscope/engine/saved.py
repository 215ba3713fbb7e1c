"""A saved model that is measured: work that is known by its weights, wherever they lie, by task and probes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from optscope.engine.checkpoint import found_at
from optscope.engine.identity import digest
from optscope.engine.naming import named_task
from optscope.engine.place import CPU, Place
from optscope.engine.run_folder import RunFolder
from optscope.engine.work import OnTask, ProbesError, probe_id, taken
from optscope.errors import UserError
from optscope.probes.probe import Probe
from optscope.tasks.task import Task


@dataclass(frozen=True)
class Saved(OnTask):
    """Take probes of the model of `task` with the weights at `path`, whose digest is `content` (`Found.content`).

    `seed` seeds the random numbers of probes (None: that of the run whose folder it is, or 0). Each reading is a
    file, so that none is taken twice. The weights stay where they are.
    """

    task: Task
    path: Path
    content: str
    probes: tuple[Probe, ...]
    seed: int | None = None
    place: Place = CPU

    @cached_property
    def id(self) -> str:
        """Return the digest of the saved model, the task and what fixes numbers."""
        return digest({"task": named_task(self.task).digest, "saved": self.content, "numerics": self.numerics})

    @cached_property
    def readings(self) -> tuple[str, ...]:
        """The names of what is read."""
        return tuple(map(probe_id, self.probes))

    @property
    def parts(self) -> tuple[object, ...]:
        """Its probes."""
        return self.probes

    def perform(self, folder: RunFolder) -> str:
        """Take the probes that are not taken yet.

        Raises:
            UserError: when the weights are no more what they were.
            ProbesError: when some probes stopped with errors; after all the others were taken.
        """
        missing = {probe: name for probe, name in zip(self.probes, self.readings, strict=True)
                   if not folder.has_reading(name)}
        if folder.has_result() and not missing:
            return "ok"
        with self.settings.hold(self.place):
            found = found_at(self.task_here(), self.path, seed=self.seed)
            if found.content != self.content:
                raise UserError(f"{self.path} was changed after this command began: run it again")
            snapshot = found.snapshot
            if not folder.has_result():
                folder.write_result({"status": "ok", "seed": snapshot.seed, "rule": "", "task": self.task.name,
                                     "path": str(self.path), "parameters": sum(
                                         p.numel() for p in snapshot.model.parameters())}, {}, {})
            errors = taken(snapshot, missing, folder)
        if errors:
            raise ProbesError("; ".join(dict.fromkeys(errors)))
        return "ok"
