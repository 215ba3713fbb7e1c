"""B16: a command that is repeated on a finished folder, which trains nothing and has all its numbers to find again.

The folders are those of `compare` on a small linear task, with every measurement that it takes of one: a few runs are
trained, and their folders copied to the names of all others, so that 5,000 take half a minute. There is no rival.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import optscope
from benchmarks.timing import Contender, interleave, rows
from optscope import lab
from optscope.engine.execute import Inline
from optscope.engine.store import Store
from optscope.evidence.records import Records
from optscope.optim import SGD, Adam
from optscope.protocol.compare import comparison_of
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.rehearse import rehearsed
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import Settings
from optscope.tasks.task import Task

ARMS = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3, 1.0))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.03, 0.1))))
LIMITS = {1000: 2.0, 5000: 6.0}
"""CPU-seconds that a folder of so many runs may take."""


def model() -> nn.Module:
    """Return a linear model."""
    return nn.Linear(4, 3)


def task() -> Task:
    """Return a small task of three classes."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(96, 4, generator=generator), torch.arange(96) % 3
    return Task.from_tensors(model, (x, y), (x, y), name="linear", bounds=(0.0, 1.0))


def settings(runs: int) -> Settings:
    """Return what makes a comparison of so many runs: 6 that tune, 8 twins, and the rest on seeds."""
    return Settings(seeds=(runs - 14) // 2, epochs=2, batch=32, examples=32)


def finished(given: Task, runs: int, few: Path, folder: Path) -> None:
    """Make a folder that a comparison of so many runs has finished, from a few runs that were trained."""
    small, large = (rehearsed(comparison_of(given, settings(n), ARMS)).comparison for n in (26, runs))
    records = run_experiments([small], Store(few), Inline(), Quiet()).records
    kinds = {(job.use.arm, job.use.rule, job.use.phase): job.work.id for job in small.jobs(records)}
    Store(folder)
    for job in large.jobs(records):
        shutil.copytree(few / "runs" / kinds[job.use.arm, job.use.rule, job.use.phase], folder / "runs" / job.work.id)


def again(comparison: Comparison, folder: Path) -> Records:
    """Repeat the session of a comparison."""
    return run_experiments([comparison], Store(folder), Inline(), Quiet()).records


def b16() -> Mapping[str, Any]:
    """Return what a repeated session takes, and the whole command with its report, of 1,000 and 5,000 runs."""
    sync, os.fsync = os.fsync, lambda file: None  # time that a disk takes is none of the processor
    try:
        with tempfile.TemporaryDirectory() as place:
            return _measured(Path(place))
    finally:
        os.fsync = sync


def _measured(place: Path) -> Mapping[str, Any]:
    given, contenders = task(), []
    for runs in LIMITS:
        folder = place / str(runs)
        finished(given, runs, place / "few", folder)
        comparison = rehearsed(comparison_of(given, settings(runs), ARMS)).comparison
        start = time.process_time()
        found = again(comparison, folder)
        first = time.process_time() - start
        door = partial(lab.compare, given, folder, arms=ARMS, settings=settings(runs), executor=Inline())
        count = len({row.run for row in found})
        contenders += [
            Contender(f"session, {runs} runs", optscope.__version__, f"{len(found)} numbers", partial(again, comparison, folder),
                      {"runs": count, "first time, no ledger yet [s]": round(first, 2)}),
            Contender(f"compare, {runs} runs", optscope.__version__, "its report too", door, {"runs": count})]
    times = interleave(contenders, rounds=3, warm_up=1)
    seconds = {f"session, {runs} runs [s]": times.median(f"session, {runs} runs") for runs in LIMITS}
    return {"bar": "B16", "work": "a repeated command on a finished folder, CPU-seconds beyond imports",
            "rows": rows(contenders, times), "ratio": seconds,
            "limit": {f"session, {runs} runs [s]": limit for runs, limit in LIMITS.items()}}
