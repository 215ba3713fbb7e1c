"""A task says what is learned: a way to make the model, the data in three parts, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from optscope.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
Kind = Literal["classification", "regression", "game"]


@dataclass(frozen=True)
class Split:
    """Examples as two tensors with the same first axis: inputs `(n, ...)` and targets `(n, ...)`."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise UserError(f"a split needs as many targets as inputs; got {len(self.inputs)} inputs "
                            f"and {len(self.targets)} targets")
        if len(self.inputs) == 0:
            raise UserError("a split needs at least one example; got none")

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, n: int | None) -> Split:
        """Return the first `n` examples (all when `n` is None)."""
        return self if n is None else Split(self.inputs[:n], self.targets[:n])

    @classmethod
    def of(cls, source: Any) -> Split:
        """Gather a pair of tensors, a `Dataset` or a `DataLoader` into memory, once.

        Of a data loader the examples that its sampler visits are read in the order of their index, through its
        collate function: shuffling and `drop_last` do not count. One that makes no batches of its own (over an
        iterable data set, or with `batch_size=None`) is read through once, in its own order. Random
        augmentation in the data is frozen (give `Task` an `augment` function instead).

        Raises:
            UserError: when `source` is none of these, its examples are not pairs, or its sampler visits other
                examples each time.
        """
        if isinstance(source, Split):
            return source
        if isinstance(source, (tuple, list)) and len(source) == 2 and all(
                isinstance(part, Tensor) for part in source):
            return cls(source[0], source[1])
        if isinstance(source, DataLoader):
            return cls._joined(_in_index_order(source), torch.cat)
        if isinstance(source, Dataset) and isinstance(source, Sized):
            return cls._joined((source[i] for i in range(len(source))), torch.stack)
        raise UserError("data must be a pair of tensors (inputs, targets), a torch Dataset or a DataLoader; "
                        f"got {type(source).__name__}")

    @classmethod
    def _joined(cls, pairs: Iterable[Any], join: Callable[[list[Tensor]], Tensor]) -> Split:
        inputs, targets = [], []
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise UserError("every example must be a pair (input, target); "
                                f"got {type(pair).__name__}: wrap the data set so that it returns two things")
            inputs.append(torch.as_tensor(pair[0]))
            targets.append(torch.as_tensor(pair[1]))
        return cls(join(inputs), join(targets))


def _in_index_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of the same examples in the order of their index, so that every process reads the same."""
    batches = loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset) or batches is None:
        return loader

    def visited() -> list[int]:
        if isinstance(batches, BatchSampler):
            return sorted(batches.sampler)
        return sorted(index for batch in batches for index in batch)

    indices = visited()
    if visited() != indices:
        raise UserError("a DataLoader must visit the same examples in every pass, in whatever order; its sampler "
                        "picks others: give the Dataset itself")
    return DataLoader(loader.dataset, loader.batch_size or 1, sampler=indices, collate_fn=loader.collate_fn,
                      num_workers=loader.num_workers)


@dataclass(frozen=True)
class Data:
    """The three parts of a data set. Rates are chosen on `validation`; `test` is read once."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Task:
    """What is learned.

    `model` and `data` are callables without arguments, so that a task is small, can be sent to another
    process, and is made afresh there; give frozen dataclasses with `__call__` (as all tasks here do) or
    functions at the top of a module. `bounds` is the range in which inputs live: attacks and noise are
    clipped to it, so normalisation belongs inside the model. `augment(inputs, generator)` is applied to every
    training batch.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Loss = functional.cross_entropy
    kind: Kind = "classification"
    bounds: tuple[float, float] | None = (0.0, 1.0)
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    @property
    def parts(self) -> tuple[object, ...]:
        """What, besides the rule, a training is made of: the code behind these belongs to a run's identity."""
        return self.model, self.data, self.loss, self.augment

    @classmethod
    def from_tensors(cls, model: Callable[[], nn.Module], train: Any, test: Any, *, validation: Any = None,
                     name: str = "task", loss: Loss = functional.cross_entropy,
                     kind: Kind = "classification", bounds: tuple[float, float] | None = (0.0, 1.0),
                     augment: Callable[[Tensor, torch.Generator], Tensor] | None = None) -> Task:
        """Return a task over data in memory: pairs of tensors, `Dataset`s or `DataLoader`s.

        Without `validation`, a fifth of `train` is held out for choosing learning rates: the same random fifth
        each time (seed 0), so that data sorted by class leave no class out.

        >>> x, y = torch.rand(100, 4), torch.arange(100) % 2
        >>> task = Task.from_tensors(lambda: nn.Linear(4, 2), (x, y), (x, y))
        >>> len(task.data().train), len(task.data().validation)
        (80, 20)
        """
        whole = Split.of(train)
        if validation is None:
            order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
            held_out, kept = order.tensor_split([max(1, len(whole) // 5)])
            parts = (Split(whole.inputs[kept], whole.targets[kept]),
                     Split(whole.inputs[held_out], whole.targets[held_out]))
        else:
            parts = whole, Split.of(validation)
        return cls(name, model, InMemory(Data(*parts, Split.of(test))), loss, kind, bounds, augment)


@dataclass(frozen=True, eq=False)
class InMemory:
    """Data that is already there."""

    parts: Data

    def __call__(self) -> Data:
        """Return the data."""
        return self.parts
