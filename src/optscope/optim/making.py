"""How optimisers of other authors want to be made and asked to step, found by their signatures and by trial."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optscope.devices import forked
from optscope.errors import UserError
from optscope.optim.kinds import layout_of
from optscope.optim.rates import set_mode
from optscope.vector import Layout

First = Literal["parameters", "groups", "names", "model"]
Make = Callable[..., torch.optim.Optimizer]

_FIRSTS: tuple[First, ...] = ("parameters", "groups", "names", "model")
_CALLED: dict[str, First] = {"model": "model", "module": "model", "named_parameters": "names",
                             "named_params": "names"}
_TOTALS = ("num_iterations", "total_steps", "num_training_steps", "total_iterations", "num_steps", "t_total")
_HIDDEN = ("matrix", "convolution")
_STEPS = 10
"""How many steps those who ask are told of in a trial, of which two are made."""


@dataclass(frozen=True)
class Way:
    """How a class is called, and what it needs for a step.

    * `first`: what it is made of: "parameters"; "groups" of them, hidden matrices and kernels with `use_muon=True`
      and the rest without; "names", pairs of a name and a parameter; or the "model";
    * `steps`: what it calls the number of steps to come, if it asks for it;
    * `calls`: how often a step calls a closure, which takes the gradient anew; 0: a gradient is enough;
    * `graph`: whether it differentiates the gradient;
    * `matrices`: whether it steps parameters of two axes alone.
    """

    first: First = "parameters"
    steps: str = ""
    calls: int = 0
    graph: bool = False
    matrices: bool = False

    @property
    def alone(self) -> str:
        """Why an optimiser cannot be made anew at every step, of its weights alone, or ""."""
        if self.calls:
            return "it takes several gradients a step, by a closure"
        if self.graph:
            return "it differentiates the gradient"
        if self.first == "model":
            return "it is made of a whole model"
        return f"it asks for the number of steps (give it {self.steps}=...)" if self.steps else ""

    def make(self, make: Make, options: Mapping[str, Any], tensors: Sequence[Tensor], layout: Layout,
             model: nn.Module | None = None, steps: int | None = None) -> torch.optim.Optimizer:
        """Return the optimiser of the tensors that `layout` tells of, those of `model` if it is given."""
        told = {self.steps: steps} if self.steps else {}
        return make(model if self.first == "model" else self._given(tensors, layout), **told, **options)

    def _given(self, tensors: Sequence[Tensor], layout: Layout) -> list[Any]:
        if self.first == "names":
            return list(zip(layout.names, tensors, strict=True))
        if self.first == "groups":
            hidden = [kind in _HIDDEN for kind in layout.kinds]
            groups = [{"params": [p for p, h in zip(tensors, hidden, strict=True) if h is muon], "use_muon": muon}
                      for muon in (True, False)]
            return [group for group in groups if group["params"]]
        return list(tensors)

    def make_small(self, make: Make, options: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return the optimiser of the small model of a trial."""
        return self._make_of(make, options, _small(bias=not self.matrices))

    def _make_of(self, make: Make, options: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
        return self.make(make, options, list(model.parameters()), layout_of(model), model, _STEPS)


class RefusedError(Exception):
    """An optimiser was not made in one way, or not stepped: at a stage, "make" or "step", with what it raised."""

    def __init__(self, way: Way, stage: Literal["make", "step"], error: Exception) -> None:
        super().__init__(way, stage, error)
        self.way, self.stage, self.error = way, stage, error


def wants_groups(error: Exception) -> bool:
    """Return whether a constructor seems to have looked for param groups in what it was given."""
    words = str(error)
    return isinstance(error, (KeyError, IndexError)) or any(
        each in words for each in ("__contains__", "indices must be", "use_muon"))


def way_of(name: str, make: Make, options: Mapping[str, Any]) -> Way:
    """Return the first way in which an optimiser makes two steps on a small model, which is tried.

    Raises:
        RefusedError: when there is none: the attempt that tells most.
    """
    steps = _total(make, options)
    refused: list[RefusedError] = []
    with forked():
        for matrices in (False, True):  # vectors too, if it can
            for first in _in_order(make):
                way = Way(first, steps, matrices=matrices)
                for attempt in (way, replace(way, graph=True), replace(way, calls=1)):
                    try:
                        return replace(attempt, calls=_try(name, make, options, attempt))
                    except RefusedError as error:
                        refused.append(error)
                        if error.stage == "make":
                            break
    raise _telling(refused)


def _telling(refused: Sequence[RefusedError]) -> RefusedError:
    """Return the refusal that tells most: of a step, of groups if the first asks for them, the first."""
    telling = [each for each in refused if each.stage == "step"]
    if wants_groups(refused[0].error):
        telling += [each for each in refused
                    if each.way.first == "groups" and not isinstance(each.error, UserError)]
    return telling[0] if telling else refused[0]


def _try(name: str, make: Make, options: Mapping[str, Any], way: Way) -> int:
    """Make two steps and return how often the second called a closure."""
    torch.manual_seed(0)
    model, calls = _small(bias=not way.matrices), 0
    try:
        optimizer = way._make_of(make, options, model)
    except Exception as error:  # whatever the author of the class chose to raise
        raise RefusedError(way, "make", error) from error
    lacking = [each for each in ("param_groups", "state", "step", "zero_grad") if not hasattr(optimizer, each)]
    if lacking:
        raise RefusedError(way, "make", UserError(
            f"{name} must make a torch.optim.Optimizer of parameters; it made a {type(optimizer).__name__} without "
            f"{', '.join(lacking)}"))
    x = torch.linspace(-1, 1, 24).reshape(6, 4)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            model.zero_grad()
            loss: Tensor = (model(x) - x[:, :2].sin()).square().mean()
            found = torch.autograd.grad(loss, list(model.parameters()), create_graph=way.graph)
        for p, grad in zip(model.parameters(), found, strict=True):
            p.grad = grad
        return loss.detach()

    try:
        set_mode(optimizer, "train")
        for _ in range(2):
            closure()
            calls = 0
            optimizer.step(closure) if way.calls else optimizer.step()  # type: ignore[arg-type]
    except Exception as error:
        raise RefusedError(way, "step", error) from error
    return calls


def _small(*, bias: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4, bias=bias), nn.Tanh(), nn.Linear(4, 2, bias=bias))


def _parameters(make: Make) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(make).parameters.values())
    except (TypeError, ValueError):  # of builtins nothing is known
        return []


def _in_order(make: Make) -> list[First]:
    names = [each.name for each in _parameters(make)[:1]]
    likely = [_CALLED[name] for name in names if name in _CALLED]
    return [*likely, *(first for first in _FIRSTS if first not in likely)]


def _total(make: Make, options: Mapping[str, Any]) -> str:
    asked = [each.name for each in _parameters(make) if each.default is each.empty and each.name not in options]
    return next((name for name in _TOTALS if name in asked), "")
