"""What a live optimiser is as a rule: its learning rate now, and its stability threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.adaptive import Adam, AdamW, RMSProp
from optscope.optim.by_kind import ByKind, Where
from optscope.optim.combinator import bare
from optscope.optim.graft import Graft
from optscope.optim.momentum import Momentum
from optscope.optim.rule import Hyper, Rule
from optscope.optim.schedules import Decayed, Scheduled
from optscope.optim.sgd import SGD
from optscope.optim.shampoo import SOAP, Shampoo
from optscope.optim.torch_bridge import RuleOptimizer
from optscope.optim.trust_ratio import LAMB, LARS
from optscope.tasks.snapshot import Snapshot
from optscope.theory import stability
from optscope.vector import Layer


def threshold(rule: Rule, step: int = 0) -> float:
    """Return the largest stable eigenvalue of the Hessian of the loss under a rule, after `step` steps.

    For rules with a preconditioner P it is that of P⁻¹ᐟ² H P⁻¹ᐟ² with P held still, and for LARS and LAMB of that
    and what their decay bends (`PreconditionedSharpness`). `ByKind`, if every part has one, has that of its first
    part, by which the P of the others is measured; `Graft` over layers has its direction's, if that has no decay.
    With L2 regularisation, H is the Hessian of the loss without its penalty, whose curvature is a shift under SGD
    and Momentum. Formulas: `optscope.theory.stability`.

    >>> threshold(SGD(lr=0.1)), round(threshold(Adam(lr=0.001)))
    (20.0, 38000)

    Raises:
        UserError: when no threshold is known in closed form, or the rule holds several learning rates.
    """
    inner, decay = present(rule, step)
    if inner is None:
        return math.inf
    plain = _plain_threshold(inner, step)
    if plain is None:
        raise UserError(f"no stability threshold is known for {rule!r}; there is one for SGD, Momentum, Adam, "
                        "AdamW, RMSProp, Shampoo, SOAP, LARS and LAMB, for ByKind of these and Graft over layers "
                        "in the direction of one without decay, also inside Scheduled and Rounded, and for SGD and "
                        "Momentum inside Decayed")
    if decay and not isinstance(inner, (SGD, Momentum)):  # the penalty's curvature is then preconditioned
        raise UserError(f"no stability threshold is known for {rule!r}: L2 regularisation has one with SGD and "
                        "Momentum; with Adam, use AdamW")
    return plain - decay


def present(rule: Rule, step: int) -> tuple[Rule | None, float]:
    """Return the rule inside all wrappers at its rate after `step` steps, None if that is 0; and its L2 decay."""
    inner, factor, decay = bare(rule, step)
    if factor == 0:
        return None, decay
    return inner.with_(lr=factor * one(inner.lr)) if factor != 1 else inner, decay


def bounded(rule: Rule) -> bool:
    """Return whether a stability threshold is known."""
    try:
        threshold(rule)
    except UserError:
        return False
    return True


def _plain_threshold(rule: Rule, step: int) -> float | None:
    """Return the threshold of a rule that no wrapper holds, if one is known; of `ByKind` its first part's."""
    if isinstance(rule, ByKind):
        found = [threshold(part, step) for part in rule.held()]
        return found[0] if min(found) > 0 else None
    if isinstance(rule, Graft):
        inner, _, decay = bare(rule.direction)
        plain = not (decay or getattr(inner, "decay", 0.0) or isinstance(inner, (ByKind, Graft)))
        return threshold(rule.direction, step) if plain and rule.per == "layer" and not rule.asks else None
    if isinstance(rule, SGD):
        form = stability.nesterov if rule.nesterov else stability.heavy_ball
        return form(one(rule.lr), one(rule.momentum))
    if isinstance(rule, Momentum):
        return stability.averaged(one(rule.lr), one(rule.beta))
    if isinstance(rule, Adam):
        return stability.averaged(one(rule.lr), one(rule.beta1),
                                  one(rule.decay if isinstance(rule, AdamW) else 0.0))
    if isinstance(rule, LARS):
        return stability.heavy_ball(one(rule.lr), one(rule.momentum))
    if isinstance(rule, SOAP):
        return stability.averaged(one(rule.lr), one(rule.beta1), one(rule.decay))
    if isinstance(rule, LAMB):
        return stability.averaged(one(rule.lr), one(rule.beta1))
    return stability.gradient_descent(one(rule.lr)) if isinstance(rule, (RMSProp, Shampoo)) else None


