"""The norm that a rule's step is steepest in: its unit ball holds the steps of learning rate 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from optscope.optim.rule import Hyper
from optscope.vector import Layout

Norm = Literal["l2", "linf", "spectral"]


@dataclass(frozen=True)
class Ball:
    """The ball {d : ‖d‖ <= 1} of a norm, by which a rule without memory steps w ← w − lr · argmax_d ⟨g, d⟩.

    The norm is the largest over blocks b of ‖d_b‖/r_b, where ‖·‖ is l2, l∞, or the spectral norm of a matrix (a
    kernel is one of its first axis by all others); a block of radius 0 stands still. `radii` and `blocks` hold r
    and the number of its block for each layer; blocks matter to l2 alone, the only one that joins layers.

    >>> layout = Layout(("w",), (torch.Size([2]),))
    >>> ball = Ball("linf", (1.0,), (0,))
    >>> ball.furthest(torch.tensor([3.0, -4.0]), layout), float(ball.dual(torch.tensor([3.0, -4.0]), layout))
    (tensor([ 1., -1.]), 7.0)
    """

    norm: Norm
    radii: tuple[float, ...]
    blocks: tuple[int, ...]

    def furthest(self, vector: Tensor, layout: Layout) -> Tensor:
        """Return the d of the ball with the largest ⟨vector, d⟩, `(P,)`: signs, a polar factor, or unit vectors."""
        parts = vector.split(layout.sizes)
        if self.norm == "linf":
            found = [r * torch.where(part < 0, -1.0, 1.0).to(part)  # of zeros too: a vertex
                     for part, r in zip(parts, self.radii, strict=True)]
        elif self.norm == "spectral":
            found = [r * _polar(part.view(shape[0], -1)).reshape(-1) if r else torch.zeros_like(part)
                     for part, shape, r in zip(parts, layout.shapes, self.radii, strict=True)]
        else:
            lengths = self._lengths(parts)
            found = [r * part / lengths[block].clamp(min=torch.finfo(part.dtype).tiny)
                     for part, block, r in zip(parts, self.blocks, self.radii, strict=True)]
        return torch.cat(found)

    def dual(self, vector: Tensor, layout: Layout) -> Tensor:
        """Return the dual norm ‖v‖_* = max over the ball of ⟨v, d⟩, `()`."""
        return vector @ self.furthest(vector, layout)

    def square(self, layout: Layout) -> float:
        """Return the largest ‖d‖₂² in the ball, so that no d'Ad in it exceeds that times A's largest eigenvalue."""
        if self.norm == "l2":
            return sum(r * r for r in dict(zip(self.blocks, self.radii, strict=True)).values())
        ranks = (size if self.norm == "linf" or not r else min(shape[0], size // shape[0])
                 for size, shape, r in zip(layout.sizes, layout.shapes, self.radii, strict=True))
        return sum(r * r * rank for r, rank in zip(self.radii, ranks, strict=True))

    def _lengths(self, parts: Sequence[Tensor]) -> dict[int, Tensor]:
        owned = {block: [part for part, own in zip(parts, self.blocks, strict=True) if own == block]
                 for block in self.blocks}
        return {block: torch.linalg.vector_norm(torch.cat(some)) for block, some in owned.items()}


@dataclass(frozen=True)
class Mixture:
    """What a rule steps along, c = used · m + (1 − used) · g, and how it forgets: m ← kept · m + (1 − kept) · g.

    m is its state "m" before the step; `decay` times lr is the share of the weights that a step takes away besides.
    """

    used: Hyper = 0.0
    kept: Hyper = 0.0
    decay: Hyper = 0.0


@runtime_checkable
class Steepest(Protocol):
    """A rule whose every step, decay left aside, is the furthest along a mixture of its gradients."""

    def mixture(self) -> Mixture:
        """Return the weights of that mixture."""

    def ball(self, layout: Layout) -> Ball | None:
        """Return the ball that holds its steps of learning rate 1; None if there is none."""


def _polar(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found: Tensor = u @ vh
    return found


def linf_ball(layout: Layout) -> Ball:
    """Return the ball of l∞, of radius 1."""
    return Ball("linf", (1.0,) * len(layout.names), tuple(range(len(layout.names))))


def l2_ball(layout: Layout, blocks: tuple[int, ...], rms: bool = False) -> Ball:
    """Return the ball of the l2 norm of each block, of radius 1, or with `rms` of a root mean square of 1."""
    sizes = [sum(n for n, own in zip(layout.sizes, blocks, strict=True) if own == block) for block in blocks]
    return Ball("l2", tuple(math.sqrt(n) if rms else 1.0 for n in sizes), blocks)
