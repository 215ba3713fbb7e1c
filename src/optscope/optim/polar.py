"""Polar descent: norm and direction of the weights are trained apart, as by weight normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optscope.errors import UserError, nearest
from optscope.optim.rule import Fused, Hyper, State, check_hyper, per_member
from optscope.optim.sign import safe_inverse
from optscope.vector import Layout

Block = Literal["unit", "layer"]
"""What has a norm of its own: a slice w[i] of a weight tensor, or the tensor."""


@dataclass(frozen=True, repr=False)
class PolarSGD(Fused):
    """Gradient descent on norm and direction of weights, w = r u with ‖u‖ = 1, at two rates.

        r ← r − lr ⟨u, g⟩        d = u − lr · ratio · r (g − ⟨u, g⟩ u)        u ← d/‖d‖

    both from the old (r, u). The descent of v in w = r v/‖v‖ with the rate lr, which is torch's `weight_norm`
    trained by SGD, has ratio = 1/‖v‖²: that is `ratio=None`, with v = w at the start. `per` is "unit" (torch's
    dim=0) or "layer". Tensors with fewer than two axes, and blocks that are 0, make plain steps.

    The flow (lr → 0) keeps ‖v‖, steps do not: each lengthens v by ‖d‖ >= 1. The state keeps the product of these,
    "stretch", one number a block; how far it is from 1 says how far descent is from flow (`optscope.probes.polar`).
    The step is proportional to lr only to first order: a schedule changes the lr in these equations.

    Salimans and Kingma 2016, arXiv 1602.07868; two rates: arXiv 2305.05448.

    >>> PolarSGD(lr=0.1, ratio=10.0, per="layer")
    PolarSGD(lr=0.1, ratio=10.0, per='layer')

    Raises:
        UserError: unless lr > 0, ratio > 0 and per is "unit" or "layer".
    """

    lr: Hyper
    ratio: Hyper | None = None
    per: Block = "unit"

    def __post_init__(self) -> None:
        check_hyper("PolarSGD", "lr", self.lr, open_low=True)
        if self.ratio is not None:
            check_hyper("PolarSGD", "ratio", self.ratio, open_low=True)
        if self.per not in ("unit", "layer"):
            raise UserError('PolarSGD: per must be "unit" or "layer"; '
                            f'got {self.per!r}, {nearest(str(self.per), ["unit", "layer"])}')

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return "start", the norms of the blocks, and "stretch", by the name of each tensor of two axes up."""
        parts = zip(layout.names, layout.views(params), layout.shapes, strict=True)
        return {name: self._begin(part, len(shape)) for name, part, shape in parts if len(shape) > 1}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the change of w = r u and the longer stretches."""
        return self.scaled_update(grad, state, params, layout, 1.0)

    @property
    def proportional(self) -> bool:
        """It is to first order only."""
        return False

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the change at `scale` times lr and the longer stretches."""
        steps: list[Tensor] = []
        after: State = {}
        lr = per_member(self.lr, grad) * scale
        parts = zip(layout.names, layout.views(params), layout.views(grad), layout.shapes, strict=True)
        for name, w, g, shape in parts:
            step, kept = self._step(w, g, state.get(name), lr, len(shape))
            steps.append(step.flatten(-len(shape)) if shape else step.unsqueeze(-1))
            if kept is not None:
                after[name] = kept
        return torch.cat(steps, dim=-1), after

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the norms and stretches of each tensor's blocks."""
        return [self._begin(p.detach(), p.dim()) if p.dim() > 1 else {} for p in params]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step at `scale` times lr in place."""
        lr: float = self.lr * scale  # type: ignore[operator]
        for target, g, state, w in zip(targets, grads, states, params, strict=True):
            step, kept = self._step(w, g, state or None, lr, w.dim())
            target.add_(step)
            state.update(kept or {})

    def _axes(self, dims: int) -> tuple[int, ...]:
        """Return the axes of a tensor with `dims` axes of its own over which norms are taken."""
        return tuple(range(-dims + (self.per == "unit"), 0))

    def _begin(self, w: Tensor, dims: int) -> State:
        start = torch.linalg.vector_norm(w, dim=self._axes(dims), keepdim=True)
        return {"start": start, "stretch": torch.ones_like(start)}

    def _step(self, w: Tensor, g: Tensor, state: State | None, lr: float | Tensor,
              dims: int) -> tuple[Tensor, State | None]:
        lr = _fitted(lr, dims)
        if state is None:
            return -lr * g, None
        axes = self._axes(dims)
        r = torch.linalg.vector_norm(w, dim=axes, keepdim=True)
        u = w * safe_inverse(r)
        along = (u * g).sum(dim=axes, keepdim=True)
        ratio = (safe_inverse(state["start"] * state["stretch"]) ** 2 if self.ratio is None
                 else _fitted(per_member(self.ratio, g.flatten(-dims)), dims))
        turn = -(lr * ratio * r) * (g - along * u)  # d − u, at right angles to u
        square = turn.square().sum(dim=axes, keepdim=True)
        length = (1 + square).sqrt()
        # r' d/‖d‖ − r u without a difference of near numbers, which would be a multiple of a weight's last bit.
        step = ((r - lr * along) / length) * turn - (r * square / (1 + length) + lr * along) / length * u
        somewhere = r != 0
        return (torch.where(somewhere, step, -lr * g),
                {"start": state["start"], "stretch": torch.where(somewhere, state["stretch"] * length, 1.0)})


def _fitted(value: float | Tensor, dims: int) -> float | Tensor:
    """Return one number a member, `(..., 1)`, so that it broadcasts over tensors with `dims` axes of their own."""
    if not isinstance(value, Tensor):
        return value
    return value.reshape(value.shape[:-1] + (1,) * dims) if dims else value.squeeze(-1)


def stretches(state: State) -> Tensor | None:
    """Return the stretches of a tensor's blocks, from its optimiser state, inside combinators too; None without."""
    found = state.get("stretch")
    if isinstance(found, Tensor):
        return found
    inner = (stretches(part) for part in state.values() if isinstance(part, dict))
    return next((part for part in inner if part is not None), None)
