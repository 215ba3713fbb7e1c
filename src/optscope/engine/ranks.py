"""Ranks: processes that train one model together; the first has the others, which begin, step and end with it."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from optscope.engine.data_files import DataFiles
from optscope.engine.fork_server import FORKS, kept
from optscope.engine.numerics import TorchSettings
from optscope.engine.packing import packed
from optscope.engine.place import Place
from optscope.engine.plan import Plan
from optscope.engine.seat import LeftError, Seat
from optscope.engine.state_file import from_bytes, to_bytes
from optscope.engine.training import Training
from optscope.engine.workers import DiedError, Worker
from optscope.errors import UserError
from optscope.optim.rule import Rule
from optscope.tasks.task import Task

WORD = 10.0
"""Seconds in which a rank that has left says why."""
_OWNER = "ranks"


def ranked(task: Task, rule: Rule, plan: Plan, seed: int, place: Place, folder: Path) -> Training:
    """Return the training, the first of as many ranks as the place has; data in memory go to others by `folder`."""
    make = partial(Training, task, rule, plan, seed, place)
    return make() if place.ranks == 1 else make(seat=First(place, make, folder))


class First(Seat):
    """The seat of the first rank, which looks, saves and writes, and has the others: workers of its own.

    They load its state and step when it does; they end with it, and begin anew where it goes on. On accelerators
    they have the devices that come after its own.
    """

    def __init__(self, place: Place, make: Callable[..., Training], folder: Path) -> None:
        super().__init__(0, place)
        self._sent = packed((TorchSettings(), make), DataFiles(folder))
        self._place = place
        self._workers: list[Worker] = []
        weakref.finalize(self, _end, self._workers)

    @contextlib.contextmanager
    def stepping(self, state: Callable[[], Mapping[str, Any]], step: int) -> Iterator[None]:
        """Have the others make the steps that this rank makes within, after `step`.

        Raises:
            DiedError: when one of them has died.
            UserError or RuntimeError: what has stopped one of them.
        """
        try:
            if not self._workers:
                self._begin(to_bytes(state(), _OWNER) if step else b"")
            yield
        except LeftError:
            raise self._reason() from None
        except BaseException:
            self.end()
            raise

    def _begin(self, state: bytes) -> None:
        self._workers += map(self._worker, range(1, self.count))
        for rank, worker in enumerate(self._workers, 1):
            worker.give(sit, self._sent, rank, self._place, state)
        for worker in self._workers:
            worker.answer()
        with tempfile.TemporaryDirectory(prefix="optscope-", ignore_cleanup_errors=True) as folder:
            meeting = str(Path(folder) / "meeting")
            for worker in self._workers:
                worker.give(follow, meeting)
            self.join(meeting)

    def _worker(self, rank: int) -> Worker:
        if self._place.accelerated:
            return Worker(f"{self._place.device}:{torch.accelerator.current_device_index() + rank}", None)
        return Worker("cpu", kept() if FORKS else None)

    def _reason(self) -> Exception:
        """Return why a rank has left: one that was stopped says so, others only that they were left."""
        found: Exception = DiedError("another rank of its training does not answer")
        try:
            for worker in self._workers:
                if worker.heard(WORD):
                    try:
                        worker.answer()
                    except DiedError as error:
                        found = DiedError(f"another rank of its training: {error}")
                    except (UserError, OSError, RuntimeError) as error:
                        return error
            return found
        finally:
            self.end()

    def end(self) -> None:
        """Let them go."""
        _end(self._workers)


def _end(workers: list[Worker]) -> None:
    while workers:
        workers.pop().end()


_following: list[tuple[Seat, Training]] = []
"""The training that this process has a seat in."""


def sit(sent: bytes, rank: int, place: Place, state: bytes) -> None:
    """Make the training of another rank, and bring it to where the first one is."""
    _, make = pickle.loads(sent)
    seat = Seat(rank, place)
    training = make(seat=seat)
    if state:
        training.load_state_dict(from_bytes(state, _OWNER))
    _following[:] = [(seat, training)]


def follow(meeting: str) -> None:
    """Make every step with the others, until the process is ended, or others have left, who say why."""
    seat, training = _following.pop()
    try:
        with contextlib.suppress(LeftError):
            seat.join(meeting)
            training.advance(training.total)
    finally:
        seat.leave()  # not when its memory is collected: others wait
