"""B21: what runs cost the coordinator of a cluster: 10,000 of them on a pool that is simulated.

A few runs are trained; the pool answers every run with the files of one of them, as a worker without a shared disk
does, and all answers are there at once, so that nothing is ever waited for: what is measured is naming, packing and
submitting runs, writing and reading their files, records, the index, and the report. A process of its own.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.session import arms, settings, task
from optscope import lab
from optscope.engine.execute import Inline
from optscope.engine.executor import Outcome
from optscope.engine.futures import Futures
from optscope.engine.store import Store
from optscope.engine.wire import Answer
from optscope.protocol.compare import comparison_of
from optscope.protocol.events import Quiet
from optscope.protocol.rehearse import rehearsed
from optscope.protocol.session import run_experiments

RUNS, ARMS = 10_000, 10
SEEDS = RUNS // ARMS - 7
"""With three rates that are tried and four twins an arm."""
LIMITS = {"CPU a run [ms]": 15.0, "memory [MB]": 1024.0, "report, CPU [s]": 20.0, "page [MB]": 5.0}
"""The most that they may take."""


class Simulated(Executor):
    """A pool whose workers need no time: they answer with the files of runs that were trained before."""

    def __init__(self, files: Mapping[str, Mapping[str, bytes]]) -> None:
        self.files, self.messages, self.sent = files, 0, 0

    def submit(self, function: Callable[..., Any], /, *given: Any, **asked: Any) -> Future[Any]:
        """Answer at once."""
        sent, run, *_ = given
        future: Future[Any] = Future()
        future.set_result(Answer(Outcome(run, "ok", 1.0), self.files[run]))
        self.messages += 2
        self.sent += len(sent)
        return future


class Clock(Quiet):
    """A listener who notes what it took until all runs are done and their records are there."""

    def close(self) -> None:
        """Note them."""
        self.seconds, self.memory = time.process_time(), _memory()


def _memory() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulated(place: Path) -> Simulated:
    """Return a pool that knows what each run of a comparison leaves."""
    small, large = (rehearsed(comparison_of(task(), settings(n), arms(ARMS))).comparison for n in (2, SEEDS))
    records = run_experiments([small], Store(place), Inline(), Quiet()).records
    left = {job.work.id: {path.name: path.read_bytes() for path in (place / "runs" / job.work.id).iterdir()}
            for job in small.jobs(records)}
    kinds = {(job.use.arm, job.use.rule, job.use.phase): left[job.work.id] for job in small.jobs(records)}
    return Simulated({job.work.id: kinds[job.use.arm, job.use.rule, job.use.phase] for job in large.jobs(records)})


def measured() -> dict[str, float]:
    """Return what the runs take of this process."""
    os.fsync = lambda file: None  # time that a disk takes is none of the processor
    with tempfile.TemporaryDirectory() as place:
        pool, folder, clock = simulated(Path(place) / "few"), Path(place) / "many", Clock()
        start = time.process_time()
        page = lab.compare(task(), folder, arms=arms(ARMS), settings=settings(SEEDS), executor=Futures(pool),
                           listener=clock).report
        report = time.process_time() - clock.seconds
        disk = sum(path.stat().st_size for path in folder.rglob("*"))
        return {"CPU a run [ms]": 1e3 * (clock.seconds - start) / RUNS, "memory [MB]": _memory(),
                "before the report [MB]": clock.memory, "report, CPU [s]": report,
                "page [MB]": page.stat().st_size / 2**20, "messages a run": pool.messages / RUNS,
                "bytes a message": pool.sent / (pool.messages / 2), "disk a run [kB]": disk / RUNS / 1024}


def b21() -> Mapping[str, Any]:
    """Return what many runs cost the process that has them done."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        found = alone.submit(measured).result()
    counts = {name: round(value, 2) for name, value in found.items()}
    rows = [{"who": f"{RUNS} runs", "version": metadata.version("optscope"), "answer": "",
             "median_s": found["CPU a run [ms]"] / 1e3, "counts": counts}]
    return {"bar": "B21", "work": "runs on a simulated pool, a run's CPU-seconds of the coordinator", "rows": rows,
            "ratio": {name: found[name] for name in LIMITS}, "limit": LIMITS}
