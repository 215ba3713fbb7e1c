"""What a seed decides: three streams of random numbers, the first model, and the order of the examples."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from optscope.devices import forked, generator_state, set_generator_state


class Modelled(Protocol):
    """What has a model of its own, as a task, which itself reads its data by a seed."""

    @property
    def model(self) -> Callable[[], nn.Module]:
        """The factory of the model."""


def streams(seed: int) -> tuple[int, int, int]:
    """Return the seeds of initialisation, data order and training noise, independent of each other."""
    init, order, noise = (int(s.generate_state(1)[0]) for s in np.random.SeedSequence(seed).spawn(3))
    return init, order, noise


def fresh_model(task: Modelled, seed: int) -> nn.Module:
    """Return the model that training from `seed` starts with, constants outside its state dict included."""
    with seeded(streams(seed)[0]):
        return task.model()


def epoch_permutation(examples: int, order: int, epoch: int) -> Tensor:
    """Return the order of the examples in one epoch: a function of the seed and the epoch's number alone.

    The last ones are kept, for every step of an epoch asks again: nobody may write into them.
    """
    return (_permutation if examples <= _FEW else _long_permutation)(examples, order, epoch)


def _permuted(examples: int, order: int, epoch: int) -> Tensor:
    state = np.random.SeedSequence((order, epoch)).generate_state(1)[0]
    return torch.randperm(examples, generator=torch.Generator().manual_seed(int(state)), device="cpu")


_FEW = 100_000
_permutation = functools.lru_cache(maxsize=64)(_permuted)  # 51 MB at most: many seeds may train side by side
_long_permutation = functools.lru_cache(maxsize=2)(_permuted)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python, and leave them as they were afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with forked():
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class Numbers:
    """Global random numbers of somebody's own, from where they are now: lent within `with`, and then put back.

    They are torch's, those of a `device` that is no CPU, and, if drawn `everywhere`, NumPy's and Python's: torch's
    are swapped in two microseconds, these take a hundred times as long. `state` is where they are while nobody
    draws.
    """

    def __init__(self, device: torch.device | None = None, *, everywhere: bool = True) -> None:
        self._device, self._everywhere = device or torch.device("cpu"), everywhere
        self.state = self._now()

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Lend the numbers as in `with`, and stay where they were: the next time they are the same."""
        kept = self.state
        with self:
            yield
        self.state = kept

    def _now(self) -> tuple[Any, ...]:
        others = (np.random.get_state(), random.getstate()) if self._everywhere else ()
        return (torch.get_rng_state(), generator_state(self._device), *others)

    def _swap(self) -> None:
        (numbers, of_device, *others), self.state = self.state, self._now()
        torch.set_rng_state(numbers)
        set_generator_state(self._device, of_device)
        if others:
            np.random.set_state(others[0])
            random.setstate(others[1])
