"""Running experiments: do the jobs they name until they name no new ones, and keep what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from numpy.typing import NDArray

from optscope.engine.execute import Executor, Outcome
from optscope.engine.once import looked_at_once
from optscope.engine.run import Run
from optscope.engine.store import Store, Use
from optscope.errors import UserError
from optscope.evidence.records import Records
from optscope.protocol.comparison import Experiment, Job


class Listener(Protocol):
    """Someone who is told how the work goes."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """Hear that a stage of `total` jobs starts, of which `done` were finished earlier."""

    def say(self, sentence: str) -> None:
        """Hear what should be known before the work starts."""

    def end_of_job(self, outcome: Outcome) -> None:
        """Hear how one job ended."""

    def finish(self) -> None:
        """Hear that the stage is over."""


class Quiet:
    """A listener that says nothing."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """Say nothing."""

    def say(self, sentence: str) -> None:
        """Say nothing."""

    def end_of_job(self, outcome: Outcome) -> None:
        """Say nothing."""

    def finish(self) -> None:
        """Say nothing."""


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


def run_experiments(experiments: Sequence[Experiment], store: Store, executor: Executor,
                    listener: Listener) -> Results:
    """Do every job of the experiments that is not done; the same call again repeats no finished run.

    What is known when the experiments name their jobs is what their own earlier jobs gave, whatever else the folder
    holds: the result does not depend on the folder's history.

    Raises:
        UserError: when the folder disappears meanwhile, or a learning rate cannot be chosen since the process of a
            tuning run died; all that was finished is kept.
    """
    failures: dict[str, Failure] = {}
    named: set[Use] = set()
    records = Records()
    with store.locked(), looked_at_once():
        while True:
            jobs = [job for experiment in experiments for job in experiment.jobs(records)]
            fresh = {job.work.id for job in jobs if job.use not in named}
            if not fresh:
                break
            named.update(job.use for job in jobs)
            unique = {job.work.id: job for job in _merged(jobs)}
            todo = _todo([job for key, job in unique.items() if key in fresh and key not in failures], store)
            store.check_is_there()
            store.add_uses(job.use for job in jobs)
            tuning = any(job.use.phase == "tune" for job in todo)
            listener.begin("tuning" if tuning else "training and measuring", len(unique), len(unique) - len(todo))
            try:
                with closing(executor.run([job.work for job in todo], store.folder / "runs")) as outcomes:
                    for outcome in outcomes:
                        store.check_is_there()
                        if outcome.status in ("failed", "lost"):
                            store.run_folder(outcome.id).write_failure(outcome.status, outcome.reason)
                            failures[outcome.id] = Failure(unique[outcome.id].use, outcome)
                        listener.end_of_job(outcome)
            finally:
                listener.finish()  # also when stopped: a bar hides the terminal's cursor
            records = store.records(dict.fromkeys(job.use for job in jobs))
        lost = [f for f in failures.values() if f.outcome.status == "lost" and f.use.phase == "tune"]
        if lost:
            raise UserError(f"{len(lost)} tuning run(s) ended without a result, so that no learning rate can be "
                            f"chosen ({lost[0]}): run the same command again, with more memory or fewer --slots")
        unwritten = store.index(records)
    uses = list(dict.fromkeys(job.use for job in jobs))
    arrays = {f"{e.experiment}/{name}": array for e in uses if not e.arm
              for name, array in store.run_folder(e.run).series().items()}
    arrays |= {f"{e.experiment}/{e.arm}/{name}": array for e in _first_seeds(uses) for probe in e.probes
               for name, array in store.run_folder(e.run).reading_arrays(probe).items()}
    inapplicable = [*store.inapplicable(uses), *filter(None, [unwritten])]
    return Results(records, arrays, tuple(map(str, failures.values())), tuple(inapplicable))


def _todo(jobs: Sequence[Job], store: Store) -> list[Job]:
    """Return the jobs that are not done; what is damaged, or failed in an earlier command, is done anew."""
    for job in jobs:
        store.run_folder(job.work.id).mend()
    todo = [job for job in jobs if not is_done(job, store)]
    for job in todo:
        store.run_folder(job.work.id).forget_failure()
    return todo


def _first_seeds(uses: Sequence[Use]) -> list[Use]:
    """Return each arm's final use of its first seed."""
    found: dict[tuple[str, str], Use] = {}
    for use in sorted((e for e in uses if e.arm and e.phase == "final"), key=lambda e: e.seed):
        found.setdefault((use.experiment, use.arm), use)
    return list(found.values())


def _merged(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs so that each training that serves several places takes the probes of all of them."""
    merged: dict[str, Job] = {}
    for job in jobs:
        known = merged.get(job.work.id)
        if known is not None and isinstance(job.work, Run) and isinstance(known.work, Run):
            run = job.work
            probes = tuple(dict.fromkeys((*known.work.probes, *run.probes)))
            watch = tuple(dict.fromkeys((*known.work.watch, *run.watch)))
            job = Job(replace(run, probes=probes, watch=watch), job.use)
        merged[job.work.id] = job
    return list(merged.values())


def is_done(job: Job, store: Store) -> bool:
    """Return whether a job has left all its files."""
    folder = store.run_folder(job.work.id)
    if not folder.has_result():
        return False
    if not isinstance(job.work, Run) or folder.result()["status"] != "ok":
        return True
    return all(folder.has_reading(name) for name in job.work.readings)
