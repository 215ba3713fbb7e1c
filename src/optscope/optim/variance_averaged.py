"""MaxVA: adaptive rules that weigh past gradients, number by number, so that their variance is largest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.per_layer import PerLayer, per_layer
from optscope.optim.rule import Hyper, State, check_hyper


@dataclass(frozen=True, repr=False)
class MAdam(PerLayer):
    """Adam with a second moment whose forgetting is chosen anew for every weight and step.

        d = (g − u/w)²,   σ² = max(s/w − (u/w)², 0)        u, s, w: sums of g, of g² and of their weights
        β* = (d + σ²)/(w (d − σ²) + d + σ²), within [low, high]; at first high
        u ← β* u + (1 − β*) g,   s ← β* s + (1 − β*) g²,   w ← β* w + (1 − β*)
        m ← beta · m + (1 − beta) · g
        step = −lr · m/(1 − betaᵗ) / (√(s/w) + eps) − lr · decay · w

    β* makes the variance of the weighted sample largest. With low = high it is Adam.

    Zhu et al. 2020, arXiv 2006.11918, algorithm 1 and the authors' code.

    Raises:
        UserError: unless lr > 0, 0 <= beta < 1, 0 < low <= high < 1, eps > 0 and decay >= 0.
    """

    lr: Hyper
    beta: Hyper = 0.9
    low: float = 0.5
    high: float = 0.999
    eps: Hyper = 1e-8
    decay: Hyper = 0.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_hyper(name, "lr", self.lr, open_low=True)
        check_hyper(name, "beta", self.beta, high=1.0)
        check_hyper(name, "low", self.low, high=1.0, open_low=True)
        check_hyper(name, "high", self.high, low=self.low, high=1.0)
        check_hyper(name, "eps", self.eps, open_low=True)
        check_hyper(name, "decay", self.decay)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return zero sums "u", "s", "weight" and momentum "m", and the steps made."""
        zero = torch.zeros_like(params)
        return {"m": zero, "u": zero, "s": zero, "weight": zero, "step": torch.zeros((), device="cpu")}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step and the new sums."""
        beta, t = per_layer(self.beta, grad, axes), int(state["step"]) + 1
        after = self._weighed(grad, state)
        size = (after["s"] / after["weight"]).sqrt() + per_layer(self.eps, grad, axes)
        after["m"], along = self._along(grad / size, grad, state["m"], beta, t, size)
        step = -per_layer(self.lr, grad, axes) * (along + per_layer(self.decay, grad, axes) * params)
        return step, after

    def _along(self, scaled: Tensor, grad: Tensor, m: Tensor, beta: float | Tensor, t: int,
               size: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new momentum and what the step follows."""
        m = beta * m + (1 - beta) * grad
        return m, m / (1 - beta**t) / size

    def _weighed(self, grad: Tensor, state: State) -> State:
        """Return the sums with the gradient in them."""
        u, s, weight = state["u"], state["s"], state["weight"]
        if int(state["step"]) == 0:
            best = torch.full_like(grad, self.high)
        else:
            mean = u / weight
            variance, off = (s / weight - mean.square()).clamp(min=0), (grad - mean).square()
            best = (off + variance) / (weight * (off - variance) + off + variance + 1e-16)
            best = best.clamp(self.low, self.high)
        return {"u": best * u + (1 - best) * grad, "s": best * s + (1 - best) * grad.square(),
                "weight": best * weight + (1 - best), "step": state["step"] + 1}


@dataclass(frozen=True, repr=False)
class LaMAdam(MAdam):
    """MAdam with the gradient divided before it is averaged, as LaProp does.

        m ← beta · m + (1 − beta) · g/(√(s/w) + eps),   step = −lr · m/(1 − betaᵗ) − lr · decay · w

    The authors average lr · g/(...), so that under a falling rate their step remembers the higher one.

    Zhu et al. 2020, arXiv 2006.11918, algorithm 2.

    Raises:
        UserError: as MAdam.
    """

    high: float = 0.98
    eps: Hyper = 1e-15

    def _along(self, scaled: Tensor, grad: Tensor, m: Tensor, beta: float | Tensor, t: int,
               size: Tensor) -> tuple[Tensor, Tensor]:
        m = beta * m + (1 - beta) * scaled
        return m, m / (1 - beta**t)
