"""Trust ratios: steps as long, layer by layer, as the weights are: LARS and LAMB."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.per_layer import PerLayer, layer_norm, per_layer
from optscope.optim.rule import Hyper, State, check_hyper


def trust(params: Tensor, along: Tensor, axes: int, offset: float | Tensor = 0.0) -> Tensor:
    """Return ‖w‖/(‖along‖ + offset) of a layer, one a member; 1 where either norm is 0, and for vectors."""
    weights, length = layer_norm(params, axes), layer_norm(along, axes) + offset
    if axes < 2:
        return torch.ones_like(weights)
    return torch.where((weights > 0) & (length > 0), weights / length, torch.ones_like(weights))


@dataclass(frozen=True, repr=False)
class LARS(PerLayer):
    """SGD with momentum whose rate in each layer is in proportion to its weights and not to its gradient.

        λ = trust · ‖w‖/(‖g‖ + decay ‖w‖)                  of a layer; 1 for vectors, which are not decayed either
        m ← momentum · m + λ (g + decay · w),   step = −lr · m

    You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1, with the rate outside of the buffer, as torch's SGD
    has it: under a falling rate the paper's is the slower to fall. Leaving vectors out is
    usual, and not in the paper.

    Raises:
        UserError: unless lr > 0, 0 <= momentum < 1, trust > 0 and decay >= 0.
    """

    lr: Hyper
    momentum: Hyper = 0.9
    trust: Hyper = 0.001
    decay: Hyper = 0.0

    def __post_init__(self) -> None:
        check_hyper("LARS", "lr", self.lr, open_low=True)
        check_hyper("LARS", "momentum", self.momentum, high=1.0)
        check_hyper("LARS", "trust", self.trust, open_low=True)
        check_hyper("LARS", "decay", self.decay)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return a zero buffer "m"."""
        return {"m": torch.zeros_like(params)}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return −lr · m and the new buffer."""
        local: Tensor | float = 1.0
        if axes > 1:
            decay = per_layer(self.decay, grad, axes)
            local = per_layer(self.trust, grad, axes) * trust(params, grad, axes, decay * layer_norm(params, axes))
            grad = grad + decay * params
        m = per_layer(self.momentum, grad, axes) * state["m"] + local * grad
        return -per_layer(self.lr, grad, axes) * m, {"m": m}


@dataclass(frozen=True, repr=False)
class LAMB(PerLayer):
    """Adam whose step in each layer is as long as its weights, times the rate.

        u = m̂/(√v̂ + eps) + decay · w                       Adam's means (see `Adam`)
        step = −lr · ‖w‖/‖u‖ · u                           of a layer; −lr · u of vectors

    You et al. 2019, arXiv 1904.00962, algorithm 2 with φ(x) = x. Leaving vectors out is usual, not the paper's.

    Raises:
        UserError: unless lr > 0, 0 <= beta1, beta2 < 1, eps > 0 and decay >= 0.
    """

    lr: Hyper
    beta1: Hyper = 0.9
    beta2: Hyper = 0.999
    eps: Hyper = 1e-6
    decay: Hyper = 0.0

    def __post_init__(self) -> None:
        check_hyper("LAMB", "lr", self.lr, open_low=True)
        check_hyper("LAMB", "beta1", self.beta1, high=1.0)
        check_hyper("LAMB", "beta2", self.beta2, high=1.0)
        check_hyper("LAMB", "eps", self.eps, open_low=True)
        check_hyper("LAMB", "decay", self.decay)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return zero means "m" and "v", and the steps made."""
        return {"m": torch.zeros_like(params), "v": torch.zeros_like(params), "step": torch.zeros(())}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return −lr · ‖w‖/‖u‖ · u and the new means."""
        beta1, beta2 = (per_layer(value, grad, axes) for value in (self.beta1, self.beta2))
        t = int(state["step"]) + 1
        m = beta1 * state["m"] + (1 - beta1) * grad
        v = beta2 * state["v"] + (1 - beta2) * grad.square()
        u = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + per_layer(self.eps, grad, axes))
        u = u + per_layer(self.decay, grad, axes) * params
        return -per_layer(self.lr, grad, axes) * trust(params, u, axes) * u, {"m": m, "v": v,
                                                                              "step": state["step"] + 1}
