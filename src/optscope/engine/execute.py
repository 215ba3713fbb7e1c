"""Many runs on one machine: one process a slot, on its cores or device, so a killed worker costs one run only."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optscope.engine.data_files import DataFiles
from optscope.engine.executor import Begun, Outcome, Report
from optscope.engine.identity import source_digest
from optscope.engine.looks import PACE, Tail
from optscope.engine.naming import other_source
from optscope.engine.numerics import THREAD_VARIABLES, THREADS
from optscope.engine.origin import users_folders
from optscope.engine.place import MemoryShortError
from optscope.engine.run import ProbesError, Work
from optscope.engine.run_folder import RunFolder, gone
from optscope.engine.watch import describe_error
from optscope.errors import DISK_ERRORS, UserError, first_words

TRIES = 3
"""How often a run whose worker dies is started before it is given up as lost."""

PROGRAM = ("optscope.engine.execute", "optscope.engine.run", "optscope.tasks.catalog")
"""The modules that, with all they name, train and measure; rules and probes are looked at run by run."""

_ENVIRONMENT = {name: str(THREADS) for name in THREAD_VARIABLES}


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
                outcome = _perform(work, folder)
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
        from loky.process_executor import BrokenProcessPool

        if not works:
            return
        folder.mkdir(parents=True, exist_ok=True)
        data = DataFiles(folder.parent / "data")
        packed(list(works), data)  # together, so that what they share is looked at once
        program = source_digest(*PROGRAM)
        places = self._places(works, loky.cpu_count())
        slots: list[Any] = [_start_slot(place) for place in places]
        waiting = [(work, 1) for work in reversed(works)]
        running: dict[Future[Outcome], tuple[int, Work, int, Tail]] = {}
        try:
            idle = list(range(len(slots)))
            while waiting or running:
                while idle and waiting:
                    slot, (work, attempt) = idle.pop(), waiting.pop()
                    beside = places.count(places[slot])
                    with _deaf():
                        try:
                            future = _submit(slots[slot], packed(work, data), folder, program, beside)
                        except BrokenProcessPool:  # its worker died while it had nothing to do
                            slots[slot].shutdown(kill_workers=True)
                            slots[slot] = _start_slot(places[slot])
                            future = _submit(slots[slot], packed(work, data), folder, program, beside)
                    running[future] = (slot, work, attempt, Tail(folder, work.id))
                    yield Begun(work.id, attempt)
                done = wait(running, timeout=PACE, return_when=FIRST_COMPLETED).done
                for *_, tail in list(running.values()):
                    yield from tail.new()
                for future in done:
                    slot, work, attempt, tail = running.pop(future)
                    idle.append(slot)
                    tail.close()
                    try:
                        yield future.result()
                    except BrokenProcessPool as error:
                        slots[slot].shutdown(kill_workers=True)
                        slots[slot] = _start_slot(places[slot])
                        if attempt < TRIES:
                            waiting.append((work, attempt + 1))
                        else:
                            yield Outcome(work.id, "lost", reason=str(error).partition("\n")[0], tries=attempt)
        finally:
            for executor in slots:
                executor.shutdown(kill_workers=True)
            for *_, tail in running.values():
                tail.close()

    def _places(self, works: Sequence[Work], cores: int) -> list[str]:
        """Return the device of every slot, no more of them than there is work."""
        devices = [name for name in self.devices if name != "cpu"] or sorted(
            {work.place.device for work in works if work.place.accelerated})
        if devices:
            return (devices * (self.slots or 1))[:len(works)]
        threads = max(work.place.threads for work in works)
        return ["cpu"] * min(self.slots or max(1, cores // threads), len(works))


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that do not hear what is sent to a whole group, as by Ctrl-C: this one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_slot(device: str) -> Any:
    from loky.process_executor import ProcessPoolExecutor

    with _deaf():
        return ProcessPoolExecutor(max_workers=1, env=_ENVIRONMENT, initializer=_start_worker,
                                   initargs=(os.getpid(), list(sys.path), device))


def _submit(slot: Any, sent: bytes, folder: Path, program: str, beside: int) -> Future[Outcome]:
    """Hand packed work to a slot; its process, which may start now, loads torch before it sees a user's files."""
    path = list(sys.path)
    sys.path[:] = [place for place in path if place not in users_folders.get()]
    try:
        future: Future[Outcome] = slot.submit(perform_there, sent, folder, program, beside)
        return future
    finally:
        sys.path[:] = path


def _start_worker(parent: int, path: list[str], device: str) -> None:
    """Prepare a worker: one thread, its device, the parent's import path, and an end when the parent is gone."""
    import torch

    sys.path[:] = path
    torch.set_num_threads(THREADS)
    if torch.device(device).index is not None:
        torch.accelerator.set_device_index(torch.device(device).index)

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _remade(thing: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return how another process gets a lock of its own, and a weak reference to its own copy.

    Users have locks in modules and in `cached_property`, and weak references in `singledispatch`.
    """
    if isinstance(thing, weakref.ref):
        return weakref.ref, (set() if thing() is None else thing(),)  # that set is gone at once, too
    if isinstance(thing, _LOCKS):
        return (threading.Lock if isinstance(thing, _LOCKS[0]) else threading.RLock), ()
    return type(thing), (list(thing.items()) if hasattr(thing, "items") else list(thing),)


_LOCKS = type(threading.Lock()), type(threading.RLock())
_REMADE: dict[type, Any] = dict.fromkeys((*_LOCKS, weakref.ref, weakref.WeakKeyDictionary,
                                         weakref.WeakValueDictionary, weakref.WeakSet), _remade)


def packed(things: object, data: DataFiles) -> bytes:
    """Return what another process makes them from: user's modules go along by value, data in memory as files.

    Raises:
        UserError: when that cannot be, as of open files.
        OSError: when data cannot be written.
    """
    from loky.backend.reduction import dumps

    try:
        return bytes(dumps(things, _REMADE | data.reducers))
    except Exception as error:
        if isinstance(error, OSError) and is_of_disk(error, data.folder):
            raise
        raise UserError(f"the task, an optimiser or a probe cannot be sent to another process ({error}): give "
                        "functions and dataclasses that make models and data, not open files") from error


def perform_there(sent: bytes, folder: Path, program: str, beside: int = 1) -> Outcome:
    """Do one piece of work in a worker, one of `beside` on its device, by the program that named the work."""
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


def is_of_disk(error: OSError, folder: Path) -> bool:
    """Return whether the folder of the runs cannot be written any more."""
    return (error.errno in DISK_ERRORS and isinstance(error.filename, str)
            and Path(error.filename).is_relative_to(folder))
