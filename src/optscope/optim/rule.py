"""A rule turns a gradient into a step: a pure equation on vectors, and its in-place twin on tensors.

`update` is what a reader compares with the paper. `add_step_` is what training runs: the same step, added
in place to a list of tensors. Rules without a kernel of their own inherit one that calls `update`; rules
with one derive from `Fused`, and a conformance test holds the two equal.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.optim.kinds import layers_of
from optscope.optim.torch_bridge import by_module, optimizer_for
from optscope.vector import Layer, Layout

Hyper = float | tuple[float, ...]
"""A hyperparameter: one number, or one a member of the leading axis."""

State = dict[str, Any]
"""What a rule remembers between steps: names to tensors `(..., P)` or `()`, or to nested states."""

Gradient = Callable[[Tensor], Tensor]
"""The gradient of a batch at any weights `(..., P)`, with the same examples and random numbers every time."""

Slopes = Callable[..., Sequence[Tensor]]
"""The same in place: `slopes()` are the gradients at the parameters, `slopes(shifts)` at parameters + shifts."""


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

    in_pairs: ClassVar[bool] = True
    """Whether complex weights may be stepped as pairs of real numbers."""
    apart: ClassVar[bool] = False
    """Whether the step of each tensor depends on that tensor alone, so that they may be stepped in turn."""
    keeps_graph: ClassVar[bool] = False
    """Whether gradients must come with their graph, to be differentiated."""

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

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the step at `scale` times the learning rate, and the next state, from gradients it asks for.

        Most rules want one, at `params`; one that `asks` for more is written as this, and not as `update`.
        """
        return self.scaled_update(gradient(params), state, params, layout, scale)

    @property
    def asks(self) -> bool:
        """Whether a step takes gradients at other weights than the parameters'."""
        return any(rule.asks for rule in self.held())

    @property
    def evaluations(self) -> int:
        """How many gradients a step takes."""
        return 1 + sum(rule.evaluations - 1 for rule in self.held())

    @property
    def averages(self) -> bool:
        """Whether the weights that it stands for are others than those it takes gradients at: see `evaluated`."""
        return False

    def evaluated(self, state: State, params: Tensor, layout: Layout) -> Tensor:
        """Return the weights `(..., P)` that the rule stands for, where it has led to `params`."""
        return params

    @property
    def own_schedule(self) -> bool:
        """Whether it needs no schedule of its learning rate, so that a plan's is not for it."""
        return False

    @property
    def needs_model(self) -> bool:
        """Whether it goes by what parameters are in their model."""
        return any(rule.needs_model for rule in self.held())

    def check_layers(self, layout: Layout) -> None:
        """Raise unless the rule can step such layers.

        Raises:
            UserError: naming a layer that it cannot step.
        """
        for rule in self.held():
            rule.check_layers(layout)

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

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return one in-place state a parameter tensor, for `add_step_`; `layout` says what each tensor is."""
        return [{"layer": (layer.name, tuple(layer.shape), layer.kind, layer.owner)} for layer in layout.layers]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`, both in place.

        `targets` are the parameters themselves in training, or zeros when the step itself is wanted. Unlike
        in `update`, a parameter's tensor keeps its own shape and memory format. `scale` multiplies the
        learning rate (schedules, param groups).

        Raises:
            UserError: when this rule, which keeps one state for all tensors, gets others than in its first step.
        """
        layers = [Layer(*state["layer"]) for state in states]
        layout = Layout.of_layers(layer._replace(shape=p.shape) for layer, p in zip(layers, params, strict=True))
        flat = layout.flatten(params)
        if not any("place" in state for state in states):
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

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`, from gradients where it wants them."""
        self.add_step_(targets, slopes(), states, params, scale)

    def to_evaluation_(self, params: Sequence[Tensor], states: Sequence[State]) -> None:  # noqa: B027
        """Turn parameters that are trained into the weights that the rule stands for, in place."""

    def to_training_(self, params: Sequence[Tensor], states: Sequence[State]) -> None:  # noqa: B027
        """Undo `to_evaluation_`, up to rounding."""

    def optimizer(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """Return a `torch.optim.Optimizer` that applies this rule, for anyone's training loop.

        >>> from optscope.optim import SignSGD
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SignSGD(lr=0.01).optimizer(model.parameters())

        Raises:
            UserError: when the rule goes by what parameters are in their model.
        """
        if self.needs_model:
            raise UserError(f"{self!r} goes by what parameters are in their model: write rule.optimizer_of(model)")
        return optimizer_for(params, self)

    def optimizer_of(self, model: nn.Module, steps: int | None = None) -> torch.optim.Optimizer:
        """Return the optimiser of a model's parameters, in one param group a module where norms run over modules.

        Of the model it knows which kind each parameter is (`optscope.optim.kinds`).

        Raises:
            UserError: when norms over modules and norms over the model are mixed: a param group is one or other; or
                when there is a layer that it cannot step.
        """
        layers = layers_of(model)
        self.check_layers(Layout.of_layers(layers[name] for name, p in model.named_parameters() if p.requires_grad))
        known: dict[Tensor, Layer] = {p: layers[name] for name, p in model.named_parameters()}
        scopes = {getattr(rule, "per", None) for rule in self.walk()}  # what norms run over
        if "module" not in scopes:
            return optimizer_for(model.parameters(), self, known)
        if "model" in scopes:
            raise UserError(f'{self!r} takes norms over modules and over the model: give both per="module" or '
                            'both per="model"')
        return optimizer_for(by_module(model), self, known)

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
        for name in _names(type(self)):
            value = getattr(self, name)
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
        """Return the same rule with some hyperparameters changed; those of rules it holds by "name.hyperparameter".

        >>> from optscope.optim import SGD, Adam, Graft
        >>> Graft(Adam(lr=0.1), SGD(lr=1.0)).with_(**{"magnitude.beta1": 0.5})
        Graft(magnitude=Adam(lr=0.1, beta1=0.5), direction=SGD(lr=1.0))

        Raises:
            UserError: naming a hyperparameter that this rule does not have.
        """
        changes = inward(self, changes)
        names = {f.name for f in dataclasses.fields(self)}
        for name in changes:
            if name not in names:
                raise UserError(f"{type(self).__name__} has no hyperparameter {name!r}; "
                                 f"it has {', '.join(sorted(names))}")
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        changed = (f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


@cache
def _names(kind: type[Rule]) -> tuple[str, ...]:
    """Return the names of a rule's fields, which every step asks for."""
    return tuple(f.name for f in dataclasses.fields(kind))


class Fused(Rule):
    """A rule with an in-place kernel of its own, whose state is one dictionary a parameter tensor."""

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return one in-place state a parameter tensor, shaped and laid out like the tensor."""
        return [self.init(p.detach(), layout.take([i])) for i, p in enumerate(params)]

    @abstractmethod
    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`, both in place."""


def inward(rule: Rule, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes of a rule in which those of rules it holds, "name.hyperparameter", are such rules changed.

    Raises:
        UserError: when it holds no rule of that name.
    """
    plain = {name: value for name, value in changes.items() if "." not in name}
    for path in changes.keys() - plain.keys():
        name, _, rest = path.partition(".")
        inner = plain.get(name, getattr(rule, name, None))
        if not isinstance(inner, Rule):
            raise UserError(f"{type(rule).__name__} holds no rule {name!r}, so it has no hyperparameter {path!r}")
        plain[name] = inner.with_(**{rest: changes[path]})
    return plain
