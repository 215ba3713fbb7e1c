"""Both directions between rules and `torch.optim`: a rule as an optimiser, an optimiser as a rule."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, cast, overload

import torch
from torch import Tensor, nn

from optscope.errors import UserError, nearest
from optscope.optim.rule import Hyper, Rule, State, check_hyper
from optscope.vector import Layout


class RuleOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that applies a rule.

    Every param group holds the rule's numbers under their own names (`lr`, `momentum`, `beta1`, ...), so
    schedulers and per-group settings work as usual; a change of `lr` scales the step. State is kept by
    parameter.

    Raises:
        UserError: when the rule holds one learning rate a member instead of a single number.
    """

    def __init__(self, params: Iterable[Any], rule: Rule) -> None:
        numbers = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)
                   if isinstance(getattr(rule, f.name), (int, float, str, tuple))}
        if any(isinstance(value, tuple) for value in (rule.lr, *numbers.values())):
            raise UserError(f"an optimiser needs one number a hyperparameter; got {rule!r}: "
                            "make one rule for each member")
        self.rule = rule
        super().__init__(params, {"lr": rule.lr, **numbers})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; parameters without a gradient are left alone.

        Raises:
            UserError: when a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state bit for bit: tensors keep the dtype they were saved in."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        for i, saved in copy.deepcopy(state_dict["state"]).items():
            self.state[params[i]] = saved

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = [cast(Tensor, p.grad) for p in params]
        if any(g.is_sparse for g in grads):
            raise UserError("rules need dense gradients; got a sparse one: make the embedding with "
                            "sparse=False")
        rule = self._rule_of(group)
        new = [p for p in params if p not in self.state]
        for p, state in zip(new, rule.begin(new), strict=True):
            self.state[p] = state
        states = [self.state[p] for p in params]
        rule.add_step_(params, grads, states, params, group["lr"] / cast(float, rule.lr))

    def _rule_of(self, group: dict[str, Any]) -> Rule:
        """Return the rule with the group's numbers; `lr` apart, which acts as a scale."""
        names = [f.name for f in dataclasses.fields(self.rule) if f.name != "lr"]
        changed = {n: group[n] for n in names if n in group and group[n] != getattr(self.rule, n)}
        return self.rule.with_(**changed) if changed else self.rule


def by_module(model: nn.Module) -> list[dict[str, Any]]:
    """Return one param group for each module that holds parameters of its own; tied ones stand once."""
    seen: set[nn.Parameter] = set()
    groups = []
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p not in seen]
        seen.update(own)
        if own:
            groups.append({"params": own})
    return groups


@dataclass(frozen=True, repr=False, init=False)
class Foreign(Rule):
    """Any `torch.optim.Optimizer` as a rule: a class (or "module:Class") and its options.

    Used by itself it *is* that optimiser. Inside a combinator, or purely, its step is the difference of the
    weights after and before, taken in float64: in float32 it would be a multiple of a weight's last bit.

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
        try:
            optimizer = self.optimizer([weight])
        except Exception as error:  # whatever the author of the class chose to raise
            raise UserError(f"{_path(found)} refused the options {options}: {error}") from error
        check_hyper(_path(found), "lr", optimizer.param_groups[0].get("lr"), open_low=True)
        try:
            optimizer.step()
        except Exception as error:
            raise UserError(f"{_path(found)} must step from a dense gradient alone, without a closure; a trial "
                            f"step stopped with {type(error).__name__}: {error}") from error

    @property
    def lr(self) -> Hyper:
        """The learning rate: the option of that name, or the optimiser's default."""
        return float(self.optimizer([nn.Parameter(torch.zeros(2, 2))]).param_groups[0]["lr"])

    def with_(self, **changes: Any) -> Self:
        """Return the same optimiser with some options changed."""
        return type(self)(self.make, **{**dict(self.options), **changes})

    def optimizer(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """Return the optimiser itself."""
        return self.make(params, **dict(self.options))

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return no saved optimiser state for every member."""
        return {"members": [None] * params[..., 0].numel()}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the weights' change by one step of the optimiser, and its saved state, member by member."""
        steps, saved = [], []
        rows = grad.reshape(-1, layout.size), params.reshape(-1, layout.size)
        for g, p, before in zip(*rows, state["members"], strict=True):
            start = p.detach().double()
            weights = [nn.Parameter(view.clone()) for view in layout.views(start)]
            optimizer = self.optimizer(weights)
            if before is not None:
                optimizer.load_state_dict(copy.deepcopy(before))
                for i, kept in copy.deepcopy(before["state"]).items():
                    optimizer.state[weights[i]] = kept  # as it was: loading casts it to the weights' dtype
            for weight, part in zip(weights, layout.views(g.double()), strict=True):
                weight.grad = part.clone()
            optimizer.step()
            steps.append((layout.flatten([w.detach() for w in weights]) - start).to(p.dtype))
            saved.append(copy.deepcopy(optimizer.state_dict()))
        return torch.stack(steps).reshape(params.shape), {"members": saved}

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options)
        return f"Foreign({_path(self.make)!r}{options})"


def _path(make: Callable[..., Any]) -> str:
    return f"{make.__module__}:{make.__qualname__}"


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
