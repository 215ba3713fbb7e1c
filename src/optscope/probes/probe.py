"""A probe measures one model: the final `__call__` checks and restores, authors write `measure`.

A probe never trains, draws only from the generator it is handed, and leaves the model as it found it. *When*
it is taken is decided elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optscope.devices import device_of, to_floats
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.optim.rates import has_modes, set_mode
from optscope.probes.perturbation import check_box
from optscope.tasks.fresh import seeded
from optscope.tasks.game import Game
from optscope.tasks.kinds import BATCH, KINDS, portion
from optscope.tasks.mean_loss import check_mean
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Loss, Split, Task
from optscope.tasks.tree import Batch, Tree, leaves, mapped
from optscope.tasks.unchanged import unchanged

Value = float | Mapping[float, float]
"""One number, or one a coordinate on the metric's axis."""

Memory = Mapping[str, Tensor]
"""What a probe found that helps it to measure the next moment of the same training."""


@dataclass(frozen=True)
class Subject:
    """What an author's `measure` sees: the model in eval mode with frozen parameters, and its examples.

    `trained` names the parameters that training moves: no others belong to its gradients and its curvature.
    `memory` is that of the reading before, empty at the first: it may shorten the way to an answer.
    """

    model: nn.Module
    inputs: Any
    targets: Any
    loss: Loss
    bounds: tuple[float, float] | None
    generator: torch.Generator
    snapshot: Snapshot
    trained: tuple[str, ...]
    memory: Memory = field(default_factory=dict)

    @property
    def batch(self) -> Batch:
        """The examples."""
        return Batch(self.inputs, self.targets)

    def outputs(self, inputs: Tree) -> Tensor:
        """Return the model's outputs for inputs, a tensor `(n, ...)`."""
        return self.snapshot.task.outputs(self.model, inputs)

    def judged(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of outputs that the model has given for a batch."""
        return self.snapshot.task.judged(self.model, outputs, batch)


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

    `examples` is how many of the split's examples it looks at, from the first (None: all).
    """

    examples: int | None = field(default=None, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="test", kw_only=True)

    trees: ClassVar[bool] = False
    """Whether it measures models of any inputs and outputs; else inputs, targets and outputs are bare tensors."""

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
            UserError: no examples, weights that are not finite, or inputs outside the task's bounds.
        """
        if self.examples is not None and self.examples < 1:
            raise UserError(f"{type(self).__name__}: examples must be at least 1, or None for all; "
                            f"got {self.examples}")
        split: Split = getattr(snapshot.task.data(), self.split)
        split = split.first(self.examples)
        task = snapshot.task
        self._check_taken(task, split)
        path = task.perturbed(split.inputs)
        check_bounds(None if path is None else leaves(split.inputs)[path], task.bounds)
        generator = torch.Generator().manual_seed(snapshot.seed)
        with seeded(snapshot.seed), torch.inference_mode(False), torch.enable_grad(), as_meant(snapshot) as model:
            check_finite(model)
            trained = trained_names(snapshot)
            here = split.to(device_of(model))  # random numbers are the CPU's, wherever they go
            subject = Subject(_still(model), here.inputs, here.targets, task.loss_in(model), task.bounds,
                              generator, snapshot, trained, memory or {})
            return self.measure(subject)

    def _check_taken(self, task: Task, split: Split) -> None:
        bare = isinstance(split.inputs, Tensor) and isinstance(split.targets, Tensor)
        if not self.trees and not (bare and task.output is None and task.seen(split) is split.targets):
            raise UserError(f"{type(self).__name__} measures models from one tensor to one tensor, with a loss of "
                            "outputs and targets alone")

    def __repr__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


def trained_names(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the names of the parameters that training moves.

    They require a gradient, and the live optimiser, where there is one that holds any of them, holds them.
    """
    names = {name: p for name, p in snapshot.model.named_parameters() if p.requires_grad}
    groups = [] if snapshot.optimizer is None else snapshot.optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    return tuple(name for name, p in names.items() if id(p) in held) or tuple(names)


@contextmanager
def as_meant(snapshot: Snapshot) -> Iterator[nn.Module]:
    """Put a snapshot's model where its optimiser evaluates it, and leave model, loss and optimiser as they were.

    Schedule-free rules train at other weights than those they stand for: they have train and eval modes.
    """
    task, optimizer = snapshot.task, snapshot.optimizer
    losses = [player.loss for player in task.players] if isinstance(task, Game) else [task.loss]
    moded = [optimizer] if optimizer is not None and has_modes(optimizer) else []
    with unchanged(snapshot.model, *losses, *moded):
        for each in moded:
            set_mode(each, "eval")
        yield snapshot.model


def check_finite(model: nn.Module) -> None:
    """Raise unless all parameters have shapes, and are finite."""
    named = dict(model.named_parameters())
    for name, p in named.items():
        if nn.parameter.is_lazy(p):
            raise UserError(f"the model's parameter {name!r} has no shape yet: call the model once on a batch, or "
                            "give its layers their sizes")
    for name, finite in zip(named, to_floats(*(torch.isfinite(p).all() for p in named.values())), strict=True):
        if not finite:
            raise UserError(f"the model's parameter {name!r} is not finite: training diverged; "
                            "measure an earlier checkpoint or lower the learning rate")


def check_bounds(inputs: Tensor | None, bounds: tuple[float, float] | None) -> None:
    """Raise unless all inputs that can be perturbed lie in the bounds the task declares, which are two numbers."""
    check_box(bounds)
    if bounds is None or inputs is None:
        return
    low, high = float(inputs.min()), float(inputs.max())
    if low < bounds[0] or high > bounds[1]:
        raise UserError(f"the inputs must lie in the task's bounds [{bounds[0]:g}, {bounds[1]:g}]; they "
                        f"reach from {low:g} to {high:g}: put normalisation inside the model, or set bounds")


SAME = 1e-4
"""How far two passes may differ, relative to the largest output: rounding may depend on where memory lies."""


def check_outputs(subject: Subject, *, every: bool = False) -> tuple[Tensor, Tensor]:
    """Return outputs of a few examples, and which these are, if a model gives the same finite ones twice.

    Those of `every` example must be finite, or those of one.

    Raises:
        UserError: saying which is not so.
    """
    batch = subject.batch
    finite = _finite(subject, batch if every else batch.first(8))
    bad = int((~finite).sum())
    if bad == len(finite) and not every:
        finite = _finite(subject, batch)
        bad = int((~finite).sum())
    if bad == len(finite) or (every and bad):
        raise UserError(f"the model's outputs are not finite for {bad} of {len(finite)} examples, though its "
                        "parameters are: look at its inputs and at its buffers, such as the running statistics of "
                        "batch normalisation")
    few = finite.nonzero().flatten()[:8] if bad else torch.arange(min(8, len(finite)), device=finite.device)
    with torch.no_grad():
        outputs, again = (subject.outputs(batch.take(few).inputs) for _ in range(2))
    apart, largest = to_floats((outputs - again).abs().max(), outputs.abs().max())
    if apart > SAME * largest:
        raise UserError("two passes of the same inputs differ in eval mode, so no measurement can be trusted: "
                        "make dropout and the like depend on self.training")
    return outputs, few


def _finite(subject: Subject, batch: Batch) -> Tensor:
    return in_batches(lambda x: torch.isfinite((y := subject.outputs(x)).reshape(len(y), -1)).all(1), batch.inputs,
                      portion_of(subject))


def portion_of(subject: Subject) -> int:
    """Return how many examples may be handed to a model at once: few, if each has many labels."""
    kind = KINDS.get(subject.snapshot.task.kind)
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
    task, some = subject.snapshot.task, subject.batch.take(few)
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


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in eval mode with frozen parameters, and leave it as it was afterwards.

    Meanwhile it is handed copies of its inputs: what a layer writes into them reaches nobody's data.
    """
    if handed_copies in model._forward_pre_hooks.values():
        yield model
        return
    with unchanged(model):
        yield _still(model)


def _still(model: nn.Module) -> nn.Module:
    model.eval()
    for p in model.parameters():
        p.requires_grad_(False)
    if not isinstance(model, torch.jit.ScriptModule):  # which takes no hooks, and calls none
        model.register_forward_pre_hook(handed_copies, with_kwargs=True)
    return model


def handed_copies(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """Return copies of the tensors that a model is called with: the hook that `frozen` sets."""
    copied = mapped(lambda x: x.clone() if isinstance(x, Tensor) else x, (inputs, named))
    return copied[0], copied[1]


def in_batches(function: Callable[[Any], Tensor], inputs: Tree, size: int = BATCH) -> Tensor:
    """Return `function(inputs)` computed without gradients in batches along the first axis."""
    with torch.no_grad():
        return torch.cat([function(part.inputs) for part in Batch(inputs, ()).split(size)])
