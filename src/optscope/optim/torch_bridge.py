"""A rule as a `torch.optim.Optimizer`, for anyone's loop, and param groups of a model's modules."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, Self, cast, overload

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.optim.rates import lying_as

PLAIN = ("params", "param_names", "name", "lr", "initial_lr")
"""What a param group may hold beside a rule's numbers: torch's own, and a label."""


class Steps(Protocol):
    """What an optimiser asks of a rule (`optscope.optim.rule.Rule`): numbers in fields, and the step in place."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    in_pairs: ClassVar[bool]

    @property
    def lr(self) -> float | tuple[float, ...]:
        """The learning rate, to which the step is proportional."""

    def begin(self, params: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return one state a parameter tensor."""

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[dict[str, Any]],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`."""

    def walk(self) -> Iterator[Steps]:
        """Yield this rule and all that it holds."""

    def with_(self, **changes: Any) -> Self:
        """Return the same rule with some numbers changed."""


class RuleOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that applies a rule.

    Every param group holds the rule's numbers under their own names (`lr`, `momentum`, `beta1`, ...), so
    schedulers and per-group settings work as usual; a change of `lr` scales the step, and torch's `weight_decay` is
    the rule's `decay`. State is kept by parameter. Complex parameters are stepped as pairs of real numbers, as
    `torch.optim` does.

    Raises:
        UserError: when the rule holds one learning rate a member instead of a single number, or a param group
            something that the rule would not follow.
    """

    def __init__(self, params: Iterable[Any], rule: Steps) -> None:
        numbers = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)
                   if isinstance(getattr(rule, f.name), (int, float, str, tuple))}
        if any(isinstance(value, tuple) for value in (rule.lr, *numbers.values())):
            raise UserError(f"an optimiser needs one number a hyperparameter; got {rule!r}: "
                            "make one rule for each member")
        self.rule = rule
        self._own = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule) if f.name != "lr"}
        super().__init__(params, {"lr": rule.lr, **numbers})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with numbers of its own for what it names.

        Raises:
            UserError: when it names something that the rule does not have, or gives it a value it cannot have.
        """
        kind, param_group = type(self.rule).__name__, dict(param_group)
        known = {f.name for f in dataclasses.fields(self.rule)}
        if "weight_decay" in param_group:
            decay = param_group.pop("weight_decay")
            if "decay" in known:
                if param_group.setdefault("decay", decay) != decay:
                    raise UserError(f"a param group has weight_decay={decay!r} and decay={param_group['decay']!r}, "
                                    f"which mean the same in {kind}: give it one")
            elif decay:
                raise UserError(f"a param group has weight_decay={decay!r}, which {kind} does not have: use AdamW, "
                                "or Decayed(rule, decay), whose param groups may have a decay of their own")
        for name in param_group:
            if name not in known and name not in PLAIN:
                raise UserError(f"a param group has {name!r}, which {kind} would ignore; "
                                f"it has {', '.join(sorted(known))}")
        self._rule_of(param_group)  # raises what there is to raise
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; parameters without a gradient are left alone.

        Raises:
            UserError: when a gradient is sparse, or complex and the rule takes signs.
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
            self.state[params[i]] = lying_as(saved, self.state[params[i]])

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = [cast(Tensor, p.grad) for p in params]
        if any(g.layout is not torch.strided for g in grads):
            raise UserError("rules need dense gradients; got a sparse one: make the embedding with "
                            "sparse=False")
        rule = self._rule_of(group)
        # All that are trained begin together, whichever has a gradient first: what counts steps counts them alike.
        new = [p for p in group["params"] if p not in self.state and (p.requires_grad or p.grad is not None)]
        if new:
            for p, state in zip(new, rule.begin([as_real(p) for p in new]), strict=True):
                self.state[p] = state
        states = [self.state[p] for p in params]
        if any(map(torch.is_complex, params)):
            if not all(each.in_pairs for each in rule.walk()):
                raise UserError(f"{rule!r} takes signs, and a complex number has none: step complex weights by "
                                "another rule, or keep them as real parameters of two parts")
            params, grads = [as_real(p) for p in params], [as_real(g) for g in grads]
        rule.add_step_(params, grads, states, params, group["lr"] / cast(float, rule.lr))

    def _rule_of(self, group: dict[str, Any]) -> Steps:
        """Return the rule with the group's numbers; `lr` apart, which acts as a scale."""
        changed = {n: group[n] for n, value in self._own.items() if n in group and group[n] != value}
        return self.rule.with_(**changed) if changed else self.rule


def as_real(tensor: Tensor) -> Tensor:
    """Return a tensor itself, or a view of a complex one with a last axis of (real, imaginary)."""
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


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
