"""Muon: momentum made orthogonal, so that every direction of a matrix moves alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from optscope.errors import UserError, nearest
from optscope.optim.norm import Ball, Mixture
from optscope.optim.rule import Fused, Hyper, State, check_hyper, per_member
from optscope.optim.symmetric import symmetric
from optscope.vector import Layout

A, B, C = 3.4445, -4.7750, 2.0315
"""The polynomial a x + b x³ + c x⁵ of Jordan et al.: five times, it brings singular values near 1, not to it."""
EPS = 1e-7
LONG = 2
"""How many times as long as short a matrix is whose iterations are made in pairs."""
Length = Literal["original", "match_rms_adamw"]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return a tensor's shape as a matrix: the first axis, and all others together, as of a kernel.

    >>> matrix_shape((16, 8, 3, 3))
    (16, 72)
    """
    return shape[0], math.prod(shape[1:])


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return nearly orthogonal matrices `(..., rows, columns)` with the singular vectors of the given ones.

        X ← X/‖X‖_F;  iterations times:  X ← Q X,  Q = a I + b G + c G²,  G = X Xᵀ        (of tall ones X Q, Xᵀ X)

    Newton-Schulz with the coefficients of Jordan et al. 2024, which send singular values into about [0.7, 1.2] and
    not to 1. A matrix of zeros stays one. In the precision of what is given.

    Of long matrices iterations are made two at once, by products of the short side: Q' Q X, with Q' from Q G Q in
    the place of (Q X)(Q X)ᵀ. All five at once would lose small singular values, of which G holds the squares: in
    float32 up to 40 times the error of single ones. Pairs have theirs, 10⁻⁵ of the result and less.
    """
    found = orthogonalize_(matrices.reshape(-1, *matrices.shape[-2:]).clone(), iterations)
    return found.reshape(matrices.shape)


def orthogonalize_(x: Tensor, iterations: int) -> Tensor:
    """Return what `orthogonalized` does of matrices `(m, rows, columns)`, whose memory it takes."""
    x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_(min=EPS))
    wide, (short, long) = x.shape[-2] <= x.shape[-1], sorted(x.shape[-2:])
    pairs = iterations // 2 if long >= LONG * short and torch.finfo(x.dtype).eps < 1e-6 else 0
    y, (gram, q, third) = torch.empty_like(x), x.new_empty(3, len(x), short, short)
    for i in range(iterations - pairs):
        symmetric(*((x, x.mT) if wide else (x.mT, x)), gram)
        symmetric(gram, gram, q, gram, alpha=C, beta=B)
        if i >= iterations - 2 * pairs:
            plus_diagonal(q, A)
            symmetric(q, symmetric(gram, q, third), gram)  # of the iteration after
            plus_diagonal(symmetric(gram, gram, third, gram, alpha=C, beta=B), A)
            torch.bmm(*((symmetric(third, q, gram), x) if wide else (x, symmetric(third, q, gram))), out=y)
        else:  # a X apart from the rest rounds less
            torch.baddbmm(x, *((q, x) if wide else (x, q)), beta=A, out=y)
        x, y = y, x
    return x


def plus_diagonal(matrices: Tensor, value: float) -> None:
    """Add a multiple of the identity to matrices `(m, n, n)`, in place."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(value)


