"""What a live optimiser is as a rule: its learning rate now, its stability threshold, its preconditioner."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.optim.adaptive import Adam, AdamW, RMSProp
from optscope.optim.combinator import bare
from optscope.optim.momentum import Momentum
from optscope.optim.rule import Hyper, Rule
from optscope.optim.schedules import Decayed
from optscope.optim.sgd import SGD
from optscope.optim.torch_bridge import RuleOptimizer
from optscope.tasks.snapshot import Snapshot
from optscope.theory import stability

SECOND_MOMENTS = ("v", "max_exp_avg_sq", "exp_avg_sq", "square_avg")
"""Where rules and torch's optimisers keep the running mean of the squared gradient."""


def threshold(rule: Rule, step: int = 0) -> float:
    """Return the largest stable eigenvalue of the Hessian of the loss under a rule, after `step` steps.

    For Adam, AdamW and RMSProp it is that of the preconditioned Hessian D⁻¹ᐟ² H D⁻¹ᐟ², with D held still. With L2
    regularisation, H is the Hessian of the loss without its penalty, whose curvature is a shift under SGD and
    Momentum. Formulas: `optscope.theory.stability`.

    >>> threshold(SGD(lr=0.1)), round(threshold(Adam(lr=0.001)))
    (20.0, 38000)

    Raises:
        UserError: when no threshold is known in closed form, or the rule holds several learning rates.
    """
    inner, factor, decay = bare(rule, step)
    if factor == 0:
        return math.inf
    plain = _plain_threshold(inner.with_(lr=factor * _one(inner.lr)) if factor != 1 else inner)
    if plain is None:
        raise UserError(f"no stability threshold is known for {rule!r}; there is one for SGD, Momentum, Adam, "
                        "AdamW and RMSProp, also inside Scheduled and Rounded, and for SGD and Momentum inside "
                        "Decayed")
    if decay and not isinstance(inner, (SGD, Momentum)):  # the penalty's curvature is then preconditioned
        raise UserError(f"no stability threshold is known for {rule!r}: L2 regularisation has one with SGD and "
                        "Momentum; with Adam, use AdamW")
    return plain - decay


def _plain_threshold(rule: Rule) -> float | None:
    """Return the threshold of a rule that wraps no other, if one is known."""
    if isinstance(rule, SGD):
        form = stability.nesterov if rule.nesterov else stability.heavy_ball
        return form(_one(rule.lr), _one(rule.momentum))
    if isinstance(rule, Momentum):
        return stability.averaged(_one(rule.lr), _one(rule.beta))
    if isinstance(rule, Adam):
        return stability.averaged(_one(rule.lr), _one(rule.beta1),
                                  _one(rule.decay if isinstance(rule, AdamW) else 0.0))
    return stability.gradient_descent(_one(rule.lr)) if isinstance(rule, RMSProp) else None


def rule_in_use(snapshot: Snapshot) -> Rule | None:
    """Return the snapshot's rule with the learning rate it has now, or None when it is not known.

    A live optimiser is believed before the snapshot's rule: `torch.optim`'s SGD, Adam, AdamW and RMSprop in
    their plain forms are recognised. Param groups with different numbers are no one rule.
    """
    optimizer = snapshot.optimizer
    if optimizer is None:
        return snapshot.rule
    groups = [{name: plain(value) for name, value in group.items() if name not in ("params", "param_names", "name")}
              for group in optimizer.param_groups]
    try:
        if any(group != groups[0] for group in groups):
            return None
        if isinstance(optimizer, RuleOptimizer) and isinstance(optimizer.rule, Rule):
            names = {f.name for f in fields(optimizer.rule)} | {"lr"}
            return optimizer.rule.with_(**{name: value for name, value in groups[0].items() if name in names})
        return _from_torch(type(optimizer), groups[0])
    except (LookupError, RuntimeError, TypeError, ValueError):  # numbers that no rule has, such as a rate of 0
        return None


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


def adaptive(rule: Rule | None) -> Adam | RMSProp | None:
    """Return the rule inside schedules, decay and rounding when it divides by a second moment, else None."""
    inner = None if rule is None else bare(rule)[0]
    return inner if isinstance(inner, (Adam, RMSProp)) else None


def preconditioner(snapshot: Snapshot, trained: Collection[str]) -> Tensor | None:
    """Return the diagonal D by which an adaptive rule divides the gradient, `(P,)`, or None before its first step.

        RMSProp: D = √v + eps        Adam: D = (1 − beta1ᵗ) (√(v/(1 − beta2ᵗ)) + eps)

    The first factor is the bias correction of Adam's momentum (arXiv 2207.14484). P runs over the `trained`
    parameters in the model's order. One that never had a gradient,
    not even 0, does not move: its D is infinite (RMSProp counts no steps, so that it is eps there, where H is 0).

    Raises:
        UserError: without a live optimiser, or when it is not Adam, AdamW or RMSProp, or keeps no second moment.
    """
    rule = adaptive(rule_in_use(snapshot))
    if snapshot.optimizer is None or rule is None:
        got = type(snapshot.optimizer).__name__ if snapshot.optimizer else f"no optimiser, and {snapshot.rule!r}"
        raise UserError("preconditioned sharpness needs the live Adam, AdamW or RMSProp that trains the model, "
                        f"with one set of numbers; got {got}: measure TopEigenvalues instead")
    weights = {name: p for name, p in snapshot.model.named_parameters() if name in trained}
    states = {name: _innermost(snapshot.optimizer.state.get(p, {})) for name, p in weights.items()}
    counts = {name: torch.as_tensor(state["step"]) for name, state in states.items() if "step" in state}
    steps = dict(zip(counts, to_floats(*counts.values()), strict=True))
    diagonal = torch.cat([_diagonal(rule, name, state, steps.get(name, 0.0)).reshape(-1) if state
                          else torch.full_like(weights[name].detach(), math.inf).reshape(-1)
                          for name, state in states.items()])
    return None if bool(torch.isinf(diagonal).all()) else diagonal


def live_mean(snapshot: Snapshot, trained: Collection[str], like: Tensor) -> Tensor | None:
    """Return the live optimiser's mean of gradients "m", `(P,)`, 0 where there was no step; None without one."""
    if snapshot.optimizer is None:
        return None
    parts = [_innermost(snapshot.optimizer.state.get(p, {})).get("m", torch.zeros_like(p)).reshape(-1)
             for name, p in snapshot.model.named_parameters() if name in trained]
    return torch.cat(parts).to(like)


def _innermost(state: Mapping[str, Any]) -> Mapping[str, Any]:
    while "rule" in state:  # a combinator's state holds its rule's
        state = state["rule"]
    return state


def _diagonal(rule: Adam | RMSProp, name: str, state: Mapping[str, Any], t: float) -> Tensor:
    moment: Tensor | None = next((state[key] for key in SECOND_MOMENTS if key in state), None)
    if moment is None:
        raise UserError(f"the optimiser keeps no second moment for the parameter {name!r}: measure TopEigenvalues "
                        "instead")
    moment = moment.detach()
    if isinstance(rule, RMSProp):
        return moment.sqrt() + _one(rule.eps)
    beta1, beta2 = _one(rule.beta1), _one(rule.beta2)
    if t == 0:
        return torch.full_like(moment, math.inf)
    diagonal: Tensor = (1 - beta1**t) * ((moment / (1 - beta2**t)).sqrt() + _one(rule.eps))
    return diagonal


def _one(value: Hyper) -> float:
    if isinstance(value, tuple):
        raise UserError(f"a stability threshold needs one number a hyperparameter; got {value}: make one rule each")
    return float(value)
