"""A run: one training with its measurements, known by everything that changes its bits."""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from optscope.devices import forked
from optscope.engine.checkpoint import load_snapshot
from optscope.engine.data_files import DATA
from optscope.engine.identity import describe, digest
from optscope.engine.naming import agreed, check_same, named, named_task
from optscope.engine.numerics import check_numerics
from optscope.engine.observed import Observed
from optscope.engine.place import CPU, Place
from optscope.engine.plan import EPOCHS, Plan
from optscope.engine.ranks import ranked
from optscope.engine.run_folder import RunFolder, packed
from optscope.engine.saving import Saving
from optscope.engine.training import Trained, Training
from optscope.engine.watch import Watch
from optscope.engine.work import OnTask, Placed, ProbesError, probe_id, taken, watch_id
from optscope.evidence.records import NO_FACTORS, Factor, Record, check_factors
from optscope.optim.rule import Rule
from optscope.probes.probe import Probe
from optscope.tasks.task import Task


@dataclass(frozen=True)
class Run(OnTask):
    """Train `task` by `rule` from `seed`, watched by some probes, then take the others.

    Measuring changes no bits of the training, so it is no part of the identity: each reading keeps its own
    file. Probes added later do not train again; what shall be watched later does, to the same bits. So do probes
    added to a run that does not `keep` its weights (of large models, 4 bytes a parameter and run).

    It is done at its `place`, which belongs to its identity: elsewhere than it was named for it is refused.

    Every `checkpoint` seconds the training's state is written: after a kill it goes on from there, to the same
    bits.
    """

    task: Task
    rule: Rule
    plan: Plan
    seed: int
    probes: tuple[Probe, ...] = ()
    watch: tuple[Watch, ...] = ()
    keep: bool = True
    checkpoint: float = 60.0
    place: Place = CPU

    @cached_property
    def id(self) -> str:
        """Return the digest of everything that changes the training's bits."""
        return digest({"task": named_task(self.task).digest, "rule": named(self.rule).digest,
                       "plan": named(self.plan).digest, "seed": self.seed, "loop": named(Training).digest,
                       "numerics": self.numerics})

    @cached_property
    def readings(self) -> tuple[str, ...]:
        """The names of what is read, first by `probes`, then by `watch`."""
        return (*map(probe_id, self.probes), *map(watch_id, self.watch))

    @property
    def parts(self) -> tuple[object, ...]:
        """Its plan, its rule and all of its probes."""
        return (self.plan, self.rule, *self.probes, *(w.probe for w in self.watch))

    def perform(self, folder: RunFolder) -> str:
        """Train unless that is done, then take the probes that are not.

        Raises:
            ProbesError: when some probes stopped with errors; after all the others were taken.
        """
        with self.settings.hold(self.place):
            return self._perform(folder)

    def _perform(self, folder: RunFolder) -> str:
        names = dict(zip((*self.probes, *self.watch), self.readings, strict=True))
        missing = {each: name for each, name in names.items() if not folder.has_reading(name)}
        trained = folder.has_result()
        if trained and (not missing or folder.result()["status"] != "ok"):
            return str(folder.result()["status"])
        task = self.task_here()
        errors: list[str] = []
        if not trained or not folder.has_weights() or any(isinstance(each, Watch) for each in missing):
            errors += self._train(task, folder, {w: name for w, name in missing.items() if isinstance(w, Watch)})
        result = folder.result()
        untaken = {each: name for each, name in missing.items() if isinstance(each, Probe)}
        if result["status"] == "ok" and untaken:
            snapshot = dataclasses.replace(load_snapshot(task, folder.path), rule=self.rule)
            errors += taken(snapshot, untaken, folder)
        if errors:
            raise ProbesError("; ".join(dict.fromkeys(errors)))
        if not self.keep:
            folder.drop_weights()
        return str(result["status"])

    def _train(self, task: Task, folder: RunFolder, watch: Mapping[Watch, str]) -> list[str]:
        """Train, write what the watching probes found and the result, and return the errors of probes."""
        data = folder.path.parent.parent / DATA
        make = partial(ranked, task, self.rule, self.plan, self.seed, self.place, data)
        observed = Observed(make, watch, folder, self.id, self.checkpoint)
        trained = observed.run().trained()
        for w, name in watch.items():
            if name not in observed.errors:
                folder.write_reading(name, repr(w.probe), observed.seen[name], observed.silences.get(name, ""))
        if not folder.has_result() or not folder.has_weights():
            series = {name: trace.cpu().numpy() for name, trace in trained.traces.items()}
            told = {"unsaved": observed.unsaved, "uncompiled": observed.training.uncompiled}
            alone = self.place.device == "cpu" and self.place.ranks == 1  # else this process does a part of it
            cost = observed.cost() if alone else {}
            folder.write_result(
                self._summary(trained) | observed.spent() | cost | told,
                {"losses": trained.losses.cpu().numpy(), **series}, trained.snapshot.model.state_dict())
        folder.drop_state()
        return list(observed.errors.values())

    def _summary(self, trained: Trained) -> dict[str, Any]:
        tail = trained.losses[-max(1, len(trained.losses) // (self.plan.epochs or EPOCHS)):]
        return {"status": "ok" if trained.diverged_at is None else "diverged",
                "diverged_at": trained.diverged_at, "steps": len(trained.losses), "seed": self.seed,
                "rule": repr(self.rule), "lr": self.rule.lr, "task": self.task.name, "plan": repr(self.plan),
                "batch": self.plan.batch, "numerics": self.settings.numerics(self.place), "place": repr(self.place),
                "train_loss": float(tail.mean()), "metrics": dict(trained.metrics),
                "parameters": sum(p.numel() for p in trained.snapshot.model.parameters())}


@dataclass(frozen=True)
class Call(Placed):
    """A result that needs no training of a network: a function at the top of a module, and its arguments.

    One that trains all the same takes a parameter `saving` (`optscope.engine.saving.Saving`), and goes on after a
    kill. It returns rows, each a number `measured` with its arm, seed and factors, and arrays worth keeping.
    `factors` are given to all of its rows besides, and are no part of what it is known by. It has the threads of
    its `place`.

    Raises:
        UserError: when a factor has the name of a column, or is neither a number nor a word.
    """

    readings: ClassVar[tuple[str, ...]] = ()
    function: Callable[..., tuple[list[Record], Mapping[str, NDArray[Any]]]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, Factor] = field(default_factory=lambda: NO_FACTORS)
    place: Place = CPU

    def __post_init__(self) -> None:
        check_factors(self.factors, f"the call of {self.function.__qualname__}")

    @cached_property
    def id(self) -> str:
        """Return the digest of the function, of all that it names, and of its arguments."""
        places = [os.fspath(v) for v in self.arguments.values() if isinstance(v, (str, os.PathLike))]
        return digest({"function": named(self.function).digest, "arguments": describe(dict(self.arguments)),
                       "places": places, "numerics": self.numerics})

    @cached_property
    def users(self) -> Mapping[str, str]:
        """Digests of all in the function that is the user's."""
        return named(self.function).users

    def __getstate__(self) -> dict[str, Any]:
        """Take the identity along; the settings come first."""
        return {"settings": self.settings, "id": self.id, "users": self.users,
                "numerics": self.numerics} | vars(self)

    def verify(self) -> None:
        """Raise unless the function that this process has loaded is the one that named the work.

        Raises:
            UserError: naming what is not the same.
        """
        check_numerics(self.function.__qualname__, self.settings.numerics(self.place), self.numerics)
        with self.settings.hold(self.place):
            if not agreed(self.users):
                check_same(self.function.__qualname__, [named(self.function)], self.users)

    def perform(self, folder: RunFolder) -> str:
        """Call the function unless that is done."""
        if not folder.has_result():
            start, saving = time.perf_counter(), Saving(folder, self.id)
            trains = "saving" in inspect.signature(self.function).parameters
            with self.settings.hold(self.place), forked():
                rows, arrays = self.function(**self.arguments, **({"saving": saving} if trains else {}))
            summary = {"status": "ok", "seconds": time.perf_counter() - start, "rule": "", "seed": 0,
                       "unsaved": saving.unsaved, **packed(rows)}
            folder.write_result(summary, {k: np.asarray(v) for k, v in arrays.items()}, {})
        return "ok"
