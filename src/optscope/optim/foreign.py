"""Any `torch.optim.Optimizer` as a rule: itself where it stands alone, and its pure step inside combinators."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from optscope.devices import forked
from optscope.errors import UserError, nearest
from optscope.optim.kinds import layers_of
from optscope.optim.making import RefusedError, Way, wants_groups, way_of
from optscope.optim.rates import Rates, set_mode
from optscope.optim.rule import Fused, Hyper, State, check_hyper
from optscope.vector import Layer, Layout


@dataclass(frozen=True, repr=False, init=False)
class Foreign(Fused):
    """Any `torch.optim.Optimizer` as a rule: a class (or "module:Class") and its options.

    Used by itself it *is* that optimiser. Inside a combinator, or purely, it is made anew at every step, from its
    state dict, on float64 copies of the weights, and its step is the difference of the weights after and before (in
    float32 that would be a multiple of a weight's last bit). `optscope.optim.trial.check_on` tells whether the two
    are the same algorithm. Schedules multiply the learning rates of its param groups.

    What it is made of (parameters, pairs with their names, groups with `use_muon`, the model, the number of steps)
    and what a step needs (a closure, a gradient that can be differentiated) is found by trial, and lies in `way`.

    >>> Foreign("torch.optim:NAdam", lr=0.002)
    Foreign('torch.optim.nadam:NAdam', lr=0.002)
    >>> Foreign("torch.optim:LBFGS", lr=0.1, max_iter=4).evaluations
    5

    Raises:
        UserError: when the class cannot be found, is not at the top of a module, refuses its options, or cannot
            step in any of these ways (it wants sparse gradients, or a process group).
    """

    make: Callable[..., torch.optim.Optimizer]
    options: tuple[tuple[str, Any], ...]
    way: Way

    def __init__(self, make: str | Callable[..., torch.optim.Optimizer], /, **options: Any) -> None:
        found = _resolve(make) if isinstance(make, str) else make
        object.__setattr__(self, "make", found)
        object.__setattr__(self, "options", tuple(sorted(options.items())))
        if "<" in _path(found):
            raise UserError(f"Foreign needs a class or function at the top of a module; got {_path(found)}: "
                            "move it there, so that other processes can find it")
        try:
            way = way_of(_path(found), found, options)
        except RefusedError as refused:
            error = refused.error
            if isinstance(error, UserError):
                raise error from None
            if refused.stage == "make":
                raise UserError(f"{_path(found)} refused the options {options}: {_said(error)}") from error
            why = _first_line(error) or "no reason given"
            raise UserError(f"{_path(found)} must step from dense gradients, with a closure or without; a trial "
                            f"step stopped with {type(error).__name__}: {why}") from error
        object.__setattr__(self, "way", way)
        object.__setattr__(self, "keeps_graph", way.graph)
        lr = self.small().param_groups[0].get("lr")
        if lr is None:
            raise UserError(f"{_path(found)} has no learning rate, which schedules and comparisons go by: give "
                            "lr=..., if it takes one")
        check_hyper(_path(found), "lr", lr, open_low=True)

    @cached_property
    def lr(self) -> Hyper:
        """The learning rate: the option of that name, or the optimiser's default."""
        return float(self.small().param_groups[0]["lr"])

    def with_(self, **changes: Any) -> Self:
        """Return the same optimiser with some options changed."""
        return type(self)(self.make, **{**dict(self.options), **changes})

    def small(self) -> torch.optim.Optimizer:
        """Return the optimiser of the small model of a trial, for what can be read from it."""
        with forked():
            return self.way.make_small(self.make, dict(self.options))

    def optimizer(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """Return the optimiser itself.

        Raises:
            UserError: when it asks for more than parameters.
        """
        if self.way != Way(calls=self.way.calls, graph=self.way.graph, matrices=self.way.matrices):
            raise UserError(f"{self!r} asks for more than parameters: write rule.optimizer_of(model, steps)")
        return self.make(params, **dict(self.options))

    def optimizer_of(self, model: nn.Module, steps: int | None = None) -> torch.optim.Optimizer:
        """Return the optimiser itself, of a model's parameters; `steps` is how many it will make.

        Raises:
            UserError: when it cannot step some layer, or asks for the number of steps and there is none.
        """
        layers = layers_of(model)
        layout = Layout.of_layers(layers.values())
        self.check_layers(layout)
        if self.way.steps and steps is None:
            raise UserError(f"{self!r} asks for the number of steps: give {self.way.steps}=...")
        return self.way.make(self.make, dict(self.options), list(model.parameters()), layout, model, steps)

    def of_tensors(self, tensors: Sequence[Tensor], layout: Layout) -> torch.optim.Optimizer:
        """Return the optimiser of tensors, of which only their layout is known.

        Raises:
            UserError: when it needs more, for its making or its steps.
        """
        if self.way.alone:
            raise UserError(f"{self!r} steps by itself only: {self.way.alone}")
        return self.way.make(self.make, dict(self.options), tensors, layout)

    def check_layers(self, layout: Layout) -> None:
        """Raise unless it can step such layers.

        Raises:
            UserError: naming a layer of other than two axes, when it steps matrices only.
        """
        part = f'(Where(kind="matrix"), {self!r})' if "convolution" in layout.kinds else f"matrices={self!r}"
        for layer in layout.layers if self.way.matrices else ():
            if len(layer.shape) != 2:
                raise UserError(f"{_path(self.make)} steps matrices only, and {layer.name} has shape "
                                f"{tuple(layer.shape)}: write ByKind({part}, rest=AdamW(lr=...))")

    @property
    def asks(self) -> bool:
        """Whether its step calls a closure."""
        return self.way.calls > 0

    @property
    def evaluations(self) -> int:
        """How many gradients a step takes: one, and those of the closure in a trial."""
        return 1 + self.way.calls

    @property
    def needs_model(self) -> bool:
        """Whether it is made of a model, or goes by what parameters are in it."""
        return self.way.first in ("groups", "model")

    @property
    def proportional(self) -> bool:
        """Nobody knows: a factor on the rate is handed to the optimiser."""
        return False

    @property
    def foreign(self) -> bool:
        """It is."""
        return True

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return no saved optimiser for every member."""
        return {"members": [{} for _ in range(params[..., 0].numel())]}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the weights' change by one step of the optimiser, and its saved state, member by member."""
        return self.scaled_update(grad, state, params, layout, 1.0)

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the change by one step at `scale` times the rates, and its saved state, member by member."""
        steps, saved = [], []
        rows = grad.reshape(-1, layout.size), params.reshape(-1, layout.size)
        for g, p, before in zip(*rows, state["members"], strict=True):
            changes, after = self._step(layout, layout.views(p), layout.views(g), before, scale)
            steps.append(layout.flatten(changes).to(p.dtype))
            saved.append(after)
        return torch.stack(steps).reshape(params.shape), {"members": saved}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return one state a tensor; they share the optimiser's saved state and what all tensors are."""
        layers = [(layer.name, tuple(layer.shape), layer.kind, layer.owner) for layer in layout.layers]
        shared: State = {"saved": {}, "steps": 0, "layers": layers}
        return [{"place": i, "shared": shared} for i in range(len(params))]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the change by one step in place; tensors that are not given have no gradient in it."""
        for shared in _joined(states):
            mine = {state["place"]: i for i, state in enumerate(states) if state["shared"] is shared}
            layout = Layout.of_layers(Layer(name, torch.Size(shape), kind, owner)
                                      for name, shape, kind, owner in shared["layers"])
            weights = [params[mine[j]] if j in mine else params[0].new_zeros(shape)
                       for j, shape in enumerate(layout.shapes)]
            given = [grads[mine[j]] if j in mine else None for j in range(len(weights))]
            changes, shared["saved"] = self._step(layout, weights, given, shared["saved"], scale)
            shared["steps"] += 1
            for j, i in mine.items():
                targets[i].add_(changes[j].to(targets[i].dtype))

    def _step(self, layout: Layout, weights: Sequence[Tensor], grads: Sequence[Tensor | None], saved: State,
              scale: float) -> tuple[list[Tensor], State]:
        """Return the weights' changes in float64 and what is saved, from what was; `saved` stays as it is."""
        starts = [w.detach().double() for w in weights]
        moved = [nn.Parameter(start.clone(memory_format=torch.contiguous_format)) for start in starts]
        with forked():  # whatever it draws when it is made, it drew once
            optimizer = self.of_tensors(moved, layout)
        order = [p for group in optimizer.param_groups for p in group["params"]]
        if saved:
            optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
            by_number = dict(enumerate(order))
            for i, kept in copy.deepcopy(saved["optimizer"].get("state", {})).items():
                # As it was: loading casts it to the weights' dtype. Numbers run over the param groups.
                optimizer.state[by_number.get(i, i)] = kept
        rates = Rates(optimizer, **saved.get("rates", {}))
        rates.set(scale)
        for weight, grad in zip(moved, grads, strict=True):
            weight.grad = None if grad is None else grad.double().clone(memory_format=torch.contiguous_format)
        set_mode(optimizer, "train")
        optimizer.step()
        set_mode(optimizer, "eval")  # the weights that it stands for
        changes = [weight.detach() - start for weight, start in zip(moved, starts, strict=True)]
        return changes, {"optimizer": copy.deepcopy(optimizer.state_dict()), "rates": rates.state()}

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options)
        return f"Foreign({_path(self.make)!r}{options})"


def _joined(states: Sequence[State]) -> list[State]:
    """Return what states share, each once, as the last step left it: loading gives every state a copy."""
    last: dict[str, State] = {}
    for shared in (state["shared"] for state in states):
        known = last.setdefault(repr(shared["layers"]), shared)
        if shared["steps"] > known["steps"]:
            last[repr(shared["layers"])] = shared
    for state in states:
        state["shared"] = last[repr(state["shared"]["layers"])]
    return list(last.values())


def _path(make: Callable[..., Any]) -> str:
    return f"{make.__module__}:{make.__qualname__}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "").strip()


def _said(error: Exception) -> str:
    """Return what stopped an optimiser's constructor, in words that help who did not write it."""
    words = _first_line(error)
    wrap = "write a function at the top of a module that takes parameters and returns the optimiser"
    if "'list' object has no attribute" in words:
        return f"it wants something else than a list of parameters, a model or named parameters ({words}); {wrap}"
    return f"it wants param groups of its own making; {wrap} with them" if wants_groups(error) else words


def _resolve(path: str) -> Callable[..., torch.optim.Optimizer]:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f'"{path}": no module {module_name!r} could be imported ({error}); '
                        'write "module:Class", for example "torch.optim:NAdam"') from error
    found = getattr(module, name, None)
    if not callable(found):
        classes = [n for n, v in vars(module).items() if isinstance(v, type)]
        raise UserError(f'"{path}": {module_name} has no class {name!r}; {nearest(name, classes)}'[:300])
    return cast(Callable[..., torch.optim.Optimizer], found)
