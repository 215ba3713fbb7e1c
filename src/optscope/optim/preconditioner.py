"""The matrix P by which a rule divides its gradient, held still: how that rule meets the curvature of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from optscope.optim.rule import State
from optscope.vector import Layout


@dataclass(frozen=True)
class Preconditioner:
    """P by what it does to a vector: a rule that steps along P⁻¹ g meets the Hessian H as P^(-1/2) H P^(-1/2) + C.

    `root` is v ↦ P^(-1/2) v, of tensors of one shape. C is diagonal, what weight decay bends besides: `shift` is a
    number, or one for each of v's. Where P is infinite, nothing moves, and `root` gives 0.

    >>> Preconditioner.diagonal(torch.tensor([4.0, 0.25])).root(torch.ones(2))
    tensor([0.5000, 2.0000])
    """

    root: Callable[[Tensor], Tensor]
    shift: Tensor | float = 0.0

    @classmethod
    def diagonal(cls, numbers: Tensor) -> Self:
        """Return the P with these positive numbers on its diagonal."""
        scale = numbers.rsqrt()
        return cls(lambda v: scale.to(v.dtype) * v)

    def times(self, factor: float | Tensor) -> Self:
        """Return that of `factor` · P, with C/`factor`: all that is met is so many times smaller."""
        return type(self)(lambda v: self.root(v) / factor**0.5, self.shift / factor)

    @classmethod
    def joined(cls, layout: Layout, parts: Sequence[Self | None], like: Tensor) -> Self:
        """Return that of flat vectors like this one, `(P,)`, of layers with one each; None is an infinite one."""
        shifts = [torch.as_tensor(0.0 if part is None else part.shift, dtype=like.dtype, device=like.device)
                  .reshape(-1).expand(size) for part, size in zip(parts, layout.sizes, strict=True)]

        def root(vector: Tensor) -> Tensor:
            return layout.flatten([torch.zeros_like(v) if part is None else part.root(v)
                                   for part, v in zip(parts, layout.views(vector), strict=True)])

        return cls(root, torch.cat(shifts))


@runtime_checkable
class Preconditions(Protocol):
    """A rule that divides each layer's gradient by a P which, held still, leaves its step linear."""

    def preconditioner(self, state: State, params: Tensor, grad: Tensor) -> Preconditioner | None:
        """Return the P of a layer, of its shape, from its state in place; None before its first step."""