@dataclass(frozen=True, repr=False)
class Group(Where):
    """The parameters of a model that one param group of its optimiser holds, by their names."""

    number: int = 0
    names: frozenset[str] = frozenset()

    def __call__(self, layer: Layer) -> bool:
        """Return whether a parameter is in the group."""
        return layer.name in self.names

    def __repr__(self) -> str:
        return f"param group {self.number}"


def rule_in_use(snapshot: Snapshot) -> Rule | None:
    """Return the snapshot's rule with the learning rate it has now, or None when it is not known.

    A live optimiser is believed before the snapshot's rule: `torch.optim`'s SGD, Adam, AdamW and RMSprop in
    their plain forms are recognised. Param groups with different numbers, such as a decay of some parameters alone,
    are a rule each (`ByKind`).
    """
    optimizer = snapshot.optimizer
    if optimizer is None:
        return snapshot.rule
    groups = [{name: plain(value) for name, value in group.items() if name not in ("params", "param_names", "name")}
              for group in optimizer.param_groups]
    try:
        if all(group == groups[0] for group in groups):
            return _of_group(optimizer, groups[0])
        held = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
        named = dict(snapshot.model.named_parameters())
        names = [frozenset(name for name, p in named.items() if id(p) in group) for group in held]
        parts = [(Group(number=i, names=mine), _of_group(optimizer, group))
                 for i, (mine, group) in enumerate(zip(names, groups, strict=True), start=1) if mine]
        known = [(group, rule) for group, rule in parts if rule is not None]
        return ByKind(*known) if parts and len(known) == len(parts) else None
    except (LookupError, RuntimeError, TypeError, ValueError):  # numbers that no rule has, such as a rate of 0
        return None


def steps_made(snapshot: Snapshot) -> int:
    """Return at which step a rule with a schedule of its own is: as its live optimiser counts, else the snapshot.

    >>> from torch import nn
    >>> steps_made(Snapshot(nn.Linear(1, 1), None, step=3))
    3
    """
    live, counts = snapshot.optimizer, []
    if isinstance(live, RuleOptimizer) and any(isinstance(each, Scheduled) for each in live.rule.walk()):
        for state in live.state.values():
            while "step" not in state and "rule" in state:  # a combinator's state holds its rule's
                state = state["rule"]
            counts += [int(state["step"])] if "step" in state else []
    return max(counts, default=snapshot.step or 0)


def holds_some(snapshot: Snapshot) -> bool:
    """Return whether the live optimiser holds parameters of the model, and not those of another or of a copy."""
    groups = [] if snapshot.optimizer is None else snapshot.optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    return any(id(p) in held for p in snapshot.model.parameters())


def _of_group(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Rule | None:
    """Return what a param group is as a rule, None where that is not known."""
    if isinstance(optimizer, RuleOptimizer) and isinstance(optimizer.rule, Rule):
        names = {f.name for f in fields(optimizer.rule)} | {"lr"}
        return optimizer.rule.with_(**{name: value for name, value in group.items() if name in names})
    return _from_torch(type(optimizer), group)


def plain(value: Any) -> Any:
    """Return a param group's value without tensors and arrays, which do not compare as one.

    >>> plain((torch.tensor(0.5), np.ones(2)))
    (0.5, [1.0, 1.0])
    """
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


_TORCH = (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW)


def _from_torch(kind: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> Rule | None:
    if kind not in _TORCH or group["maximize"]:
        return None
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    rule: Rule | None = None
    if kind is torch.optim.SGD and not group["dampening"]:
        rule = SGD(lr, group["momentum"], group["nesterov"])
    elif kind is torch.optim.RMSprop and not group["momentum"] and not group["centered"]:
        rule = RMSProp(lr, group["alpha"], group["eps"])
    elif kind is torch.optim.AdamW:
        return AdamW(lr, beta1, beta2, group["eps"], decay)
    elif kind is torch.optim.Adam and not group["decoupled_weight_decay"]:
        rule = Adam(lr, beta1, beta2, group["eps"])
    return Decayed(rule, decay) if rule is not None and decay else rule


def one(value: Hyper) -> float:
    """Return a hyperparameter's number.

    Raises:
        UserError: when there are several.
    """
    if isinstance(value, tuple):
        raise UserError(f"a stability threshold needs one number a hyperparameter; got {value}: make one rule each")
    return float(value)
