"""The same network with its kinks rounded off: what is linear in pieces has no second derivative to climb.

Inside `Smoothed` what torch is asked for is replaced on the way, so that it does not matter whether a layer or a
function of a forward asks. With softplus sp(x) = log(1 + exp(βx))/β in place of max(x, 0), and in place of the
largest of a window log Σ exp(βx)/β.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

BETA = 20.0
"""How sharp the rounding is: softplus is ReLU but for some 3/β around the kink."""


def _softplus(x: Tensor, inplace: bool = False) -> Tensor:
    return functional.softplus(x, beta=BETA)


def _leaky(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return negative_slope * x + (1 - negative_slope) * _softplus(x)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    slopes = weight.view(-1, *[1] * (x.dim() - 2)) if weight.numel() > 1 else weight
    return slopes * x + (1 - slopes) * _softplus(x)


def _clipped(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return min_val + _softplus(x - min_val) - _softplus(x - max_val)


def _relu6(x: Tensor, inplace: bool = False) -> Tensor:
    return _clipped(x, 0.0, 6.0)


def _pooled(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
            ceil_mode: bool = False, return_indices: bool = False) -> Any:
    pool: Callable[..., Any] = functional.max_pool2d
    exact = pool(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if ceil_mode or return_indices or x.dim() != 4:
        return exact
    low = x.detach().min()  # what pads is 0, and must not be the largest
    windows = functional.unfold(x - low, kernel_size, dilation, padding, stride or kernel_size)
    each = windows.view(len(x), x.shape[1], -1, windows.shape[-1])
    return each.mul(BETA).logsumexp(2).div(BETA).view(exact.shape) + low


ROUNDED: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((functional.relu, torch.relu, Tensor.relu), _softplus), functional.relu6: _relu6,
    **dict.fromkeys((functional.prelu, torch.prelu), _prelu), functional.leaky_relu: _leaky,
    functional.hardtanh: _clipped, functional.max_pool2d: _pooled}


class Smoothed(TorchFunctionMode):
    """While it is on, functions with kinks give their rounded selves."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """Call the function, or its rounded self."""
        return ROUNDED.get(func, func)(*args, **(kwargs or {}))
