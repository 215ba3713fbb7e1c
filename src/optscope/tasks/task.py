"""A task says what is learned: a way to make the model, the data in three parts, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.tasks.arrays import check_lengths, labelled, plain
from optscope.tasks.content import digest_of, mark
from optscope.tasks.examples import Examples
from optscope.tasks.fresh import epoch_permutation
from optscope.tasks.gather import gathered
from optscope.tasks.kinds import KINDS, NOTHING, Kind
from optscope.tasks.objective import Objective
from optscope.tasks.trained_loss import Factory, alone, loss_in, with_loss
from optscope.tasks.tree import Batch, Tree, called, leaves, mapped, output_of, sees_batch

Loss = Callable[[Tensor, Any], Tensor]
"""`loss(outputs, targets)`, or `loss(outputs, batch)` where the second parameter is called "batch"."""
KindName = Literal["classification", "regression", "multi-label", "segmentation", "token-classification",
                   "causal-lm", "game"]
UNNAMED = "task"  # what a task is called that was given no name


@dataclass(frozen=True)
class Split(Batch, Examples):
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
        object.__setattr__(self, "targets", mapped(labelled, self.targets))

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

    @property
    def source(self) -> object:
        """Nothing beside the content."""
        return ()

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

        Inputs and targets may each be a tuple or mapping of arrays; or both are one mapping, of the whole or of an
        example, in which the field "labels" or "label" is the targets, as in the data sets of Hugging Face.

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
    """The three parts of a data set. Rates are chosen on `validation`; `test` is read once.

    The training part need not be in memory: any `Examples` will do, such as `FromDataset`, `Mapped` and `Stream`.
    """

    train: Examples
    validation: Split
    test: Split

    def at_hand(self, n: int) -> DataAtHand:
        """Return the data in memory: of a training part that is not, `n` examples."""
        train = self.train if isinstance(self.train, Split) else Split.of_batch(self.train.sample(n))
        return DataAtHand(train, self.validation, self.test)


@dataclass(frozen=True)
class DataAtHand(Data):
    """Data of which every part is in memory."""

    train: Split


def _chosen(loss: Loss | None, kind: KindName) -> Loss:
    """Return a loss, or what is usual for a kind of task when none is given."""
    return loss or KINDS.get(kind, KINDS["classification"]).loss


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
        loss: `loss(outputs, targets)`, one number: the mean over the examples of a batch; or, if its second
            parameter is called "batch", `loss(outputs, batch)`: it sees `batch.inputs` too, as a mask. One that is
            an `nn.Module` with parameters is trained: every run has a copy of its own. None: the kind's usual one.
        kind: what outputs and targets are, and what accuracy is (`optscope.tasks.kinds`):

            * "classification": outputs `(n, classes)` (not their softmax) and labels `(n,)` from 0; the loss is the
              cross-entropy in nats, and noise and attacks are measured;
            * "multi-label": outputs and targets `(n, labels)`, 0 or 1; the binary cross-entropy;
            * "segmentation": outputs `(n, classes, ...)` and labels `(n, ...)`, -100 or 255 where none counts;
            * "token-classification": outputs `(n, length, classes)` and labels `(n, length)`, -100 likewise;
            * "causal-lm": outputs `(n, length, vocabulary)` and the tokens `(n, length)`, -100 where none is to be
              foretold; the loss compares each output with the token after it;
            * "regression": the mean squared error, and with another loss all else; no accuracy is measured.
        bounds: the least and the largest value that inputs may have, in their own unit: noise and attacks are
            clipped to it, so that normalisation belongs inside the model. None: there is no range, as for token
            ids or standardised tables; then attacks and noise are not measured.
        augment: `augment(inputs, generator)` returns the inputs of every training batch anew, of the same shape; it
            draws from `generator` alone. Nothing else sees its inputs: probes measure the data as they are.
        output: where the outputs are in what the model returns: the name of a field (an attribute, a key, or a
            place in a tuple, as "0"), or a function of what is returned. None: a tensor as it is, else `.logits`.
        perturb: the leaf of the inputs that has `bounds`, and that noise, attacks and Lipschitz constants act on,
            as "pixel_values". None: the one that is floating point, if one is.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Loss = None  # type: ignore[assignment]  # set below: nobody meets the None
    kind: KindName = "classification"
    bounds: tuple[float, float] | None = (0.0, 1.0)
    augment: Callable[[Any, torch.Generator], Any] | None = None
    output: str | Callable[[Any], Tensor] | None = None
    perturb: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", _chosen(self.loss, self.kind))
        object.__setattr__(self, "model", with_loss(self.model, self.loss))

    @property
    def parts(self) -> tuple[object, ...]:
        """What, besides the rule, a training is made of: the code behind these belongs to a run's identity."""
        return self.model, self.data, self.loss, self.augment, self.output

    @property
    def about(self) -> Kind:
        """What the kind says of outputs and targets; of one that there is not, as of games, that they have none."""
        return KINDS.get(self.kind, NOTHING)

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
        return self.judged(model, self.outputs(model, batch.inputs), batch)

    def judged(self, model: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of outputs that this model has given for a batch."""
        loss: Tensor = self.loss_in(model)(outputs, self.seen(batch))
        return loss

    def loss_in(self, model: nn.Module) -> Loss:
        """Return the loss, or where it is trained the copy of it that a model of this task holds."""
        found: Loss = loss_in(model, self.loss)
        return found

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Every loss that there is, of a game one a player."""
        return (self.loss,)

    def seen(self, batch: Batch) -> Any:
        """Return what the loss sees beside the outputs: the targets, or the whole batch."""
        return batch if self._sees_batch else batch.targets

    def perturbed(self, inputs: Tree) -> str | None:
        """Return the path of the leaf that noise, attacks and Lipschitz constants act on; None: there is none."""
        if self.perturb is not None:
            return self.perturb
        floating = [path for path, leaf in leaves(inputs).items() if leaf.is_floating_point()]
        return floating[0] if len(floating) == 1 else None

    @cached_property
    def _sees_batch(self) -> bool:
        return sees_batch(self.loss)

    def remade(self, model: Callable[[Factory], Factory], loss: Callable[[Any], Any]) -> Self:
        """Return the task with what `model` makes of its factory of models, and `loss` of its loss."""
        return replace(self, model=model(alone(self.model)), loss=loss(self.loss))

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
                     name: str = UNNAMED, loss: Loss | None = None,
                     kind: KindName = "classification", bounds: tuple[float, float] | None = (0.0, 1.0),
                     augment: Callable[[Any, torch.Generator], Any] | None = None,
                     output: str | Callable[[Any], Tensor] | None = None, perturb: str | None = None) -> Task:
        """Return a task over data in memory: whatever `Split.of` reads, and the fields of `Task`.

        Without `validation`, a fifth of `train` is held out for choosing learning rates: the same random fifth
        each time (seed 0), so that data sorted by class leave no class out. Probes of the training part then see
        the other four fifths. To measure a model that is trained already on all the examples of one set, give that
        set three times: nothing is held out. `train` may be `Examples` that are not in memory (`FromDataset`,
        `Mapped`, `Stream`), with a `validation` of its own.

        >>> x, y = torch.rand(100, 4), torch.arange(100) % 2
        >>> task = Task.from_tensors(lambda: nn.Linear(4, 2), (x, y), (x, y))
        >>> len(task.data().train), len(task.data().validation)
        (80, 20)
        >>> measured = Task.from_tensors(lambda: nn.Linear(4, 2), (x, y), (x, y), validation=(x, y)).data()
        >>> len(measured.train), len(measured.validation), len(measured.test)
        (100, 100, 100)

        Raises:
            UserError: when a part cannot be read, or nothing can be held out of `train`, since it has a single
                example or is not in memory.
        """
        read: dict[int, Split] = {}

        def part(what: str, source: Any) -> Split:
            if isinstance(source, Examples) and not isinstance(source, Split):
                advice = ("nothing can be held out of it, give validation=" if what == "train" else
                          "write Split.of_batch(examples.first(n))")
                raise UserError(f"{name}, {what} part: {type(source).__name__} is not in memory: {advice}")
            try:
                return read.setdefault(id(source), read.get(id(source)) or Split.of(source))
            except UserError as error:
                raise UserError(f"{name}, {what} part: {error}") from error

        def task(data: Data) -> Task:
            return cls(name, model, InMemory(data), _chosen(loss, kind), kind, bounds, augment, output, perturb)

        last = part("test", test)
        if validation is not None:
            held_out = part("validation", validation)
            return task(Data(train if isinstance(train, Examples) else part("train", train), held_out, last))
        whole = part("train", train)
        if len(whole) == 1:
            raise UserError(f"{name}: a fifth of the training part is held out for validation, but it has one "
                            "example: give more, or validation=")
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0), device="cpu")
        held_out, kept = (Split.of_batch(whole.take(of)) for of in order.tensor_split([max(1, len(whole) // 5)]))
        return task(Data(kept, held_out, last))


@dataclass(frozen=True, eq=False)
class InMemory:
    """Data that is already there."""

    parts: Data

    def __call__(self) -> Data:
        """Return the data."""
        return self.parts
