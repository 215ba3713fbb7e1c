"""B19: what data in memory cost besides training: naming runs, sending them to workers, and drawing batches."""

from __future__ import annotations

import hashlib
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Contender, interleave, rows
from optscope.engine.data_files import DataFiles
from optscope.engine.packing import packed
from optscope.engine.plan import Plan
from optscope.evidence.records import Records
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.search import Grid
from optscope.tasks.fresh import epoch_permutation
from optscope.tasks.models import MLP
from optscope.tasks.task import Split, Task

LONGEST, LARGEST = 0.1, 100e3
"""Seconds that naming all runs of a comparison once more may take, and bytes of a run's message."""
BATCH, ORDER = 64, 7


def compared(inputs: torch.Tensor, labels: torch.Tensor) -> Comparison:
    """Return a comparison of two arms, four rates each, on data that nobody has looked at."""
    task = Task.from_tensors(MLP((784, 10)), (inputs, labels), (inputs[:1000], labels[:1000]))
    grid = Grid((0.01, 0.03, 0.1, 0.3))
    arms = Arm("SGD", SGD(lr=0.1), grid), Arm("Adam", Adam(lr=0.1), grid)
    return Comparison("data", task, arms, Plan(1, BATCH), (Accuracy(),), (1, 2, 3))


def b19() -> dict[str, Any]:
    """Name, send and draw from 60,000 examples of 784 numbers; batches are those taken by hand."""
    g = torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(60_000, 784, generator=g), torch.randint(10, (60_000,), generator=g)
    known = compared(inputs, labels)
    jobs = known.jobs(Records())
    with tempfile.TemporaryDirectory() as folder:
        files = DataFiles(Path(folder))
        message = len(packed(jobs[0].work, files))
        part = Split(inputs, labels)

        def ours() -> Any:
            return [part.batch(0, step, BATCH, ORDER) for step in range(500)][-1].inputs

        def by_hand() -> Any:
            order = epoch_permutation(len(inputs), ORDER, 0)
            some = (order[step * BATCH:(step + 1) * BATCH] for step in range(500))
            return [(inputs.index_select(0, each), labels.index_select(0, each)) for each in some][-1][0]

        assert torch.equal(ours(), by_hand())
        contenders = [
            Contender("naming the runs again", version("optscope"), "", lambda: known.jobs(Records())),
            Contender("naming them for the first time", "", "", lambda: compared(inputs, labels).jobs(Records())),
            Contender("SHA-256 of all bytes", "", "", lambda: hashlib.sha256(inputs.numpy().data).digest()),
            Contender("the message of a run", "", "", lambda: packed(jobs[0].work, files), {"bytes": message}),
            Contender("500 batches", "", "", ours), Contender("500 batches by hand", "", "", by_hand)]
        times = interleave(contenders)
    again, whole = f"naming again, of {LONGEST:g} seconds", f"a message, of {LARGEST / 1e3:g} kB"
    return {"bar": "B19", "work": "60,000 examples of 784 numbers in memory, 8 runs",
            "rows": rows(contenders, times),
            "ratio": {again: times.median("naming the runs again") / LONGEST, whole: message / LARGEST,
                      "500 batches over by hand": times.ratio("500 batches", "500 batches by hand")},
            "limit": {again: 1.0, whole: 1.0}}
