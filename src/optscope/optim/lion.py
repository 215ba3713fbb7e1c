"""Lion: the sign of a mean of the gradient that is remembered longer than it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optscope.optim.norm import Ball, Mixture, linf_ball
from optscope.optim.pieces import chunks
from optscope.optim.rule import Fused, Hyper, State, check_hyper, per_member
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class Lion(Fused):
    """Step along the sign of momentum, with weight decay; every weight moves by `lr`, decay apart.

        step = −lr · (sign(beta1 · m + (1 − beta1) · g) + decay · w)
        m ← beta2 · m + (1 − beta2) · g                    m₀ = 0

    Chen et al. 2023, arXiv 2302.06675, program 1. With beta1 = beta2 it is Signum.

    Raises:
        UserError: unless lr > 0, 0 <= beta1, beta2 < 1 and decay >= 0.
    """

    apart: ClassVar[bool] = True

    in_pairs: ClassVar[bool] = False

    lr: Hyper
    beta1: Hyper = 0.9
    beta2: Hyper = 0.99
    decay: Hyper = 0.0

    def __post_init__(self) -> None:
        check_hyper("Lion", "lr", self.lr, open_low=True)
        check_hyper("Lion", "beta1", self.beta1, high=1.0)
        check_hyper("Lion", "beta2", self.beta2, high=1.0)
        check_hyper("Lion", "decay", self.decay)

    def mixture(self) -> Mixture:
        """Return that of beta1 and beta2."""
        return Mixture(self.beta1, self.beta2, self.decay)

    def ball(self, layout: Layout) -> Ball:
        """Return that of l∞."""
        return linf_ball(layout)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return a zero mean "m"."""
        return {"m": torch.zeros_like(params)}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · (sign(mixed) + decay · w) and the new mean."""
        beta1, beta2 = per_member(self.beta1, grad), per_member(self.beta2, grad)
        mixed = beta1 * state["m"] + (1 - beta1) * grad
        step = -per_member(self.lr, grad) * (mixed.sign() + per_member(self.decay, grad) * params)
        return step, {"m": beta2 * state["m"] + (1 - beta2) * grad}

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place, a chunk at a time."""
        alpha: float = -self.lr * scale  # type: ignore[operator]
        for target, grad, state, param in zip(targets, grads, states, params, strict=True):
            for t, g, m, p in chunks(target, grad, state["m"], param):
                mixed = torch.lerp(g, m, self.beta1)  # type: ignore[arg-type]
                m.lerp_(g, 1 - self.beta2)  # type: ignore[operator]
                if self.decay:
                    t.add_(p, alpha=alpha * self.decay)  # type: ignore[operator]
                t.add_(mixed.sign_(), alpha=alpha)
