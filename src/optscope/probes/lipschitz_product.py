"""A network as a chain of affine runs, 1-D nonlinearities and residual sums, and products of norms along it.

    Lip(f) <= Π_l ‖A_l‖ · c_l,    Lip(branch + shortcut) <= Lip(branch) + Lip(shortcut)

A run is affine as long as it can be: a convolution takes the batch norm behind it along, and two linear
layers without an activation between them count as the one map they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.tasks.models import Residual

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
AFFINE = (nn.Linear, nn.Flatten, *CONVOLUTIONS, *BATCH_NORMS, *AVERAGES)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in eval mode
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d)
SLOPES: dict[type[nn.Module], float] = {nn.ReLU: 1.0, nn.ReLU6: 1.0, nn.Tanh: 1.0, nn.Sigmoid: 0.25,
                                        nn.Softplus: 1.0, nn.GELU: 1.13, nn.SiLU: 1.1}
"""The steepest slope of each activation (rounded up for the last two)."""


@dataclass(frozen=True)
class Run:
    """Affine layers, one behind the other, and the shape of one input to them."""

    name: str
    layers: tuple[nn.Module, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Nonlinear:
    """An activation or a max pooling, with its Lipschitz constant."""

    name: str
    constant: float


@dataclass(frozen=True)
class Sum:
    """A residual block."""

    branch: tuple[Piece, ...]
    shortcut: tuple[Piece, ...]


Piece = Run | Nonlinear | Sum


def pieces(model: nn.Module, x: Tensor, name: str = "") -> tuple[tuple[Piece, ...], Tensor]:
    """Return the chain that a model in eval mode is, and its output for one example `x` `(1, ...)`.

    Raises:
        UserError: naming a module whose Lipschitz constant is not known here.
    """
    chain: list[Piece] = []
    for path, leaf in _leaves(model, name):
        if isinstance(leaf, Residual):
            branch, _ = pieces(leaf.branch, x, f"{path}.branch")
            shortcut, _ = pieces(leaf.shortcut, x, f"{path}.shortcut")
            chain.append(Sum(branch, shortcut))
        elif isinstance(leaf, AFFINE):
            _check_affine(leaf, x, path)
            last = chain[-1] if chain else None
            if isinstance(last, Run):
                chain[-1] = Run(last.name, (*last.layers, leaf), last.shape)
            else:
                chain.append(Run(path, (leaf,), tuple(x.shape[1:])))
        elif not isinstance(leaf, IDENTITIES):
            chain.append(Nonlinear(path, _constant(leaf, path)))
        with torch.no_grad():
            x = leaf(x)
    return tuple(chain), x


def runs(chain: Sequence[Piece]) -> Iterator[Run]:
    """Yield the affine runs of a chain, in the order of the model, branches before shortcuts."""
    for piece in chain:
        if isinstance(piece, Run):
            yield piece
        elif isinstance(piece, Sum):
            yield from runs(piece.branch)
            yield from runs(piece.shortcut)


def product(chain: Sequence[Piece], norm: Callable[[Run], float], pooling: bool = True) -> float:
    """Return Π norm(run) · constant(nonlinearity) along a chain, with the branches of residual blocks added.

    Without `pooling`, nonlinearities count as 1.
    """
    total = 1.0
    for piece in chain:
        if isinstance(piece, Run):
            total *= norm(piece)
        elif isinstance(piece, Sum):
            total *= product(piece.branch, norm, pooling) + product(piece.shortcut, norm, pooling)
        elif pooling:
            total *= piece.constant
    return total


def kernel_norm(run: Run, taps: bool) -> float:
    """Return the product over a run of the norms of its kernels as matrices `(out, in · kh · kw)`.

    This is the quantity of arXiv 2308.06703's code; for convolutions it is *not* a bound (the all-ones 3x3
    kernel gives 3, the operator tends to 9). With `taps` every convolution's norm is multiplied by
    √(kh · kw), which makes it one: each tap reads each pixel at most once. A batch norm behind a kernel
    scales its rows; average pooling and flattening count as 1.
    """
    total = 1.0
    matrix: Tensor | None = None
    for layer in run.layers:
        if isinstance(layer, BATCH_NORMS):
            scale = _scale(layer)
            if matrix is None:
                total *= float(scale.abs().max())
            else:
                matrix = scale.unsqueeze(1) * matrix
            continue
        total, matrix = total * _spectral(matrix), None
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            matrix = layer.weight.detach().double().flatten(1)
        if taps and isinstance(layer, CONVOLUTIONS):
            total *= math.sqrt(math.prod(layer.kernel_size))
    return total * _spectral(matrix)


def _spectral(matrix: Tensor | None) -> float:
    return 1.0 if matrix is None else float(torch.linalg.matrix_norm(matrix, ord=2))


def _scale(layer: nn.Module) -> Tensor:
    """γ / √(running variance + ε), `(channels,)`."""
    assert isinstance(layer, BATCH_NORMS)
    assert layer.running_var is not None
    root = (layer.running_var.double() + layer.eps).sqrt()
    return 1 / root if layer.weight is None else layer.weight.detach().double() / root


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child, part in enumerate(module):  # unlike named_children, this repeats a layer used twice
            yield from _leaves(part, f"{name}.{child}".lstrip("."))
    else:
        yield name or type(module).__name__, module


def _check_affine(layer: nn.Module, x: Tensor, path: str) -> None:
    """Raise unless the layer is affine in eval mode, and each tap or window reads each pixel at most once."""
    if isinstance(layer, CONVOLUTIONS) and layer.padding_mode != "zeros":
        raise UserError(f"the Lipschitz bounds need convolutions padded with zeros; {path!r} has "
                        f"padding_mode={layer.padding_mode!r}")
    if isinstance(layer, BATCH_NORMS) and layer.running_var is None:
        raise UserError(f"the Lipschitz bounds need batch norms with running statistics; {path!r} has none: "
                        "make it with track_running_stats=True")
    if isinstance(layer, AVERAGES) and not _is_plain(layer, x):
        raise UserError(f"the Lipschitz bounds need average pooling over whole windows of one size; {path!r} "
                        f"is {layer} on images of {tuple(x.shape[2:])}: choose a size that divides them, "
                        "without padding")


def _is_plain(pool: nn.Module, x: Tensor) -> bool:
    if isinstance(pool, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)):
        with torch.no_grad():
            return all(inside % outside == 0
                       for inside, outside in zip(x.shape[2:], pool(x).shape[2:], strict=True))
    plain = pool.padding in (0, (0,), (0, 0)) and not pool.ceil_mode
    return plain and getattr(pool, "divisor_override", None) is None


def _constant(module: nn.Module, path: str) -> float:
    if isinstance(module, MAX_POOLS):
        return _overlap(module)
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if type(module) in SLOPES:
        return SLOPES[type(module)]
    raise UserError(f"no Lipschitz constant is known for the module {type(module).__name__} at {path!r}: "
                    "build the model of Sequential, Residual, Linear, Conv, BatchNorm, pooling and "
                    f"{', '.join(sorted(kind.__name__ for kind in SLOPES))}, or leave this probe out")


def _overlap(pool: nn.MaxPool1d | nn.MaxPool2d) -> float:
    """√ of the number of windows a pixel can lie in: it can be the maximum of each of them."""
    axes = 1 if isinstance(pool, nn.MaxPool1d) else 2
    settings = ((value,) * axes if isinstance(value, int) else value
                for value in (pool.kernel_size, pool.stride, pool.dilation))
    windows = 1
    for kernel, stride, dilation in zip(*settings, strict=True):
        windows *= max(Counter(tap * dilation % stride for tap in range(kernel)).values())
    return math.sqrt(windows)
