"""Work on any executor of `concurrent.futures`: a pool of processes here or, by packages of others, on machines."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from optscope.engine.data_files import DATA, DataFiles
from optscope.engine.execute import PROGRAM, TRIES, perform_there
from optscope.engine.executor import Begun, Outcome, Report
from optscope.engine.identity import source_digest
from optscope.engine.looks import PACE, Tail
from optscope.engine.origin import users_folders
from optscope.engine.packing import is_of_disk, packed
from optscope.engine.place import Place
from optscope.engine.wire import Answer, Needed, bring_home, needed, perform_alone, users_modules
from optscope.engine.work import Work
from optscope.errors import UserError, first_words
from optscope.files import names_in

PATIENCE = 60.0
"""Seconds after which what a worker has written must be seen here: a shared disk may lag so far behind."""
AHEAD = 64
"""A pool begins work in its order, about: of what waits, so much is asked at once whether it has begun."""

_alone = threading.Lock()


def _nothing(place: Place) -> Mapping[str, Any]:
    return {}


def _itself(content: bytes) -> Any:
    return content


@dataclass(frozen=True)
class Futures:
    """An executor of `concurrent.futures` whose workers are processes, here or on other machines.

        with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
            compare(task, "runs/mine", executor=Futures(pool))

    A worker that sees the output folder by the same path works there. To another all that a run needs is brought,
    and what it leaves comes home with its answer; a run that dies there begins anew.

    `asking` says for a place what else `submit` is told, such as resources. `carried` makes of a data file's bytes
    what is sent with every run that needs it: a handle, where a pool has some of its own.

    Work that gets no answer, since its worker died or the pool broke, is lost, and tried again by the next command;
    what a pool itself gives up, as one whose scheduler starts anew, is submitted to it again, at most three times.
    That work has begun its worker says by a file of the run, for pools on other machines know it late, or never.
    Closed early, it withdraws what has not begun and waits for what has: nobody writes to the folder afterwards.
    Who has made the pool ends it.

    Raises:
        UserError: for a pool of threads, in which trainings would share torch's settings and random numbers.
    """

    pool: Executor
    asking: Callable[[Place], Mapping[str, Any]] = _nothing
    carried: Callable[[bytes], Any] = _itself

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
        mark = folder.parent / f".{uuid.uuid4().hex}.tmp"
        mark.touch()
        try:
            yield from _Submitted(self, works, folder, mark).reports()
        finally:
            mark.unlink(missing_ok=True)


@dataclass
class _Waiting:
    """A piece of work that a pool has taken."""

    work: Work
    tail: Tail
    far: bool
    attempt: int
    begun: bool = False


class _Submitted:
    """The work of one call of `Futures.run`, and what is known of it."""

    def __init__(self, given: Futures, works: Sequence[Work], folder: Path, mark: Path) -> None:
        self._given, self._works, self._folder, self._mark = given, works, folder, mark
        self._data, self._program = DataFiles(folder.parent / DATA), source_digest(*PROGRAM)
        self._asked = {place: given.asking(place) for place in {work.place for work in works}}
        self._far = False  # whether a worker was met that does not see the folder
        self._carried: dict[Path, Any] = {}
        self._given_up = 0  # how often the pool has, at most, what it was told
        self._waiting: dict[Future[Answer], _Waiting] = {}
        self._done: SimpleQueue[Future[Answer]] = SimpleQueue()

    def reports(self) -> Iterator[Report]:
        packed(list(self._works), self._data)  # together, so that what they share is looked at once
        try:
            for work in self._works:
                self._submit(work, self._far)
            looked = 0.0
            while self._waiting:
                try:
                    future = self._done.get(timeout=PACE)
                    yield from self._ended(future, self._waiting.pop(future))
                except Empty:
                    pass
                if time.monotonic() > looked + PACE:  # however many end meanwhile
                    yield from self._looks()
                    looked = time.monotonic()
        finally:
            self._close()

    def _close(self) -> None:
        """Withdraw what has not begun, wait for what has, and keep what it left."""
        wait([future for future, each in self._waiting.items()
              if each.tail.has_begun() or not _withdrawn(future)])
        for future, each in self._waiting.items():
            each.tail.close()
            if not future.cancelled() and (files := _answer(each.work, future, self._folder).files):
                bring_home(self._folder / each.work.id, files)

    def _submit(self, work: Work, far: bool, attempt: int = 1) -> None:
        pool = self._given.pool
        self._data.named.clear()
        sent = packed(work, self._data)
        files = needed(self._folder / work.id, [*self._data.named], self._modules) if far else []
        brought = [(each.name, each.modified) for each in files] if far else None
        try:
            future = pool.submit(perform_afar, sent, work.id, self._folder, self._mark.name, self._program,
                                 sorted(users_folders.get()), brought, *map(self._content, files),
                                 **self._asked[work.place])
        except RuntimeError as error:  # it was shut down, or has broken
            raise UserError(f"{type(pool).__name__} takes no work ({first_words(error)}): give Futures a pool "
                            "that is open, and run the same command again") from error
        self._waiting[future] = _Waiting(work, Tail(self._folder, work.id), far, attempt)
        future.add_done_callback(self._done.put)

    @cached_property
    def _modules(self) -> dict[str, Path]:
        return users_modules()

    def _content(self, file: Needed) -> Any:
        """Return what is sent of a file; those of data are shared by runs."""
        if not file.name.startswith(f"{DATA}/"):
            return file.path.read_bytes()
        if file.path not in self._carried:
            self._carried[file.path] = self._given.carried(file.path.read_bytes())
        return self._carried[file.path]

    def _looks(self) -> Iterator[Report]:
        """Yield what has begun, and what is seen of it on the way; what is not yet begun is asked in its order."""
        asked = list(islice((each for each in self._waiting.values() if not each.begun and not each.far), AHEAD))
        for each in asked:
            if each.tail.has_begun():
                each.begun = True
                yield Begun(each.work.id, each.attempt)
        for each in [each for each in self._waiting.values() if each.begun]:
            yield from each.tail.new()

    def _ended(self, future: Future[Answer], known: _Waiting) -> Iterator[Report]:
        work, tail = known.work, known.tail
        if future.cancelled() and known.attempt < TRIES:
            tail.close()
            if known.attempt > self._given_up:  # with all that it knew, handles too
                self._carried.clear()
                self._given_up = known.attempt
            self._submit(work, known.far, known.attempt + 1)
            return
        answer = _answer(work, future, self._folder)
        if answer.outcome is None:
            self._far = True
            self._submit(work, True, known.attempt)
            return
        if not known.begun:
            yield Begun(work.id, known.attempt)
        yield from tail.new()
        tail.close()
        if answer.files:
            bring_home(self._folder / work.id, answer.files)
        else:
            _check_seen(work, answer.outcome, self._folder)
        yield answer.outcome


def _withdrawn(future: Future[Answer]) -> bool:
    """Return whether work could be withdrawn."""
    try:
        return future.cancel()
    except NotImplementedError:  # Parsl's cannot
        return False


def perform_afar(sent: bytes, run: str, folder: Path, mark: str, program: str, path: Sequence[str],
                 brought: Sequence[tuple[str, int]] | None, *contents: bytes) -> Answer:
    """Do one piece of work in a process that others have started, in the output folder if its mark is seen here.

    There modules lie on `path` besides. Elsewhere it is done if files were `brought`, by name and time of change.
    Trainings of one process wait for each other, for they would share torch's settings and random numbers.

    Raises:
        UserError: when the program is not the one that named the work.
    """
    with _alone:
        if (folder.parent / mark).is_file():
            Tail(folder, run).begin()
            sys.path += [place for place in path if place not in sys.path]
            return Answer(perform_there(sent, folder, program))
        return Answer() if brought is None else perform_alone(sent, run, program, brought, contents)


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
            raise UserError(f"a worker has done the run {work.id} in {folder}, and its files are not seen here "
                            "after a minute: see to the disk that is shared, and run the same command again")
        time.sleep(PACE)


def _answer(work: Work, future: Future[Answer], folder: Path) -> Answer:
    """Return what a worker says of work; without an answer it is lost.

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
        return Answer(Outcome(work.id, "lost", reason=first_words(error)))
