"""Where numbers are made: a model's device, the random numbers of every device, and what is read back at once.

A number that Python reads from an accelerator is a wait: all that was asked of the device must be done first. So
what is read is gathered, and read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Return where a model lies: the device of its first parameter or buffer, the CPU when it has none.

    >>> device_of(nn.Linear(2, 2)), device_of(nn.ReLU())
    (device(type='cpu'), device(type='cpu'))
    """
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def moved(drawn: Tensor, device: torch.device) -> Tensor:
    """Return what was drawn on the CPU on a device; CUDA need not be done with what came before."""
    return drawn.to(device, non_blocking=device.type == "cuda")


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as an array on the CPU, of its own shape and type."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def to_floats(*numbers: Tensor) -> list[float]:
    """Return tensors of one number each, on one device, as Python's, in one wait.

    >>> to_floats(torch.tensor(0.5), torch.tensor(True), torch.tensor(2))
    [0.5, 1.0, 2.0]
    """
    if not numbers:
        return []
    one_kind = len({number.dtype for number in numbers}) == 1  # some devices have no float64 to bring them together
    each = [number.detach().reshape(()) for number in numbers]
    return [float(number) for number in torch.stack(each if one_kind else [n.double() for n in each]).tolist()]


@contextmanager
def forked() -> Iterator[None]:
    """Leave torch's global generators as they were: the CPU's, and those of an accelerator that is in use."""
    devices = _seeded_devices()
    before = [generator_state(device) for device in devices]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for device, state in zip(devices, before, strict=True):
                set_generator_state(device, state)


def generator_state(device: torch.device) -> Tensor | None:
    """Return the state of an accelerator's random numbers, which is kept on the CPU; None where there is none.

    >>> generator_state(torch.device("cpu"))
    """
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    if not hasattr(module, "get_rng_state"):
        return None
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def set_generator_state(device: torch.device, state: Tensor | None) -> None:
    """Put an accelerator's random numbers back to where they were."""
    if state is not None:
        module = torch.get_device_module(device)
        module.set_rng_state(state, *([] if device.type == "mps" else [device]))


def _seeded_devices() -> list[torch.device]:
    """Return the devices that draw random numbers in this process; none before it used one."""
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return []
    module = torch.get_device_module(kind)
    used = getattr(module, "is_initialized", module.is_available)()
    return [torch.device(kind.type, i) for i in range(module.device_count() if used else 0)]


def convolves_fast(model: nn.Module) -> bool:
    """Return whether a model has convolutions, which run faster on images whose channels lie last, and may.

    On processors with AVX2 and without AVX-512, oneDNN in torch 2.13 then writes past the end of memory in the
    backward pass of kernels of one pixel with a stride and fewer than eight input channels: such a model may not.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return bool(convolutions) and not any(
        each.kernel_size == (1, 1) and each.stride != (1, 1) and each.in_channels // each.groups < 8
        for each in convolutions)
