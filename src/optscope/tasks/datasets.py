"""Examples that need not fit in memory: a `Dataset` read by index, batch for batch, or an `IterableDataset`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from optscope.errors import UserError
from optscope.tasks.arrays import labelled
from optscope.tasks.content import digest_of
from optscope.tasks.examples import Examples
from optscope.tasks.fresh import Numbers, epoch_permutation, seeded
from optscope.tasks.gather import STARTED_BY, Pair, check_alike, example_at, in_turn
from optscope.tasks.memory import check_fits, free_bytes
from optscope.tasks.tree import Batch, filled, leaves, mapped

HEAD, SPREAD = 64, 16
"""Examples that the digest of a data set is made of: the first, and others from all over."""
_Numbered = tuple[int, Pair]


@dataclass(frozen=True)
class FromDataset(Examples):
    """Examples that a map-style `Dataset` reads by their index, a batch at a time: they need not fit in memory.

    `dataset` makes the data set: a function or class at the top of a module, or `functools.partial` of one. It is
    called once a process. With `workers`, as many processes read ahead, and change no bit. What the data set draws
    from a global generator (random crops) is seeded by the seed, the epoch and the index of the example: it
    repeats, and is the same in every arm.

    The digest is that of 80 examples, the first 64 and 16 from all over: a run's identity knows those, the number
    of examples, and the code and settings of `dataset`. Of files that change elsewhere it knows nothing.

    >>> class Squares(Dataset):
    ...     def __len__(self):
    ...         return 9
    ...     def __getitem__(self, i):
    ...         return torch.tensor([float(i)]), i * i
    >>> examples = FromDataset(Squares)
    >>> examples.size, examples.first(3).targets.tolist(), len(examples.batch(epoch=0, step=0, size=4, order=1))
    (9, [0, 1, 4], 4)

    Raises:
        UserError: where examples are not pairs of numbers of one shape and type.
    """

    dataset: Callable[[], Dataset[Any]]
    workers: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.dataset, Dataset) or not callable(self.dataset):
            raise UserError("FromDataset takes a function that makes the Dataset, for it is made anew in every "
                            "process: write functools.partial(MyDataset, folder) instead of MyDataset(folder)")

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings: another process opens the data set itself."""
        return {"dataset": self.dataset, "workers": self.workers}

    @cached_property
    def _reader(self) -> _Reader:
        return _Reader(self.dataset)

    @cached_property
    def _ahead(self) -> dict[str, Any]:
        """Which batch the loader gives next, and the loader."""
        return {}

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self._reader)

    @property
    def source(self) -> object:
        """The function that makes the data set."""
        return self.dataset

    @cached_property
    def digest(self) -> str:
        """32 hex digits of some examples and their number."""
        spread = np.linspace(0, self.size - 1, SPREAD).round().astype(int).tolist()
        chosen = sorted({*range(min(HEAD, self.size)), *spread})
        return digest_of((torch.tensor([self.size], device="cpu"), *map(_tree, map(self._one, chosen))))

    def batch(self, epoch: int, step: int, size: int, order: int) -> Batch:
        """Return batch number `step` of an epoch, whose order and noise `order` seeds."""
        if not self.workers:
            return self._read(_indices(self.size, epoch, step, size, order))
        if self._ahead.get("next") != (epoch, step, size, order):
            self._ahead["batches"] = iter(DataLoader(
                self._reader, batch_sampler=_following(self.size, epoch, step, size, order), collate_fn=joined,
                num_workers=self.workers, multiprocessing_context=STARTED_BY,
                generator=torch.Generator()))  # the global one belongs to the training
        found: Batch = next(self._ahead["batches"])
        epoch, step = divmod(epoch * _steps(self.size, size) + step + 1, _steps(self.size, size))
        self._ahead["next"] = epoch, step, size, order
        return found

    def sample(self, n: int) -> Batch:
        """Return `n` examples from all over, read here."""
        return self._read(_indices(self.size, 0, 0, n, 0))

    def first(self, n: int | None) -> Batch:
        """Return the first `n` examples, drawn as before all epochs.

        Raises:
            UserError: when they do not fit into memory.
        """
        n = self.size if n is None else min(n, self.size)
        check_fits(_bytes(self._one(0)), n, free_bytes())
        return self._read([(0, 0, i) for i in range(n)])

    def _one(self, index: int) -> Batch:
        return self._read([(0, 0, index)])

    def _read(self, indices: Sequence[tuple[int, int, int]]) -> Batch:
        with seeded(0):
            return joined([self._reader[index] for index in indices])


