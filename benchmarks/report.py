"""B28: how long the judging and the report of a comparison take, and whether they grow in a straight line."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.session import settings, task
from benchmarks.timing import Contender, interleave, rows
from optscope.analyses.usual import said, usual
from optscope.engine.once import looked_at_once
from optscope.engine.store import Store
from optscope.evidence.records import Record, Records
from optscope.optim import SGD
from optscope.protocol.compare import comparison_of
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.search import Grid
from optscope.report.document import Document
from optscope.report.page import write
from optscope.report.tables import runs_table

MOMENTS, RADII, TRIED = range(50, 550, 50), (0.1, 0.2, 0.5, 1.0, 2.0), (0.01, 0.03, 0.1)
SIZES = {(16, 10): 4.0, (64, 10): 15.0, (16, 300): 10.0}
"""Arms and seeds, and in how many CPU-seconds they have to be judged and drawn."""
LARGEST = 5.0
"""Megabytes that the page of 5,000 runs may have."""


def arms(count: int) -> tuple[Arm, ...]:
    """Return so many optimisers."""
    return tuple(Arm(f"momentum {i / 128:g}", SGD(lr=0.1, momentum=i / 128), Grid(TRIED)) for i in range(count))


def made(comparison: Comparison, seeds: int) -> Iterator[Record]:
    """Yield the records of a comparison as it would leave them, of random numbers: tuning, final runs and twins."""
    draw = np.random.default_rng(0)
    wanted = [(metric.name, at) for probe in comparison.probes for metric in probe.metrics
              for at in (RADII if metric.axis else (None,))]
    for level, arm in enumerate(comparison.arms):
        runs = [("tune", seed, f"lr={lr:g}") for seed in (1001, 1002) for lr in TRIED]
        runs += [("final", seed, "lr=0.03") for seed in range(1, seeds + 1)]
        runs += [("twin", seed, f"k = {k}") for seed in (1, 2) for k in (3, 5)]
        for phase, seed, rule in runs:
            row = Record(comparison.name, arm.name, seed, "", 0.0, phase=phase, rule=rule,
                         run=f"{arm.name} {phase} {seed} {rule}")
            numbers = [(metric, None, step) for step in MOMENTS for metric in ("loss", "accuracy")]
            numbers += [(metric, at, None) for metric, at in wanted]
            for metric, at, step in numbers:
                yield replace(row, metric=metric, at=at, step=step, value=70 + level + float(draw.normal()))
            yield replace(row, metric="learning rate", value=float(TRIED[runs.index((phase, seed, rule)) % 3]))


def reported(comparison: Comparison, records: Records, seeds: int, folder: Path) -> Path:
    """Judge records anew, whose indexes are not made yet, and write the report."""
    rows_ = Records(records)
    with looked_at_once():
        found = said(comparison, rows_, usual(settings(seeds), Store(folder / "runs")))
    return write(Document("t", "q", "\n".join(found.sentences), found.warnings, found.verdicts, None, (),
                          found.figures, found.tables, found.checks, {}, "", runs_table(rows_), found.summaries,
                          found.openers, found.details, {}, found.measures), folder)


def b28() -> dict[str, Any]:
    """Judge and draw three sizes in turn; the page of the largest is small, and time grows as records do."""
    with tempfile.TemporaryDirectory() as place:
        contenders, counts = [], {}
        for (count, seeds), _ in SIZES.items():
            comparison = comparison_of(task(), settings(seeds), arms(count))
            records = Records(made(comparison, seeds))
            folder = Path(place) / f"{count} {seeds}"
            page = reported(comparison, records, seeds, folder)
            counts[count, seeds] = len(records)
            contenders.append(Contender(
                f"{count} arms of {seeds} seeds", version("optscope"), "",
                partial(reported, comparison, records, seeds, folder),
                {"records": len(records), "runs": len({row.run for row in records}),
                 "page in MB": round(page.stat().st_size / 1e6, 2)}))
        times = interleave(contenders, rounds=1, warm_up=0)
    medians = {size: times.median(c.who) for size, c in zip(SIZES, contenders, strict=True)}
    names = {size: f"{c.who}, of {SIZES[size]:g} seconds" for size, c in zip(SIZES, contenders, strict=True)}
    growth = "time of 64 arms over that of 16, by their records"
    peak = "memory at its peak, of 500 MB"
    large = f"page of 5,000 runs, of {LARGEST:g} MB"
    ratios = {names[size]: medians[size] / SIZES[size] for size in SIZES}
    ratios |= {growth: medians[64, 10] / medians[16, 10] / (counts[64, 10] / counts[16, 10]),
               large: contenders[-1].counts["page in MB"] / LARGEST,
               peak: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 500}
    return {"bar": "B28", "work": "judging and report of a comparison of random numbers", "rows": rows(
        contenders, times), "limit": dict.fromkeys(ratios, 1.0), "ratio": ratios}
