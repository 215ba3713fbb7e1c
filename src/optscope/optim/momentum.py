"""Momentum as an average of gradients, and how the forms of momentum turn into each other and into plain SGD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, singledispatch
from typing import cast

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.combinator import Wrapper, bare
from optscope.optim.fused import sgd_
from optscope.optim.rule import Fused, Hyper, Rule, State, check_hyper, per_member
from optscope.optim.schedules import Schedule, Scheduled
from optscope.optim.sgd import SGD
from optscope.theory.momentum import averaged_rates
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class Momentum(Fused):
    """Stochastic gradient descent with momentum in its averaged form: the buffer is a mean of gradients.

        m ← beta · m + (1 − beta) · g              m₀ = 0
        step = −lr · m

    In the long run one gradient moves the weights by `lr`, as in SGD without momentum, so learning rates of the two
    mean the same. It is SGD(lr = γ, momentum = beta), the practical form, with lr = γ / (1 − beta), also when the
    learning rate changes.

    `torch.optim.SGD(lr=lr, momentum=beta, dampening=beta)` is *not* this rule: its first buffer is g₀ undamped, so
    its first step is 1/(1 − beta) times too long, and the weights end up lr · beta/(1 − beta) · g₀ further, nine
    full steps at 0.9. Write lr · (1 − beta) and no dampening.

    Wang et al. 2023, arXiv 2307.15196, equations 1 and 3.

    >>> Momentum(lr=0.1)
    Momentum(lr=0.1)

    Raises:
        UserError: unless lr > 0 and 0 <= beta < 1.
    """

    lr: Hyper
    beta: Hyper = 0.9

    def __post_init__(self) -> None:
        check_hyper("Momentum", "lr", self.lr, open_low=True)
        check_hyper("Momentum", "beta", self.beta, high=1.0)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return a zero mean "m"."""
        return {"m": torch.zeros_like(params)} if self.beta else {}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return −lr · m and the new mean."""
        lr, beta = per_member(self.lr, grad), per_member(self.beta, grad)
        if not state:
            return -lr * grad, state
        m = beta * state["m"] + (1 - beta) * grad
        return -lr * m, {"m": m}

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place by torch's fused kernel, whose dampening is right from a buffer of zeros."""
        buffers = [state["m"] for state in states if state]
        beta: float = self.beta if buffers else 0.0  # type: ignore[assignment]
        sgd_(targets, grads, buffers, lr=self.lr * scale, momentum=beta, dampening=beta)  # type: ignore[operator]


@dataclass(frozen=True)
class AveragedSchedule(Schedule):
    """The schedule under which SGD moves as momentum `beta` does under `schedule`, over `steps` steps.

    A factor is the mean of those still to come, weighted by how much of a gradient the buffer then hands out:

        η̄_k = (1 − beta) Σ_{s ≥ k} beta^{s−k} η_s

    It differs from `schedule` for about 1/(1 − beta) steps before a change. arXiv 2307.15196, theorem 3.5.

    >>> from optscope.optim.schedules import StepDecay
    >>> half = AveragedSchedule(StepDecay(at=(0.5,)), beta=0.5, steps=10)
    >>> [round(half(k / 10), 3) for k in (0, 3, 4, 5)]
    [0.972, 0.775, 0.55, 0.1]
    """

    schedule: Schedule
    beta: float
    steps: int

    def __call__(self, done: float) -> float:
        """Return the averaged factor when a fraction `done` of the steps has been made."""
        return _averages(self)[min(round(done * self.steps), self.steps - 1)]


@lru_cache(maxsize=64)
def _averages(schedule: AveragedSchedule) -> list[float]:
    factors = [schedule.schedule(k / schedule.steps) for k in range(schedule.steps)]
    return cast(list[float], averaged_rates(factors, schedule.beta).tolist())


@singledispatch
def matched(rule: Rule) -> Rule:
    """Return SGD without momentum that moves as a rule with momentum does: lr = γ/(1 − β) for the practical form.

    A schedule becomes its averaged one, and L2 regularisation keeps its strength. SGD itself is its own match.

    >>> matched(SGD(lr=0.25, momentum=0.5)), matched(Momentum(lr=0.1))
    (SGD(lr=0.5), SGD(lr=0.1))

    Raises:
        UserError: for rules that are not SGD with or without momentum, maybe inside Scheduled, Decayed or Rounded,
            or hold several learning rates, momenta or schedules.
    """
    raise UserError("SGD can be matched to SGD or Momentum, also inside Scheduled, Decayed or Rounded; "
                    f"got {rule!r}")


@matched.register
def _(rule: SGD) -> Rule:
    lr, beta = _numbers(rule, rule.lr, rule.momentum)
    return SGD(lr=lr / (1 - beta))


@matched.register
def _(rule: Momentum) -> Rule:
    return SGD(lr=_numbers(rule, rule.lr, rule.beta)[0])


@matched.register
def _(rule: Wrapper) -> Rule:
    return replace(rule, rule=matched(rule.rule))


@matched.register
def _(rule: Scheduled) -> Rule:
    beta = momentum_of(rule)
    if not beta:
        return replace(rule, rule=matched(rule.rule))
    if any(isinstance(inner, Scheduled) for inner in rule.rule.walk()):
        raise UserError(f"momentum under two schedules has no match; got {rule!r}: write one schedule")
    return Scheduled(matched(rule.rule), AveragedSchedule(rule.schedule, beta, rule.steps), rule.steps)


def momentum_of(rule: Rule) -> float:
    """Return β of SGD or Momentum, also inside Scheduled, Decayed and Rounded; 0 for other rules of one part.

    >>> from optscope.optim import Decayed
    >>> momentum_of(Decayed(Momentum(lr=0.1), decay=0.01)), momentum_of(SGD(lr=0.1))
    (0.9, 0.0)

    Raises:
        UserError: when the rule holds several momenta, or other rules, as Graft, SVAG and Players do.
    """
    inner, _, _ = bare(rule)
    if next(inner.held(), None) is not None:
        raise UserError(f"{inner!r} has no one momentum: ask the rules that it holds")
    beta = inner.beta if isinstance(inner, Momentum) else inner.momentum if isinstance(inner, SGD) else 0.0
    return _numbers(inner, 0.0, beta)[1]


def practical(rule: Momentum) -> SGD:
    """Return the same rule in the practical form, SGD(lr = η (1 − β), momentum = β).

    >>> practical(Momentum(lr=0.5, beta=0.75))
    SGD(lr=0.125, momentum=0.75)

    Raises:
        UserError: when the rule holds several learning rates or momenta.
    """
    lr, beta = _numbers(rule, rule.lr, rule.beta)
    return SGD(lr=lr * (1 - beta), momentum=beta)


def averaged(rule: SGD) -> Momentum:
    """Return the same rule in the averaged form, Momentum(lr = γ/(1 − β), beta = β).

    >>> averaged(SGD(lr=0.125, momentum=0.75))
    Momentum(lr=0.5, beta=0.75)

    Raises:
        UserError: for Nesterov's momentum, or when the rule holds several learning rates or momenta.
    """
    if rule.nesterov:
        raise UserError(f"Nesterov's momentum has no averaged form here; got {rule!r}")
    lr, beta = _numbers(rule, rule.lr, rule.momentum)
    return Momentum(lr=lr / (1 - beta), beta=beta)


def _numbers(rule: Rule, lr: Hyper, beta: Hyper) -> tuple[float, float]:
    if isinstance(lr, tuple) or isinstance(beta, tuple):
        raise UserError(f"forms of momentum are converted one rule at a time; got several numbers in {rule!r}")
    return lr, beta
