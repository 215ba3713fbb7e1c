"""Work on any executor of `concurrent.futures`: a pool of processes here or, by packages of others, on machines."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from optscope.engine.data_files import DataFiles
from optscope.engine.execute import PROGRAM, is_of_disk, packed, perform_there
from optscope.engine.executor import Begun, Outcome, Report
from optscope.engine.identity import source_digest
from optscope.engine.looks import PACE, Tail
from optscope.engine.run import Work
from optscope.errors import UserError, first_words


@dataclass(frozen=True)
class Futures:
    """An executor of `concurrent.futures` whose workers are processes that see the output folder by the same path.

        with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
            compare(task, "runs/mine", executor=Futures(pool))

    Work that gets no answer, since its worker died or the pool broke, is lost, and tried again by the next command.
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
        folder.mkdir(parents=True, exist_ok=True)
        data, program = DataFiles(folder.parent / "data"), source_digest(*PROGRAM)
        packed(list(works), data)  # together, so that what they share is looked at once
        waiting: dict[Future[Outcome], tuple[Work, Tail]] = {}
        begun: set[Future[Outcome]] = set()
        try:
            for work in works:
                waiting[self._submit(packed(work, data), folder, program)] = work, Tail(folder, work.id)
            while waiting:
                done = wait(waiting, timeout=PACE, return_when=FIRST_COMPLETED).done
                for future, (work, tail) in list(waiting.items()):
                    if future not in begun and (future.running() or future in done):
                        begun.add(future)
                        yield Begun(work.id)
                    if future in begun:
                        yield from tail.new()
                for future in done:
                    work, tail = waiting.pop(future)
                    tail.close()
                    yield _outcome(work, future, folder.absolute())
        finally:
            wait([future for future in waiting if not future.cancel()])
            for _, tail in waiting.values():
                tail.close()

    def _submit(self, sent: bytes, folder: Path, program: str) -> Future[Outcome]:
        try:
            return self.pool.submit(perform_there, sent, folder.absolute(), program)
        except RuntimeError as error:  # it was shut down, or has broken
            raise UserError(f"{type(self.pool).__name__} takes no work ({first_words(error)}): give Futures a pool "
                            "that is open, and run the same command again") from error


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
