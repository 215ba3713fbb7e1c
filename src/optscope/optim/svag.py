"""SVAG: the noise of a gradient made larger, its mean kept, so that a discrete rule comes near its SDE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.combinator import Combinator
from optscope.optim.momentum import matched
from optscope.optim.rule import Gradient, Rule, Slopes, State
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class SVAG(Combinator):
    """A stochastic variance amplified gradient for any rule: one small step from every two gradients.

        ĝ = r₁ g₁ + r₂ g₂        r₁ = (1 − √(2l − 1))/2        r₂ = (1 + √(2l − 1))/2

    The first of two calls keeps g₁ and moves nothing, so g₂, of the next batch, is taken at the same weights. As
    r₁ + r₂ = 1 and r₁² + r₂² = l, ĝ has the gradient's mean and `level` l times its covariance. The rule's step
    from ĝ is made at 1/l of its rate. Over l such steps descent and noise do what they did in one, and curvature
    does 1/l of it: as l grows, paths go to those of the rule's stochastic differential equation.

    The same training time takes 2 l times the epochs; schedules over the fraction of training scale by themselves.
    Level 1 is the plain rule, on every second batch. Batches of one epoch do not overlap, which makes g₁ and g₂
    slightly anticorrelated. Coefficients differ in sign: clip nothing.

    Li, Malladi, Arora 2021, arXiv 2102.12470; used for momentum in arXiv 2307.15196, definition 5.1.

    >>> from optscope.optim import SGD
    >>> SVAG(SGD(lr=0.1), level=4)
    SVAG(rule=SGD(lr=0.1), level=4)

    Raises:
        UserError: unless level is a whole number >= 1, and the rule takes one gradient a step.
    """

    rule: Rule
    level: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.level, bool) or not isinstance(self.level, int) or self.level < 1:
            raise UserError(f"SVAG: level must be a whole number >= 1; got {self.level!r}")
        if self.rule.asks:
            raise UserError("SVAG mixes gradients of two batches at the same weights, so its rule must take one a "
                            f"step; got {self.rule!r}")

    @property
    def coefficients(self) -> tuple[float, float]:
        """The weights r₁, r₂ of the two gradients."""
        root = math.sqrt(2 * self.level - 1)
        return (1 - root) / 2, (1 + root) / 2

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the inner state, the number of gradients seen, "seen", and room for the first of two."""
        return {"rule": self.rule.init(params, layout), "seen": torch.tensor(0.0, device="cpu"),
                "first": torch.zeros_like(params)}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return no step from the first gradient of two, and from the second the inner step from both."""
        grad, seen = gradient(params), state["seen"] + 1
        if seen % 2:
            return torch.zeros_like(grad), {**state, "first": grad, "seen": seen}
        r1, r2 = self.coefficients
        both = r1 * state["first"] + r2 * grad
        step, inner = self.rule.scaled_update(both, state["rule"], params, layout, scale / self.level)
        return step, {**state, "rule": inner, "seen": seen}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the inner in-place states, each with its count and its room for a gradient."""
        return [{"rule": state, "seen": torch.tensor(0.0, device="cpu"), "first": torch.zeros_like(p)}
                for state, p in zip(self.rule.begin(params, layout), params, strict=True)]

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Keep the first gradient of two in place, or add the inner step from both, at 1/l of the rate.

        Raises:
            UserError: when a parameter has a gradient in some steps only.
        """
        if len({float(state["seen"]) for state in states}) > 1:
            raise UserError("SVAG adds up the gradients of every two batches, so every parameter needs one in "
                            "every step; some have none in some steps: train only what every batch uses")
        grads = slopes()
        for state in states:
            state["seen"] += 1
        if states[0]["seen"] % 2:
            for state, grad in zip(states, grads, strict=True):
                state["first"].copy_(grad)
            return
        r1, r2 = self.coefficients
        both = [state["first"].mul_(r1).add_(grad, alpha=r2) for state, grad in zip(states, grads, strict=True)]
        self.rule.add_step_(targets, both, [s["rule"] for s in states], params, scale / self.level)


@matched.register
def _(rule: SVAG) -> Rule:
    return SVAG(matched(rule.rule), rule.level)
