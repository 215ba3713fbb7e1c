"""Generators and discriminators as factories whose `repr` is their identity.

Images live in [0, 1] outside and in [-1, 1] inside. Weights are drawn from the global generator at the moment of
the call; biases start at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from optscope.errors import UserError

SLOPE = 0.2
"""Of the leaky ReLU for negative inputs, in all discriminators and in the generators of points."""


class Affine(nn.Module):
    """x ↦ scale · x + shift, with fixed numbers.

    >>> import torch
    >>> Affine(2.0, -1.0)(torch.tensor([0.0, 1.0]))
    tensor([-1.,  1.])
    """

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """Return scale · x + shift."""
        return self.scale * x + self.shift


@dataclass(frozen=True)
class Perceptron:
    """Linear layers with leaky ReLU between them, drawn uniformly as He et al. 2015 (arXiv 1502.01852) say.

    It serves as a generator of points, `(latent, ..., 2)`, and as their discriminator, `(2, ..., 1)`.

    >>> sum(p.numel() for p in Perceptron((8, 64, 64, 2))().parameters())
    4866

    Raises:
        UserError: unless sizes are two positive whole numbers or more.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or not all(isinstance(size, int) and size >= 1 for size in self.sizes):
            raise UserError("Perceptron: sizes must be two positive whole numbers or more, such as (8, 64, 64, 2); "
                            f"got {self.sizes!r}")

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        layers: list[nn.Module] = []
        for inside, outside in pairwise(self.sizes):
            linear = nn.Linear(inside, outside)
            nn.init.kaiming_uniform_(linear.weight, a=SLOPE)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.LeakyReLU(SLOPE)]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class DCGenerator:
    """A linear layer and transposed convolutions that each double the side, up to `size` x `size` images.

    `widths` are the channels before each doubling. `norm` puts batch normalisation before each ReLU. Weights are
    N(0, 0.05²). Radford et al. 2016, arXiv 1511.06434, smaller.

    >>> import torch
    >>> DCGenerator()()(torch.zeros(5, 16)).shape
    torch.Size([5, 1, 8, 8])

    Raises:
        UserError: when `size` is no multiple of two to the number of widths.
    """

    latent: int = 16
    widths: tuple[int, ...] = (64, 32)
    size: int = 8
    channels: int = 1
    norm: bool = True

    def __post_init__(self) -> None:
        _first_side("DCGenerator", self.size, self.widths)

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        side = _first_side("DCGenerator", self.size, self.widths)
        layers: list[nn.Module] = [nn.Linear(self.latent, self.widths[0] * side**2),
                                   nn.Unflatten(1, (self.widths[0], side, side))]
        for inside, outside in pairwise((*self.widths, self.channels)):
            layers += [nn.BatchNorm2d(inside)] if self.norm else []
            layers += [nn.ReLU(), nn.ConvTranspose2d(inside, outside, 4, 2, 1)]
        return _drawn(nn.Sequential(*layers, nn.Tanh(), Affine(0.5, 0.5)))


@dataclass(frozen=True)
class DCDiscriminator:
    """Convolutions that each halve the side of a `size` x `size` image, leaky ReLU, and a linear layer; no norm.

    Weights are N(0, 0.05²).

    Raises:
        UserError: when `size` is no multiple of two to the number of widths.
    """

    widths: tuple[int, ...] = (32, 64)
    size: int = 8
    channels: int = 1

    def __post_init__(self) -> None:
        _first_side("DCDiscriminator", self.size, self.widths)

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        side = _first_side("DCDiscriminator", self.size, self.widths)
        layers: list[nn.Module] = [Affine(2.0, -1.0)]
        for inside, outside in pairwise((self.channels, *self.widths)):
            layers += [nn.Conv2d(inside, outside, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        return _drawn(nn.Sequential(*layers, nn.Flatten(), nn.Linear(self.widths[-1] * side**2, 1)))


def _first_side(owner: str, size: int, widths: Sequence[int]) -> int:
    if not widths or size % (1 << len(widths)):
        raise UserError(f"{owner}: each of the {len(widths)} widths halves or doubles the side, so size must be a "
                        f"multiple of {1 << len(widths)}; got {size}")
    return size >> len(widths)


def _drawn(network: nn.Sequential) -> nn.Sequential:
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.05)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


class Block(nn.Module):
    """A residual block that may double (nearest) or halve (mean) the side, on both of its paths."""

    def __init__(self, inside: int, outside: int, *, norm: bool, resize: nn.Module | None = None,
                 first: bool = False) -> None:
        super().__init__()
        def before(width: int) -> list[nn.Module]:
            return [*([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        after = norm or resize is None  # generators resize before they convolve, discriminators after
        up = [resize] if resize is not None and norm else []
        down = [resize] if resize is not None and not after else []
        self.branch = nn.Sequential(
            *([] if first else before(inside)), *up, nn.Conv2d(inside, outside, 3, padding=1), *before(outside),
            nn.Conv2d(outside, outside, 3, padding=1), *down)
        bare = inside == outside and resize is None
        self.shortcut = nn.Identity() if bare else nn.Sequential(*up, nn.Conv2d(inside, outside, 1), *down)

    def forward(self, x: Tensor) -> Tensor:
        """Return branch(x) + shortcut(x)."""
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


class SumPool(nn.Module):
    """Sum over the pixels of each channel, `(n, channels)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums."""
        return x.sum(dim=(2, 3))


@dataclass(frozen=True)
class ResGenerator:
    """The residual generator that WGAN-GP is usually compared on: three doubling blocks, up to `size` x `size`.

    After the public collection w86763777/pytorch-gan-collections; weights are torch's default.

    Raises:
        UserError: when `size` is no multiple of 8.
    """

    latent: int = 128
    width: int = 256
    channels: int = 3
    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 8:
            raise UserError("ResGenerator: three blocks double the side, so size must be a multiple of 8; got "
                            f"{self.size}")

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        side = self.size // 8
        blocks = [Block(self.width, self.width, norm=True, resize=nn.Upsample(scale_factor=2)) for _ in range(3)]
        return nn.Sequential(
            nn.Linear(self.latent, self.width * side**2), nn.Unflatten(1, (self.width, side, side)), *blocks,
            nn.BatchNorm2d(self.width), nn.ReLU(), nn.Conv2d(self.width, self.channels, 3, padding=1), nn.Tanh(),
            Affine(0.5, 0.5))


@dataclass(frozen=True)
class ResDiscriminator:
    """The residual critic of images of any size: an entry block and one more halve it, two plain blocks follow."""

    width: int = 128
    channels: int = 3

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        w = self.width
        return nn.Sequential(
            Affine(2.0, -1.0), Block(self.channels, w, norm=False, resize=nn.AvgPool2d(2), first=True),
            Block(w, w, norm=False, resize=nn.AvgPool2d(2)), Block(w, w, norm=False), Block(w, w, norm=False),
            nn.ReLU(), SumPool(), nn.Linear(w, 1))
