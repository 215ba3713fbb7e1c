"""Learning rates that change over training, and L2 regularisation, around any rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.combinator import Wrapper, count_step
from optscope.optim.rule import Gradient, Hyper, Rule, Slopes, State, check_hyper, per_member
from optscope.vector import Layout


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor on the learning rate as a function of the fraction of training that is done, in [0, 1)."""

    @abstractmethod
    def __call__(self, done: float) -> float:
        """Return the factor when a fraction `done` of the steps has been made."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate throughout."""

    def __call__(self, done: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiply by `factor` each time a fraction in `at` is reached.

    >>> [round(StepDecay()(done), 3) for done in (0.0, 0.5, 0.9)]
    [1.0, 0.1, 0.01]

    Raises:
        UserError: unless all of `at` lie between 0 and 1.
    """

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if not all(0 < done < 1 for done in self.at):
            raise UserError(f"StepDecay: at must hold fractions of training between 0 and 1; got {self.at}")
        check_hyper("StepDecay", "factor", self.factor, open_low=True)

    def __call__(self, done: float) -> float:
        """Return factor to the number of fractions passed."""
        return self.factor ** sum(done >= point for point in self.at)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Rise linearly over the fraction `warmup`, then fall to zero along half a cosine.

        done < warmup: done/warmup        else: (1 + cos(π (done − warmup)/(1 − warmup)))/2

    Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5, without restarts; the warm-up comes before it.

    Raises:
        UserError: unless 0 <= warmup < 1.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_hyper("Cosine", "warmup", self.warmup, high=1.0)

    def __call__(self, done: float) -> float:
        """Return the factor."""
        if done < self.warmup:
            return done / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True)
class Linear(Schedule):
    """Fall to zero along a straight line.

    >>> [Linear()(done) for done in (0.0, 0.25, 0.5)]
    [1.0, 0.75, 0.5]
    """

    def __call__(self, done: float) -> float:
        """Return 1 − done."""
        return 1 - done


@dataclass(frozen=True, repr=False)
class Scheduled(Wrapper):
    """A rule whose learning rate is multiplied by schedule(t/steps), t = 0, 1, ...; the last factor stays.

    Raises:
        UserError: unless steps is a whole number >= 1.
    """

    rule: Rule
    schedule: Schedule
    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UserError(f"Scheduled: steps must be a whole number >= 1; got {self.steps!r}")

    def factor_at(self, step: float) -> float:
        """Return the factor on the learning rate after `step` steps."""
        return self.schedule(min(step, self.steps - 1) / self.steps)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the inner state and the number of steps made, "step"."""
        return {"rule": self.rule.init(params, layout), "step": torch.tensor(0.0, device="cpu")}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the inner step at the rate of the moment, and the new state."""
        factor = self.factor_at(float(state["step"]))
        step, inner = self.rule.seek(gradient, state["rule"], params, layout, scale * factor)
        return step, {"rule": inner, "step": state["step"] + 1}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the inner in-place states, with one count of steps that they share."""
        count = torch.tensor(0.0, device="cpu")
        return [{"rule": state, "step": count} for state in self.rule.begin(params, layout)]

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add the inner step at the rate of the moment in place."""
        factor = self.factor_at(count_step(states))
        self.rule.seek_(targets, slopes, [s["rule"] for s in states], params, scale * factor)


@dataclass(frozen=True, repr=False)
class Decayed(Wrapper):
    """L2 regularisation: the rule sees g + decay · w (PyTorch's `weight_decay` of SGD and Adam).

    Decay that bypasses an adaptive rule's moments is `AdamW`.

    Raises:
        UserError: unless decay >= 0.
    """

    rule: Rule
    decay: Hyper

    def __post_init__(self) -> None:
        check_hyper("Decayed", "decay", self.decay)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the inner rule's state."""
        return self.rule.init(params, layout)

    @property
    def penalty(self) -> Hyper:
        """The decay."""
        return self.decay

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the inner rule's step on g + decay · w."""
        def shrunk(weights: Tensor) -> Tensor:
            return gradient(weights) + per_member(self.decay, weights) * weights

        return self.rule.seek(shrunk, state, params, layout, scale)

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the inner rule's in-place states."""
        return self.rule.begin(params, layout)

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add the inner rule's step on g + decay · w in place."""
        decay: float = self.decay  # type: ignore[assignment]

        def shrunk(shifts: Sequence[Tensor] | None = None) -> list[Tensor]:
            grads = [g.add(p, alpha=decay) for g, p in zip(slopes(shifts), params, strict=True)]
            if shifts is not None:
                torch._foreach_add_(grads, list(shifts), alpha=decay)
            return grads

        self.rule.seek_(targets, shrunk, states, params, scale)

    def _inside(self, state: State) -> State:
        return state
