"""A rule as a `torch.optim.Optimizer`, for anyone's loop, and param groups of a model's modules."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, Self, cast, overload

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.optim.rates import lying_as
from optscope.vector import Layer, Layout

PLAIN = ("params", "param_names", "name", "lr", "initial_lr", "train_mode")
"""What a param group may hold beside a rule's numbers: torch's own, a label, and the optimiser's mode."""


class Steps(Protocol):
    """What an optimiser asks of a rule (`optscope.optim.rule.Rule`): numbers in fields, and the step in place."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    in_pairs: ClassVar[bool]

    @property
    def lr(self) -> float | tuple[float, ...]:
        """The learning rate, to which the step is proportional."""

    @property
    def asks(self) -> bool:
        """Whether a step takes gradients at other weights."""

    @property
    def averages(self) -> bool:
        """Whether it stands for other weights than those it takes gradients at."""

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[dict[str, Any]]:
        """Return one state a parameter tensor."""

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[dict[str, Any]],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step to `targets`, and advance `states`."""

    def seek_(self, targets: Sequence[Tensor], slopes: Callable[..., Sequence[Tensor]],
              states: Sequence[dict[str, Any]], params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add `scale` times the step, from gradients where it wants them."""

    def to_evaluation_(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> None:
        """Turn parameters into the weights that it stands for."""

    def to_training_(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> None:
        """Undo that."""

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

    def __init__(self, params: Iterable[Any], rule: Steps, layers: Mapping[Tensor, Layer] | None = None) -> None:
        numbers = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)
                   if isinstance(getattr(rule, f.name), (int, float, str)) or _per_member(getattr(rule, f.name))}
        if any(isinstance(value, tuple) for value in (rule.lr, *numbers.values())):
            raise UserError(f"an optimiser needs one number a hyperparameter; got {rule!r}: "
                            "make one rule for each member")
        self.rule, self._layers = rule, dict(layers or {})
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
        # Torch's own is wrapped so that its compiler leaves it alone, for which the compiler is loaded: a second.
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; parameters without a gradient are left alone.

        `closure` computes the loss and its gradient anew. A rule that asks for gradients at other weights needs it,
        and of the same batch every time; the parameters are put back afterwards to the bit, and so is their `grad`.

        Raises:
            UserError: when a gradient is sparse, or complex and the rule takes signs; when a rule that asks for
                gradients gets no closure, or several param groups.
        """
        if closure is None and self.rule.asks:
            raise UserError(f"{self.rule!r} takes gradients at other weights too: call step(closure), with a "
                            "function that computes the loss of the batch and its gradient anew")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group, closure)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state bit for bit: tensors keep the dtype they were saved in."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        for i, saved in copy.deepcopy(state_dict["state"]).items():
            self.state[params[i]] = lying_as(saved, self.state[params[i]])

    def _step_group(self, group: dict[str, Any], closure: Callable[[], float] | None) -> None:
        own = [p for p in group["params"] if p.grad is not None]
        if not own:
            return
        grads = [cast(Tensor, p.grad) for p in own]
        if any(g.layout is not torch.strided for g in grads):
            raise UserError("rules need dense gradients; got a sparse one: make the embedding with "
                            "sparse=False")
        rule = self._rule_of(group)
        # All that are trained begin together, whichever has a gradient first: what counts steps counts them alike.
        new = [p for p in group["params"] if p not in self.state and (p.requires_grad or p.grad is not None)]
        if new:
            for p, state in zip(new, rule.begin([as_real(p) for p in new], self._layout(group, new)), strict=True):
                self.state[p] = state
        if any(map(torch.is_complex, own)) and not all(each.in_pairs for each in rule.walk()):
            raise UserError(f"{rule!r} takes signs, and a complex number has none: step complex weights by "
                            "another rule, or keep them as real parameters of two parts")
        params, states = [as_real(p) for p in own], [self.state[p] for p in own]
        scale = group["lr"] / cast(float, rule.lr)
        if not rule.asks:
            rule.add_step_(params, [as_real(g) for g in grads], states, params, scale)
            return
        if len(self.param_groups) > 1:
            raise UserError(f"{rule!r} takes gradients with all parameters elsewhere at once, so it needs them in "
                            f"one param group; got {len(self.param_groups)}")
        assert closure is not None
        rule.seek_(params, partial(_slopes, own, grads, closure), states, params, scale)

    def _layout(self, group: dict[str, Any], params: Sequence[Tensor]) -> Layout:
        """Return what is known of some of a group's parameters: from the model, or from their names and shapes."""
        names = dict(zip(group["params"], group.get("param_names", map(str, itertools.count())), strict=False))
        return Layout.of_layers((self._layers[p] if p in self._layers else Layer.plain(names[p], p.shape))._replace(
            shape=as_real(p).shape) for p in params)

    def _rule_of(self, group: dict[str, Any]) -> Steps:
        """Return the rule with the group's numbers; `lr` apart, which acts as a scale."""
        changed = {n: group[n] for n, value in self._own.items() if n in group and group[n] != value}
        return self.rule.with_(**changed) if changed else self.rule


class ModedOptimizer(RuleOptimizer):
    """The optimiser of a rule that stands for other weights than it trains: `eval()` shows them, `train()` goes on.

    `train_mode` in a param group says where it is.

    Raises:
        UserError: as RuleOptimizer; and when it steps in eval mode.
    """

    def train(self) -> None:
        """Put the parameters back where gradients are taken."""
        self._turn(True)

    def eval(self) -> None:
        """Put the parameters where the rule stands."""
        self._turn(False)

    @torch.no_grad()
    def _turn(self, training: bool) -> None:
        for group in self.param_groups:
            if group.get("train_mode", True) != training:
                group["train_mode"] = training
                begun = [p for p in group["params"] if p in self.state]
                turn = self.rule.to_training_ if training else self.rule.to_evaluation_
                turn([as_real(p) for p in begun], [self.state[p] for p in begun])

    def _step_group(self, group: dict[str, Any], closure: Callable[[], float] | None) -> None:
        if not group.get("train_mode", True):
            raise UserError(f"the optimiser of {self.rule!r} is in eval mode: call its train() before it steps")
        super()._step_group(group, closure)


def optimizer_for(params: Iterable[Any], rule: Steps,
                  layers: Mapping[Tensor, Layer] | None = None) -> RuleOptimizer:
    """Return the optimiser of a rule, with modes if it needs them; `layers` tells what parameters are."""
    return (ModedOptimizer if rule.averages else RuleOptimizer)(params, rule, layers)


def _per_member(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, (int, float)) for v in value)


def _slopes(params: Sequence[Tensor], grads: Sequence[Tensor], closure: Callable[[], float],
            shifts: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return the gradients at parameters + shifts, which leaves parameters and their `grad` as they were."""
    if shifts is None:
        return [as_real(g) for g in grads]
    kept = [p.clone() for p in params]
    for p, shift in zip(params, shifts, strict=True):
        as_real(p).add_(shift)
        p.grad = None  # and not zero: the first gradients lie there
    with torch.enable_grad():
        closure()
    found = [torch.zeros_like(as_real(p)) if p.grad is None else as_real(p.grad) for p in params]
    for p, before, grad in zip(params, kept, grads, strict=True):
        p.copy_(before)
        p.grad = grad
    return found


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
