"""B17: a command that is repeated on a finished folder, which trains nothing and has all its numbers to find again.

The folders are those of `compare` on a small linear task, with every measurement that it takes of one: a few runs
are trained, and their folders copied to the names of all others, so that 5,000 take a minute. There is no rival.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.timing import Contender, interleave, rows
from optscope import lab
from optscope.engine.execute import Inline
from optscope.engine.store import Store
from optscope.evidence.records import Records
from optscope.optim import SGD
from optscope.protocol.compare import comparison_of
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.rehearse import rehearsed
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import Settings
from optscope.tasks.task import Task

SEEDS = 493
"""With three rates that are tried and four twins, 500 runs an arm."""
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


def arms(count: int) -> tuple[Arm, ...]:
    """Return so many optimisers, which differ in their momentum."""
    rates = Grid((0.1, 0.3, 1.0))
    return tuple(Arm(f"momentum {i / 20}", SGD(lr=0.1, momentum=i / 20), rates) for i in range(count))


def settings(seeds: int) -> Settings:
    """Return what makes a short comparison on so many seeds."""
    return Settings(seeds=seeds, epochs=2, batch=32, examples=32)


def finished(given: Task, count: int, few: Path, folder: Path) -> None:
    """Make a folder that a comparison of so many arms has finished, from a few runs that were trained."""
    small, large = (rehearsed(comparison_of(given, settings(n), arms(count))).comparison for n in (2, SEEDS))
    records = run_experiments([small], Store(few), Inline(), Quiet()).records
    kinds = {(job.use.arm, job.use.rule, job.use.phase): job.work.id for job in small.jobs(records)}
    Store(folder)
    for job in large.jobs(records):
        kind = kinds[job.use.arm, job.use.rule, job.use.phase]
        shutil.copytree(few / "runs" / kind, folder / "runs" / job.work.id)


def again(comparison: Comparison, folder: Path) -> Records:
    """Repeat the session of a comparison."""
    return run_experiments([comparison], Store(folder), Inline(), Quiet()).records


def b17() -> Mapping[str, Any]:
    """Return what a repeated session takes, and the whole command with its report, of 1,000 and 5,000 runs."""
    sync, os.fsync = os.fsync, lambda file: None  # time that a disk takes is none of the processor
    try:
        with tempfile.TemporaryDirectory() as place:
            return _measured(Path(place))
    finally:
        os.fsync = sync


def _measured(place: Path) -> Mapping[str, Any]:
    given, contenders, version = task(), [], metadata.version("optscope")
    for runs in LIMITS:
        folder = place / str(runs)
        chosen = arms(runs // 500)
        finished(given, len(chosen), place / "few", folder)
        comparison = rehearsed(comparison_of(given, settings(SEEDS), chosen)).comparison
        start = time.process_time()
        found = again(comparison, folder)
        without = time.process_time() - start
        door = partial(lab.compare, given, folder, arms=chosen, settings=settings(SEEDS), executor=Inline())
        count = len({row.run for row in found})
        contenders += [
            Contender(f"session, {runs} runs", version, f"{len(found)} numbers", partial(again, comparison, folder),
                      {"runs": count, "seconds without a ledger": round(without, 2)}),
            Contender(f"compare, {runs} runs", version, "and its report", door, {"runs": count})]
    times = interleave(contenders, rounds=3, warm_up=1)
    seconds = {f"{c.who} [s]": times.median(c.who) for c in contenders}
    limits = {f"{c.who} [s]": LIMITS[int(c.counts["runs"])] for c in contenders}
    return {"bar": "B17", "work": "a repeated command on a finished folder, CPU-seconds beyond imports",
            "rows": rows(contenders, times), "ratio": seconds, "limit": limits}
