"""A rule turns a gradient into a step: a pure equation on vectors, and its in-place twin on tensors.

`update` is what a reader compares with the paper. `add_step_` is what training runs: the same step, added
in place to a list of tensors. Rules without a kernel of their own inherit one that calls `update`; rules
with one derive from `Fused`, and a conformance test holds the two equal.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.optim.torch_bridge import RuleOptimizer, by_module
from optscope.vector import Layout

Hyper = float | tuple[float, ...]
"""A hyperparameter: one number, or one a member of the leading axis."""

State = dict[str, Any]
"""What a rule remembers between steps: names to tensors `(..., P)` or `()`, or to nested states."""


def per_member(value: Hyper, like: Tensor) -> float | Tensor:
    """Return `value` so that it broadcasts over the members of `like` `(..., P)`."""
    if not isinstance(value, tuple):
        return value
    return torch.tensor(value, dtype=like.dtype, device=like.device).unsqueeze(-1)


def check_hyper(owner: str, name: str, value: object, *, low: float = 0.0, high: float = math.inf,
                open_low: bool = False) -> None:
    """Raise unless `value` is a number (or a tuple of them) with `low <= value < high`.

    Raises:
        UserError: naming the rule, the field, what was expected and what came.
    """
    values = value if isinstance(value, tuple) and value else (value,)
    sign = ">" if open_low else ">="
    for v in values:
        real = isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
        if not real or v < low or v >= high or (open_low and v == low):
            upper = "" if math.isinf(high) else f" and < {high:g}"
            raise UserError(f"{owner}: {name} must be a finite number {sign} {low:g}{upper}; got {v!r}")


def count_step(states: Sequence[State]) -> float:
    """Return the number of steps made, "step", of in-place states that share it, and make it one more, in place.

    Parameters that began later have a count of their own, which catches up.
    """
    counts = list({id(state["step"]): state["step"] for state in states}.values())
    done = max(float(count) for count in counts)
    for count in counts:
        count.fill_(done + 1)
    return done


@dataclass(frozen=True, repr=False)
class Rule(ABC):
    """How a gradient becomes a step. Fields are the hyperparameters; `eval(repr(rule)) == rule`.

    A rule never changes its inputs, holds no state of its own, and draws no random numbers.
    """

    in_pairs: ClassVar[bool] = True
    """Whether complex weights may be stepped as pairs of real numbers."""

    if TYPE_CHECKING:
        @property
        def lr(self) -> Hyper:
            """The learning rate: every rule's step is proportional to it, if only to first order (`PolarSGD`)."""

    @abstractmethod
    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the state before the first step; called once. Tensors in it are shaped like `params`."""

    @abstractmethod
    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the step (to be *added* to `params`) and the next state.

        Shapes: `grad`, `params` and the step are `(..., P)`; `layout` says where the layers lie in P.
        """

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the step at `scale` times the learning rate, and the next state: what schedules ask for."""
        step, state = self.update(grad, state, params, layout)
        return step * scale, state

    @property
    def proportional(self) -> bool:
        """Whether the step is exactly proportional to the learning rate, and so may be multiplied instead."""
        return all(rule.proportional for rule in self.held())

    @property
    def foreign(self) -> bool:
        """Whether it is, or holds, an optimiser of other authors, which may draw random numbers and have modes."""
        return any(rule.foreign for rule in self.held())

    def split_scale(self, scale: float) -> tuple[float, float]:
        """Return the factor that the learning rate must be multiplied by, and that by which the step may be."""
        return (1.0, scale) if self.proportional else (scale, 1.0)

    def begin(self, params: Sequence[Tensor]) -> list[State]:
        """Return one in-place state a parameter tensor, for `add_step_`."""
        return [{} for _ in params]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`, both in place.

        `targets` are the parameters themselves in training, or zeros when the step itself is wanted. Unlike
        in `update`, a parameter's tensor keeps its own shape and memory format. `scale` multiplies the
        learning rate (schedules, param groups).

        Raises:
            UserError: when this rule, which keeps one state for all tensors, gets others than in its first step.
        """
        layout = Layout.of(params)
        flat = layout.flatten(params)
        if not any(states):
            for i, state in enumerate(states):
                state["place"] = (i, len(states))
            states[0]["flat"] = self.init(flat, layout)
        if [state.get("place") for state in states] != [(i, len(states)) for i in range(len(states))]:
            raise UserError(f"{self!r} keeps one state for all parameters, and some that had a gradient in its "
                            "first step have none now, or the reverse: derive the rule from "
                            "optscope.optim.rule.Fused, with an add_step_ that keeps a state for each parameter")
        step, states[0]["flat"] = self.scaled_update(layout.flatten(grads), states[0]["flat"], flat, layout, scale)
        for target, part in zip(targets, layout.views(step), strict=True):
            target.add_(part)

    def optimizer(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """Return a `torch.optim.Optimizer` that applies this rule, for anyone's training loop.

        >>> from optscope.optim import SignSGD
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SignSGD(lr=0.01).optimizer(model.parameters())
        """
        return RuleOptimizer(params, self)

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of a model's parameters, in one param group a module where norms run over modules.

        Raises:
            UserError: when norms over modules and norms over the model are mixed: a param group is one or other.
        """
        scopes = {getattr(rule, "per", None) for rule in self.walk()}  # what norms run over
        if "module" not in scopes:
            return self.optimizer(model.parameters())
        if "model" in scopes:
            raise UserError(f'{self!r} takes norms over modules and over the model: give both per="module" or '
                            'both per="model"')
        return self.optimizer(by_module(model))

    def by_player(self, players: Sequence[str]) -> Mapping[str, Rule]:
        """Return the rule of each player: itself, of the only one of an ordinary task, whose name is "".

        Raises:
            UserError: when there are several: they need `Players`.
        """
        if len(players) != 1:
            raise UserError(f"it is a game: give each player a rule, Players("
                            f"{', '.join(f'{name}=...' for name in players)}); got {self!r}")
        return {players[0]: self}

    def held(self) -> Iterator[Rule]:
        """Yield the rules that this one holds."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Rule):
                yield value

    def walk(self) -> Iterator[Rule]:
        """Yield this rule and all that it holds, depth first.

        >>> from optscope.optim import SGD, Adam, Decayed, Graft
        >>> [type(rule).__name__ for rule in Graft(Decayed(Adam(lr=0.1), decay=0.1), SGD(lr=1.0)).walk()]
        ['Graft', 'Decayed', 'Adam', 'SGD']
        """
        yield self
        for rule in self.held():
            yield from rule.walk()

    def with_(self, **changes: Any) -> Self:
        """Return the same rule with some hyperparameters changed.

        Raises:
            UserError: naming a hyperparameter that this rule does not have.
        """
        names = {f.name for f in dataclasses.fields(self)}
        for name in changes:
            if name not in names:
                raise UserError(f"{type(self).__name__} has no hyperparameter {name!r}; "
                                 f"it has {', '.join(sorted(names))}")
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        changed = (f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


class Fused(Rule):
    """A rule with an in-place kernel of its own, whose state is one dictionary a parameter tensor."""

    def begin(self, params: Sequence[Tensor]) -> list[State]:
        """Return one in-place state a parameter tensor, shaped and laid out like the tensor."""
        return [self.init(p.detach(), Layout.of([p])) for p in params]

    @abstractmethod
    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`, both in place."""


class Combinator(Fused):
    """A rule around another rule, whose learning rate is its own; it is written as `scaled_update`."""

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

    @abstractmethod
    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the step at `scale` times the learning rate, and the next state."""


@dataclass(frozen=True, repr=False)
class Wrapper(Combinator):
    """A combinator that leaves its `rule` what it is, but for a factor on the rate and L2 regularisation.

    What is known of a rule (its threshold, momentum, matching form) is known of it inside wrappers: see `bare`.
    """

    rule: Rule

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
