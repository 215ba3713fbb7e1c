"""The networks of the image tasks, as factories whose `repr` is their identity.

Every network is a `Sequential` of torch's own linear, convolution, batch-norm, ReLU, pooling and flatten
layers, and of `Residual`, so that code which needs a network's structure (a Lipschitz bound, say) can walk
it. Weights are drawn by torch's default initialisation, from the global generator at the moment of the call.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from optscope.errors import UserError


class Residual(nn.Module):
    """Add what two modules make of the same input: `branch(x) + shortcut(x)`.

    >>> import torch
    >>> Residual(nn.ReLU(), nn.Identity())(torch.tensor([-1.0, 2.0]))
    tensor([-1., 4.])
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return `branch(x) + shortcut(x)`; both must have the same shape."""
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron: linear layers with ReLU between them, on the flattened input.

    `sizes` are the widths from the input to the classes; two of them make a linear model. Inputs are
    `(n, ...)` with `sizes[0]` numbers each.

    >>> MLP((64, 128, 10))()
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=64, out_features=128, bias=True)
      (2): ReLU()
      (3): Linear(in_features=128, out_features=10, bias=True)
    )

    Raises:
        UserError: when `sizes` is not a tuple of at least two positive whole numbers.
    """

    sizes: tuple[int, ...] = (784, 128, 128, 10)

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, tuple) or len(self.sizes) < 2 or not all(map(_is_count, self.sizes)):
            raise UserError("MLP: sizes must be a tuple of at least two positive whole numbers, "
                            f"such as (784, 128, 10); got {self.sizes!r}")

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        layers: list[nn.Module] = [nn.Flatten()]
        for inside, outside in pairwise(self.sizes):
            layers += [nn.Linear(inside, outside), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class C2:
    """The small convolutional network of Ma et al. for MNIST and Fashion-MNIST.

    Two 4x4 convolutions (16 and 32 filters, stride 1, padding 1), each followed by ReLU, then two linear
    layers (100 and `classes` wide) *without* an activation between them, as in the authors' code. Inputs are
    `(n, channels, size, size)`.

    Reference: Ma, Pan, Farahmand, arXiv 2308.06703, and the authors' code.

    Raises:
        UserError: when a count is no positive whole number, or size < 3.
    """

    channels: int = 1
    size: int = 28
    classes: int = 10

    def __post_init__(self) -> None:
        _check_counts(self)
        if self.size < 3:
            raise UserError(f"C2: each convolution takes one pixel off a side, so size must be at least 3; "
                            f"got {self.size}")

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        return nn.Sequential(
            nn.Conv2d(self.channels, 16, 4, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 4, padding=1), nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (self.size - 2) ** 2, 100), nn.Linear(100, self.classes),
        )


@dataclass(frozen=True)
class StridedCNN:
    """A small convolutional network without normalisation, for many trainings.

    For each of `widths` a 3x3 convolution of stride 2, which halves the sides, rounded up, and ReLU; then one
    linear layer. Strides take the place of pooling, at a quarter of its price. Inputs are `(n, channels, size,
    size)`.

    >>> sum(p.numel() for p in StridedCNN()().parameters())
    9098

    Raises:
        UserError: when a count, or one of widths, is no positive whole number.
    """

    channels: int = 1
    size: int = 28
    widths: tuple[int, ...] = (8, 16)
    classes: int = 10

    def __post_init__(self) -> None:
        _check_counts(self)
        if not isinstance(self.widths, tuple) or not self.widths or not all(map(_is_count, self.widths)):
            raise UserError("StridedCNN: widths must be a tuple of positive whole numbers, such as (8, 16); "
                            f"got {self.widths!r}")

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        layers: list[nn.Module] = []
        side = self.size
        for inside, outside in pairwise((self.channels, *self.widths)):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.ReLU()]
            side = (side + 1) // 2
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(self.widths[-1] * side**2, self.classes))


