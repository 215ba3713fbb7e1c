"""Rules near Adam's: Adagrad, which forgets nothing; NAdam, which looks ahead; AdEMAMix, with two means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.per_layer import PerLayer, per_layer
from optscope.optim.pieces import chunks
from optscope.optim.rule import Hyper, State, check_hyper


@dataclass(frozen=True, repr=False)
class Adagrad(PerLayer):
    """Divide the gradient by the root of the sum of all its squares so far.

        s ← s + g²                                         s₀ = 0
        step = −lr · g / (√s + eps)

    Duchi et al. 2011, JMLR 12; as torch.optim.Adagrad without its decay of the rate.

    Raises:
        UserError: unless lr > 0 and eps > 0.
    """

    lr: Hyper
    eps: Hyper = 1e-10

    def __post_init__(self) -> None:
        check_hyper("Adagrad", "lr", self.lr, open_low=True)
        check_hyper("Adagrad", "eps", self.eps, open_low=True)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return a zero sum "s"."""
        return {"s": torch.zeros_like(params)}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return −lr · g / (√s + eps) and the new sum."""
        s = state["s"] + grad.square()
        return -per_layer(self.lr, grad, axes) * grad / (s.sqrt() + per_layer(self.eps, grad, axes)), {"s": s}


    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place, a chunk at a time."""
        rate: float = self.lr * scale  # type: ignore[operator]
        for target, grad, state in zip(targets, grads, states, strict=True):
            for t, g, s in chunks(target, grad, state["s"]):
                t.addcdiv_(g, s.addcmul_(g, g).sqrt().add_(self.eps), value=-rate)  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False)
