"""What torch's layers compute: whether a module is the layer its type says, and how steep activations are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from optscope.errors import UserError
from optscope.probes.still import handed_copies

DECIDE = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__", "__getattribute__", "__iter__", "forward",
          "_conv_forward", "_check_input_dim")
"""The methods by which a module computes: a subclass that leaves them alone computes what its parent does."""

SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0, nn.ReLU6: 1.0, nn.Hardtanh: 1.0, nn.Softshrink: 1.0, nn.Softsign: 1.0, nn.Tanh: 1.0,
    nn.Tanhshrink: 1.0, nn.LogSigmoid: 1.0, nn.Sigmoid: 1 / 4, nn.Hardsigmoid: 1 / 6, nn.Hardswish: 3 / 2,
    nn.SELU: 1.75810, nn.GELU: 1.13, nn.SiLU: 1.1, nn.Mish: 1.089}
"""The steepest slope of each activation without settings that matter (rounded up for the last four)."""

STEEPEST: dict[type[nn.Module], Callable[[Any], float]] = {
    nn.ELU: lambda layer: max(1.0, abs(layer.alpha)),
    nn.CELU: lambda layer: 1.0 if layer.alpha > 0 else math.inf,  # the exponential grows without bounds
    nn.LeakyReLU: lambda layer: max(1.0, abs(layer.negative_slope)),
    nn.PReLU: lambda layer: max(1.0, float(layer.weight.detach().abs().max())),
    nn.RReLU: lambda layer: max(1.0, abs(layer.lower + layer.upper) / 2),  # in eval mode
    nn.Softplus: lambda layer: 1.0 if layer.threshold >= 20 else math.inf,  # it jumps there, by exp(-threshold)
    nn.Threshold: lambda layer: 1.0 if layer.value == layer.threshold else math.inf,
}
"""The steepest slope of those with settings; infinite where a setting makes them jump."""

WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Hooks of torch's that make a layer's weights before it computes, and change nothing else."""

SOFTMAXES = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def known(module: nn.Module, path: str, kinds: Sequence[type[nn.Module]]) -> type[nn.Module] | None:
    """Return which of `kinds` a module in eval mode computes as, None if it is none of them.

    Its type, or a parent that it inherits the methods of `DECIDE` from, is one of them. A parametrised layer
    counts as the layer: its weights are others, what it does with them is the same.

    Raises:
        UserError: for a module that hooks, or an attribute in place of a method, make another one.
    """
    own = [name for name, value in vars(module).items()
           if callable(value) and callable(getattr(type(module), name, None))]
    everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    hooks = [hook for some in (module._forward_hooks, module._forward_pre_hooks, *everywhere)
             for hook in some.values() if hook is not handed_copies and not isinstance(hook, WEIGHT_HOOKS)]
    if own or hooks:
        reason = f"a method {own[0]!r} of its own" if own else "hooks, which may change what it computes"
        raise UserError(f"no Lipschitz constant is known for the module {type(module).__name__} at "
                        f"{path or 'the top'!r}: it has {reason}")
    kind = next((base for base in type(module).__mro__ if base in kinds), None)
    same = all(getattr(type(module), name, None) is getattr(kind, name, None) for name in DECIDE)
    return kind if same else None


def in_order(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules inside `Sequential`s, one behind the other, with their paths."""
    if known(module, name, (nn.Sequential,)):
        assert isinstance(module, nn.Sequential)
        for child, part in enumerate(module):  # unlike named_children, this repeats a layer used twice
            yield from in_order(part, f"{name}.{child}".lstrip("."))
    else:
        yield name or type(module).__name__, module


def constant(layer: Any, x: Tensor, path: str) -> float:
    """Return the Lipschitz constant of an activation or a max pooling on inputs like `x` `(n, ...)`, l2 to l2.

    It is the steepest slope of what acts on each number alone. Softmax has 1/2: its Jacobian diag(p) − p pᵀ has no
    larger eigenvalue (equal for two classes). That of log-softmax, I − 1 pᵀ, is steepest at a corner p: √classes.
    A max pooling counts √(windows a number lies in): it can be the maximum of each of them.

    Raises:
        UserError: where none is known, or there is none.
    """
    kind = known(layer, path, (*SLOPES, *STEEPEST, *SOFTMAXES, *MAX_POOLS))
    found = math.inf
    if kind in SLOPES:
        found = SLOPES[kind]
    elif kind in STEEPEST:
        found = STEEPEST[kind](layer)
    elif kind in MAX_POOLS:
        return _overlap(layer, MAX_POOLS.index(kind) + 1)
    elif kind in SOFTMAXES:
        axis = -3 if kind is nn.Softmax2d else layer.dim
        if axis is not None and axis % x.dim() != 0:  # where the examples lie
            found = math.sqrt(x.shape[axis]) if kind is nn.LogSoftmax else 1 / 2
    if math.isinf(found):
        name = layer if kind else type(layer).__name__  # with the settings, where they are what matters
        raise UserError(f"no Lipschitz constant is known for the module {name} at {path!r}: a bound needs a model "
                        "made of Sequential, Residual, Linear, Conv, BatchNorm, pooling and activations with one")
    return found


def _overlap(pool: Any, axes: int) -> float:
    """Return √ of the number of windows a number can lie in."""
    settings = ((value,) * axes if isinstance(value, int) else value
                for value in (pool.kernel_size, pool.stride, pool.dilation))
    windows = 1
    for kernel, stride, dilation in zip(*settings, strict=True):
        windows *= max(Counter(tap * dilation % stride for tap in range(kernel)).values())
    return math.sqrt(windows)
