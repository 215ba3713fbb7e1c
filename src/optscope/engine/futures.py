"""Work on any executor of `concurrent.futures`: a pool of processes here or, by packages of others, on machines."""

from __future__ import annotations

import platform
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from optscope.engine.data_files import DataFiles
from optscope.engine.execute import PROGRAM, is_of_disk, packed, perform_there
from optscope.engine.executor import Begun, Outcome, Report
from optscope.engine.identity import source_digest
from optscope.engine.looks import PACE, Tail
from optscope.engine.origin import users_folders
from optscope.engine.work import Work
from optscope.errors import UserError, first_words
from optscope.files import names_in

PATIENCE = 60.0
"""Seconds after which what a worker has written must be seen here: a shared disk may lag so far behind."""

_alone = threading.Lock()

@dataclass(frozen=True)
class Futures:
    """An executor of `concurrent.futures` whose workers are processes that see the output folder by the same path.

        with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
            compare(task, "runs/mine", executor=Futures(pool))

    Work that gets no answer, since its worker died or the pool broke, is lost, and tried again by the next command.
    That work has begun its worker says by a file of the run, for pools on other machines know it late, or never.
    Closed early, it withdraws what has not begun and waits for what has: nobody writes to the folder afterwards.
    Who has made the pool ends it.

    Raises:
        UserError: for a pool of threads, in which trainings would share torch's settings and random numbers.
    """

    pool: Executor

    def __post_init__(self) -> None:
        if isinstance(self.pool, ThreadPoolExecutor):
            raise UserError("Futures needs workers that are processes; got threads, which share torch's settings "
                            "and random numbers: give a ProcessPoolExecutor")

    def run(self, works: Sequence[Work], folder: Path) -> Generator[Report, None, None]:
        """Do every piece of work in the pool.

        Raises:
            UserError: when the pool takes no work.
        """
        if not works:
            return
        folder = folder.absolute()  # a worker elsewhere stands in another one
        folder.mkdir(parents=True, exist_ok=True)
        data, program = DataFiles(folder.parent / "data"), source_digest(*PROGRAM)
        packed(list(works), data)  # together, so that what they share is looked at once
        waiting: dict[Future[Outcome], tuple[Work, Tail]] = {}
        begun: set[Future[Outcome]] = set()
        try:
            for work in works:
                waiting[self._submit(work, packed(work, data), folder, program)] = work, Tail(folder, work.id)
            while waiting:
                done = wait(waiting, timeout=PACE, return_when=FIRST_COMPLETED).done
                for future, (work, tail) in list(waiting.items()):
                    if future not in begun and (future in done or tail.has_begun()):
                        begun.add(future)
                        yield Begun(work.id)
                    if future in begun:
                        yield from tail.new()
                for future in done:
                    work, tail = waiting.pop(future)
                    tail.close()
                    outcome = _outcome(work, future, folder)
                    _check_seen(work, outcome, folder)
                    yield outcome
        finally:
            wait([future for future, (_, tail) in waiting.items() if tail.has_begun() or not _withdrawn(future)])
            for _, tail in waiting.values():
                tail.close()

    def _submit(self, work: Work, sent: bytes, folder: Path, program: str) -> Future[Outcome]:
        try:
            return self.pool.submit(perform_afar, sent, work.id, folder, program, sorted(users_folders.get()))
        except RuntimeError as error:  # it was shut down, or has broken
            raise UserError(f"{type(self.pool).__name__} takes no work ({first_words(error)}): give Futures a pool "
                            "that is open, and run the same command again") from error


def _withdrawn(future: Future[Outcome]) -> bool:
    """Return whether work could be withdrawn."""
    try:
        return future.cancel()
    except NotImplementedError:  # Parsl's cannot
        return False


def perform_afar(sent: bytes, run: str, folder: Path, program: str, path: Sequence[str]) -> Outcome:
    """Do one piece of work in a process that others have started, where modules lie on `path` besides.

    Trainings of one process wait for each other, for they would share torch's settings and random numbers.

    Raises:
        UserError: when the folder is not seen here, or the program is not the one that named the work.
    """
    with _alone:
        if not folder.is_dir():
            raise UserError(f"the output folder {folder.parent} is not there on {platform.node()}: workers must "
                            "see it by the same path, as on a shared disk")
        Tail(folder, run).begin()
        sys.path += [place for place in path if place not in sys.path]
        return perform_there(sent, folder, program)


def _check_seen(work: Work, outcome: Outcome, folder: Path) -> None:
    """Wait until what a worker has written is seen here.

    Raises:
        UserError: when it is not, after a minute.
    """
    if outcome.status not in ("ok", "diverged"):
        return
    readings = work.readings if outcome.status == "ok" else ()
    expected = {"result.json", *(f"probe-{reading}.json" for reading in readings)}
    end = time.monotonic() + PATIENCE
    while not expected <= names_in(folder / work.id):
        if time.monotonic() > end:
            raise UserError(f"a worker has done the run {work.id}, and its files are not in {folder}: workers must "
                            "see the output folder by the same path, as on a shared disk")
        time.sleep(PACE)


def _outcome(work: Work, future: Future[Outcome], folder: Path) -> Outcome:
    """Return how work ended; without an answer it is lost.

    Raises:
        UserError: when a worker's program is not the one that named the work, or the folder is gone.
        OSError: when the folder cannot be written any more.
    """
    try:
        return future.result()
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_of_disk(error, folder):
            raise
        return Outcome(work.id, "lost", reason=first_words(error))
