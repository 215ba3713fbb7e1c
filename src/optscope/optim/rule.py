"""A rule turns a gradient into a step: a pure equation on vectors, and its in-place twin on tensors.

`update` is what a reader compares with the paper. `add_step_` is what training runs: the same step, added
in place to a list of tensors. Rules without a kernel of their own inherit one that calls `update`; rules
with one derive from `Fused`, and a conformance test holds the two equal.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from optscope.errors import UserError
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


@dataclass(frozen=True, repr=False)
class Rule(ABC):
    """How a gradient becomes a step. Fields are the hyperparameters; `eval(repr(rule)) == rule`.

    A rule never changes its inputs, holds no state of its own, and draws no random numbers.
    """

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

    def begin(self, params: Sequence[Tensor]) -> list[State]:
        """Return one in-place state a parameter tensor, for `add_step_`."""
        return [{} for _ in params]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`, both in place.

        `targets` are the parameters themselves in training, or zeros when the step itself is wanted. Unlike
        in `update`, a parameter's tensor keeps its own shape and memory format. `scale` multiplies the
        learning rate (schedules, param groups).
        """
        layout = Layout.of(params)
        flat = layout.flatten(params)
        state = states[0].get("flat") or self.init(flat, layout)
        step, states[0]["flat"] = self.update(layout.flatten(grads), state, flat, layout)
        for target, part in zip(targets, layout.views(step), strict=True):
            target.add_(part, alpha=scale)

    def optimizer(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """Return a `torch.optim.Optimizer` that applies this rule, for anyone's training loop.

        >>> from optscope.optim import SignSGD
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SignSGD(lr=0.01).optimizer(model.parameters())
        """
        from optscope.optim.torch_bridge import RuleOptimizer

        return RuleOptimizer(params, self)

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of a model's parameters, in one param group a module where norms run over modules.

        Raises:
            UserError: when norms over modules and norms over the model are mixed: a param group is one or other.
        """
        scopes = set(self._scopes())
        if "module" not in scopes:
            return self.optimizer(model.parameters())
        if "model" in scopes:
            raise UserError(f'{self!r} takes norms over modules and over the model: give both per="module" or '
                            'both per="model"')
        from optscope.optim.torch_bridge import by_module

        return self.optimizer(by_module(model))

    def _scopes(self) -> Iterator[str]:
        """Yield what the norms of this rule, and of those it holds, run over."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Rule):
                yield from value._scopes()
            elif f.name == "per":
                yield value

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
    """A rule around another rule, whose learning rate is its own."""

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
