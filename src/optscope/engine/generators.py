"""The global generators of random numbers as one value: torch's, NumPy's and Python's, and an accelerator's own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from optscope.devices import generator_state, set_generator_state


def states(device: torch.device) -> tuple[Any, ...]:
    """Return the states of all global generators that a training on a device may draw from."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), generator_state(device)


def restore(found: tuple[Any, ...], device: torch.device) -> None:
    """Put all global generators back to where they were."""
    torch.set_rng_state(found[0])
    np.random.set_state(found[1])
    random.setstate(found[2])
    set_generator_state(device, found[3])
