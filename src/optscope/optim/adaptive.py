"""Rules that divide each coordinate by a running size of its gradient: RMSProp, Adam, AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optscope.optim.fused import adam_
from optscope.optim.rule import Fused, Hyper, State, check_hyper, per_member
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class RMSProp(Fused):
    """Divide the gradient by the root of its running mean square (PyTorch's form: no bias correction).

        v ← alpha · v + (1 − alpha) · g²           v₀ = 0
        step = −lr · g / (√v + eps)

    Tieleman & Hinton 2012, lecture 6.5.

    Raises:
        UserError: unless lr > 0, 0 <= alpha < 1 and eps > 0.
    """

    apart: ClassVar[bool] = True

    lr: Hyper
    alpha: Hyper = 0.99
    eps: Hyper = 1e-8

    def __post_init__(self) -> None:
        check_hyper("RMSProp", "lr", self.lr, open_low=True)
        check_hyper("RMSProp", "alpha", self.alpha, high=1.0)
        check_hyper("RMSProp", "eps", self.eps, open_low=True)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return a zero second moment "v"."""
        return {"v": torch.zeros_like(params)}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · g / (√v + eps) and the new second moment."""
        alpha = per_member(self.alpha, grad)
        v = alpha * state["v"] + (1 - alpha) * grad.square()
        return -per_member(self.lr, grad) * grad / (v.sqrt() + per_member(self.eps, grad)), {"v": v}

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place by torch's loop (it has no fused kernel)."""
        for target, grad, state in zip(targets, grads, states, strict=True):
            v = state["v"].mul_(self.alpha).addcmul_(grad, grad, value=1 - self.alpha)  # type: ignore[operator]
            target.addcdiv_(grad, v.sqrt().add_(self.eps), value=-self.lr * scale)  # type: ignore[operator]


@dataclass(frozen=True, repr=False)
class Adam(Fused):
    """Divide a running mean of the gradient by the root of its running mean square, both bias-corrected.

        m ← beta1 · m + (1 − beta1) · g            m₀ = 0
        v ← beta2 · v + (1 − beta2) · g²           v₀ = 0
        step = −lr · m̂ / (√v̂ + eps),               m̂ = m/(1 − beta1ᵗ),  v̂ = v/(1 − beta2ᵗ)

    Kingma & Ba 2015, arXiv 1412.6980, algorithm 1.

    Raises:
        UserError: unless lr > 0, 0 <= beta1, beta2 < 1 and eps > 0.
    """

    apart: ClassVar[bool] = True

    lr: Hyper
    beta1: Hyper = 0.9
    beta2: Hyper = 0.999
    eps: Hyper = 1e-8

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_hyper(owner, "lr", self.lr, open_low=True)
        check_hyper(owner, "beta1", self.beta1, high=1.0)
        check_hyper(owner, "beta2", self.beta2, high=1.0)
        check_hyper(owner, "eps", self.eps, open_low=True)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return zero moments "m" and "v", and the number of steps made, "step"."""
        return {"m": torch.zeros_like(params), "v": torch.zeros_like(params),
                "step": torch.zeros((), device=params.device)}  # where the fused kernel wants it

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · m̂ / (√v̂ + eps) and the new moments."""
        beta1, beta2 = per_member(self.beta1, grad), per_member(self.beta2, grad)
        t = float(state["step"]) + 1
        m = beta1 * state["m"] + (1 - beta1) * grad
        v = beta2 * state["v"] + (1 - beta2) * grad.square()
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        step = -per_member(self.lr, grad) * m_hat / (v_hat.sqrt() + per_member(self.eps, grad))
        return step, {"m": m, "v": v, "step": state["step"] + 1}

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place by torch's fused kernel."""
        self._kernel(targets, grads, states, scale, decay=0.0)

    def _kernel(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                scale: float, decay: Hyper) -> None:
        adam_(targets, grads, [s["m"] for s in states], [s["v"] for s in states], [s["step"] for s in states],
              lr=self.lr * scale, beta1=self.beta1, beta2=self.beta2, eps=self.eps, decay=decay)  # type: ignore[operator, arg-type]


@dataclass(frozen=True, repr=False)
class AdamW(Adam):
    """Adam with weight decay that bypasses the moments.

        step = Adam's step − lr · decay · w

    Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2 (with the rate inside the decay, as in PyTorch).

    Raises:
        UserError: as Adam, and unless decay >= 0.
    """

    decay: Hyper = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hyper("AdamW", "decay", self.decay)

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return Adam's step minus lr · decay · w, and the new moments."""
        step, state = super().update(grad, state, params, layout)
        return step - per_member(self.lr, grad) * per_member(self.decay, grad) * params, state

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the decay and Adam's step in place; in one kernel when the parameters themselves move."""
        if all(target is param for target, param in zip(targets, params, strict=True)):
            self._kernel(targets, grads, states, scale, self.decay)
            return
        if self.decay:
            alpha: float = -self.lr * self.decay * scale  # type: ignore[operator]
            torch._foreach_add_(list(targets), list(params), alpha=alpha)
        super().add_step_(targets, grads, states, params, scale)
