"""A training with those who watch it: saved on the way, so that after a kill it goes on from there to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from optscope.engine.place import MemoryShortError
from optscope.engine.run_folder import RunFolder
from optscope.engine.state_file import equal, from_bytes, to_bytes
from optscope.engine.watch import Watch, describe_error, take
from optscope.errors import UserError
from optscope.probes.probe import Memory, Reading
from optscope.tasks.examples import DataError
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.unchanged import unchanged

SHARE = 0.05
"""The share of the time that writing states may take: large ones are written less often."""
TRIED = 2
"""How many steps a state is tried for before it is trusted."""


class Advancing(Protocol):
    """What is observed: a `Training`, or several of one seed that advance together."""

    step: int
    total: int

    @property
    def model(self) -> nn.Module:
        """All that is trained."""

    @property
    def diverged_at(self) -> int | None:
        """The step after which nothing goes on, or None."""

    def advance(self, until: int, *, seconds: float = ...) -> bool:
        """Make steps up to `until`, or at least one and for about so many seconds; return whether it may go on."""

    def looked_at(self) -> AbstractContextManager[Snapshot]:
        """Show what is trained as it is now."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that another one goes on from."""

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from the state of another one."""


T = TypeVar("T", bound=Advancing)


class Observed(Generic[T]):
    """A training, what its watchers found so far, and its state on disk.

    The state is written every `every` seconds, and first tried: another training is made, loads it, and both go
    some steps; only where all that they hold is then the same to the bit is it kept. What cannot be saved or does
    not come back (an optimiser that keeps something outside its state dict) is said in `unsaved`, and after a kill
    such a training begins anew.

    `make` makes it anew; `owner` is the run's id, which all that changes its bits belongs to: a state of another is
    not loaded.
    """

    def __init__(self, make: Callable[[], T], watch: Mapping[Watch, str], folder: RunFolder, owner: str,
                 every: float) -> None:
        self._make = make
        self._watch, self._folder, self._owner, self._every = dict(watch), folder, owner, every
        self.training = self._make()
        self.seen: dict[str, list[tuple[int | None, Reading]]] = {name: [] for name in watch.values()}
        self._memory: dict[str, Memory] = {}
        self.silences: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.unsaved = ""
        self._looked = -1
        self._spent, self._tried = (0.0, 0.0), False
        self._stepping, self._stepped = 0.0, 0
        self._start = time.perf_counter(), time.process_time()
        self._saved_at, self._cost = time.monotonic(), 0.0
        self._resume()

    def run(self) -> T:
        """Train to the end, or to where numbers are no longer finite, and look at every moment of the watchers."""
        training, moments = self.training, {w: w.steps(self.training.total) for w in self._watch}
        for moment in sorted({training.total}.union(*moments.values())):
            while training.step < moment and self._advance(moment, self._left()):
                if training.step < moment:
                    self._save(moment)
            if training.diverged_at is not None or not self._advance(moment):
                break
            if moment > self._looked and self._watch:
                self._look({w for w, steps in moments.items() if moment in steps})
            if self._left() <= 0 and moment < training.total:
                self._save(moment)
        return training

    def spent(self) -> dict[str, float]:
        """Return the seconds that it took so far, before a kill included."""
        wall, cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        return {"seconds": self._spent[0] + wall, "cpu_seconds": self._spent[1] + cpu}

    def cost(self) -> dict[str, float]:
        """Return the CPU seconds of a step, looks and files apart, over those that this process made."""
        return {"cpu_seconds_a_step": self._stepping / self._stepped} if self._stepped else {}

    def _advance(self, moment: int, seconds: float = math.inf) -> bool:
        start, before = time.process_time(), self.training.step
        going = self.training.advance(moment, seconds=seconds)
        self._stepping += time.process_time() - start
        self._stepped += self.training.step - before
        return going

    def _look(self, watchers: set[Watch]) -> None:
        values: dict[str, Any] = {}
        with self.training.looked_at() as snapshot:
            for w, name in self._watch.items():
                if w in watchers and name not in self.errors:
                    reading, silence, error = take(w.probe, snapshot, self._memory.get(name))
                    self.seen[name].append((snapshot.step, replace(reading, memory={})))
                    self._memory[name] = reading.memory
                    self.silences.update({name: silence} if silence else {})
                    self.errors.update({name: error} if error else {})
                    values |= reading.values
        if values:
            self._folder.tell(self.training.step, values)
        self._looked = self.training.step

    def _left(self) -> float:
        """Return in how many seconds a state is due."""
        return max(self._every, self._cost / SHARE) - (time.monotonic() - self._saved_at)

    def _save(self, moment: int) -> None:
        """Write the state, unless it cannot be; the training goes on for the trial, but not beyond `moment`."""
        if self.unsaved:
            self._saved_at = time.monotonic()
            return
        start = time.monotonic()
        try:
            content = to_bytes(self._state(), self._owner)
            if not self._tried:
                self._try(content, moment)
        except UserError as error:
            self.unsaved = str(error)
        except Exception as error:  # whatever a user's model or optimiser raises when it is saved or loaded
            self.unsaved = describe_error(error)
        if not self.unsaved:
            self._folder.write_state(content)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - start

    def _try(self, content: bytes, moment: int) -> None:
        """Raise unless another training that loads the state goes on as this one does."""
        twin = self._make()
        with unchanged(twin.model):
            twin.load_state_dict(from_bytes(content, self._owner)["training"])
            until = min(self.training.step + TRIED, max(moment, self.training.step + 1), twin.total)
            for each in (self.training, twin):
                each.advance(until)
            if not equal(self.training.state_dict(), twin.state_dict()):
                raise UserError("a training that loads the state goes on otherwise: something that training "
                                "changes is kept outside the state dicts of the model and the optimiser")
        self._tried = True

    def _state(self) -> dict[str, Any]:
        seen = {name: [[step, dict(r.values), dict(r.arrays), r.silence] for step, r in readings]
                for name, readings in self.seen.items()}
        memory = {name: dict(each) for name, each in self._memory.items()}
        return {"training": self.training.state_dict(), "seen": seen, "memory": memory, "silences": self.silences,
                "errors": self.errors, "looked": self._looked, "spent": list(self.spent().values())}

    def _resume(self) -> None:
        """Go on from the state on disk, if there is one of this training and these watchers."""
        content = self._folder.state()
        if content is None:
            return
        try:
            found = from_bytes(content, self._owner)
            if self.seen.keys() <= found["seen"].keys():
                seen = {name: [(step, Reading(*reading)) for step, *reading in found["seen"][name]]
                        for name in self.seen}
                others = found["memory"], found["silences"], found["errors"], found["looked"], tuple(found["spent"])
                twin = self._make()
                twin.load_state_dict(found["training"])
                twin.advance(twin.step + 1)
                self.training.load_state_dict(from_bytes(content, self._owner)["training"])
                self.seen, self._tried = seen, True
                self._memory, self.silences, self.errors, self._looked, self._spent = others
        except (OSError, DataError, MemoryShortError):  # of the data or the device, and no word against the state
            raise
        except Exception:  # whatever a state that fits nothing leads to, where it is loaded or in the next step
            self._folder.set_state_aside()  # with what it holds of the training, which begins anew
            self.training = self._make()
