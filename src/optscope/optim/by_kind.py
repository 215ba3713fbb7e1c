"""Different rules for different parameters of one model, split by their kind, name, shape or module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor

from optscope.errors import UserError, nearest
from optscope.optim.combinator import Combinator, known
from optscope.optim.norm import Ball, Mixture, Steepest
from optscope.optim.rule import Gradient, Hyper, Rule, Slopes, State
from optscope.vector import Layer, Layout

KINDS = {"matrices": ("matrix", "convolution"), "convolutions": ("convolution",), "embeddings": ("embedding",),
         "heads": ("head",), "vectors": ("norm", "bias", "other"), "norms": ("norm",), "biases": ("bias",)}
"""What a part may be called, and which kinds of parameters it then claims (see `optscope.optim.kinds`)."""
NAMES = (*KINDS, "rest")
UNDECAYED = frozenset(KINDS["vectors"])

Part = tuple[str | Callable[[Layer], bool], Rule]
"""The name of a part or a function that claims parameters, and their rule."""


@dataclass(frozen=True)
class Where:
    """Parameters by name, kind and module, each with * and ? as in file names, and by their axes.

    >>> layer = Layer("encoder.0.weight", torch.Size([8, 8]), "matrix", "Linear")
    >>> Where("encoder.*")(layer), Where(module="Conv*")(layer), Where(axes=2, smallest=16)(layer)
    (True, False, False)
    """

    name: str = "*"
    kind: str = "*"
    module: str = "*"
    axes: int | None = None
    smallest: int = 0

    def __call__(self, layer: Layer) -> bool:
        """Return whether a parameter is meant: of so many axes, each at least `smallest` long."""
        said = (layer.name, self.name), (layer.kind, self.kind), (layer.owner, self.module)
        return (all(fnmatchcase(*each) for each in said) and self.axes in (None, len(layer.shape))
                and min(layer.shape, default=0) >= self.smallest)


@dataclass(frozen=True, repr=False, init=False)
class ByKind(Combinator):
    """Give parameters rules by their kind: `ByKind(matrices=Muon(lr=0.02), rest=AdamW(lr=1e-3))`.

    Parts are called "matrices" (of hidden layers, kernels of convolutions among them), "convolutions",
    "embeddings", "heads" (the classifier), "vectors", or of these "norms" and "biases"; "rest" is all that no other
    claims. `ByKind((Where("encoder.*"), SGD(lr=0.1)), rest=AdamW(lr=1e-3))` splits by name, shape and module,
    by a `Where` or any function of a `Layer`. Every parameter has one part. No decay of the rest reaches norms,
    biases and other vectors, as is usual; a part that names them decays as its rule says.

    `lr` is the first part's, and `with_(lr=...)` keeps the ratios of all; `with_(**{"rest.lr": ...})` changes one.
    Norms over a model run over a part. Kinds are known of a model: train with it, or call `optimizer_of(model)`.

    >>> from optscope.optim import SGD, AdamW
    >>> ByKind(matrices=SGD(lr=0.5), rest=AdamW(lr=0.001)).with_(lr=1.0)
    ByKind(matrices=SGD(lr=1.0), rest=AdamW(lr=0.002))

    Raises:
        UserError: without a part, when something given is no rule, or a part has no known name.
    """

    parts: tuple[Part, ...]

    def __init__(self, *parts: Part, **kinds: Rule) -> None:
        for name in kinds:
            if name not in NAMES:
                raise UserError(f"ByKind has no part {name!r}; {nearest(name, NAMES)}, or give pairs of Where(...) "
                                "and a rule")
        both = (*parts, *sorted(kinds.items(), key=lambda part: part[0] == "rest"))
        wrong = [part for part in both if len(part) != 2 or not isinstance(part[1], Rule)
                 or not (callable(part[0]) or part[0] in NAMES)]
        if wrong or not both:
            raise UserError("ByKind: give a rule to each part, such as ByKind(matrices=Muon(lr=0.02), "
                            f"rest=AdamW(lr=1e-3)); got {wrong[0] if wrong else 'none'}")
        object.__setattr__(self, "parts", both)

    @property
    def lr(self) -> Hyper:
        """The first part's learning rate."""
        return self.parts[0][1].lr

    @property
    def by_name(self) -> Mapping[str, Rule]:
        """The rules of the parts that have names."""
        return {part: rule for part, rule in self.parts if isinstance(part, str)}

    def with_(self, **changes: Any) -> Self:
        """Return the same parts with other rules, or (`lr`) with all rates scaled so that the first has that.

        Raises:
            UserError: when there is no part of that name.
        """
        parts = self.parts
        if "lr" in changes:
            factor = changes.pop("lr") / self.lr
            parts = tuple((part, rule.with_(lr=float(f"{rule.lr * factor:.6g}"))) for part, rule in parts)
        for path, value in changes.items():
            name, _, rest = path.partition(".")
            if name not in self.by_name:
                raise UserError(f"ByKind has no part {name!r}; {nearest(name, [*self.by_name, 'lr'])}")
            parts = tuple((part, (rule.with_(**{rest: value}) if rest else value) if part == name else rule)
                          for part, rule in parts)
        return type(self)(*parts)

    def held(self) -> Iterator[Rule]:
        """Yield the parts' rules."""
        for _, rule in self.parts:
            yield rule

    @property
    def averages(self) -> bool:
        """Whether some part does."""
        return any(rule.averages for rule in self.held())

    @property
    def own_schedule(self) -> bool:
        """Whether every part has one."""
        return all(rule.own_schedule for rule in self.held())

    def split(self, layout: Layout) -> dict[tuple[int, bool], list[int]]:
        """Return which layers each part claims, by its number and whether it leaves their decay away.

        Raises:
            UserError: when two parts claim a layer, or none does.
        """
        found: dict[tuple[int, bool], list[int]] = {}
        for number, layer in enumerate(layout.layers):
            claims = [i for i, (part, _) in enumerate(self.parts) if part != "rest" and _claims(part, layer)]
            claims = claims or [i for i, (part, _) in enumerate(self.parts) if part == "rest"]
            if len(claims) != 1:
                who = " and ".join(str(self.parts[i][0]) for i in claims)
                claimed = f"{who}: let one claim it" if who else "no part: add rest=..."
                raise UserError(f"ByKind: the parameter {layer.name!r} ({layer.kind}) is claimed by {claimed}")
            plain = self.parts[claims[0]][0] == "rest" and layer.kind in UNDECAYED
            found.setdefault((claims[0], plain), []).append(number)
        return found

    def rules_in(self, layout: Layout) -> Iterator[tuple[str, Rule, list[int], Layout]]:
        """Yield of each part that claims layers its name in states, its rule, their numbers and their layout."""
        for (i, plain), numbers in self.split(layout).items():
            yield f"{i}{'' if plain else ' decayed'}", self._rule(i, plain), numbers, layout.take(numbers)

    def _rule(self, i: int, plain: bool) -> Rule:
        return undecayed(self.parts[i][1]) if plain else self.parts[i][1]

    def check_layers(self, layout: Layout) -> None:
        """Raise unless every layer has one part that can step it, and every part but the rest a layer.

        Raises:
            UserError: naming the layer, or the part that claims none.
        """
        for part, _ in self.parts:
            if part != "rest" and not any(_claims(part, layer) for layer in layout.layers):
                raise UserError(f"ByKind: {part} claims no parameter of this model, which has "
                                f"{', '.join(dict.fromkeys(layout.kinds))}: leave that part away")
        for _, rule, _, own in self.rules_in(layout):
            rule.check_layers(own)

    def mixture(self) -> Mixture:
        """Return what the first part steps along."""
        first = self.parts[0][1]
        return first.mixture() if isinstance(first, Steepest) else Mixture()

    def ball(self, layout: Layout) -> Ball | None:
        """Return the ball of the first part's steps, if there is one, where the layers of others stand still."""
        for _, rule, numbers, own in self.rules_in(layout):
            if rule == self.parts[0][1] and isinstance(rule, Steepest) and (ball := rule.ball(own)) is not None:
                radii = dict(zip(numbers, ball.radii, strict=True))
                blocks = dict(zip(numbers, ball.blocks, strict=True))
                every = range(len(layout.names))
                return Ball(ball.norm, tuple(radii.get(i, 0.0) for i in every),
                            tuple(blocks.get(i, -1) for i in every))
        return None

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the parts' states."""
        return {name: rule.init(params[..., layout.columns(numbers, params.device)], own)
                for name, rule, numbers, own in self.rules_in(layout)}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return every part's step in its place, and all new states."""
        gradient, step, states = known(gradient, params), torch.empty_like(params), {}
        for name, rule, numbers, own in self.rules_in(layout):
            where = layout.columns(numbers, params.device)
            mine = params[..., where]

            def here(weights: Tensor, where: Tensor = where, mine: Tensor = mine) -> Tensor:
                return gradient(params if weights is mine else params.index_copy(-1, where, weights))[..., where]

            step[..., where], states[name] = rule.seek(here, state[name], mine, own, scale)
        return step, states

    def evaluated(self, state: State, params: Tensor, layout: Layout) -> Tensor:
        """Return the weights that every part stands for."""
        found = params.clone()
        for name, rule, numbers, own in self.rules_in(layout):
            where = layout.columns(numbers, params.device)
            found[..., where] = rule.evaluated(state[name], params[..., where], own)
        return found

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the in-place states of the parts' rules, each with the number of its part."""
        states: list[State] = [{} for _ in params]
        for (i, plain), numbers in self.split(layout).items():
            inner = self._rule(i, plain).begin([params[j] for j in numbers], layout.take(numbers))
            for j, state in zip(numbers, inner, strict=True):
                states[j] = {"rule": state, "part": i, "undecayed": plain}
        return states

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add every part's step in place."""
        grads = slopes()
        for rule, numbers in self._split(states):
            def here(shifts: Sequence[Tensor] | None = None, numbers: list[int] = numbers) -> list[Tensor]:
                if shifts is None:
                    return [grads[i] for i in numbers]
                moved = dict(zip(numbers, shifts, strict=True))
                found = slopes([moved[i] if i in moved else torch.zeros_like(p) for i, p in enumerate(params)])
                return [found[i] for i in numbers]

            rule.seek_([targets[i] for i in numbers], here, [states[i]["rule"] for i in numbers],
                       [params[i] for i in numbers], scale)

    def to_evaluation_(self, params: Sequence[Tensor], states: Sequence[State]) -> None:
        """Turn every part's parameters into what it stands for."""
        for rule, numbers in self._split(states):
            rule.to_evaluation_([params[i] for i in numbers], [states[i]["rule"] for i in numbers])

    def to_training_(self, params: Sequence[Tensor], states: Sequence[State]) -> None:
        """Undo `to_evaluation_`."""
        for rule, numbers in self._split(states):
            rule.to_training_([params[i] for i in numbers], [states[i]["rule"] for i in numbers])

    def _split(self, states: Sequence[State]) -> Iterator[tuple[Rule, list[int]]]:
        found: dict[tuple[int, bool], list[int]] = {}
        for j, state in enumerate(states):
            found.setdefault((state["part"], state["undecayed"]), []).append(j)
        for (i, plain), numbers in found.items():
            yield self._rule(i, plain), numbers

    @property
    def needs_model(self) -> bool:
        """It does: kinds are known of a model."""
        return True

    def __repr__(self) -> str:
        parts = (f"{part}={rule!r}" if isinstance(part, str) else f"({_said(part)}, {rule!r})"
                 for part, rule in self.parts)
        return f"ByKind({', '.join(parts)})"


def undecayed(rule: Rule) -> Rule:
    """Return a rule without its decay, and without that of all it holds.

    >>> from optscope.optim import AdamW, Rounded
    >>> undecayed(Rounded(AdamW(lr=0.1, decay=0.2), k=3))
    Rounded(rule=AdamW(lr=0.1, decay=0.0), k=3)
    """
    changes: dict[str, Any] = {f.name: undecayed(value) for f in fields(rule)
                               if isinstance(value := getattr(rule, f.name), Rule)}
    if any(f.name == "decay" for f in fields(rule)):
        changes["decay"] = 0.0
    return replace(rule, **changes) if changes else rule


def _claims(part: str | Callable[[Layer], bool], layer: Layer) -> bool:
    return layer.kind in KINDS[part] if isinstance(part, str) else bool(part(layer))


def _said(part: Callable[[Layer], bool]) -> str:
    return repr(part) if isinstance(part, Where) else f"{part.__module__}.{part.__qualname__}"
