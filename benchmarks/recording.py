"""B25: what a recorder costs a step when no look is due, of the smallest of networks; there is no rival."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch.nn import functional

from benchmarks.timing import Contender, interleave, rows
from optscope.recorder import Recorder
from optscope.tasks.catalog import task_named
from optscope.tasks.task import Task

STEPS = 500
"""So many steps are timed at once."""
LIMIT = 1.03
"""A step with a recorder may take so many times one without."""


def steps(task: Task, recorder: Recorder | None) -> Callable[[], None]:
    """Return the loop of somebody who trains a network with Adam, a batch of 128 a step."""
    torch.manual_seed(0)
    model, part = task.model(), task.data().train.first(1280)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    batches = itertools.cycle(part.split(128))

    def run() -> None:
        for _ in range(STEPS):
            batch = next(batches)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch.inputs), batch.targets)
            loss.backward()
            optimizer.step()
            if recorder is not None:
                recorder.step(model, optimizer, loss)
    return run


def b25() -> dict[str, Any]:
    """Train with and without in turn; both end at the same loss."""
    task = task_named("fashion-mnist")
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(folder, arm="adam", seed=1, task=task, every=10**9)
        contenders = [Contender("a loop by hand", "", "", steps(task, None)),
                      Contender("with a recorder", version("optscope"), "", steps(task, recorder))]
        times = interleave(contenders, rounds=15)
    ratio = times.ratio("with a recorder", "a loop by hand")
    return {"bar": "B25", "work": f"{STEPS} steps of the MLP of Fashion-MNIST, 128 examples each, no look due",
            "rows": rows(contenders, times), "limit": {"with a recorder": LIMIT},
            "ratio": {"with a recorder": ratio}}
