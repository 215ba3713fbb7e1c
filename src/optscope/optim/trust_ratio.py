"""Trust ratios: steps as long, layer by layer, as the weights are: LARS and LAMB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.fused import adam_
from optscope.optim.per_layer import PerLayer, layer_norm, per_layer
from optscope.optim.pieces import Room
from optscope.optim.preconditioner import Preconditioner
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
        local = self._local(params, grad, axes)
        if axes > 1:
            grad = grad + per_layer(self.decay, grad, axes) * params
        m = per_layer(self.momentum, grad, axes) * state["m"] + local * grad
        return -per_layer(self.lr, grad, axes) * m, {"m": m}

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place."""
        momentum: float = self.momentum  # type: ignore[assignment]
        for target, grad, state, param in zip(targets, grads, states, params, strict=True):
            local, m = self._local(param, grad, param.dim()), state["m"].mul_(momentum)
            if isinstance(local, Tensor):
                m.addcmul_(grad, local)
                if self.decay:
                    m.addcmul_(param, local, value=self.decay)
            else:
                m.add_(grad)
            target.add_(m, alpha=-self.lr * scale)  # type: ignore[operator]

    def _local(self, params: Tensor, grad: Tensor, axes: int) -> Tensor | float:
        """Return λ."""
        if axes < 2:
            return 1.0
        decay = per_layer(self.decay, grad, axes) * layer_norm(params, axes)
        return per_layer(self.trust, grad, axes) * trust(params, grad, axes, decay)

    def preconditioner(self, state: State, params: Tensor, grad: Tensor) -> Preconditioner:
        """Return P = 1/λ of these weights and this gradient; the penalty bends by λ · decay."""
        if params.dim() < 2:
            return Preconditioner(torch.clone)
        local = torch.as_tensor(self._local(params, grad, params.dim()), device=params.device)
        return Preconditioner(lambda v: local.sqrt() * v, local * per_layer(self.decay, params, params.dim()))


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
        return {"m": torch.zeros_like(params), "v": torch.zeros_like(params), "step": torch.zeros((), device="cpu")}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return −lr · ‖w‖/‖u‖ · u and the new means."""
        beta1, beta2 = (per_layer(value, grad, axes) for value in (self.beta1, self.beta2))
        after = {"m": beta1 * state["m"] + (1 - beta1) * grad,
                 "v": beta2 * state["v"] + (1 - beta2) * grad.square(), "step": state["step"] + 1}
        _, u = self._divided(after, params, axes)
        return -per_layer(self.lr, grad, axes) * trust(params, u, axes) * u, after

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place, Adam's by torch's fused kernel in room of its own."""
        rate: float = self.lr * scale  # type: ignore[operator]
        room = Room()
        for target, grad, state, param in zip(targets, grads, states, params, strict=True):
            (along,) = room.like([param])
            counts = grad.new_full((), int(state["step"]), dtype=torch.float32)  # where the kernel wants them
            adam_([along.zero_()], [grad], [state["m"]], [state["v"]], [counts], lr=1.0, beta1=self.beta1,  # type: ignore[arg-type]
                  beta2=self.beta2, eps=self.eps, decay=0.0)  # type: ignore[arg-type]
            state["step"].add_(1)
            if self.decay:
                along.add_(param, alpha=-self.decay)  # type: ignore[operator]
            if param.dim() > 1:
                target.addcmul_(along, trust(param, along, param.dim()).reshape(()), value=rate)
            else:
                target.add_(along, alpha=rate)

    def _divided(self, state: State, params: Tensor, axes: int) -> tuple[Tensor, Tensor]:
        """Return √v̂ + eps, and u."""
        t = int(state["step"])
        beta1, beta2 = (per_layer(value, params, axes) for value in (self.beta1, self.beta2))
        size = (state["v"] / (1 - beta2**t)).sqrt() + per_layer(self.eps, params, axes)
        return size, state["m"] / (1 - beta1**t) / size + per_layer(self.decay, params, axes) * params

    def preconditioner(self, state: State, params: Tensor, grad: Tensor) -> Preconditioner | None:
        """Return P = (1 − beta1ᵗ) (√v̂ + eps)/τ with τ = ‖w‖/‖u‖ of the means and weights as they are.

        A step takes lr τ decay · w away besides. Held still, that bends by τ decay (1 + beta1)/(1 − beta1): where
        H is k P, a layer oscillates from lr k (1 − beta1)/(1 + beta1) + lr τ decay = 2 on.
        """
        t, axes, beta1 = int(state["step"]), params.dim(), per_layer(self.beta1, params, params.dim())
        if not t:
            return None
        size, u = self._divided(state, params, axes)
        ratio = trust(params, u, axes)
        scale = (ratio / ((1 - beta1**t) * size)).sqrt()
        bends = per_layer(self.decay, params, axes) * (1 + beta1) / (1 - beta1)
        return Preconditioner(lambda v: scale * v, ratio * bends)