@dataclass(frozen=True, repr=False)
class Muon(Fused):
    """Average the gradient of a matrix, and step along the nearest (nearly) orthogonal matrix.

        m ← momentum · m + (1 − momentum) · g             m₀ = 0
        u = (1 − momentum) · g + momentum · m             with nesterov; else m
        step = −lr · c · NS(u) − lr · decay · w           NS: `orthogonalized`

    c = √max(1, rows/columns) ("original", Jordan), or 0.2 √max(rows, columns) ("match_rms_adamw", Moonshot, where a
    step is about as long as AdamW's and rates carry over). A kernel (out, in, h, w) is a matrix of out rows.
    Newton-Schulz runs in the parameter's own precision, or with `precision="bfloat16"` in that, as torch always
    does. Vectors are none of its: split them off, `ByKind(matrices=Muon(lr=0.02), rest=AdamW(lr=1e-3))`.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon; lengths as `adjust_lr_fn` in torch.optim.Muon 2.13, which
    takes matrices alone, and decays by 0.1 by default; Liu et al. 2025, arXiv 2502.16982 (decay, second length).

    Raises:
        UserError: unless lr > 0, 0 <= momentum < 1, decay >= 0, iterations >= 1; of another length or precision.
    """

    apart: ClassVar[bool] = True

    lr: Hyper
    momentum: Hyper = 0.95
    nesterov: bool = True
    decay: Hyper = 0.0
    length: Length = "original"
    precision: Literal["bfloat16"] | None = None
    iterations: int = 5

    def __post_init__(self) -> None:
        check_hyper("Muon", "lr", self.lr, open_low=True)
        check_hyper("Muon", "momentum", self.momentum, high=1.0)
        check_hyper("Muon", "decay", self.decay)
        if self.length not in get_args(Length):
            raise UserError(f"Muon: length must be one of {', '.join(get_args(Length))}; got {self.length!r}, "
                            f"{nearest(str(self.length), get_args(Length))}")
        if self.precision not in (None, "bfloat16"):
            raise UserError('Muon: precision must be "bfloat16", or None for that of the parameters; '
                            f"got {self.precision!r}")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise UserError(f"Muon: iterations must be a whole number >= 1; got {self.iterations!r}")

    def check_layers(self, layout: Layout) -> None:
        """Raise unless every layer is a matrix or a kernel.

        Raises:
            UserError: naming the first that is not.
        """
        for layer in layout.layers:
            if len(layer.shape) < 2:
                raise UserError(f"Muon steps matrices, and the parameter {layer.name!r} of shape "
                                f"{tuple(layer.shape)} is none: write ByKind(matrices=Muon(...), rest=AdamW(...))")

    def _length(self, shape: Sequence[int]) -> float:
        rows, columns = matrix_shape(shape)
        if self.length == "original":
            return math.sqrt(max(1, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))

    def _lower(self, matrices: Tensor) -> Tensor:
        return matrices.bfloat16() if self.precision else matrices

    def mixture(self) -> Mixture:
        """Return that of u: momentum² of the mean before with nesterov, else momentum.

        Raises:
            TypeError: for one momentum a member.
        """
        momentum = float(self.momentum)  # type: ignore[arg-type]
        return Mixture(momentum ** (2 if self.nesterov else 1), momentum, self.decay)

    def ball(self, layout: Layout) -> Ball:
        """Return that of the largest spectral norm of a matrix over its c, where NS is exact."""
        self.check_layers(layout)
        return Ball("spectral", tuple(map(self._length, layout.shapes)), tuple(range(len(layout.names))))

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return a zero average "m"."""
        self.check_layers(layout)
        return {"m": torch.zeros_like(params)}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · (c · NS(u) + decay · w) and the new average."""
        momentum = per_member(self.momentum, grad)
        m = momentum * state["m"] + (1 - momentum) * grad
        u = (1 - momentum) * grad + momentum * m if self.nesterov else m
        found = [self._length(part.shape[grad.dim() - 1:])
                 * orthogonalized(self._lower(part.reshape(
                     *grad.shape[:-1], *matrix_shape(part.shape[grad.dim() - 1:]))), self.iterations).to(grad.dtype)
                 for part in layout.views(u)]
        along = torch.cat([each.flatten(-2) for each in found], dim=-1)
        return -per_member(self.lr, grad) * (along + per_member(self.decay, grad) * params), {"m": m}

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place; small matrices of one shape are made orthogonal together."""
        rate: float = self.lr * scale  # type: ignore[operator]
        momentum: float = self.momentum  # type: ignore[assignment]
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, param in enumerate(params):
            alike[matrix_shape(param.shape)].append(i)
        for shape, numbers in alike.items():
            most = max(1, STACK // math.prod(shape))
            for some in (numbers[i:i + most] for i in range(0, len(numbers), most)):
                u = params[some[0]].new_empty(len(some), *shape)
                for i, each in zip(some, u, strict=True):
                    m = states[i]["m"].lerp_(grads[i], 1 - momentum)
                    torch.lerp(grads[i], m, momentum if self.nesterov else 1.0, out=each.view(m.shape))
                turned = orthogonalize_(self._lower(u), self.iterations).to(u.dtype)
                for i, each in zip(some, turned, strict=True):
                    if self.decay:
                        targets[i].add_(params[i], alpha=-rate * self.decay)  # type: ignore[operator]
                    targets[i].add_(each.view(targets[i].shape), alpha=-rate * self._length(shape))


STACK = 1 << 18
"""Numbers of matrices of one shape that are made orthogonal together, so that they stay in a cache."""
