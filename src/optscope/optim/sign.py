"""Steps whose length does not depend on the gradient's: its sign, or its unit vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from optscope.errors import UserError, nearest
from optscope.optim.norm import Ball, Mixture, l2_ball, linf_ball
from optscope.optim.pieces import chunks
from optscope.optim.rule import Fused, Hyper, State, check_hyper, per_member
from optscope.vector import Layout

Per = Literal["layer", "module", "model"]
"""What a norm is taken over: each parameter tensor, those of one module, or all of them together.

In place, where tensors have no names, those that are handed over together are one module: `Rule.optimizer_of`
makes a param group of each.
"""


def check_per(owner: str, per: object) -> None:
    """Raise UserError unless `per` is "layer", "module" or "model"."""
    known = get_args(Per)
    if per not in known:
        raise UserError(f'{owner}: per must be "layer", "module" or "model"; got {per!r}, '
                        f"{nearest(str(per), known)}")


def block_norms(vector: Tensor, layout: Layout, per: Per) -> Tensor:
    """Return for every number of `vector` `(..., P)` the l2 norm of its block, `(..., P)` or (model) `(..., 1)`."""
    if per == "model":
        norm: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        return norm
    norms = layout.norms(vector)
    return layout.spread(norms if per == "layer" else _joined(norms.square(), layout).sqrt())


def block_sizes(like: Tensor, layout: Layout, per: Per) -> Tensor:
    """Return for every number of a vector how many there are in its block, `(P,)` or (model) `(1,)`."""
    sizes = like.new_tensor(layout.sizes)
    if per == "model":
        return sizes.sum(-1, keepdim=True)
    return layout.spread(sizes if per == "layer" else _joined(sizes, layout))


def _joined(values: Tensor, layout: Layout) -> Tensor:
    """Return for each layer the sum of `values` `(..., L)` over its module."""
    module = torch.tensor(layout.modules, device=values.device)
    sums = values.new_zeros((*values.shape[:-1], len(layout.names)))
    return sums.index_add(-1, module, values).index_select(-1, module)


def safe_inverse(norm: Tensor) -> Tensor:
    """Return 1/norm, and 0 where the norm is 0: a zero gradient has no direction and makes no step.

    A norm that is nan stays nan: a broken gradient must show.
    """
    return torch.where(norm != 0, norm.reciprocal(), torch.zeros_like(norm))


@dataclass(frozen=True, repr=False)
class SignSGD(Fused):
    """Sign descent: every weight moves by exactly `lr`, against its gradient.

        step = −lr · sign(g)                       sign(0) = 0

    Bernstein et al. 2018, arXiv 1802.04434, algorithm 1. Adam with β₁ = β₂ = 0 and ε → 0 is this rule. Complex
    weights are refused when they are stepped: the signs of two parts and the direction g/|g| are different rules.

    Raises:
        UserError: unless lr > 0.
    """

    apart: ClassVar[bool] = True

    in_pairs: ClassVar[bool] = False

    lr: Hyper

    def __post_init__(self) -> None:
        check_hyper("SignSGD", "lr", self.lr, open_low=True)

    def mixture(self) -> Mixture:
        """Return that of the gradient alone."""
        return Mixture()

    def ball(self, layout: Layout) -> Ball:
        """Return that of l∞."""
        return linf_ball(layout)

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
            for t, g in chunks(target, grad):
                t.add_(g.sign(), alpha=alpha)


@dataclass(frozen=True, repr=False)
class NormalizedSGD(Fused):
    """Normalised gradient descent: a step of one length, whatever the gradient's, for each block of weights.

        step = −lr · c · g / ‖g‖₂                  over a layer, a module or the model; 0 where ‖g‖ = 0

    with c = 1: a block moves by `lr`; or with `rms` c = √n for a block of n weights: they move by `lr` in root
    mean square, as they do by about Adam's rate under Adam. Used for GANs in arXiv 2210.04319 (nSGDA); the
    factor √n is ours.

    Raises:
        UserError: unless lr > 0 and per is "layer", "module" or "model".
    """

    lr: Hyper
    per: Per = "layer"
    rms: bool = False

    def __post_init__(self) -> None:
        check_hyper("NormalizedSGD", "lr", self.lr, open_low=True)
        check_per("NormalizedSGD", self.per)

    def mixture(self) -> Mixture:
        """Return that of the gradient alone."""
        return Mixture()

    def ball(self, layout: Layout) -> Ball:
        """Return that of the largest l2 norm of a block."""
        layers = range(len(layout.names))
        blocks = {"layer": tuple(layers), "module": layout.modules, "model": (0,) * len(layers)}[self.per]
        return l2_ball(layout, blocks, self.rms)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return nothing: the rule has no memory."""
        return {}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · c · g/‖g‖."""
        step = -per_member(self.lr, grad) * grad * safe_inverse(block_norms(grad, layout, self.per))
        return step * block_sizes(grad, layout, self.per).sqrt() if self.rms else step, state

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place: one pass for the norms, one for the step."""
        alpha = -self.lr * scale  # type: ignore[operator]
        everything = sum(grad.numel() for grad in grads)
        lengths = safe_inverse(shared(norms_of(grads), self.per)).unbind()
        for target, grad, length in zip(targets, grads, lengths, strict=True):
            n = grad.numel() if self.per == "layer" else everything
            target.addcmul_(grad, length, value=alpha * (math.sqrt(n) if self.rms else 1.0))


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the l2 norm of each tensor, `(n,)`.

    They stay tensors: on an accelerator a number that Python reads is a wait.
    """
    return torch.stack([torch.linalg.vector_norm(t) for t in tensors])


def shared(norms: Tensor, per: Per) -> Tensor:
    """Return for each tensor, `(n,)`, its own norm or (unless per="layer") that of all of them together."""
    return norms if per == "layer" else torch.linalg.vector_norm(norms).expand(len(norms))
