"""Positive-negative momentum: two averages of alternate gradients, whose difference is noisier than either."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.per_layer import PerLayer, per_layer
from optscope.optim.rule import Hyper, State, check_hyper


def signal_gain(negative: float) -> float:
    """Return by what PNM multiplies a constant gradient: 1/√((1 + β₀)² + β₀²).

    >>> round(signal_gain(1.0), 3)
    0.447
    """
    return 1 / math.hypot(1 + negative, negative)


@dataclass(frozen=True, repr=False)
class PNM(PerLayer):
    """Step along one average of the gradient and against another, so that noise grows and the signal does not.

        P ← beta² · P + (1 − beta²) · g                    P and N change places at every step; both begin at 0
        step = −lr · ((1 + β₀) P − β₀ N)/√((1 + β₀)² + β₀²) − lr · decay · w,      β₀ = negative

    The normaliser keeps the noise of the step and shrinks its signal: compare with other rules at equal signal,
    lr · `signal_gain(β₀)`. Under white noise of variance 1 the step has variance (1 − beta²)/(1 + beta²), at beta =
    0.9 twice that of an average (1 − beta)/(1 + beta), so at equal signal and β₀ = 1 ten times as much.

    Xie et al. 2021, arXiv 2103.17182, algorithm 1.

    Raises:
        UserError: unless lr > 0, 0 <= beta < 1, negative >= 0 and decay >= 0.
    """

    lr: Hyper
    beta: Hyper = 0.9
    negative: float = 1.0
    decay: Hyper = 0.0

    def __post_init__(self) -> None:
        check_hyper("PNM", "lr", self.lr, open_low=True)
        check_hyper("PNM", "beta", self.beta, high=1.0)
        check_hyper("PNM", "negative", self.negative)
        check_hyper("PNM", "decay", self.decay)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return two zero averages."""
        return {"positive": torch.zeros_like(params), "negative": torch.zeros_like(params)}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step, and the averages in each other's place."""
        along, averages = _opposed(grad, state, per_layer(self.beta, grad, axes), self.negative)
        return -per_layer(self.lr, grad, axes) * (along + per_layer(self.decay, grad, axes) * params), averages


@dataclass(frozen=True, repr=False)
class AdaPNM(PerLayer):
    """PNM in the place of Adam's momentum.

        step = −lr · Δ/(1 − beta1ᵗ) / (√(max v)/√(1 − beta2ᵗ) + eps) − lr · decay · w

    with PNM's Δ of beta = beta1, and the largest v so far (AMSGrad), as in the authors' code.

    Xie et al. 2021, arXiv 2103.17182, algorithm 2.

    Raises:
        UserError: unless lr > 0, 0 <= beta1, beta2 < 1, negative >= 0, eps > 0 and decay >= 0.
    """

    lr: Hyper
    beta1: Hyper = 0.9
    beta2: Hyper = 0.999
    negative: float = 1.0
    eps: Hyper = 1e-8
    decay: Hyper = 0.0

    def __post_init__(self) -> None:
        check_hyper("AdaPNM", "lr", self.lr, open_low=True)
        check_hyper("AdaPNM", "beta1", self.beta1, high=1.0)
        check_hyper("AdaPNM", "beta2", self.beta2, high=1.0)
        check_hyper("AdaPNM", "negative", self.negative)
        check_hyper("AdaPNM", "eps", self.eps, open_low=True)
        check_hyper("AdaPNM", "decay", self.decay)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return two zero averages, zero squares, their largest, and the steps made."""
        zero = torch.zeros_like(params)
        return {"positive": zero, "negative": zero, "v": zero, "largest": zero,
                "step": torch.zeros((), device="cpu")}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step and the new state."""
        beta1, beta2 = (per_layer(value, grad, axes) for value in (self.beta1, self.beta2))
        t = int(state["step"]) + 1
        along, averages = _opposed(grad, state, beta1, self.negative)
        v = beta2 * state["v"] + (1 - beta2) * grad.square()
        largest = torch.maximum(state["largest"], v)
        size = (largest / (1 - beta2**t)).sqrt() + per_layer(self.eps, grad, axes)
        step = -per_layer(self.lr, grad, axes) * (along / (1 - beta1**t) / size
                                                  + per_layer(self.decay, grad, axes) * params)
        return step, {**averages, "v": v, "largest": largest, "step": state["step"] + 1}


def _opposed(grad: Tensor, state: State, beta: float | Tensor, negative: float) -> tuple[Tensor, State]:
    """Return Δ, and the averages with their places changed."""
    positive = beta**2 * state["positive"] + (1 - beta**2) * grad
    along = ((1 + negative) * positive - negative * state["negative"]) * signal_gain(negative)
    return along, {"positive": state["negative"], "negative": positive}
