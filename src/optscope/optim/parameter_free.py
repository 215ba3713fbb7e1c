"""Rules whose learning rate is found on the way, from how far the weights have come: Prodigy and D-Adaptation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.rule import Hyper, Rule, State, check_hyper, per_member
from optscope.optim.sign import safe_inverse
from optscope.vector import Layout

Total = Callable[[Tensor], Tensor]
"""The sum over the weights of a member: `(..., P)` to `(..., 1)`, or a tensor of any shape to `()`."""


class ParameterFree(Rule):
    """A rule with a rate d that grows to the distance between start and solution, as far as gradients show it.

        d ← max(d, r/length)                       r and length: sums over all weights

    Both forms of a rule come from `start`, `gathered` and `along`, which act number by number on weights of any
    shape but for those sums. In place, every tensor keeps its own part of r, and all share d: a tensor without a
    gradient stands still and is left out of both sums.
    """

    d0: float

    @property
    def proportional(self) -> bool:
        """No: d depends on the rate."""
        return False

    @abstractmethod
    def start(self, params: Tensor, zero: Tensor) -> State:
        """Return the state of weights before the first step; `zero` is r's."""

    @abstractmethod
    def gathered(self, grad: Tensor, state: State, params: Tensor, d: Tensor, lr: float | Tensor,
                 total: Total) -> tuple[State, tuple[Tensor, ...]]:
        """Return the next state of weights, and the sums over them that `found` takes."""

    @abstractmethod
    def along(self, state: State, params: Tensor, before: State, after: State, lr: float | Tensor) -> Tensor:
        """Return the step of weights from their next state, and from d `before` and `after`."""

    def shared(self, one: Tensor) -> State:
        """Return what all weights share before the first step: d = d0."""
        return {"d": self.d0 * one}

    def found(self, before: State, sums: Sequence[Tensor]) -> State:
        """Return what all weights share after a step, of r and length."""
        r, length = sums
        return {"d": torch.where(length > 0, torch.maximum(before["d"], r / length), before["d"])}

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the state of all weights, with what they share one a member."""
        one = torch.ones_like(params[..., :1])
        return {**self.start(params, 0 * one), **self.shared(one)}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the step and the new state."""
        return self.scaled_update(grad, state, params, layout, 1.0)

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the step at `scale` times the rate, and the new state."""
        lr = scale * per_member(self.lr, grad)
        part, sums = self.gathered(grad, state, params, state["d"], lr, lambda x: x.sum(-1, keepdim=True))
        after = self.found(state, sums)
        return self.along(part, params, state, after, lr), {**part, **after}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return one state a tensor; they share d."""
        shared = self.shared(params[0].new_ones(())) if params else {}
        return [{**self.start(p.detach(), p.new_zeros(())), **shared} for p in params]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step at `scale` times the rate in place."""
        lr: float = self.lr * scale  # type: ignore[operator]
        names = self.shared(params[0].new_ones(())).keys()
        # The largest, for parameters that began later have one of their own, which catches up.
        before = {name: torch.stack([state[name] for state in states]).amax() for name in names}
        columns = []
        for grad, state, param in zip(grads, states, params, strict=True):
            part, sums = self.gathered(grad, state, param, before["d"], lr, torch.sum)
            state.update(part)
            columns.append(sums)
        after = self.found(before, [torch.stack(column).sum() for column in zip(*columns, strict=True)])
        for target, state, param in zip(targets, states, params, strict=True):
            target.add_(self.along(state, param, before, after, lr))
        for name in names:
            for kept in {id(state[name]): state[name] for state in states}.values():
                kept.copy_(after[name])


@dataclass(frozen=True, repr=False)
class Prodigy(ParameterFree):
    """Adam with a rate d from how far the gradients say that the weights must go.

        r ← √beta2 · r + d²/d₀ · ⟨g, w₀ − w⟩ · lr,   s ← √beta2 · s + d²/d₀ · lr · g,   d′ = max(d, r/‖s‖₁)
        m ← beta1 · m + (1 − beta1) · d · g,   v ← beta2 · v + (1 − beta2) · d² · g²
        step = −lr · d · (m / (√v + d′ · eps) + decay · w),   d ← d′

    over all weights together. `lr` is a factor on d, usually 1, which schedules multiply. On a convex loss d never
    exceeds the largest distance of a weight from the solution, for Σ ⟨g, w₀ − w⟩ <= Σ ⟨g, w₀ − w*⟩.

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
        _check_adam(self)

    def start(self, params: Tensor, zero: Tensor) -> State:
        """Return the start, and zero moments and sums."""
        nought = torch.zeros_like(params)
        return {"start": params.clone(), "m": nought, "v": nought, "s": nought, "r": zero}

    def gathered(self, grad: Tensor, state: State, params: Tensor, d: Tensor, lr: float | Tensor,
                 total: Total) -> tuple[State, tuple[Tensor, ...]]:
        """Return the new moments and sums, and r and ‖s‖₁."""
        beta1, beta2 = per_member(self.beta1, grad), per_member(self.beta2, grad)
        weight = d.square() / self.d0 * lr
        s = beta2**0.5 * state["s"] + weight * grad
        r = beta2**0.5 * state["r"] + weight * total(grad * (state["start"] - params))
        m = beta1 * state["m"] + (1 - beta1) * d * grad
        v = beta2 * state["v"] + (1 - beta2) * (d * grad).square()
        return {"start": state["start"], "m": m, "v": v, "s": s, "r": r}, (r, total(s.abs()))

    def along(self, state: State, params: Tensor, before: State, after: State, lr: float | Tensor) -> Tensor:
        """Return −lr · d · (m/(√v + d′ · eps) + decay · w)."""
        size = state["v"].sqrt() + after["d"] * per_member(self.eps, params)
        step: Tensor = -lr * before["d"] * (state["m"] / size + per_member(self.decay, params) * params)
        return step


