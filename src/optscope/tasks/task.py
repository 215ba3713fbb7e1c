"""A task says what is learned: a way to make the model, the data in three parts, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
Kind = Literal["classification", "regression"]


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

        A data loader is read through once, in its own order: augmentation and shuffling in it are frozen
        (give `Task` an `augment` function instead).

        Raises:
            UserError: when `source` is none of these, or its examples are not pairs.
        """
        if isinstance(source, Split):
            return source
        if isinstance(source, (tuple, list)) and len(source) == 2 and all(
                isinstance(part, Tensor) for part in source):
            return cls(source[0], source[1])
        if isinstance(source, torch.utils.data.DataLoader):
            return cls._joined(source, torch.cat)
        if isinstance(source, torch.utils.data.Dataset) and isinstance(source, Sized):
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

    @classmethod
    def from_tensors(cls, model: Callable[[], nn.Module], train: Any, test: Any, *, validation: Any = None,
                     name: str = "task", loss: Loss = functional.cross_entropy,
                     kind: Kind = "classification", bounds: tuple[float, float] | None = (0.0, 1.0)) -> Task:
        """Return a task over data in memory: pairs of tensors, `Dataset`s or `DataLoader`s.

        Without `validation`, the last fifth of `train` is held out for choosing learning rates.

        >>> x, y = torch.rand(100, 4), torch.arange(100) % 2
        >>> task = Task.from_tensors(lambda: nn.Linear(4, 2), (x, y), (x, y))
        >>> len(task.data().train), len(task.data().validation)
        (80, 20)
        """
        whole = Split.of(train)
        if validation is None:
            cut = len(whole) - max(1, len(whole) // 5)
            parts = whole.first(cut), Split(whole.inputs[cut:], whole.targets[cut:])
        else:
            parts = whole, Split.of(validation)
        return cls(name, model, InMemory(Data(*parts, Split.of(test))), loss, kind, bounds)


@dataclass(frozen=True, eq=False)
class InMemory:
    """Data that is already there."""

    parts: Data

    def __call__(self) -> Data:
        """Return the data."""
        return self.parts
