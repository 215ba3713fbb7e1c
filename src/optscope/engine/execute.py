"""Many runs on one machine: one process a slot, on its cores or device, so a killed worker costs one run only."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from optscope.engine.data_files import DataFiles
from optscope.engine.executor import Begun, Outcome, Report
from optscope.engine.fork_server import FORKS, at_hand
from optscope.engine.identity import source_digest
from optscope.engine.looks import PACE, Tail
from optscope.engine.naming import other_source
from optscope.engine.packing import is_of_disk, packed
from optscope.engine.place import MemoryShortError, Place
from optscope.engine.run_folder import RunFolder, gone
from optscope.engine.watch import describe_error
from optscope.engine.work import ProbesError, Work
from optscope.engine.workers import DiedError, Worker
from optscope.errors import UserError, first_words

TRIES = 3
"""How often a run whose worker dies is started before it is given up as lost."""

PROGRAM = ("optscope.engine.execute", "optscope.engine.run", "optscope.engine.saved", "optscope.tasks.catalog")
"""The modules that, with all they name, train and measure; rules and probes are looked at run by run."""


@dataclass(frozen=True)
class Inline:
    """Everything in this process, one thing after the other: for debugging."""

    def run(self, works: Sequence[Work], folder: Path) -> Generator[Report, None, None]:
        """Do every piece of work here."""
        folder.mkdir(parents=True, exist_ok=True)
        for work in works:
            tail = Tail(folder, work.id)
            try:
                yield Begun(work.id)
                try:
                    outcome = _perform(work, folder)
                except DiedError as error:
                    outcome = Outcome(work.id, "lost", reason=str(error))
                yield from tail.new()
            finally:
                tail.close()
            yield outcome


@dataclass(frozen=True)
class Local:
    """One process a slot, restarted when it dies.

    On a CPU a slot is by default as many cores as a run has threads; of accelerators, `devices` such as ("cuda:0",
    "cuda:1"), each has `slots` slots, by default one. Runs that name a device by its number keep it.
    """

    slots: int = 0
    devices: tuple[str, ...] = ()

    def run(self, works: Sequence[Work], folder: Path) -> Generator[Report, None, None]:
        """Do every piece of work in a worker; one whose worker dies is tried again, at most three times."""
        import loky

        if not works:
            return
        folder.mkdir(parents=True, exist_ok=True)
        data = DataFiles(folder.parent / "data")
        packed(list(works), data)  # together, so that what they share is looked at once
        program = source_digest(*PROGRAM)
        places = self._places(works, loky.cpu_count())
        waiting = [(work, 1) for work in reversed(works)]
        running: dict[Connection, tuple[Worker, Work, int, Tail]] = {}
        with at_hand() as server, contextlib.ExitStack() as ended:
            idle = [Worker(place, server if FORKS and place == "cpu" else None) for place in places]
            for worker in idle:
                ended.callback(worker.end)
            try:
                while waiting or running:
                    while idle and waiting:
                        worker, (work, attempt) = idle.pop(), waiting.pop()
                        beside = places.count(worker.device)
                        answer = worker.give(perform_there, packed(work, data), folder, program, beside)
                        running[answer] = worker, work, attempt, Tail(folder, work.id)
                        yield Begun(work.id, attempt)
                    heard = wait(running, PACE)
                    for *_, tail in list(running.values()):
                        yield from tail.new()
                    for answer in [each for each in running if each in heard]:
                        worker, work, attempt, tail = running.pop(answer)
                        idle.append(worker)
                        tail.close()
                        try:
                            yield worker.answer()
                        except DiedError as error:
                            if attempt < TRIES:
                                waiting.append((work, attempt + 1))
                            else:
                                yield Outcome(work.id, "lost", reason=str(error), tries=attempt)
            finally:
                for *_, tail in running.values():
                    tail.close()

    def processes(self, place: Place) -> int:
        """Return how many runs at a place go on at once."""
        import loky

        return len(self._slots([place], loky.cpu_count()))

    def _places(self, works: Sequence[Work], cores: int) -> list[str]:
        """Return the device of every slot, no more of them than there is work."""
        return self._slots([work.place for work in works], cores)[:len(works)]

    def _slots(self, places: Sequence[Place], cores: int) -> list[str]:
        """Return the device of every slot."""
        devices = [name for name in self.devices if name != "cpu"] or sorted(
            {place.device for place in places if place.accelerated})
        ranks = max(place.ranks for place in places)
        if devices:
            return _firsts(devices, ranks) * (self.slots or 1)
        return ["cpu"] * (self.slots or max(1, cores // (ranks * max(place.threads for place in places))))


def _firsts(devices: Sequence[str], ranks: int) -> list[str]:
    """Return the first of every `ranks` devices, which must be neighbours.

    Raises:
        UserError: when they are not, or some are left over.
    """
    groups = [devices[i:i + ranks] for i in range(0, len(devices), ranks)]
    for first, *others in groups:
        kind, _, number = first.partition(":")
        if ranks > 1 and number and others != [f"{kind}:{int(number) + i}" for i in range(1, ranks)]:
            raise UserError(f"{ranks} ranks take as many devices that are neighbours, such as "
                            f"{','.join(f'{kind}:{i}' for i in range(ranks))}; got {','.join(devices)}")
    return [group[0] for group in groups]


def perform_there(sent: bytes, folder: Path, program: str, beside: int = 1) -> Outcome:
    """Do one piece of work in a worker, one of `beside` on its device, by the program that named the work.

    Raises:
        UserError: when the task, an optimiser or a probe cannot be made in this process.
    """
    if source_digest(*PROGRAM) != program:
        raise other_source()
    try:
        work = pickle.loads(sent)
    except UserError:
        raise
    except Exception as error:  # of the user's modules, which are imported here
        raise UserError(f"the task, an optimiser or a probe could not be made in another process "
                        f"({first_words(error)}): a file that it imports was changed or moved after this command "
                        "began, or works in its first process alone") from error
    return _perform(work, folder, beside)


def _perform(work: Work, folder: Path, beside: int = 1) -> Outcome:
    """Do one piece of work; an error in it is an outcome, but not a full or read-only disk below `folder`.

    Raises:
        UserError: when `folder` is gone, or what is loaded here is not what named the work.
    """
    start = time.perf_counter()
    work.verify()
    try:
        status, reason = work.perform(RunFolder(folder / work.id)), ""
    except DiedError:  # of another rank: as if it were this process that died
        raise
    except Exception as error:
        if not folder.is_dir():
            raise UserError(gone(folder.parent)) from error
        if isinstance(error, OSError) and is_of_disk(error, folder):
            raise
        said = str(error) if isinstance(error, (UserError, ProbesError)) else describe_error(error)
        if isinstance(error, MemoryShortError) and beside > 1:
            said += f"; or run fewer at once on a device, --slots {beside - 1}"
        status, reason = "failed", said
    return Outcome(work.id, status, time.perf_counter() - start, reason)
