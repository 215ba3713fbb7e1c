"""A task says what is learned: a way to make the model, the data in three parts, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.errors import UserError
from optscope.tasks.arrays import check_lengths, plain
from optscope.tasks.content import digest_of, mark
from optscope.tasks.fresh import epoch_permutation
from optscope.tasks.gather import gathered
from optscope.tasks.objective import Objective
from optscope.tasks.tree import Batch, Tree, called, leaves, mapped, output_of, sees_batch

Loss = Callable[[Tensor, Any], Tensor]
"""`loss(outputs, targets)`, or `loss(outputs, batch)` where the second parameter is called "batch"."""
Kind = Literal["classification", "regression", "game"]


@dataclass(frozen=True)
class Split(Batch):
    """A part of a data set: inputs and targets, each a tensor `(n, ...)`, or a tuple or mapping of trees of these.

    All leaves have the same first axis. They are kept dense, contiguous and on the CPU, without gradients;
    whole-number targets `(n,)`, such as the labels of images as bytes, become int64.

    Raises:
        UserError: unless all leaves are tensors with values and as many examples, at least one.
    """

    def __post_init__(self) -> None:
        for what in ("inputs", "targets"):
            object.__setattr__(self, what, plain(getattr(self, what), what))
        check_lengths(self.inputs, self.targets)
        object.__setattr__(self, "targets", mapped(_labels, self.targets))

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self)

    @property
    def digest(self) -> str:
        """32 hex digits of the content, found once, and again when somebody has written into the tensors."""
        marks = [mark(leaf) for leaf in leaves((self.inputs, self.targets)).values()]
        known, found = vars(self).get("_digest", (None, ""))
        if known != marks:
            found = digest_of((self.inputs, self.targets))
            vars(self)["_digest"] = marks, found
        return str(found)

    def batch(self, epoch: int, step: int, size: int, order: int) -> Batch:
        """Return batch number `step` of an epoch, in which the examples come in an order that `order` seeds."""
        return self.take(epoch_permutation(len(self), order, epoch)[step * size:(step + 1) * size])

    def first(self, n: int | None) -> Split:
        """Return the first `n` examples (all when `n` is None)."""
        return self if n is None else Split.of_batch(super().first(n))

    @classmethod
    def of_batch(cls, batch: Batch) -> Split:
        """Return a batch, checked."""
        return cls(batch.inputs, batch.targets)

    @classmethod
    def of(cls, source: Any) -> Split:
        """Gather a pair of tensors or arrays, a `Dataset`, a list of pairs or a `DataLoader` into memory, once.

        Arrays (NumPy, pandas, sparse matrices) become tensors, float64 ones of torch's default dtype; tensors keep
        theirs. Of a data loader the examples that its sampler visits are read in the order of their index, through
        its collate function: shuffling and `drop_last` do not count. A stream (an `IterableDataset`) is read
        through once, in its own order and by this process alone, for its workers would each give all of it. Random
        augmentation in the data is frozen (give `Task` an `augment` function instead).

        Raises:
            UserError: when `source` is none of these, its examples are not pairs of numbers of one shape and type,
                they would not fit twice into the memory that is free, a stream goes on after its length (if it
                has none, after 100,000 examples), or a sampler visits other examples each time.
        """
        return source if isinstance(source, Split) else cls(*gathered(source))


@dataclass(frozen=True)
class Data:
    """The three parts of a data set. Rates are chosen on `validation`; `test` is read once."""

    train: Split
    validation: Split
    test: Split


def _labels(targets: Tensor) -> Tensor:
    """Return whole-number targets `(n,)` as int64, and all others as they are."""
    whole = not (targets.is_floating_point() or targets.is_complex())
    return targets.long() if targets.dim() == 1 and whole else targets


def _chosen(loss: Loss | None, kind: Kind) -> Loss:
    """Return a loss, or what is usual for a kind of task when none is given."""
    return loss or (functional.mse_loss if kind == "regression" else functional.cross_entropy)


@dataclass(frozen=True)
class Task:
    """What is learned.

    `model` and `data` are callables without arguments, so that a task is small, can be sent to another
    process, and is made afresh there; give frozen dataclasses with `__call__` (as all tasks here do) or
    functions at the top of a module.

    Args:
        name: what reports call it.
        model: returns a new, untrained model each time.
        data: returns the same `Data` each time.
        loss: `loss(outputs, targets)`, one number: the mean over the examples of a batch. None: for
            "classification" the cross-entropy in nats, of outputs `(n, classes)` (not their softmax) and labels
            `(n,)` from 0; for "regression" the mean squared error, in the targets' unit squared.
        kind: "classification", of which accuracies and attacks are measured, or "regression", which stands for
            every other loss too (several labels an example, labels of pixels, ...), of which the loss is.
        bounds: the least and the largest value that inputs may have, in their own unit: noise and attacks are
            clipped to it, so that normalisation belongs inside the model. None: there is no range, as for token
            ids or standardised tables; then attacks and noise are not measured.
        augment: `augment(inputs, generator)` returns every training batch anew, of the same shape; it draws from
            `generator` alone. Nothing else sees its inputs: probes measure the data as they are.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Loss = None  # type: ignore[assignment]  # set below: nobody meets the None
    kind: Kind = "classification"
    bounds: tuple[float, float] | None = (0.0, 1.0)
    augment: Callable[[Any, torch.Generator], Any] | None = None
    output: str | Callable[[Any], Tensor] | None = None
    perturb: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", _chosen(self.loss, self.kind))

    @property
    def parts(self) -> tuple[object, ...]:
        """What, besides the rule, a training is made of: the code behind these belongs to a run's identity."""
        return self.model, self.data, self.loss, self.augment, self.output

    def outputs(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Return a model's outputs for inputs: called as these are, and read as `output` says.

        Raises:
            UserError: when what the model returns holds no such tensor.
        """
        found = called(model, inputs)
        if self.output is None and isinstance(found, Tensor):
            return found
        outputs: Tensor = output_of(found, self.output)
        return outputs

    def value(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of a batch."""
        return self.judged(self.outputs(model, batch.inputs), batch)

    def judged(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of outputs that a model has given for a batch."""
        return self.loss(outputs, batch if self._sees_batch else batch.targets)

    @cached_property
    def _sees_batch(self) -> bool:
        return sees_batch(self.loss)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Who minimises what: of a task one player, which has no name and the whole model."""
        return (Objective("", self._value),)

    @property
    def simultaneous(self) -> bool:
        """Whether all players take their gradients at the same weights, before anyone moves."""
        return False

    def draw_latent(self, n: int, generator: torch.Generator) -> Tensor | None:
        """Return what is drawn for a batch of `n` beside its examples: nothing."""
        return None

    def _value(self, model: nn.Module, batch: Batch, latent: Tensor | None) -> Tensor:
        return self.value(model, batch)

    @classmethod
    def from_tensors(cls, model: Callable[[], nn.Module], train: Any, test: Any, *, validation: Any = None,
                     name: str = "task", loss: Loss | None = None,
                     kind: Kind = "classification", bounds: tuple[float, float] | None = (0.0, 1.0),
                     augment: Callable[[Tensor, torch.Generator], Tensor] | None = None) -> Task:
        """Return a task over data in memory: whatever `Split.of` reads, and the fields of `Task`.

        Without `validation`, a fifth of `train` is held out for choosing learning rates: the same random fifth
        each time (seed 0), so that data sorted by class leave no class out. Probes of the training part then see
        the other four fifths. To measure a model that is trained already on all the examples of one set, give that
        set three times: nothing is held out.

        >>> x, y = torch.rand(100, 4), torch.arange(100) % 2
        >>> task = Task.from_tensors(lambda: nn.Linear(4, 2), (x, y), (x, y))
        >>> len(task.data().train), len(task.data().validation)
        (80, 20)
        >>> measured = Task.from_tensors(lambda: nn.Linear(4, 2), (x, y), (x, y), validation=(x, y)).data()
        >>> len(measured.train), len(measured.validation), len(measured.test)
        (100, 100, 100)

        Raises:
            UserError: when a part cannot be read, or `train` has a single example and nothing can be held out.
        """
        read: dict[int, Split] = {}

        def part(what: str, source: Any) -> Split:
            try:
                return read.setdefault(id(source), read.get(id(source)) or Split.of(source))
            except UserError as error:
                raise UserError(f"{name}, {what} part: {error}") from error

        loss = _chosen(loss, kind)
        whole, last = part("train", train), part("test", test)
        if validation is not None:
            return cls(name, model, InMemory(Data(whole, part("validation", validation), last)), loss, kind, bounds,
                       augment)
        if len(whole) == 1:
            raise UserError(f"{name}: a fifth of the training part is held out for validation, but it has one "
                            "example: give more, or validation=")
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        held_out, kept = (Split.of_batch(whole.take(of))
                          for of in order.tensor_split([max(1, len(whole) // 5)]))
        return cls(name, model, InMemory(Data(kept, held_out, last)), loss, kind, bounds, augment)


@dataclass(frozen=True, eq=False)
class InMemory:
    """Data that is already there."""

    parts: Data

    def __call__(self) -> Data:
        """Return the data."""
        return self.parts
