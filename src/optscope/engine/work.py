"""Work is done once, in a worker, and known by all that changes its bits; names are given where it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from optscope.engine.identity import digest
from optscope.engine.naming import (
    agree,
    agreed,
    check_same,
    load,
    named,
    named_here,
    named_task,
    other_source,
    own_digest,
    task_here,
)
from optscope.engine.numerics import TorchSettings, check_numerics
from optscope.engine.place import Place
from optscope.engine.run_folder import RunFolder
from optscope.engine.watch import Watch, take
from optscope.probes.probe import Probe
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import InMemory, Task


class Work(Protocol):
    """Something that is done once, in a worker, and leaves its results in a folder of its own."""

    @property
    def id(self) -> str:
        """What it is known by: 16 hex digits."""

    @property
    def place(self) -> Place:
        """Where it is done."""

    @property
    def readings(self) -> tuple[str, ...]:
        """The names of what is read of its model, each a file."""

    def verify(self) -> None:
        """Raise UserError unless what this process has loaded is what the work was named by."""

    def perform(self, folder: RunFolder) -> str:
        """Do what is not done yet, write it to `folder`, and return a status: "ok" or "diverged"."""


class ProbesError(RuntimeError):
    """Some probes of a run stopped with errors, which it names; what the others found is kept."""


class Placed:
    """Work at a place: what fixes its numbers, the program apart."""

    place: Place

    @cached_property
    def numerics(self) -> Mapping[str, str | int]:
        """What fixed floating-point results, the program apart, where the work was named."""
        return self.settings.numerics(self.place)

    @cached_property
    def settings(self) -> TorchSettings:
        """Torch's settings when the work was named, which hold wherever it is performed."""
        return TorchSettings()


class OnTask(Placed, ABC):
    """Work on a task by parts that may be the user's, such as rules and probes: a worker must have the same."""

    task: Task

    @property
    @abstractmethod
    def id(self) -> str:
        """What it is known by."""

    @property
    @abstractmethod
    def readings(self) -> tuple[str, ...]:
        """The names of what is read."""

    @property
    @abstractmethod
    def parts(self) -> tuple[object, ...]:
        """What does the work, the task apart."""

    @cached_property
    def users(self) -> Mapping[str, str]:
        """Digests of all that is the user's: functions, globals, the fresh model and the data."""
        found = dict(named_task(self.task).users)
        for part in self.parts:
            found |= named(part).users
        agree(found)
        return found

    @cached_property
    def ours(self) -> tuple[str, ...]:
        """Digests of its parts, as far as nothing in them is the user's."""
        return tuple(map(own_digest, map(named, self.parts)))

    def task_here(self) -> Task:
        """Return the task as it is done at the place, its data loaded: what cannot be had is no probe's matter."""
        data = InMemory(vars(self).pop("_data", None) or load(self.task))
        return self.place.task(replace(self.task, data=data))

    def __getstate__(self) -> dict[str, Any]:
        """Take the identities along: a worker may not have what they are made of. The settings come first."""
        first = {"settings": self.settings, "id": self.id, "readings": self.readings, "users": self.users,
                 "ours": self.ours, "numerics": self.numerics}
        return first | {name: value for name, value in vars(self).items() if name != "_data"}

    def verify(self) -> None:
        """Raise unless the task and the parts that this process has loaded are those that named the work.

        Raises:
            UserError: naming what is not the same, of optscope's own only that something is not.
        """
        check_numerics(self.task.name, self.settings.numerics(self.place), self.numerics)
        with self.settings.hold(self.place):
            known = agreed(self.users)
            parts = [each for each in zip(self.parts, self.ours, strict=True) if each[1] or not known]
            here = [named_here(part) for part, _ in parts]
            if any(theirs and own_digest(mine) != theirs for mine, (_, theirs) in zip(here, parts, strict=True)):
                raise other_source()
            task, vars(self)["_data"] = task_here(self.task, known)
            check_same(self.task.name, (task, *here), self.users)


def taken(snapshot: Snapshot, probes: Mapping[Probe, str], folder: RunFolder) -> list[str]:
    """Take probes of a model, write what each has read under its name, and return how some stopped, if any did."""
    errors = []
    for probe, name in probes.items():
        reading, silence, error = take(probe, snapshot)
        if error:
            errors.append(error)
        else:
            folder.write_reading(name, repr(probe), [(None, reading)], silence)
    return errors


def probe_id(probe: Probe) -> str:
    """Return the digest of a probe's settings and of the code that measures."""
    return named(probe).digest


def watch_id(watch: Watch) -> str:
    """Return the digest of a probe that is watched and of when it is taken."""
    return digest({"watched": probe_id(watch.probe), "moments": watch.moments, "log": watch.logarithmic})
