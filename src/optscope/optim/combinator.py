"""Rules that hold rules: each is written once, from a gradient that may be asked for anywhere."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.rule import Fused, Gradient, Hyper, Rule, Slopes, State
from optscope.vector import Layout


class Combinator(Fused):
    """A rule around another rule, whose learning rate is its own; it is written as `seek` and `seek_`."""

    _inner: ClassVar[str] = "rule"

    @property
    def lr(self) -> Hyper:
        """The learning rate of the inner rule."""
        inner: Rule = getattr(self, self._inner)
        return inner.lr

    def with_(self, **changes: Any) -> Self:
        """Return the same rule changed; `lr` changes the inner rule's."""
        if "lr" in changes:
            changes[self._inner] = getattr(self, self._inner).with_(lr=changes.pop("lr"))
        return super().with_(**changes)

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the step and the next state."""
        return self.scaled_update(grad, state, params, layout, 1.0)

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the step at `scale` times the learning rate, and the next state.

        Raises:
            UserError: when the rule asks for gradients at other weights.
        """
        if self.asks:
            raise UserError(f"{self!r} takes gradients at other weights too: call seek(gradient, ...)")
        return self.seek(lambda _: grad, state, params, layout, scale)

    @abstractmethod
    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the step at `scale` times the learning rate, and the next state."""

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`, both in place.

        Raises:
            UserError: when the rule asks for gradients at other weights.
        """
        if self.asks:
            raise UserError(f"{self!r} takes gradients at other weights too: call seek_(targets, slopes, ...)")
        self.seek_(targets, lambda shifts=None: grads, states, params, scale)

    @abstractmethod
    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`, both in place."""


@dataclass(frozen=True, repr=False)
class Around(Combinator):
    """A combinator of one `rule`, which stands for the weights that the rule stands for."""

    rule: Rule

    @property
    def averages(self) -> bool:
        """Whether its rule does."""
        return self.rule.averages

    @property
    def own_schedule(self) -> bool:
        """Whether its rule has one."""
        return self.rule.own_schedule

    def evaluated(self, state: State, params: Tensor, layout: Layout) -> Tensor:
        """Return the weights that its rule stands for."""
        return self.rule.evaluated(self._inside(state), params, layout)

    def to_evaluation_(self, params: Sequence[Tensor], states: Sequence[State]) -> None:
        """Turn parameters into what its rule stands for."""
        self.rule.to_evaluation_(params, [self._inside(state) for state in states])

    def to_training_(self, params: Sequence[Tensor], states: Sequence[State]) -> None:
        """Undo `to_evaluation_`."""
        self.rule.to_training_(params, [self._inside(state) for state in states])

    def _inside(self, state: State) -> State:
        """Return its rule's state."""
        inner: State = state["rule"]
        return inner


@dataclass(frozen=True, repr=False)
class Wrapper(Around):
    """A combinator that leaves its `rule` what it is, but for a factor on the rate and L2 regularisation.

    What is known of a rule (its threshold, momentum, matching form) is known of it inside wrappers: see `bare`.
    """

    def factor_at(self, step: int) -> float:
        """Return the factor on the learning rate after `step` steps."""
        return 1.0

    @property
    def penalty(self) -> Hyper:
        """What times the weights is added to the gradient."""
        return 0.0


def bare(rule: Rule, step: int = 0) -> tuple[Rule, float, float]:
    """Return the rule inside all wrappers, its factor on the rate after `step` steps, and its L2 decay.

    >>> from optscope.optim import SGD, Decayed, Linear, Rounded, Scheduled
    >>> bare(Rounded(Scheduled(Decayed(SGD(lr=0.1), decay=0.5), Linear(), steps=4), k=3), step=1)
    (SGD(lr=0.1), 0.75, 0.5)

    Raises:
        UserError: when a wrapper holds several decays.
    """
    factor, decay = 1.0, 0.0
    while isinstance(rule, Wrapper):
        if isinstance(rule.penalty, tuple):
            raise UserError(f"one number a hyperparameter is needed; got {rule!r}: make one rule for each member")
        factor, decay, rule = factor * rule.factor_at(step), decay + rule.penalty, rule.rule
    return rule, factor, decay


def known(gradient: Gradient, params: Tensor) -> Gradient:
    """Return a gradient that is taken once at `params`, however often it is asked for there."""
    first = gradient(params)
    return lambda weights: first if weights is params else gradient(weights)


def count_step(states: Sequence[State]) -> float:
    """Return the number of steps made, "step", of in-place states that share it, and make it one more, in place.

    Parameters that began later have a count of their own, which catches up.
    """
    counts = list({id(state["step"]): state["step"] for state in states}.values())
    done = max(float(count) for count in counts)
    for count in counts:
        count.fill_(done + 1)
    return done


PORTION = 1 << 18
"""Numbers that are stepped before the next ones are looked at: with their state and step they stay in a cache."""


def portions(params: Sequence[Tensor], *rules: Rule) -> list[list[int]]:
    """Return in which portions a combinator may go through tensors, by their numbers: in one if a rule needs all.

    What a combinator does to a step besides, it then does while that is still in the cache, and needs room for a
    portion only.
    """
    if not all(rule.apart for rule in rules):
        return [list(range(len(params)))]
    found: list[list[int]] = []
    held = PORTION
    for i, p in enumerate(params):
        if held >= PORTION:
            found.append([])
            held = 0
        found[-1].append(i)
        held += p.numel()
    return found


@runtime_checkable
class Multiple(Protocol):
    """A rule whose step may be a number times tensors that are there without it: gradients, or a mean of them."""

    @property
    def at_hand(self) -> bool:
        """Whether it is."""

    def multiple_(self, grads: Sequence[Tensor], states: Sequence[State],
                  scale: float) -> tuple[Sequence[Tensor], float]:
        """Return these tensors and the number, and advance `states` in place."""


def at_hand(rule: Rule) -> bool:
    """Return whether nothing has to be made for a rule's step but a number.

    >>> from optscope.optim import SGD, Adam
    >>> at_hand(SGD(lr=0.1)), at_hand(SGD(lr=0.1, momentum=0.9, nesterov=True)), at_hand(Adam(lr=0.1))
    (True, False, False)
    """
    return isinstance(rule, Multiple) and rule.at_hand


def multiple(rule: Rule, grads: Sequence[Tensor] | Slopes, states: Sequence[State], params: Sequence[Tensor],
             scale: float, room: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], float]:
    """Return a rule's step as tensors and a number that times them is it, and advance its states.

    `room()` gives the tensors that it is made in where it has to be.
    """
    if isinstance(rule, Multiple) and rule.at_hand and not callable(grads):
        return rule.multiple_(grads, states, scale)
    return stepped(rule, grads, states, params, scale, room()), 1.0


def stepped(rule: Rule, grads: Sequence[Tensor] | Slopes, states: Sequence[State], params: Sequence[Tensor],
            scale: float, steps: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return a rule's step in the tensors `steps`, whatever they held, and advance its states."""
    torch._foreach_zero_(list(steps))
    advance(rule, steps, grads, states, params, scale)
    return steps


def advance(rule: Rule, targets: Sequence[Tensor], grads: Sequence[Tensor] | Slopes, states: Sequence[State],
            params: Sequence[Tensor], scale: float) -> None:
    """Add a rule's step to `targets`, from gradients or from what gives them, and advance its states."""
    if callable(grads):
        rule.seek_(targets, grads, states, params, scale)
    else:
        rule.add_step_(targets, grads, states, params, scale)
