"""Mixtures of Gaussians in the plane, whose modes are known: what a generator left out can be counted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.tasks.task import Data, Split

HELD_OUT = 2_000


@dataclass(frozen=True)
class Mixture(ABC):
    """Equally likely Gaussians about known means; targets are the mode's number.

    `std` is the standard deviation of each in each coordinate, `points` how many there are to train on.
    """

    std: float = field(default=0.05, kw_only=True)
    points: int = field(default=20_000, kw_only=True)

    @property
    @abstractmethod
    def means(self) -> Tensor:
        """The modes, `(modes, 2)`."""

    def __call__(self) -> Data:
        """Draw `points` to train on, and 2,000 each to validate and to test; always the same."""
        generator = torch.Generator().manual_seed(0)
        sizes, means = [self.points, HELD_OUT, HELD_OUT], self.means
        which = torch.randint(len(means), (sum(sizes),), generator=generator, device="cpu")
        points = means[which] + self.std * torch.randn(sum(sizes), 2, generator=generator, device="cpu")
        return Data(*map(Split, points.split(sizes), which.split(sizes)))


@dataclass(frozen=True)
class Ring(Mixture):
    """`modes` Gaussians evenly spaced on a circle.

    >>> Ring(4).means.round().abs().tolist()
    [[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]]

    Raises:
        UserError: unless modes >= 1, radius > 0 and std > 0.
    """

    modes: int = 8
    radius: float = 2.0

    def __post_init__(self) -> None:
        _check("Ring", self.modes, self.radius, self.std)

    @property
    def means(self) -> Tensor:
        """Points on the circle, the first on the x axis."""
        angles = torch.arange(self.modes, device="cpu") * (2 * math.pi / self.modes)
        return self.radius * torch.stack([angles.cos(), angles.sin()], dim=1)


@dataclass(frozen=True)
class Lattice(Mixture):
    """`side` x `side` Gaussians on a square lattice about the origin, `spacing` apart.

    Raises:
        UserError: unless side >= 1, spacing > 0 and std > 0.
    """

    side: int = 5
    spacing: float = 1.0

    def __post_init__(self) -> None:
        _check("Lattice", self.side, self.spacing, self.std)

    @property
    def means(self) -> Tensor:
        """The lattice, row by row."""
        line = self.spacing * (torch.arange(self.side, device="cpu") - (self.side - 1) / 2)
        return torch.cartesian_prod(line, line).reshape(-1, 2)


def _check(owner: str, count: int, *sizes: float) -> None:
    if not isinstance(count, int) or count < 1 or not all(0 < size < math.inf for size in sizes):
        raise UserError(f"{owner}: expected a whole number of modes >= 1, and sizes > 0; got {count!r} and {sizes}")