class _Reader(Dataset[_Numbered]):
    """Reads the example of an index under an order and an epoch, which seed what is drawn for it."""

    def __init__(self, make: Callable[[], Dataset[Any]]) -> None:
        self._make = make

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make}

    @cached_property
    def _set(self) -> Any:
        found = self._make()
        if not hasattr(found, "__getitem__") or not hasattr(found, "__len__"):
            raise UserError(f"FromDataset: the function must return a Dataset with __getitem__ and __len__; got "
                            f"{type(found).__name__}" + (": give Stream an IterableDataset"
                                                         if isinstance(found, IterableDataset) else ""))
        if len(found) == 0:
            raise UserError(f"FromDataset: {type(found).__name__} holds no example at all")
        return found

    def __len__(self) -> int:
        return len(self._set)

    def __getitem__(self, index: tuple[int, int, int]) -> _Numbered:
        _seed(index)
        return index[2], example_at(self._set, index[2])


@dataclass(frozen=True)
class Stream(Examples):
    """Examples that come one after the other, from an `IterableDataset`; training needs `Plan(steps=...)`.

    `dataset` makes the data set, as for `FromDataset`. An epoch is one reading from the start, which begins again
    when the stream ends; what it draws from a global generator (shuffling) is seeded by the seed and the reading.
    To resume a training at step k, the k batches before it are read once more. The digest is that of the first 64
    examples, beside the code and settings of `dataset`.

    Raises:
        UserError: where examples are not pairs of numbers of one shape and type, or there are none.
    """

    dataset: Callable[[], IterableDataset[Any]]

    def __post_init__(self) -> None:
        if isinstance(self.dataset, Dataset) or not callable(self.dataset):
            raise UserError("Stream takes a function that makes the IterableDataset, for it is read from the start "
                            "in every process: write functools.partial(MyStream, folder), not MyStream(folder)")

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings: another process reads from the start."""
        return {"dataset": self.dataset}

    @property
    def size(self) -> None:
        """None: nobody knows."""
        return

    @property
    def source(self) -> object:
        """The function that makes the data set."""
        return self.dataset

    @cached_property
    def digest(self) -> str:
        """32 hex digits of the first examples."""
        first = self.first(HEAD)
        return digest_of((first.inputs, first.targets))

    @cached_property
    def _at(self) -> dict[str, Any]:
        """Which batch comes next, the examples that follow, and the global numbers that they draw from."""
        return {}

    def batch(self, epoch: int, step: int, size: int, order: int) -> Batch:
        """Return batch number `step` of a reading, whose noise `order` seeds."""
        if self._at.get("next") != (epoch, step, size, order):
            self._at.update(examples=self._endless(order, epoch), numbers=Numbers())
            with self._at["numbers"]:
                for _ in islice(self._at["examples"], step * size):
                    pass
        with self._at["numbers"]:
            found = joined(list(islice(self._at["examples"], size)))
        self._at["next"] = epoch, step + 1, size, order
        return found

    def first(self, n: int | None) -> Batch:
        """Return the first `n` examples, or all of a stream that has fewer.

        Raises:
            UserError: when `n` is None.
        """
        if n is None:
            raise UserError("a stream has no last example: say how many examples of the training part are "
                            "measured, or measure the validation or the test part")
        with seeded(0):
            return joined(list(islice(self._once(0, 0, 0), n)))

    def _endless(self, order: int, epoch: int) -> Iterator[_Numbered]:
        for reading in count():
            yield from self._once(order, epoch, reading)

    def _once(self, order: int, epoch: int, reading: int) -> Iterator[_Numbered]:
        _seed((order, epoch, reading))
        number = -1
        for number, example in enumerate(in_turn(self.dataset())):
            yield number, example
        if number < 0:
            raise UserError("the stream holds no example at all")


def joined(examples: Sequence[_Numbered]) -> Batch:
    """Return examples of one row each, with their numbers, as a batch; whole-number targets `(n,)` become int64.

    Raises:
        UserError: naming the first that is of another shape or type.
    """
    first = examples[0][1]
    for number, example in examples:
        check_alike(first, example, number)
    columns = zip(*(leaves(example).values() for _, example in examples), strict=True)
    inputs, targets = filled(first, map(torch.cat, columns))
    return Batch(inputs, mapped(labelled, targets))


def _seed(where: tuple[int, int, int]) -> None:
    """Seed the global generators by an order, an epoch, and an example or a reading."""
    state = int(np.random.SeedSequence(where).generate_state(1)[0])
    torch.default_generator.manual_seed(state)
    np.random.seed(state)
    random.seed(state)


def _steps(examples: int, size: int) -> int:
    return max(1, examples // size)


def _indices(examples: int, epoch: int, step: int, size: int, order: int) -> list[tuple[int, int, int]]:
    chosen = epoch_permutation(examples, order, epoch)[step * size:(step + 1) * size]
    return [(order, epoch, i) for i in chosen.tolist()]


def _following(examples: int, epoch: int, step: int, size: int, order: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the indices of a batch and of all that follow it, in this epoch and the next ones, without end."""
    per_epoch = _steps(examples, size)
    for number in count(epoch * per_epoch + step):
        yield _indices(examples, *divmod(number, per_epoch), size, order)


def _tree(batch: Batch) -> Any:
    return batch.inputs, batch.targets


def _bytes(batch: Batch) -> float:
    return float(sum(leaf.nbytes for leaf in leaves(_tree(batch)).values()))
