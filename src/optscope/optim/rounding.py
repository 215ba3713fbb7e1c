"""Rounding: any rule's step, made with other rounding errors and nothing else changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.combinator import Wrapper, count_step
from optscope.optim.rule import Gradient, Rule, Slopes, State, per_member
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class Rounded(Wrapper):
    """Divide the inner rule's step by `k` times its learning rate, round, and multiply by the same.

        w ← w + (lr · k) · fl(s / (lr · k))        s the inner step, fl rounding to the dtype

    In exact arithmetic nothing changes. In floating point every step differs from that of another `k` by about
    its last bit: two trainings that differ in `k` alone are *rounding twins*, and part as far as rounding errors
    grow. Powers of two only shift exponents, so k = 1, 2, 4, ... give the same bits. Momentum, decay and schedules
    belong to the inner rule and come first. With `steps`, only so many steps are divided by `k`, the later ones
    as with k = 1.

    Sun et al. 2022, arXiv 2206.02001: w ← w − (lr · k) · fl(d / k) with the update direction d = −s / lr.

    >>> from optscope.optim import SGD
    >>> Rounded(SGD(lr=0.1), k=3)
    Rounded(rule=SGD(lr=0.1), k=3)

    Raises:
        UserError: unless k >= 1 and steps >= 1.
    """

    rule: Rule
    k: int
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("steps", 1 if self.steps is None else self.steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"Rounded: {name} must be a whole number >= 1; got {value!r}")

    def _k(self, done: float) -> int:
        return self.k if self.steps is None or done < self.steps else 1

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the inner state and the number of steps made, "step"."""
        return {"rule": self.rule.init(params, layout), "step": torch.tensor(0.0, device="cpu")}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return (lr · k) · fl(s / (lr · k)) and the new state."""
        inside, outside = self.rule.split_scale(scale)
        step, inner = self.rule.seek(gradient, state["rule"], params, layout, inside)
        divisor = per_member(self.lr, params) * self._k(float(state["step"]))
        return step / divisor * divisor * outside, {"rule": inner, "step": state["step"] + 1}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the inner in-place states, each with "scratch", room for a step; they share a count of steps."""
        count = torch.tensor(0.0, device="cpu")
        return [{"rule": state, "scratch": torch.zeros_like(p), "step": count}
                for state, p in zip(self.rule.begin(params, layout), params, strict=True)]

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Let the inner rule step from zero, divide, and add the multiple in place."""
        inside, outside = self.rule.split_scale(scale)
        divisor: float = self.lr * self._k(count_step(states))  # type: ignore[assignment]
        parts = [state["scratch"] for state in states]
        torch._foreach_zero_(parts)
        self.rule.seek_(parts, slopes, [state["rule"] for state in states], params, inside)
        torch._foreach_div_(parts, divisor)
        torch._foreach_add_(list(targets), parts, alpha=outside * divisor)
