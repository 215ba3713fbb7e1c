"""Prodigy: Adam whose learning rate is found on the way, from how far the weights have come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.rule import Hyper, Rule, State, check_hyper, per_member
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class Prodigy(Rule):
    """Adam with a rate d that grows to the distance between start and solution, as far as gradients show it.

        r ← √beta2 · r + d²/d₀ · ⟨g, w₀ − w⟩ · lr,   s ← √beta2 · s + d²/d₀ · lr · g,   d′ = max(d, r/‖s‖₁)
        m ← beta1 · m + (1 − beta1) · d · g,   v ← beta2 · v + (1 − beta2) · d² · g²
        step = −lr · d · (m / (√v + d′ · eps) + decay · w),   d ← d′

    over all weights together. `lr` is a factor on d, usually 1, which schedules multiply.

    Mishchenko, Defazio 2023, arXiv 2306.06101, algorithm 4, with the factors of prodigyopt 1.1, not its options.

    Raises:
        UserError: unless lr > 0, 0 <= beta1, beta2 < 1, eps > 0, decay >= 0 and d0 > 0.
    """

    lr: Hyper = 1.0
    beta1: Hyper = 0.9
    beta2: Hyper = 0.999
    eps: Hyper = 1e-8
    decay: Hyper = 0.0
    d0: float = 1e-6

    def __post_init__(self) -> None:
        check_hyper("Prodigy", "lr", self.lr, open_low=True)
        check_hyper("Prodigy", "beta1", self.beta1, high=1.0)
        check_hyper("Prodigy", "beta2", self.beta2, high=1.0)
        check_hyper("Prodigy", "eps", self.eps, open_low=True)
        check_hyper("Prodigy", "decay", self.decay)
        check_hyper("Prodigy", "d0", self.d0, open_low=True)

    @property
    def proportional(self) -> bool:
        """No: d depends on the rate."""
        return False

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the start, zero sums and moments, and d = d0, one a member."""
        one = torch.ones_like(params[..., :1])
        zero = torch.zeros_like(params)
        return {"start": params.clone(), "m": zero, "v": zero, "s": zero, "r": 0 * one, "d": self.d0 * one}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the step and the new state."""
        return self.scaled_update(grad, state, params, layout, 1.0)

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the step at `scale` times the rate, and the new state."""
        beta1, beta2 = per_member(self.beta1, grad), per_member(self.beta2, grad)
        lr, d = scale * per_member(self.lr, grad), state["d"]
        m = beta1 * state["m"] + (1 - beta1) * d * grad
        v = beta2 * state["v"] + (1 - beta2) * (d * grad).square()
        weight = d.square() / self.d0 * lr
        r = beta2**0.5 * state["r"] + weight * (grad * (state["start"] - params)).sum(-1, keepdim=True)
        s = beta2**0.5 * state["s"] + weight * grad
        length = s.abs().sum(-1, keepdim=True)
        after = torch.where(length > 0, torch.maximum(d, r / length), d)
        along = m / (v.sqrt() + after * per_member(self.eps, grad)) + per_member(self.decay, grad) * params
        return -lr * d * along, {"start": state["start"], "m": m, "v": v, "s": s, "r": r, "d": after}
