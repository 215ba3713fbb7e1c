"""Sharpness-aware minimisation: the gradient of the worst weights nearby, for any rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.combinator import Combinator
from optscope.optim.rule import Gradient, Hyper, Rule, Slopes, State, check_hyper, per_member
from optscope.optim.sign import list_norms, safe_inverse
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class SAM(Combinator):
    """Let a rule step from the gradient at weights that are worse by a step of length `rho` uphill.

        e = rho · g(w) / ‖g(w)‖₂                   over all weights; 0 where g = 0
        step = the rule's, at w, from g(w + e)

    Two gradients a step, of the same batch and random numbers. Foret et al. 2021, arXiv 2010.01412, algorithm 1.

    >>> from optscope.optim import SGD
    >>> SAM(SGD(lr=0.1)).evaluations
    2

    Raises:
        UserError: unless rho > 0, and the rule takes one gradient a step.
    """

    rule: Rule
    rho: Hyper = 0.05

    def __post_init__(self) -> None:
        check_hyper("SAM", "rho", self.rho, open_low=True)
        if self.rule.asks:
            raise UserError(f"SAM: its rule must take one gradient a step; got {self.rule!r}")

    @property
    def asks(self) -> bool:
        """It does."""
        return True

    @property
    def evaluations(self) -> int:
        """Two: here and uphill."""
        return 2

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the rule's state."""
        return {"rule": self.rule.init(params, layout)}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the rule's step from the gradient uphill, and its new state."""
        grad = gradient(params)
        length = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
        uphill = params + per_member(self.rho, grad) * grad * safe_inverse(length)
        step, inner = self.rule.scaled_update(gradient(uphill), state["rule"], params, layout, scale)
        return step, {"rule": inner}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the rule's in-place states."""
        return [{"rule": state} for state in self.rule.begin(params, layout)]

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add the rule's step from the gradient uphill in place."""
        grads = slopes()
        length = self.rho * safe_inverse(list_norms(grads, "model")[0])
        uphill = slopes([grad * length for grad in grads])
        self.rule.add_step_(targets, uphill, [state["rule"] for state in states], params, scale)