@dataclass(frozen=True)
class ResNet:
    """The residual network for small images: `depth = 6n + 2`, three stages of n blocks, ReLU after the sum.

    The stages are `width`, 2 `width` and 4 `width` wide. A shortcut is the identity, and a 1x1 projection
    where the width changes (option B; the two projections add 2,560 weights at width 16 to the paper's
    parameter-free option A). `norm=False` leaves batch normalisation out and changes nothing else; no
    convolution has a bias. Inputs are `(n, channels, height, width)` of any size.

    Reference: He et al. 2015, arXiv 1512.03385, section 4.2.

    Raises:
        UserError: when `depth` is not 8, 14, 20, ... or another field is not a positive whole number.
    """

    depth: int = 20
    channels: int = 3
    classes: int = 10
    width: int = 16
    norm: bool = True

    def __post_init__(self) -> None:
        _check_counts(self)
        if self.depth < 8 or self.depth % 6 != 2:
            raise UserError(f"ResNet: depth must be 6n + 2, such as 8, 20 or 56; got {self.depth}")

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        layers = [_conv(self.channels, self.width), *_norm(self.width, self.norm), nn.ReLU()]
        inside = self.width
        for stage in range(3):
            outside = self.width * 2**stage
            for block in range(self.depth // 6):
                layers += self._block(inside, outside, stride=2 if stage and not block else 1)
                inside = outside
        return nn.Sequential(*layers, *_head(inside, self.classes))

    def _block(self, inside: int, outside: int, stride: int) -> list[nn.Module]:
        branch = nn.Sequential(_conv(inside, outside, stride=stride), *_norm(outside, self.norm), nn.ReLU(),
                               _conv(outside, outside), *_norm(outside, self.norm))
        shortcut = nn.Identity() if inside == outside else nn.Sequential(
            _conv(inside, outside, kernel=1, stride=stride), *_norm(outside, self.norm))
        return [Residual(branch, shortcut), nn.ReLU()]


@dataclass(frozen=True)
class PreActResNet18:
    """The 18-layer residual network that activates before it convolves, for 32x32 images.

    Four stages of two blocks, 64, 128, 256 and 512 wide. In the first block of a stage the 1x1 projection
    reads the activated input, which both paths share. As in the authors' code there is no activation between
    the last block and the pooling, no convolution has a bias, and without `norm` (their default) there is no
    batch normalisation. Inputs are `(n, channels, 32, 32)`.

    Reference: He et al. 2016, arXiv 1603.05027; Ma, Pan, Farahmand, arXiv 2308.06703.

    Raises:
        UserError: unless channels and classes are whole numbers >= 1.
    """

    channels: int = 3
    classes: int = 10
    norm: bool = False

    def __post_init__(self) -> None:
        _check_counts(self)

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        layers: list[nn.Module] = [_conv(self.channels, 64)]
        inside = 64
        for outside in (64, 128, 256, 512):
            for block in range(2):
                layers += self._block(inside, outside, stride=2 if outside > 64 and not block else 1)
                inside = outside
        return nn.Sequential(*layers, *_head(inside, self.classes))

    def _block(self, inside: int, outside: int, stride: int) -> list[nn.Module]:
        before = [*_norm(inside, self.norm), nn.ReLU()]
        branch = [_conv(inside, outside, stride=stride), *_norm(outside, self.norm), nn.ReLU(),
                  _conv(outside, outside)]
        if inside == outside:
            return [Residual(nn.Sequential(*before, *branch), nn.Identity())]
        return [*before, Residual(nn.Sequential(*branch), _conv(inside, outside, kernel=1, stride=stride))]


def _conv(inside: int, outside: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)


def _norm(width: int, wanted: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(width)] if wanted else []


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_counts(model: Any) -> None:
    for f in fields(model):
        value = getattr(model, f.name)
        if f.type == "int" and not _is_count(value):
            raise UserError(f"{type(model).__name__}: {f.name} must be a positive whole number; "
                            f"got {value!r}")
