"""What a seed decides: three streams of random numbers, the first model, and the order of the examples."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from optscope.devices import forked


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


@functools.lru_cache(maxsize=2)
def epoch_permutation(examples: int, order: int, epoch: int) -> Tensor:
    """Return the order of the examples in one epoch: a function of the seed and the epoch's number alone.

    The last two are kept, for every step of an epoch asks again: nobody may write into them.
    """
    state = np.random.SeedSequence((order, epoch)).generate_state(1)[0]
    return torch.randperm(examples, generator=torch.Generator().manual_seed(int(state)))


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