@dataclass(frozen=True, repr=False)
class DAdaptSGD(ParameterFree):
    """SGD with momentum and a rate d from how far along themselves the gradients have gone.

        λ = lr · d/‖g₀‖₂                                   g₀: the first gradient that is not 0
        r ← r + λ ⟨g, s⟩,   s ← s + λ g,   d′ = max(d, 2 r/‖s‖₂)
        m ← momentum · m + (1 − momentum) · λ g,   step = −m,   d ← d′

    over all weights together. `lr` is a factor on d, usually 1, which schedules multiply. The paper writes momentum
    as a mean, w ← momentum · w + (1 − momentum) z of z = w₀ − s, which is the same; their package's default is 0.
    Without it d never exceeds twice the distance to the solution of a convex loss, for Σ λ ⟨g, s⟩ <= ⟨s, w₀ − w*⟩;
    with it, it may: of |w − 100|, from 0, it becomes 469. The state holds s, m and r of gradients that are not
    divided by ‖g₀‖₂ yet.

    Defazio, Mishchenko 2023, arXiv 2301.07733, SGD with D-Adaptation, as their package dadaptation 3.2.

    Raises:
        UserError: unless lr > 0, 0 <= momentum < 1 and d0 > 0.
    """

    lr: Hyper = 1.0
    momentum: Hyper = 0.9
    d0: float = 1e-6

    def __post_init__(self) -> None:
        check_hyper("DAdaptSGD", "lr", self.lr, open_low=True)
        check_hyper("DAdaptSGD", "momentum", self.momentum, high=1.0)
        check_hyper("DAdaptSGD", "d0", self.d0, open_low=True)

    def start(self, params: Tensor, zero: Tensor) -> State:
        """Return a zero momentum and zero sums."""
        nought = torch.zeros_like(params)
        return {"m": nought, "s": nought, "r": zero}

    def shared(self, one: Tensor) -> State:
        """Return d = d0, and 0 for ‖g₀‖₂."""
        return {"d": self.d0 * one, "first": 0 * one}

    def gathered(self, grad: Tensor, state: State, params: Tensor, d: Tensor, lr: float | Tensor,
                 total: Total) -> tuple[State, tuple[Tensor, ...]]:
        """Return the new momentum and sums, and r, ‖s‖₂² and ‖g‖₂²."""
        momentum, moved = per_member(self.momentum, grad), lr * d * grad
        r = state["r"] + total(moved * state["s"])
        s = state["s"] + moved
        m = momentum * state["m"] + (1 - momentum) * moved
        return {"m": m, "s": s, "r": r}, (r, total(s.square()), total(grad.square()))

    def found(self, before: State, sums: Sequence[Tensor]) -> State:
        """Return d and ‖g₀‖₂."""
        r, square, length = sums
        first = torch.where(before["first"] > 0, before["first"], length.sqrt())
        return {**super().found(before, (2 * r, square.sqrt() * first)), "first": first}

    def along(self, state: State, params: Tensor, before: State, after: State, lr: float | Tensor) -> Tensor:
        """Return −m."""
        step: Tensor = -state["m"] * safe_inverse(after["first"])
        return step


