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
from optscope.optim.rates import Rates, set_mode
from optscope.optim.rule import Fused, Hyper, State, check_hyper
from optscope.vector import Layout


@dataclass(frozen=True, repr=False, init=False)
class Foreign(Fused):
    """Any `torch.optim.Optimizer` as a rule: a class (or "module:Class") and its options.

    Used by itself it *is* that optimiser. Inside a combinator, or purely, it is made anew at every step, from its
    state dict, on float64 copies of the weights, and its step is the difference of the weights after and before (in
    float32 that would be a multiple of a weight's last bit). `optscope.optim.trial.check_on` tells whether the two
    are the same algorithm. Schedules multiply the learning rates of its param groups.

    >>> Foreign("torch.optim:NAdam", lr=0.002)
    Foreign('torch.optim.nadam:NAdam', lr=0.002)

    Raises:
        UserError: when the class cannot be found, is not at the top of a module, refuses its options, or cannot
            step from a dense gradient alone (it wants a closure, or sparse gradients).
    """

    make: Callable[..., torch.optim.Optimizer]
    options: tuple[tuple[str, Any], ...]

    def __init__(self, make: str | Callable[..., torch.optim.Optimizer], /, **options: Any) -> None:
        found = _resolve(make) if isinstance(make, str) else make
        object.__setattr__(self, "make", found)
        object.__setattr__(self, "options", tuple(sorted(options.items())))
        if "<" in _path(found):
            raise UserError(f"Foreign needs a class or function at the top of a module; got {_path(found)}: "
                            "move it there, so that other processes can find it")
        weight = nn.Parameter(torch.zeros(2, 2))
        weight.grad = torch.ones(2, 2)
        with forked():
            try:
                optimizer = self.optimizer([weight])
            except Exception as error:  # whatever the author of the class chose to raise
                raise UserError(f"{_path(found)} refused the options {options}: {_said(error)}") from error
            lacking = [name for name in ("param_groups", "state", "step", "zero_grad")
                       if not hasattr(optimizer, name)]
            if lacking:
                raise UserError(f"{_path(found)} must make a torch.optim.Optimizer of parameters; it made a "
                                f"{type(optimizer).__name__} without {', '.join(lacking)}")
            check_hyper(_path(found), "lr", optimizer.param_groups[0].get("lr"), open_low=True)
            try:
                set_mode(optimizer, "train")
                optimizer.step()
            except Exception as error:
                raise UserError(f"{_path(found)} must step from a dense gradient alone, without a closure; a trial "
                                f"step stopped with {type(error).__name__}: {_first_line(error)}") from error

    @cached_property
    def lr(self) -> Hyper:
        """The learning rate: the option of that name, or the optimiser's default."""
        with forked():
            return float(self.optimizer([nn.Parameter(torch.zeros(2, 2))]).param_groups[0]["lr"])

    def with_(self, **changes: Any) -> Self:
        """Return the same optimiser with some options changed."""
        return type(self)(self.make, **{**dict(self.options), **changes})

    def optimizer(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """Return the optimiser itself."""
        return self.make(params, **dict(self.options))

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser itself, of a model's parameters."""
        return self.optimizer(model.parameters())

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
            changes, after = self._step(layout.views(p), layout.views(g), before, scale)
            steps.append(layout.flatten(changes).to(p.dtype))
            saved.append(after)
        return torch.stack(steps).reshape(params.shape), {"members": saved}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return one state a tensor; they share the optimiser's saved state and all tensors' shapes."""
        shared: State = {"saved": {}, "shapes": [list(p.shape) for p in params]}
        return [{"place": i, "shared": shared} for i in range(len(params))]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the change by one step in place; tensors that are not given have no gradient in it."""
        for shared in {id(state["shared"]): state["shared"] for state in states}.values():
            mine = {state["place"]: i for i, state in enumerate(states) if state["shared"] is shared}
            weights = [params[mine[j]] if j in mine else params[0].new_zeros(shape)
                       for j, shape in enumerate(shared["shapes"])]
            given = [grads[mine[j]] if j in mine else None for j in range(len(weights))]
            changes, shared["saved"] = self._step(weights, given, shared["saved"], scale)
            for j, i in mine.items():
                targets[i].add_(changes[j].to(targets[i].dtype))

    def _step(self, weights: Sequence[Tensor], grads: Sequence[Tensor | None], saved: State,
              scale: float) -> tuple[list[Tensor], State]:
        """Return the weights' changes in float64 and what is saved, from what was; `saved` stays as it is."""
        starts = [w.detach().double() for w in weights]
        moved = [nn.Parameter(start.clone(memory_format=torch.contiguous_format)) for start in starts]
        with forked():  # whatever it draws when it is made, it drew once
            optimizer = self.optimizer(moved)
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


def _path(make: Callable[..., Any]) -> str:
    return f"{make.__module__}:{make.__qualname__}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "").strip()


def _said(error: Exception) -> str:
    """Return what stopped an optimiser's constructor, in words that help who did not write it."""
    words = _first_line(error)
    wrap = "write a function at the top of a module that takes parameters and returns the optimiser"
    if "'list' object has no attribute" in words:
        return f"it wants something else than a list of parameters, perhaps the model ({words}); {wrap}"
    if isinstance(error, (KeyError, IndexError)) or "__contains__" in words or "indices must be" in words:
        return f"it wants param groups of its own making; {wrap} with them"
    return words


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
