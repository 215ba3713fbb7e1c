"""AdaRem: each weight's rate grows while its gradient agrees with its history, and shrinks while it does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.per_layer import PerLayer, per_layer
from optscope.optim.rule import Hyper, State, check_hyper


@dataclass(frozen=True, repr=False)
class AdaRem(PerLayer):
    """Step by a gradient that is stretched where it agrees with the past, up to twice, and shrunk where not.

        b = sign(g) ⊙ e / (max|e| + eps)                   e₀ = 0; the maximum over the layer
        step = −lr · ((1 + λᵗ b) ⊙ g + decay · w),   t = 0, 1, ...
        e ← beta · e + (1 − beta) · g

    As t grows the past counts for less: the rule becomes SGD. Adaptive without a second moment.

    Liu et al. 2020, arXiv 2010.11041; equation and defaults are those of a third party's code (flax), for the
    paper's own were not at hand.

    Raises:
        UserError: unless lr > 0, 0 <= beta < 1, 0 <= fading <= 1, eps > 0 and decay >= 0.
    """

    lr: Hyper
    beta: Hyper = 0.9
    fading: float = 0.999
    eps: Hyper = 1e-8
    decay: Hyper = 0.0

    def __post_init__(self) -> None:
        check_hyper("AdaRem", "lr", self.lr, open_low=True)
        check_hyper("AdaRem", "beta", self.beta, high=1.0)
        check_hyper("AdaRem", "fading", self.fading, high=1.0 + 1e-12)
        check_hyper("AdaRem", "eps", self.eps, open_low=True)
        check_hyper("AdaRem", "decay", self.decay)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return a zero average "e", and the steps made."""
        return {"e": torch.zeros_like(params), "step": torch.zeros((), device="cpu")}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step and the new average."""
        e, beta = state["e"], per_layer(self.beta, grad, axes)
        largest = e.abs().amax(dim=tuple(range(-axes, 0)), keepdim=True) if axes else e.abs()
        agreement = grad.sign() * e / (largest + per_layer(self.eps, grad, axes))
        along = (1 + self.fading ** int(state["step"]) * agreement) * grad
        step = -per_layer(self.lr, grad, axes) * (along + per_layer(self.decay, grad, axes) * params)
        return step, {"e": beta * e + (1 - beta) * grad, "step": state["step"] + 1}