@dataclass(frozen=True, repr=False)
class DAdaptAdam(ParameterFree):
    """Adam with a rate d from how far along themselves the gradients have gone.

        λ = lr · d
        r ← √beta2 · r + λ ⟨g, s/(√v + eps)⟩,   s ← √beta2 · s + (1 − √beta2) · λ g,   d′ = max(d, r/‖s‖₁)
        m ← beta1 · m + (1 − beta1) · λ g,   v ← beta2 · v + (1 − beta2) · g²
        step = −m/(√v + eps) − λ · decay · w,   d ← d′

    over all weights together; r is of s and v before this gradient. `lr` is a factor on d, usually 1, which
    schedules multiply. The moments are not corrected for their start at 0, so that the first step is
    (1 − beta1)/√(1 − beta2) times as long as λ, 3.2 by default.

    Defazio, Mishchenko 2023, arXiv 2301.07733, Adam with D-Adaptation, as their package dadaptation 3.2 with
    decay that bypasses the moments (their r is 1 − √beta2 times this one).

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
        _check_adam(self)

    def start(self, params: Tensor, zero: Tensor) -> State:
        """Return zero moments and sums."""
        nought = torch.zeros_like(params)
        return {"m": nought, "v": nought, "s": nought, "r": zero}

    def gathered(self, grad: Tensor, state: State, params: Tensor, d: Tensor, lr: float | Tensor,
                 total: Total) -> tuple[State, tuple[Tensor, ...]]:
        """Return the new moments and sums, and r and ‖s‖₁."""
        beta1, beta2 = per_member(self.beta1, grad), per_member(self.beta2, grad)
        root, moved = beta2**0.5, lr * d * grad
        size = state["v"].sqrt() + per_member(self.eps, grad)
        r = root * state["r"] + total(moved * state["s"] / size)
        s = root * state["s"] + (1 - root) * moved
        m = beta1 * state["m"] + (1 - beta1) * moved
        v = beta2 * state["v"] + (1 - beta2) * grad.square()
        return {"m": m, "v": v, "s": s, "r": r}, (r, total(s.abs()))

    def along(self, state: State, params: Tensor, before: State, after: State, lr: float | Tensor) -> Tensor:
        """Return −m/(√v + eps) − λ · decay · w."""
        size = state["v"].sqrt() + per_member(self.eps, params)
        step: Tensor = -state["m"] / size - lr * before["d"] * per_member(self.decay, params) * params
        return step


def _check_adam(rule: Prodigy | DAdaptAdam) -> None:
    name = type(rule).__name__
    check_hyper(name, "lr", rule.lr, open_low=True)
    check_hyper(name, "beta1", rule.beta1, high=1.0)
    check_hyper(name, "beta2", rule.beta2, high=1.0)
    check_hyper(name, "eps", rule.eps, open_low=True)
    check_hyper(name, "decay", rule.decay)
    check_hyper(name, "d0", rule.d0, open_low=True)
