"""A run: one training with its measurements, known by everything that changes its bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from optscope.engine.identity import code, describe, digest, numerics
from optscope.engine.store import RunFolder
from optscope.engine.train import Plan, Trained, train
from optscope.errors import UserError
from optscope.optim.rule import Rule
from optscope.probes.probe import Probe, Reading
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task


class Work(Protocol):
    """Something that is done once, in a worker, and leaves its results in a folder of its own."""

    @property
    def id(self) -> str:
        """What it is known by: 16 hex digits."""

    def perform(self, folder: RunFolder) -> str:
        """Do what is not done yet, write it to `folder`, and return a status: "ok" or "diverged"."""


@dataclass(frozen=True)
class Run:
    """Train `task` by `rule` from `seed`, then take every probe.

    `watch` are probes taken during training too, `moments` times, evenly spaced, the end included. Probes
    can be added later without training again: each keeps its own file.
    """

    task: Task
    rule: Rule
    plan: Plan
    seed: int
    probes: tuple[Probe, ...] = ()
    watch: tuple[Probe, ...] = ()
    moments: int = 10

    @cached_property
    def id(self) -> str:
        """Return the digest of everything that changes the training's bits."""
        return digest({"task": describe(self.task), "rule": describe(self.rule), "plan": describe(self.plan),
                       "seed": self.seed, "numerics": numerics(), "code": self._code(),
                       "watch": [probe_id(p) for p in self.watch] + [self.moments]})

    def _code(self) -> str:
        task = self.task
        parts = (task.model, task.data, task.loss, task.augment, self.rule)
        modules = {getattr(part, "__module__", None) or type(part).__module__ for part in parts}
        return code("optscope.engine.train", "optscope.optim", *sorted(modules))

    def perform(self, folder: RunFolder) -> str:
        """Train unless that is done, then take the probes that are not."""
        if not folder.has_result():
            self._train(folder)
        result = folder.result()
        missing = [p for p in self.probes if not folder.has_reading(probe_id(p))]
        if missing and result["status"] == "ok":
            model = self.task.model()
            model.load_state_dict(folder.weights())
            snapshot = Snapshot(model, self.task, self.seed, int(result["steps"]), self.rule)
            for probe in missing:
                try:
                    reading, reason = probe(snapshot), ""
                except UserError as error:  # the probe does not fit this model: that is a result too
                    reading, reason = Reading({}), str(error)
                folder.write_reading(probe_id(probe), repr(probe), reading, reason)
        return str(result["status"])

    def _train(self, folder: RunFolder) -> None:
        watched: list[tuple[int, str, Reading]] = []

        def take(snapshot: Snapshot) -> None:
            assert snapshot.step is not None
            watched.extend((snapshot.step, repr(probe), probe(snapshot)) for probe in self.watch)

        wall, cpu = time.perf_counter(), time.process_time()
        trained = train(self.task, self.rule, self.plan, self.seed, watch=take, at=self._moments())
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        folder.write_result(self._summary(trained) | spent, {"losses": trained.losses.numpy()},
                            trained.snapshot.model.state_dict(), watched)

    def _moments(self) -> frozenset[int]:
        if not self.watch:
            return frozenset()
        steps = self.plan.steps(len(self.task.data().train))
        return frozenset(round(steps * (i + 1) / self.moments) for i in range(self.moments))

    def _summary(self, trained: Trained) -> dict[str, Any]:
        tail = trained.losses[-max(1, len(trained.losses) // self.plan.epochs):]
        return {"status": "ok" if trained.diverged_at is None else "diverged",
                "diverged_at": trained.diverged_at, "steps": len(trained.losses), "seed": self.seed,
                "rule": repr(self.rule), "lr": self.rule.lr, "task": self.task.name, "plan": repr(self.plan),
                "numerics": numerics(), "train_loss": float(tail.mean()),
                "parameters": sum(p.numel() for p in trained.snapshot.model.parameters())}


@dataclass(frozen=True)
class Row:
    """One number that a computation found, with the arm and seed it speaks of."""

    arm: str
    seed: int
    metric: str
    value: float
    at: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class Computation:
    """A result that needs no training of a network: a function at the top of a module, and its arguments.

    The function returns rows, and arrays that are worth keeping.
    """

    function: Callable[..., tuple[list[Row], Mapping[str, NDArray[Any]]]]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Return the digest of the function, its arguments and the package's code below it."""
        return digest({"function": describe(self.function), "arguments": describe(dict(self.arguments)),
                       "numerics": numerics(), "code": code(self.function.__module__)})

    def perform(self, folder: RunFolder) -> str:
        """Call the function unless that is done."""
        if not folder.has_result():
            start = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                rows, arrays = self.function(**self.arguments)
            summary = {"status": "ok", "seconds": time.perf_counter() - start, "rule": "", "seed": 0,
                       "rows": [[r.arm, r.seed, r.metric, r.value, r.at, r.step] for r in rows]}
            folder.write_result(summary, {k: np.asarray(v) for k, v in arrays.items()}, {}, [])
        return "ok"


def probe_id(probe: Probe) -> str:
    """Return the digest of a probe's settings and of the code that measures."""
    return digest({"probe": describe(probe), "code": code(type(probe).__module__)})
