"""Conducting experiments: do the jobs they name until they name no new ones, and keep what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from numpy.typing import NDArray

from optscope.engine.execute import Engine, Outcome
from optscope.engine.run import Run
from optscope.engine.store import Entry, Store
from optscope.evidence.records import Records
from optscope.study.comparison import Experiment, Job


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


class Silence:
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
class Conducted:
    """All records and arrays, and what gave none: failed jobs, silent probes, with reasons.

    Arrays of calculations are called "experiment/name"; those that probes kept of each arm's first seed,
    "experiment/arm/name".
    """

    records: Records
    arrays: Mapping[str, NDArray[Any]]
    failures: tuple[str, ...]
    silences: tuple[str, ...]


def conduct(experiments: Sequence[Experiment], store: Store, engine: Engine, listener: Listener) -> Conducted:
    """Do every job of the experiments that is not done; the same call again repeats no finished run."""
    failures: dict[str, str] = {}
    with store.locked():
        # Failures of earlier commands are tried again: until then nothing may be chosen by them.
        for job in (job for experiment in experiments for job in experiment.jobs(store.records())):
            if not is_done(job, store):
                store.run_folder(job.work.id).forget_failure()
        for _ in range(2):  # the first stage chooses learning rates, the second uses them
            records = store.records()
            jobs = [job for experiment in experiments for job in experiment.jobs(records)]
            store.add_entries(job.entry for job in jobs)
            unique = {job.work.id: job for job in _merged(jobs)}
            todo = [job for key, job in unique.items() if key not in failures and not is_done(job, store)]
            tuning = any(job.entry.phase == "tune" for job in todo)
            listener.begin("tuning" if tuning else "training and measuring", len(unique),
                           len(unique) - len(todo))
            try:
                for outcome in engine.run([job.work for job in todo], store.folder / "runs"):
                    if outcome.status in ("failed", "lost"):
                        store.run_folder(outcome.id).write_failure(outcome.status, outcome.reason)
                        entry = unique[outcome.id].entry
                        failures[outcome.id] = (f"{entry.arm or entry.experiment} {entry.rule} seed "
                                                     f"{entry.seed}: {outcome.status}, {outcome.reason}")
                    listener.end_of_job(outcome)
            finally:
                listener.finish()  # also when stopped: a bar hides the terminal's cursor
    records = store.records()
    wanted = {job.entry for experiment in experiments for job in experiment.jobs(records)}
    entries = [e for e in store.entries() if e in wanted]
    wanted_records = store.records(entries)
    store.index(wanted_records)
    arrays = {f"{e.experiment}/{name}": array for e in entries if not e.arm
              for name, array in store.run_folder(e.run).series().items()}
    arrays |= {f"{e.experiment}/{e.arm}/{name}": array for e in _first_seeds(entries) for probe in e.probes
               for name, array in store.run_folder(e.run).reading_arrays(probe).items()}
    return Conducted(wanted_records, arrays, tuple(failures.values()), tuple(store.silences(entries)))


def _first_seeds(entries: Sequence[Entry]) -> list[Entry]:
    """Return each arm's final entry of its first seed."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in sorted((e for e in entries if e.arm and e.phase == "final"), key=lambda e: e.seed):
        found.setdefault((entry.experiment, entry.arm), entry)
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
            job = Job(replace(run, probes=probes, watch=watch), job.entry)
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
