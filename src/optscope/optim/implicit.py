"""Implicit SGD: the step whose gradient is the one at its end, so that no curvature makes it unstable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.rule import Gradient, Hyper, Rule, Slopes, State, check_hyper, per_member
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class ImplicitSGD(Rule):
    """Step to where the gradient of the same batch would have led back from.

        w′ = w − lr · g(w′)    ⇔    w′ = argmin L(w′) + ‖w′ − w‖²/(2 lr)

    On a quadratic with eigenvalue a a step multiplies by 1/(1 + lr a): stable for every rate, where SGD needs
    lr < 2/a, and quieter, for a stationary variance of lr c/(a (2 + lr a)) in place of lr c/(a (2 − lr a)).

    w′ is found by Anderson's acceleration of x ← w − lr · g(x), from `gradients` gradients besides the first: exact
    on a quadratic with so many different eigenvalues, an approximation elsewhere. The solver is ours; the steps:
    Toulis, Airoldi 2017, arXiv 1408.2923; for physics-informed networks Li et al. 2023, arXiv 2303.01767.

    Raises:
        UserError: unless lr > 0 and gradients is a whole number >= 1.
    """

    lr: Hyper
    gradients: int = 5

    def __post_init__(self) -> None:
        check_hyper("ImplicitSGD", "lr", self.lr, open_low=True)
        if isinstance(self.gradients, bool) or not isinstance(self.gradients, int) or self.gradients < 1:
            raise UserError(f"ImplicitSGD: gradients must be a whole number >= 1; got {self.gradients!r}")

    @property
    def proportional(self) -> bool:
        """No: it is shorter the larger the rate."""
        return False

    @property
    def asks(self) -> bool:
        """It does."""
        return True

    @property
    def evaluations(self) -> int:
        """One here, and those of the solver."""
        return 1 + self.gradients

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return nothing: the rule has no memory."""
        return {}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Raise: one gradient is not enough.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self!r} takes gradients at other weights too: call seek(gradient, ...)")

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return w′ − w."""
        lr = scale * per_member(self.lr, params)
        step = torch.zeros_like(params)
        residual = -lr * gradient(params)
        steps, residuals = [step], [residual]
        for _ in range(self.gradients):
            step = _mixed(steps, residuals, step + residual)
            residual = -lr * gradient(params + step) - step
            steps, residuals = [*steps, step], [*residuals, residual]
        return _mixed(steps, residuals, step + residual), state

    def seek_(self, targets: list[Tensor], slopes: Slopes, states: list[State],  # type: ignore[override]
              params: list[Tensor], scale: float = 1.0) -> None:
        """Add w′ − w in place."""
        layout = Layout.of(params)
        flat = layout.flatten(params)

        def gradient(weights: Tensor) -> Tensor:
            return layout.flatten(slopes() if weights is flat else slopes(layout.views(weights - flat)))

        step, _ = self.seek(gradient, {}, flat, layout, scale)
        for target, part in zip(targets, layout.views(step), strict=True):
            target.add_(part)


def _mixed(steps: list[Tensor], residuals: list[Tensor], plain: Tensor) -> Tensor:
    """Return the mix of past points whose residual, taken as linear, is smallest, with that residual on top."""
    if len(steps) == 1:
        return plain
    last, changes = residuals[-1], torch.stack([residuals[-1] - r for r in residuals[:-1]], dim=-1)
    moves = torch.stack([steps[-1] - s for s in steps[:-1]], dim=-1)
    weights = torch.linalg.pinv(changes.double(), rtol=1e-12) @ last.double().unsqueeze(-1)
    mixed: Tensor = plain - ((moves + changes) @ weights.to(plain.dtype)).squeeze(-1)
    return mixed
