"""A network as a chain of affine runs, 1-D nonlinearities and residual sums, and products of norms along it.

    Lip(f) <= Π_l ‖A_l‖ · c_l,    Lip(branch + shortcut) <= Lip(branch) + Lip(shortcut)

A run is affine as long as it can be: a convolution takes the batch norm behind it along, and two linear
layers without an activation between them count as the one map they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.probes.layers import constant, in_order, known
from optscope.tasks.models import Residual

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
AFFINE = (nn.Linear, nn.Flatten, *CONVOLUTIONS, *BATCH_NORMS, *AVERAGES)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
              nn.FeatureAlphaDropout)  # in eval mode


@dataclass(frozen=True)
class Run:
    """Affine layers, one behind the other, and the shape of one input to each of them."""

    name: str
    layers: tuple[nn.Module, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input to the first layer."""
        return self.shapes[0]


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
    for path, leaf in in_order(model, name):
        kind = known(leaf, path, (Residual, *AFFINE, *IDENTITIES))
        if kind is Residual:
            assert isinstance(leaf, Residual)
            _check_apart(leaf.branch, path)
            branch, _ = pieces(leaf.branch, x, f"{path}.branch")
            shortcut, _ = pieces(leaf.shortcut, x, f"{path}.shortcut")
            chain.append(Sum(branch, shortcut))
        elif kind in AFFINE:
            _check_affine(leaf, x, path)
            last, shape = chain[-1] if chain else None, tuple(x.shape[1:])
            if isinstance(last, Run):
                chain[-1] = Run(last.name, (*last.layers, leaf), (*last.shapes, shape))
            else:
                chain.append(Run(path, (leaf,), (shape,)))
        elif kind is None:
            chain.append(Nonlinear(path, constant(leaf, x, path)))
        with torch.no_grad():
            x = leaf(x.clone())
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
    scales its rows, unless the rows are no channels (a linear layer over several axes); average pooling and
    flattening count as 1.
    """
    total = 1.0
    matrix: Tensor | None = None
    for layer, shape in zip(run.layers, run.shapes, strict=True):
        if isinstance(layer, BATCH_NORMS):
            scale = _scale(layer)
            if matrix is None:
                total *= float(scale.abs().max())
            else:
                matrix = scale.unsqueeze(1) * matrix
            continue
        total, matrix = total * _spectral(matrix), None
        if isinstance(layer, CONVOLUTIONS) or (isinstance(layer, nn.Linear) and len(shape) == 1):
            matrix = layer.weight.detach().double().flatten(1)
        elif isinstance(layer, nn.Linear):  # over time: a batch norm behind it scales moments, not the rows
            total *= _spectral(layer.weight.detach().double())
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


def _check_apart(branch: nn.Module, path: str) -> None:
    """Raise if a residual branch begins by writing into the input that the shortcut sees as well."""
    for _, leaf in in_order(branch, path):
        if isinstance(leaf, (*IDENTITIES, nn.Flatten)):  # what they return is the input itself
            continue
        if getattr(leaf, "inplace", False):
            raise UserError(f"no Lipschitz constant is known for the residual block at {path!r}: its branch writes "
                            "into the input before the shortcut sees it; use inplace=False there")
        return


def _check_affine(layer: nn.Module, x: Tensor, path: str) -> None:
    """Raise unless the layer is affine in eval mode, and each tap or window reads each pixel at most once."""
    if isinstance(layer, nn.Flatten) and layer.start_dim == 0:
        raise UserError(f"the Lipschitz bounds need examples that stay apart; {path!r} flattens them into one: "
                        "write start_dim=1")
    if isinstance(layer, CONVOLUTIONS) and layer.padding_mode != "zeros":
        raise UserError(f"the Lipschitz bounds need convolutions padded with zeros; {path!r} has "
                        f"padding_mode={layer.padding_mode!r}")
    if isinstance(layer, BATCH_NORMS) and (layer.running_var is None or layer.training):
        raise UserError(f"the Lipschitz bounds need batch norms that use their running statistics; {path!r} does "
                        "not: make it with track_running_stats=True, and let it change to eval mode")
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
