"""The global generators of random numbers as one value: torch's, NumPy's and Python's, and an accelerator's own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def states(device: torch.device) -> tuple[Any, ...]:
    """Return the states of all global generators that a training on a device may draw from."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), device_state(device)


def restore(found: tuple[Any, ...], device: torch.device) -> None:
    """Put all global generators back to where they were."""
    torch.set_rng_state(found[0])
    np.random.set_state(found[1])
    random.setstate(found[2])
    set_device_state(found[3], device)


def device_state(device: torch.device) -> Tensor | None:
    """Return the state of an accelerator's generator, which is kept on the CPU; None where there is none."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    if not hasattr(module, "get_rng_state"):
        return None
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def set_device_state(state: Tensor | None, device: torch.device) -> None:
    """Put an accelerator's generator back to where it was."""
    if state is not None:
        module = torch.get_device_module(device)
        module.set_rng_state(state, *([] if device.type == "mps" else [device]))
