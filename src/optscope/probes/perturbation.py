"""The two balls attacks live in: each knows its size, its steepest direction, its projection, a random point.

A point of a ball also lies in the box of allowed inputs, when there is one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, final

import torch
from torch import Tensor

from optscope.devices import moved
from optscope.errors import UserError, nearest

Norm = Literal["l2", "linf"]
Bounds = tuple[float, float] | None


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Return `values` `(n,)` shaped to broadcast over the examples of `like` `(n, ...)`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def standing(done: Tensor, x: Tensor, moved: Tensor) -> Tensor:
    """Return `moved` `(n, ...)`, whose memory may be taken, with `x` where examples are `done` `(n,)`."""
    if done.device.type != "cpu":  # to know who they are is a wait
        return torch.where(per_example(done, x), x, moved)
    where = done.nonzero().squeeze(1)
    return moved.index_copy_(0, where, x[where])


@dataclass(frozen=True, eq=False)
class Ball(ABC):
    """One ball around each of `n` inputs, all cut by the same box.

    `centre` `(n, ...)` lies in the box `bounds` (None: no box); `eps` `(n, 1, ...)` holds a radius an input.
    """

    centre: Tensor
    eps: Tensor
    bounds: Bounds = None

    @staticmethod
    @abstractmethod
    def size(delta: Tensor) -> Tensor:
        """Return the norm of each perturbation, `(n,)`."""

    @staticmethod
    @abstractmethod
    def steepest(gradient: Tensor) -> Tensor:
        """Return the u of norm 1 that maximises <gradient, u>, input by input (0 where the gradient is)."""

    def climb(self, x: Tensor, gradient: Tensor, length: float) -> Tensor:
        """Return `x` moved by `length` (in radii) along the steepest direction, and back. It ends `gradient`."""
        return self.project(torch.addcmul(x, self.steepest(gradient), length * self.eps))

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Return points of the balls near `x` `(n, ...)`; points of the balls stay where they are."""

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Tensor:
        """Return a random point of each ball: uniform in the ball, then clipped to the box."""

    def take(self, where: Tensor) -> Self:
        """Return the balls at `where`, indices or a mask."""
        return type(self)(self.centre[where], self.eps[where], self.bounds)


@final
class Linf(Ball):
    """Balls of the largest change of a coordinate.

    >>> Linf(torch.tensor([[0.1, 0.5]]), torch.tensor([[0.25]]), (0.0, 1.0)).project(torch.tensor([[0.9, 0.5]]))
    tensor([[0.3500, 0.5000]])
    """

    @staticmethod
    def size(delta: Tensor) -> Tensor:
        """Return max |delta_i|, `(n,)`."""
        return delta.flatten(1).abs().amax(1)

    @staticmethod
    def steepest(gradient: Tensor) -> Tensor:
        """Return sign(gradient)."""
        return gradient.sign()

    def climb(self, x: Tensor, gradient: Tensor, length: float) -> Tensor:
        """Return the point of `Ball.climb`, in the memory of `gradient`."""
        return torch.addcmul(x, gradient.sign_(), length * self.eps, out=gradient).clamp_(*self._corners)

    def project(self, x: Tensor) -> Tensor:
        """Return the nearest points."""
        return x.clamp(*self._corners)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return centre + eps * u with u uniform in [-1, 1]^d, clipped to the box."""
        u = _random(torch.rand, self.centre.shape, generator, self.centre).mul_(2).sub_(1)
        return self.project(torch.addcmul(self.centre, u, self.eps))

    @cached_property
    def _corners(self) -> tuple[Tensor, Tensor]:
        low, high = self.centre - self.eps, self.centre + self.eps
        return (low, high) if self.bounds is None else (low.clamp_(*self.bounds), high.clamp_(*self.bounds))


@final
class L2(Ball):
    """Balls of the Euclidean norm of the change.

    >>> L2(torch.zeros(1, 2), torch.ones(1, 1)).project(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    @staticmethod
    def size(delta: Tensor) -> Tensor:
        """Return sqrt(sum_i delta_i^2), `(n,)`."""
        size: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return size

    @staticmethod
    def steepest(gradient: Tensor) -> Tensor:
        """Return gradient / |gradient|, also where the gradient's squares underflow."""
        tiny = torch.finfo(gradient.dtype).tiny
        scaled = gradient / per_example(gradient.flatten(1).abs().amax(1), gradient).clamp_min(tiny)
        return scaled.div_(per_example(L2.size(scaled), scaled).clamp_min(tiny))

    def project(self, x: Tensor) -> Tensor:
        """Return `x` drawn towards the centre into the ball, then clipped to the box.

        The centre lies in the box, so clipping shortens every coordinate of the change: the point stays in
        the ball. Where the box cuts the ball it is near the nearest point, not equal to it.
        """
        delta = x - self.centre
        shrink = self.eps / torch.maximum(per_example(self.size(delta), delta), self.eps)
        inside = torch.addcmul(self.centre, delta, shrink)
        return inside if self.bounds is None else inside.clamp_(*self.bounds)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return centre + eps * u^(1/d) * g / |g|, with g normal and u uniform in [0, 1], clipped to the box."""
        normal = _random(torch.randn, self.centre.shape, generator, self.centre)
        share = _random(torch.rand, self.eps.shape, generator, self.centre) ** (1 / self.centre[0].numel())
        return self.project(torch.addcmul(self.centre, self.steepest(normal), share * self.eps))


def _random(draw: Callable[..., Tensor], shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return a draw made on the generator's device, so that it does not depend on where the model is."""
    return moved(draw(shape, generator=generator, dtype=like.dtype, device=generator.device), like.device)


def check_movable(inputs: Tensor, who: str) -> None:
    """Raise UserError unless inputs are floating point: a token id has no slope, and nothing lies near it."""
    if not inputs.is_floating_point():
        raise UserError(f"{who}: inputs must be floating point to have a slope; got {inputs.dtype}")


def check_box(bounds: object) -> None:
    """Raise UserError unless bounds are None, or a pair of finite numbers in ascending order."""
    pair = bounds if isinstance(bounds, (tuple, list)) and len(bounds) == 2 else (math.nan, math.nan)
    numbers = all(isinstance(end, (int, float)) and math.isfinite(end) for end in pair)
    if bounds is not None and not (numbers and pair[0] < pair[1]):
        raise UserError("bounds must be two finite numbers such as (0.0, 1.0), the least and the largest value of "
                        f"inputs, or None; got {bounds!r}: put what differs between channels inside the model")


def ball_of(norm: str) -> type[Ball]:
    """Return the balls of a norm.

    Raises:
        UserError: when there is no such norm.
    """
    balls: dict[str, type[Ball]] = {"l2": L2, "linf": Linf}
    if norm not in balls:
        raise UserError(f"a norm of perturbations must be l2 or linf; got {norm!r}: {nearest(str(norm), balls)}")
    return balls[norm]
