"""A session: do the jobs that experiments name until they name no new ones, and tell what happens."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from optscope.engine.executor import Begun, Executor, Look, Outcome, Report
from optscope.engine.fork_server import shared_server
from optscope.engine.ledger import Ledger
from optscope.engine.once import looked_at_once
from optscope.engine.rows import Use, read
from optscope.engine.run import Run
from optscope.engine.run_folder import Contents
from optscope.engine.saved import Saved
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.records import Record, Records
from optscope.protocol.comparison import Comparison, Experiment, Job
from optscope.protocol.events import Ended, Event, EventFile, Listener, Moment, Named, Started


@dataclass(frozen=True)
class Results:
    """All records and arrays, and what gave none: failed jobs, probes that do not apply, with reasons.

    Arrays of calls are called "experiment/name"; those that probes kept of each arm's first seed,
    "experiment/arm/name".
    """

    records: Records
    arrays: Mapping[str, NDArray[Any]]
    failures: tuple[str, ...]
    inapplicable: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A job that gave nothing: its place, and how it ended."""

    use: Use
    outcome: Outcome

    def __str__(self) -> str:
        name = self.use.arm or self.use.experiment
        return f"{name} {self.use.rule} seed {self.use.seed}: {self.outcome.status}, {self.outcome.reason}"


class Session:
    """The work of some experiments in one folder, which is held while the session is open.

        with Session(experiments, store, executor) as session:
            for event in session:
                print(event)
            results = session.results()

    What is known when the experiments name their jobs is what their own earlier jobs gave, whatever else the folder
    holds: the result does not depend on the folder's history. A run that is finished is not repeated, and its files
    are read once.
    """

    def __init__(self, experiments: Sequence[Experiment], store: Store, executor: Executor) -> None:
        self.experiments, self.store, self.executor = experiments, store, executor
        self._named: set[Use] = set()
        self._uses: tuple[Use, ...] = ()
        self._found: dict[Use, tuple[list[Record], list[str]]] = {}
        self._records: Records | None = None
        self._failures: dict[str, Failure] = {}
        self._stage: Generator[Event, None, None] | None = None

    def __enter__(self) -> Session:
        with ExitStack() as held:
            held.enter_context(self.store.locked())
            held.enter_context(looked_at_once())
            held.enter_context(shared_server())
            self._ledger = Ledger(self.store.folder)
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with self._held:
            if self._stage is not None:
                self._stage.close()  # also when stopped: an executor leaves nothing running

    def __iter__(self) -> Iterator[Event]:
        """Yield the events of one stage after the other, until no new job is named."""
        while True:
            stage = self.step()
            first = next(stage, None)
            if first is None:
                return
            yield first
            yield from stage

    @property
    def records(self) -> Records:
        """All that is known now, in the order in which jobs were named."""
        if self._records is None:
            rows = (self._found[use][0] for use in self._uses if use in self._found)
            self._records = Records(chain.from_iterable(rows))
        return self._records

    def step(self) -> Iterator[Event]:
        """Let the experiments name a stage, and do it; yield its events, none when nothing new is named.

        Raises:
            UserError: when the folder disappears meanwhile; all that was finished is kept.
        """
        self._stage = self._events()
        return self._stage

    def results(self) -> Results:
        """Return all that was found, after writing what repeats it in the folder.

        Raises:
            UserError: when a learning rate cannot be chosen since the process of a tuning run died; all that was
                finished is kept.
        """
        lost = [f for f in self._failures.values() if f.outcome.status == "lost" and f.use.phase == "tune"]
        if lost:
            raise UserError(f"{len(lost)} tuning run(s) ended without a result, so that no learning rate can be "
                            f"chosen ({lost[0]}): run the same command again, with more memory or fewer --slots")
        unwritten = self._ledger.write(), self.store.index(self.records)
        known = [self._found[use] for use in self._uses if use in self._found]
        reasons = dict.fromkeys(chain.from_iterable(reasons for _, reasons in known))
        return Results(self.records, self._arrays(), tuple(map(str, self._failures.values())),
                       (*reasons, *filter(None, unwritten)))

    def _events(self) -> Generator[Event, None, None]:
        """Name a stage and do it."""
        jobs = [job for experiment in self.experiments for job in experiment.jobs(self.records)]
        fresh = {job.work.id for job in jobs if job.use not in self._named}
        if not fresh:
            return
        self._uses = tuple(dict.fromkeys(job.use for job in jobs))
        self._named.update(self._uses)
        self._records = None
        uses: dict[str, list[Use]] = {}
        for use in self._uses:
            uses.setdefault(use.run, []).append(use)
        unique = _merged(jobs)
        with uncollected():
            todo = [unique[run] for run in unique if run in fresh and self._is_open(unique[run], uses[run])]
        self.store.check_is_there()
        self.store.add_uses(self._uses)
        tuning = any(job.use.phase == "tune" for job in todo)
        trained = "" if all(isinstance(job.work, Saved) for job in jobs) else "training and "
        yield Named("tuning" if tuning else f"{trained}measuring", len(unique), len(unique) - len(todo),
                    tuple(unique), {e.name: (e.criterion.metric, e.criterion.better) for e in self.experiments
                                    if isinstance(e, Comparison)})
        with closing(self.executor.run([job.work for job in todo], self.store.folder / "runs")) as reports:
            for report in reports:
                self.store.check_is_there()
                yield self._heard(report, unique[report.id], uses[report.id])

    def _is_open(self, job: Job, uses: Iterable[Use]) -> bool:
        """Return whether a job is to be done: so is one that failed in an earlier command. Of others, read all."""
        contents = self._ledger.contents(job.work.id)
        if job.work.id not in self._failures and not is_done(job, contents):
            self.store.run_folder(job.work.id).forget_failure()
            return True
        self._take(uses, contents)
        return False

    def _heard(self, report: Report, job: Job, uses: Iterable[Use]) -> Event:
        """Return the event that a report tells of; when a job has ended, read what it left."""
        if isinstance(report, Begun):
            return Started(job.use, report.attempt)
        if isinstance(report, Look):
            return Moment(job.use, report.step, report.values)
        if report.status in ("failed", "lost"):
            self.store.run_folder(report.id).write_failure(report.status, report.reason)
            self._failures[report.id] = Failure(job.use, report)
        self._take(uses, self._ledger.contents(report.id))
        return Ended(job.use, report)

    def _take(self, uses: Iterable[Use], contents: Contents) -> None:
        """Keep what the uses of a run read of it."""
        self._found.update((use, read(use, contents)) for use in uses)
        self._records = None

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of calls, and those that probes kept of each arm's first seed."""
        calls = {f"{e.experiment}/{name}": array for e in self._uses if not e.arm
                 for name, array in self.store.run_folder(e.run).series().items()}
        kept = {f"{e.experiment}/{e.arm}/{name}": array for e in _first_seeds(self._uses) for probe in e.probes
                for name, array in self.store.run_folder(e.run).reading_arrays(probe).items()}
        return calls | kept


