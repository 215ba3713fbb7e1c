"""Gradient descent, with or without momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.fused import sgd_
from optscope.optim.rule import Fused, Hyper, State, check_hyper, per_member
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class SGD(Fused):
    """Stochastic gradient descent.

    Momentum is in its practical (PyTorch, "heavy ball") form: the buffer sums gradients, it does not average
    them, so one gradient moves the weights by `lr / (1 - momentum)` in the long run.

        v ← momentum · v + g                       v₀ = 0
        step = −lr · v                             (Nesterov: −lr · (g + momentum · v))

    Robbins and Monro 1951, Ann. Math. Stat. 22, 400; momentum: Polyak 1964, USSR Comput. Math. Math. Phys. 4, 1;
    Nesterov's in this form: Sutskever et al. 2013, ICML, 1139.

    >>> SGD(lr=0.1, momentum=0.9)
    SGD(lr=0.1, momentum=0.9)

    Raises:
        UserError: unless lr > 0 and 0 <= momentum < 1; or Nesterov without momentum.
    """

    apart: ClassVar[bool] = True

    lr: Hyper
    momentum: Hyper = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_hyper("SGD", "lr", self.lr, open_low=True)
        check_hyper("SGD", "momentum", self.momentum, high=1.0)
        if self.nesterov and not self.momentum:
            raise UserError("SGD: nesterov=True needs momentum > 0; got momentum=0")

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return a zero momentum buffer "v", or nothing without momentum."""
        return {"v": torch.zeros_like(params)} if self.momentum else {}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · v and the new buffer."""
        lr, momentum = per_member(self.lr, grad), per_member(self.momentum, grad)
        if not state:
            return -lr * grad, state
        v = momentum * state["v"] + grad
        direction = grad + momentum * v if self.nesterov else v
        return -lr * direction, {"v": v}

    @property
    def at_hand(self) -> bool:
        """The step is −lr times the gradient or the buffer, but for Nesterov's."""
        return not self.nesterov

    def multiple_(self, grads: Sequence[Tensor], states: Sequence[State],
                  scale: float) -> tuple[Sequence[Tensor], float]:
        """Return the gradients or the new buffers, and −lr · scale."""
        buffers = [state["v"] for state in states if state]
        if buffers:
            torch._foreach_mul_(buffers, self.momentum)
            torch._foreach_add_(buffers, list(grads))
        return buffers or grads, -self.lr * scale  # type: ignore[operator]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place by torch's fused kernel."""
        buffers = [state["v"] for state in states if state]
        sgd_(targets, grads, buffers, lr=self.lr * scale, nesterov=self.nesterov,  # type: ignore[operator]
             momentum=self.momentum if buffers else 0.0)  # type: ignore[arg-type]
