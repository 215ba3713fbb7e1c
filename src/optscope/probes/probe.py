"""A probe measures one model: the final `__call__` checks and restores, authors write `measure`.

A probe never trains, draws only from the generator it is handed, and leaves the model as it found it. *When*
it is taken is decided elsewhere. What it needs of a task it declares (`needs`), and says in one sentence where a
task has it not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optscope.devices import device_of, to_floats
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.probes.needs import Need, missing
from optscope.probes.perturbation import check_box
from optscope.probes.still import as_meant, as_written, check_finite, still, whole
from optscope.tasks.fresh import seeded
from optscope.tasks.kinds import BATCH, KINDS, portion
from optscope.tasks.mean_loss import check_mean
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Loss, Split, Task
from optscope.tasks.tree import Batch, Tree, leaf_name, leaves, mapped, replaced

Value = float | Mapping[float, float]
"""One number, or one a coordinate on the metric's axis."""

SEEDS = 2**32
"""So many seeds the global generators of NumPy know."""

Memory = Mapping[str, Tensor]
"""What a probe found that helps it to measure the next moment of the same training."""


@dataclass(frozen=True)
class Subject:
    """What an author's `measure` sees: the model in eval mode with frozen parameters, and its examples.

    `batch` holds the examples; their inputs and targets are tensors or trees of tensors, so that the model is
    called by `outputs` and its loss taken by `value` or `judged`. `trained` names the parameters that training
    moves, those of a trained loss among them: no others belong to gradients and curvature.
    `memory` is that of the reading before, empty at the first: it may shorten the way to an answer.
    """

    model: nn.Module
    batch: Batch
    generator: torch.Generator
    snapshot: Snapshot
    trained: tuple[str, ...]
    memory: Memory = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """The task that the model was trained on."""
        return self.snapshot.task

    @property
    def inputs(self) -> Any:
        """The inputs, a tree; who declares that it needs a tensor may use it as one."""
        return self.batch.inputs

    @property
    def targets(self) -> Any:
        """The targets, a tree."""
        return self.batch.targets

    @property
    def loss(self) -> Loss:
        """The loss as the model holds it: `loss(outputs, targets)`, or `loss(outputs, batch)`."""
        return self.task.loss_in(self.model)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range of the inputs that noise and attacks move."""
        return self.task.bounds

    @property
    def device(self) -> torch.device:
        """Where the examples and the model lie."""
        return next(iter(leaves(self.batch.inputs).values())).device

    def outputs(self, inputs: Tree) -> Tensor:
        """Return the model's outputs for inputs."""
        return self.task.outputs(self.model, inputs)

    def value(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch."""
        return self.judged(self.outputs(batch.inputs), batch)

    def judged(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of outputs that the model has given for a batch."""
        return self.task.judged(self.model, outputs, batch)

    def take(self, where: Tensor) -> Subject:
        """Return the subject with the examples at `where` alone."""
        return replace(self, batch=self.batch.take(where))

    @property
    def leaf(self) -> Tensor:
        """The floating point part of the inputs that noise, attacks and Lipschitz constants move, `(n, ...)`."""
        found: Tensor = leaves(self.batch.inputs)[self.task.perturbed(self.batch.inputs) or ""]
        return found

    def moved(self, x: Tensor, where: Tensor) -> Tensor:
        """Return the outputs of the examples at `where` `(m,)`, with `x` `(m, ...)` in the place of their `leaf`.

        All else that the model is given stays what it is for these examples; in the precision of `x`, where that is
        another one than the leaf's.
        """
        inputs = self.batch.inputs
        if isinstance(inputs, Tensor):
            return self.outputs(x)
        path, dtype = self.task.perturbed(inputs) or "", x.dtype if x.dtype != self.leaf.dtype else None

        def along(leaf: Tensor) -> Tensor:
            some = leaf.index_select(0, where)
            return some.to(dtype) if dtype is not None and leaf.is_floating_point() else some

        return self.outputs(replaced(mapped(along, inputs), path, x))


@dataclass(frozen=True)
class Reading:
    """What a probe found: metrics by name, and arrays (verdicts an image, curves) that are worth keeping.

    `silence` says why some of the metrics are missing, where they are, or which examples count as errors.
    `memory` is handed to the probe with the next moment of the same training, by who follows one.
    """

    values: Mapping[str, Value]
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    silence: str = ""
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Probe(ABC):
    """A measurement with its settings. `repr` (changed fields only) is its identity.

    `examples` is how many of the split's examples it looks at, from the first (None: all). `needs` says what it can
    be taken of, in the words of `optscope.probes.needs`: of a task without, it is not taken.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    examples: int | None = field(default=None, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="test", kw_only=True)

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """What it measures, with units and directions."""

    @abstractmethod
    def measure(self, subject: Subject) -> Reading:
        """Measure a subject whose model is in eval mode, with frozen parameters."""

    @final
    def __call__(self, snapshot: Snapshot, memory: Memory | None = None) -> Reading:
        """Check the snapshot, measure it, and leave all it holds exactly as it was.

        Measured is the model that its optimiser stands for: one with an eval mode is put in it. Global random
        numbers are seeded by the snapshot's seed meanwhile. `memory` is that of this probe's last reading in the
        same training, if there is one.

        Raises:
            UserError: no examples, a need that the task lacks, weights that are not finite or have no slope, a seed
                that NumPy does not know, or inputs outside the task's bounds.
        """
        check_looked_at(snapshot)
        if self.examples is not None and self.examples < 1:
            raise UserError(f"{type(self).__name__}: examples must be at least 1, or None for all; "
                            f"got {self.examples}")
        task, snapshot = snapshot.task, whole(snapshot)
        split: Split = getattr(task.data(), self.split)
        batch = split.first(self.examples).mapped(torch.detach)
        lacking = missing(self.needs, task, batch)
        if lacking:
            raise UserError(f"{type(self).__name__}: {lacking}")
        check_bounds(task, batch.inputs)
        generator = torch.Generator().manual_seed(snapshot.seed)
        with (seeded(snapshot.seed), torch.inference_mode(False), torch.enable_grad(),
              as_written(snapshot.model), as_meant(snapshot) as model):
            check_finite(model)
            trained = trained_names(snapshot)
            here = batch.to(device_of(model))  # random numbers are the CPU's, wherever they go
            return self.measure(Subject(still(model), here, generator, snapshot, trained, memory or {}))

    def __repr__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


def check_looked_at(snapshot: Snapshot) -> None:
    """Raise UserError unless global random numbers can be seeded by a snapshot's seed, and its weights may move."""
    if not 0 <= snapshot.seed < SEEDS:
        raise UserError("Snapshot: seed must be a whole number from 0 to 2**32 - 1, as NumPy's are; got "
                        f"{snapshot.seed}")
    for name, p in snapshot.model.named_parameters():
        if not is_lazy(p) and p.is_inference():
            raise UserError(f"the model's parameter {name!r} was made in torch.inference_mode, and has no slope: "
                            "make or load the model outside of it, in torch.no_grad if you like")


def trained_names(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the names of the parameters that training moves.

    They require a gradient, and the live optimiser, where there is one that holds any of them, holds them.
    """
    names = {name: p for name, p in snapshot.model.named_parameters() if p.requires_grad}
    groups = [] if snapshot.optimizer is None else snapshot.optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    return tuple(name for name, p in names.items() if id(p) in held) or tuple(names)


def check_bounds(task: Task, inputs: Tree) -> None:
    """Raise UserError unless what a task's bounds are of lies within them, and these are two numbers."""
    check_box(task.bounds)
    path = task.perturbed(inputs) or ""
    leaf = leaves(inputs).get(path)
    if task.bounds is None or leaf is None:  # a tree of whole numbers, that nothing moves
        return
    low, high = to_floats(*torch.aminmax(leaf))
    if low < task.bounds[0] or high > task.bounds[1]:
        raise UserError(f"the {leaf_name('inputs', path)} must lie in the task's bounds [{task.bounds[0]:g}, "
                        f"{task.bounds[1]:g}]; they reach from {low:g} to {high:g}: put normalisation inside the "
                        "model, or set bounds")


SAME = 1e-4
"""How far two passes may differ, relative to the largest output: rounding may depend on where memory lies."""


def check_outputs(subject: Subject, *, every: bool = False) -> tuple[Tensor, Tensor]:
    """Return outputs of a few examples, and which these are, if a model gives the same finite ones twice.

    Those of `every` example must be finite, or those of one.

    Raises:
        UserError: saying which is not so.
    """
    def are_finite(batch: Batch) -> Tensor:
        return in_batches(lambda x: finite(subject.outputs(x)), batch.inputs, portion_of(subject))
    good = are_finite(subject.batch if every else subject.batch.first(8))
    bad = int((~good).sum())
    if bad == len(good) and not every:
        good = are_finite(subject.batch)
        bad = int((~good).sum())
    refuse(bad if every or bad == len(good) else 0, len(good))
    few = good.nonzero().flatten()[:8] if bad else torch.arange(min(8, len(good)), device=good.device)
    with torch.no_grad():
        outputs, again = (subject.outputs(subject.batch.take(few).inputs) for _ in range(2))
    apart, largest = to_floats((outputs - again).abs().max(), outputs.abs().max())
    if apart > SAME * largest:
        raise UserError("two passes of the same inputs differ in eval mode, so no measurement can be trusted: "
                        "make dropout and the like depend on self.training")
    return outputs, few


def refuse(bad: int, of: int) -> None:
    """Raise if the outputs of some examples are not finite.

    Raises:
        UserError: saying of how many.
    """
    if bad:
        raise UserError(f"the model's outputs are not finite for {bad} of {of} examples, though its parameters "
                        "are: look at its inputs and its buffers, such as batch norm's running statistics")


def finite(outputs: Tensor) -> Tensor:
    """Return which outputs `(n, ...)` are finite, `(n,)`."""
    return torch.isfinite(outputs.reshape(len(outputs), -1)).all(1)


def portion_of(subject: Subject) -> int:
    """Return how many examples may be handed to a model at once: few, if each has many labels."""
    kind = KINDS.get(subject.task.kind)
    if kind is None or not kind.dense:
        return BATCH
    with torch.no_grad():
        return portion(subject.outputs(subject.batch.first(1).inputs))


def check_examples(subject: Subject, *, every: bool = True) -> None:
    """Raise unless a model gives the same finite outputs twice, its labels are classes, and its loss a mean.

    Authors call it where `measure` uses the loss, and `check_outputs` where it uses the outputs alone. Without
    `every` one finite output will do: those that are not name no class.

    Raises:
        UserError: naming the first of these that is not so.
    """
    outputs, few = check_outputs(subject, every=every)
    task, some = subject.task, subject.batch.take(few)
    labelled = task.kind == "classification" and outputs.dim() == 2 and not subject.targets.is_floating_point()
    low, high = map(int, to_floats(*torch.aminmax(subject.targets))) if labelled else (0, 0)
    if labelled and (low < 0 or high >= outputs.shape[1]):
        raise UserError(f"the labels must be from 0 to {outputs.shape[1] - 1}, the model's classes; in the task "
                        f"{task.name!r} they reach from {low} to {high}")
    with torch.no_grad():
        loss = subject.judged(outputs, some)
    if loss.dim() != 0:
        raise UserError("the loss must be one number (a tensor of shape ()); got shape "
                        f"{tuple(loss.shape)}: take its mean over the examples")
    check_mean(subject.loss, outputs, task.seen(some))


def in_batches(function: Callable[[Any], Tensor], inputs: Tree, size: int = BATCH) -> Tensor:
    """Return `function(inputs)` computed without gradients in batches along the first axis."""
    with torch.no_grad():
        return torch.cat([function(part.inputs) for part in Batch(inputs, ()).split(size)])