def run_experiments(experiments: Sequence[Experiment], store: Store, executor: Executor,
                    listener: Listener) -> Results:
    """Do every job of the experiments that is not done, and tell the listener and `events.jsonl` of it.

    The same call again repeats no finished run.

    Raises:
        UserError: when the folder disappears meanwhile, or a learning rate cannot be chosen since the process of a
            tuning run died; all that was finished is kept.
    """
    session = Session(experiments, store, executor)
    with closing(listener), session, closing(EventFile(store.folder)) as file:
        for event in session:
            file.hear(event)
            listener.hear(event)
        return session.results()


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold Python's collector back: many small values that all stay would send it through all, again and again.

    It saves a quarter of the time that a finished folder takes.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _first_seeds(uses: Sequence[Use]) -> list[Use]:
    """Return each arm's final use of its first seed."""
    found: dict[tuple[str, str], Use] = {}
    for use in sorted((e for e in uses if e.arm and e.phase == "final"), key=lambda e: e.seed):
        found.setdefault((use.experiment, use.arm), use)
    return list(found.values())


def _merged(jobs: Sequence[Job]) -> dict[str, Job]:
    """Return the jobs by their runs: a training that serves several places takes the probes of all of them."""
    merged: dict[str, Job] = {}
    for job in jobs:
        known = merged.get(job.work.id)
        if known is not None and isinstance(job.work, Run) and isinstance(known.work, Run):
            run = job.work
            probes = tuple(dict.fromkeys((*known.work.probes, *run.probes)))
            watch = tuple(dict.fromkeys((*known.work.watch, *run.watch)))
            job = Job(replace(run, probes=probes, watch=watch), job.use)
        merged[job.work.id] = job
    return merged


def is_done(job: Job, contents: Contents) -> bool:
    """Return whether a job has left all its files."""
    result = contents.result()
    return result is not None and (result["status"] != "ok" or all(map(contents.has_reading, job.work.readings)))
