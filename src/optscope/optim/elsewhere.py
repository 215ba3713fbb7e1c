"""A second gradient, taken elsewhere on the same batch: uphill (SAM, a penalty on the gradient) or ahead."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.combinator import Around
from optscope.optim.rule import Gradient, Hyper, Rule, Slopes, State, check_hyper, per_member
from optscope.optim.sign import norms_of, safe_inverse, shared
from optscope.vector import Layout


class Elsewhere(Around):
    """A combinator whose rule steps at w from a gradient that is made of g(w) and of g(w + shift).

    Both forms of it come from `shift` and `mixed`, which act number by number but for the norm that `shift` gets.
    """

    @property
    def asks(self) -> bool:
        """It does."""
        return True

    @property
    def evaluations(self) -> int:
        """Two: here and there."""
        return 2

    def _check(self) -> None:
        if self.rule.asks:
            raise UserError(f"{type(self).__name__}: its rule must take one gradient a step; got {self.rule!r}")

    @abstractmethod
    def shift(self, grad: Tensor, length: Tensor) -> Tensor:
        """Return where the second gradient is taken, of a gradient and its norm over the model."""

    @abstractmethod
    def mixed(self, here: Tensor, there: Tensor, length: Tensor) -> Tensor:
        """Return the gradient that the rule is given."""

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the rule's state."""
        return {"rule": self.rule.init(params, layout)}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the rule's step and its new state."""
        here = gradient(params)
        length = torch.linalg.vector_norm(here, dim=-1, keepdim=True)
        there = gradient(params + self.shift(here, length))
        step, inner = self.rule.scaled_update(self.mixed(here, there, length), state["rule"], params, layout, scale)
        return step, {"rule": inner}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the rule's in-place states."""
        return [{"rule": state} for state in self.rule.begin(params, layout)]

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add the rule's step in place."""
        here = slopes()
        length = shared(norms_of(here), "model")[0]
        there = slopes([self.shift(grad, length) for grad in here])
        mixed = [self.mixed(a, b, length) for a, b in zip(here, there, strict=True)]
        self.rule.add_step_(targets, mixed, [state["rule"] for state in states], params, scale)


@dataclass(frozen=True, repr=False)
class SAM(Elsewhere):
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
        self._check()

    def shift(self, grad: Tensor, length: Tensor) -> Tensor:
        """Return rho · g/‖g‖."""
        return per_member(self.rho, grad) * grad * safe_inverse(length)

    def mixed(self, here: Tensor, there: Tensor, length: Tensor) -> Tensor:
        """Return the gradient uphill."""
        return there


@dataclass(frozen=True, repr=False)
class Extrapolated(Elsewhere):
    """Let a rule step from the gradient `ahead` downhill: the extragradient method, around any rule.

        step = the rule's, at w, from g(w − ahead · g(w))

    On games it converges where descent turns in circles: on f(x, y) = x y with rate and `ahead` 0.3 the distance to
    (0, 0) falls by √(1 − 0.3² + 0.3⁴) a step, and grows by √(1 + 0.3²) under simultaneous descent.

    Korpelevich 1976; for large batches Lin et al. 2020, arXiv 2006.05720 (their variants by worker are not here).

    Raises:
        UserError: unless ahead > 0, and the rule takes one gradient a step.
    """

    rule: Rule
    ahead: Hyper

    def __post_init__(self) -> None:
        check_hyper("Extrapolated", "ahead", self.ahead, open_low=True)
        self._check()

    def shift(self, grad: Tensor, length: Tensor) -> Tensor:
        """Return −ahead · g."""
        return -per_member(self.ahead, grad) * grad

    def mixed(self, here: Tensor, there: Tensor, length: Tensor) -> Tensor:
        """Return the gradient ahead."""
        return there


@dataclass(frozen=True, repr=False)
class GradientPenalty(Elsewhere):
    """Let a rule minimise the loss and μ times the squared length of its gradient.

        L + μ ‖g‖²,   whose gradient is g + 2 μ H g ≈ g + 2 μ ‖g‖/ε · (g(w + ε g/‖g‖) − g),   μ = weight, ε = step

    Gradient descent of rate η follows such a flow with μ = η/4 by itself: implicit gradient regularisation. The
    difference is exact on quadratics. Codes that differentiate s ‖g‖² and ones that add s H g differ by a factor 2:
    here μ is the weight of ‖g‖² in what is minimised.

    Barrett, Dherin 2021, arXiv 2009.11162.

    Raises:
        UserError: unless weight > 0 and step > 0, and the rule takes one gradient a step.
    """

    rule: Rule
    weight: Hyper
    step: float = 0.01

    def __post_init__(self) -> None:
        check_hyper("GradientPenalty", "weight", self.weight, open_low=True)
        check_hyper("GradientPenalty", "step", self.step, open_low=True)
        self._check()

    def shift(self, grad: Tensor, length: Tensor) -> Tensor:
        """Return ε g/‖g‖."""
        return self.step * grad * safe_inverse(length)

    def mixed(self, here: Tensor, there: Tensor, length: Tensor) -> Tensor:
        """Return the penalised gradient."""
        return here + (there - here) * (2 * per_member(self.weight, here) * length / self.step)
