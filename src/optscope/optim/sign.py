"""Steps whose length does not depend on the gradient's: its sign, or its unit vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optscope.errors import UserError, nearest
from optscope.optim.rule import Fused, Hyper, State, check_hyper, per_member
from optscope.vector import Layout

Per = Literal["layer", "model"]
"""What a norm is taken over: each parameter tensor, or all of them together."""

CHUNK = 1 << 19
"""Numbers whose signs are held at once: 2 MB of float32 stay in the shared cache, and in the process."""


def check_per(owner: str, per: object) -> None:
    """Raise unless `per` is "layer" or "model"."""
    if per not in ("layer", "model"):
        hint = nearest(str(per), ["layer", "model"])
        raise UserError(f'{owner}: per must be "layer" or "model"; got {per!r}, {hint}')


def block_norms(vector: Tensor, layout: Layout, per: Per) -> Tensor:
    """Return for every number of `vector` `(..., P)` the l2 norm of its layer, or `(..., 1)` of the model."""
    if per == "model":
        norm: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        return norm
    return layout.spread(layout.norms(vector))


def safe_inverse(norm: Tensor) -> Tensor:
    """Return 1/norm, and 0 where the norm is 0: a zero gradient has no direction and makes no step."""
    return torch.where(norm != 0, norm.reciprocal(), torch.zeros_like(norm))


@dataclass(frozen=True, repr=False)
class SignSGD(Fused):
    """Sign descent: every weight moves by exactly `lr`, against its gradient.

        step = −lr · sign(g)                       sign(0) = 0

    Bernstein et al. 2018, arXiv 1802.04434, algorithm 1. Adam with β₁ = β₂ = 0 and ε → 0 is this rule.

    Raises:
        UserError: unless lr > 0.
    """

    lr: Hyper

    def __post_init__(self) -> None:
        check_hyper("SignSGD", "lr", self.lr, open_low=True)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return nothing: the rule has no memory."""
        return {}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · sign(g)."""
        return -per_member(self.lr, grad) * grad.sign(), state

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place, a chunk at a time."""
        alpha = -self.lr * scale  # type: ignore[operator]
        for target, grad in zip(targets, grads, strict=True):
            for t, g in _chunks(target, grad):
                t.add_(g.sign(), alpha=alpha)


@dataclass(frozen=True, repr=False)
class NormalizedSGD(Fused):
    """Normalised gradient descent: a step of length `lr` a layer, or `lr` for the whole model.

        step = −lr · g / ‖g‖₂                      over a layer or the model; 0 where ‖g‖ = 0

    Raises:
        UserError: unless lr > 0 and per is "layer" or "model".
    """

    lr: Hyper
    per: Per = "layer"

    def __post_init__(self) -> None:
        check_hyper("NormalizedSGD", "lr", self.lr, open_low=True)
        check_per("NormalizedSGD", self.per)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return nothing: the rule has no memory."""
        return {}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · g/‖g‖."""
        return -per_member(self.lr, grad) * grad * safe_inverse(block_norms(grad, layout, self.per)), state

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place: one pass for the norms, one for the step."""
        alpha = -self.lr * scale  # type: ignore[operator]
        for target, grad, norm in zip(targets, grads, list_norms(grads, self.per), strict=True):
            if norm != 0:  # nan too: a broken gradient must show
                target.add_(grad, alpha=alpha / norm)


def list_norms(tensors: Sequence[Tensor], per: Per) -> list[float]:
    """Return one l2 norm a tensor: its own, or (per="model") that of all of them together."""
    norms = torch.stack([torch.linalg.vector_norm(t) for t in tensors])
    if per == "model":
        return [float(torch.linalg.vector_norm(norms))] * len(tensors)
    return [float(n) for n in norms]


def _chunks(target: Tensor, grad: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield matching pieces of two tensors; whole when small, or when they do not lie in memory alike."""
    if grad.numel() > CHUNK and target.is_contiguous() and grad.is_contiguous():
        return zip(target.view(-1).split(CHUNK), grad.view(-1).split(CHUNK), strict=True)
    return iter([(target, grad)])