class NAdam(PerLayer):
    """Adam whose momentum looks one step ahead, and grows over training.

        μ_t = beta1 (1 − 0.5 · 0.96^(t · psi)),   π_t = μ_1 ... μ_t
        m ← beta1 · m + (1 − beta1) · g,   v ← beta2 · v + (1 − beta2) · g²
        u = (1 − μ_t)/(1 − π_t) · g + μ_{t+1}/(1 − π_{t+1}) · m
        step = −lr · (u / (√(v/(1 − beta2ᵗ)) + eps) + decay · w)

    Dozat 2016, ICLR workshop; as torch.optim.NAdam with decoupled decay.

    Raises:
        UserError: unless lr > 0, 0 <= beta1, beta2 < 1, eps > 0, psi >= 0 and decay >= 0.
    """

    lr: Hyper
    beta1: Hyper = 0.9
    beta2: Hyper = 0.999
    eps: Hyper = 1e-8
    psi: float = 4e-3
    decay: Hyper = 0.0

    def __post_init__(self) -> None:
        for name, bounds in (("lr", {"open_low": True}), ("beta1", {"high": 1.0}), ("beta2", {"high": 1.0}),
                             ("eps", {"open_low": True}), ("psi", {}), ("decay", {})):
            check_hyper("NAdam", name, getattr(self, name), **bounds)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return zero moments "m" and "v", the steps made and the factor of π, which beta1 multiplies."""
        return {"m": torch.zeros_like(params), "v": torch.zeros_like(params), "step": torch.zeros((), device="cpu"),
                "product": torch.ones((), dtype=torch.float64, device="cpu")}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step and the new moments."""
        beta1, beta2 = (per_layer(value, grad, axes) for value in (self.beta1, self.beta2))
        t = int(state["step"]) + 1
        of_grad, of_mean, product = self._shares(beta1, t, float(state["product"]))
        m = beta1 * state["m"] + (1 - beta1) * grad
        v = beta2 * state["v"] + (1 - beta2) * grad.square()
        looking = of_grad * grad + of_mean * m
        scaled = looking / ((v / (1 - beta2**t)).sqrt() + per_layer(self.eps, grad, axes))
        step = -per_layer(self.lr, grad, axes) * (scaled + per_layer(self.decay, grad, axes) * params)
        return step, {"m": m, "v": v, "step": state["step"] + 1,
                      "product": torch.tensor(product, dtype=torch.float64, device="cpu")}

    def _shares(self, beta1: Any, t: int, product: float) -> tuple[Any, Any, float]:
        """Return what u takes of g and of m at step t, and the new factor of π."""
        now, ahead = (1 - 0.5 * 0.96 ** (each * self.psi) for each in (t, t + 1))
        product *= now
        return ((1 - beta1 * now) / (1 - beta1**t * product),
                beta1 * ahead / (1 - beta1 ** (t + 1) * (product * ahead)), product)

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place, a chunk at a time."""
        rate, decay = self.lr * scale, self.decay  # type: ignore[operator]
        for target, grad, state, param in zip(targets, grads, states, params, strict=True):
            t = int(state["step"].add_(1))
            of_grad, of_mean, product = self._shares(self.beta1, t, float(state["product"]))
            state["product"].fill_(product)
            for w, g, m, v, p in chunks(target, grad, state["m"], state["v"], param):
                m.lerp_(g, 1 - self.beta1)  # type: ignore[operator]
                size = _size_(v, g, self.beta2, self.eps, t)  # type: ignore[arg-type]
                if decay:
                    w.add_(p, alpha=-rate * decay)  # type: ignore[operator]
                w.addcdiv_(g, size, value=-rate * of_grad).addcdiv_(m, size, value=-rate * of_mean)


@dataclass(frozen=True, repr=False)
class AdEMAMix(PerLayer):
    """Adam with a second, much slower mean of the gradient beside the first.

        m₁ ← beta1 · m₁ + (1 − beta1) · g,   m₂ ← β₃ · m₂ + (1 − β₃) · g,   v ← beta2 · v + (1 − beta2) · g²
        step = −lr · ((m₁/(1 − beta1ᵗ) + α · m₂) / (√(v/(1 − beta2ᵗ)) + eps) + decay · w)

    Over the first `warmup` steps α grows to `alpha` along a line, and β₃ from beta1 to `beta3` so that its
    half-life does; the authors take all steps of a training. Without, both are what they are from the beginning.

    Pagliardini, Ablin, Grangier 2024, arXiv 2409.03137, section 3.

    Raises:
        UserError: unless lr > 0, 0 < beta1 <= beta3 < 1, 0 <= beta2 < 1, eps > 0, alpha >= 0, decay >= 0, and
            warmup is a whole number >= 0.
    """

    lr: Hyper
    beta1: float = 0.9
    beta2: Hyper = 0.999
    beta3: float = 0.9999
    alpha: float = 5.0
    eps: Hyper = 1e-8
    decay: Hyper = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        for name, bounds in (("lr", {"open_low": True}), ("beta1", {"high": 1.0, "open_low": True}),
                             ("beta2", {"high": 1.0}), ("beta3", {"low": self.beta1, "high": 1.0}),
                             ("alpha", {}), ("eps", {"open_low": True}), ("decay", {})):
            check_hyper("AdEMAMix", name, getattr(self, name), **bounds)
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise UserError(f"AdEMAMix: warmup must be a whole number >= 0; got {self.warmup!r}")

    def slow(self, t: int) -> tuple[float, float]:
        """Return α and β₃ at step t = 1, 2, ..."""
        if t >= self.warmup:
            return self.alpha, self.beta3
        part, first, last = t / self.warmup, math.log(self.beta1), math.log(self.beta3)
        return self.alpha * part, min(math.exp(first * last / ((1 - part) * last + part * first)), self.beta3)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return zero means "m" and "slow", zero squares "v", and the steps made."""
        return {"m": torch.zeros_like(params), "slow": torch.zeros_like(params), "v": torch.zeros_like(params),
                "step": torch.zeros((), device="cpu")}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step and the new means."""
        beta2, t = per_layer(self.beta2, grad, axes), int(state["step"]) + 1
        alpha, beta3 = self.slow(t)
        m = torch.lerp(grad, state["m"], self.beta1)
        slow = torch.lerp(grad, state["slow"], beta3)
        v = beta2 * state["v"] + (1 - beta2) * grad.square()
        size = (v / (1 - beta2**t)).sqrt() + per_layer(self.eps, grad, axes)
        scaled = (m / (1 - self.beta1**t) + alpha * slow) / size
        step = -per_layer(self.lr, grad, axes) * (scaled + per_layer(self.decay, grad, axes) * params)
        return step, {"m": m, "slow": slow, "v": v, "step": state["step"] + 1}

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place, a chunk at a time."""
        rate, decay = self.lr * scale, self.decay  # type: ignore[operator]
        for target, grad, state, param in zip(targets, grads, states, params, strict=True):
            t = int(state["step"].add_(1))
            alpha, beta3 = self.slow(t)
            for w, g, m, slow, v, p in chunks(target, grad, state["m"], state["slow"], state["v"], param):
                m.lerp_(g, 1 - self.beta1)
                slow.lerp_(g, 1 - beta3)
                size = _size_(v, g, self.beta2, self.eps, t)  # type: ignore[arg-type]
                if decay:
                    w.add_(p, alpha=-rate * decay)  # type: ignore[operator]
                w.addcdiv_(m, size, value=-rate / (1 - self.beta1**t)).addcdiv_(slow, size, value=-rate * alpha)


def _size_(v: Tensor, grad: Tensor, beta2: float, eps: float, t: int) -> Tensor:
    """Average the gradient's square in `v`, in place, and return √(v/(1 − beta2ᵗ)) + eps after step t."""
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    return v.sqrt().mul_((1 - beta2**t) ** -0.5).add_(eps)
