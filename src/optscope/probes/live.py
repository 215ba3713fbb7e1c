"""What a live optimiser remembers: the preconditioner that it divides by, and its mean of gradients."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.optim.adaptive import Adam, RMSProp
from optscope.optim.combinator import bare
from optscope.optim.preconditioner import Preconditioner, Preconditions
from optscope.optim.rule import Rule, State
from optscope.probes.rule_in_use import one, rule_in_use
from optscope.tasks.snapshot import Snapshot
from optscope.vector import Layout

SECOND_MOMENTS = ("v", "max_exp_avg_sq", "exp_avg_sq", "square_avg")
"""Where rules and torch's optimisers keep the running mean of the squared gradient."""


def adaptive(rule: Rule | None) -> Rule | None:
    """Return the rule inside schedules, decay and rounding when it divides by a preconditioner, else None."""
    inner = None if rule is None else bare(rule)[0]
    return inner if isinstance(inner, (Adam, RMSProp, Preconditions)) else None


def preconditioner(snapshot: Snapshot, trained: Collection[str], gradient: Tensor) -> Preconditioner | None:
    """Return the P by which an adaptive rule divides the gradient, or None before its first step.

        RMSProp: P = √v + eps        Adam: P = (1 − beta1ᵗ) (√(v/(1 − beta2ᵗ)) + eps)         on the diagonal

    The first factor is the bias correction of Adam's momentum (arXiv 2207.14484). Shampoo, SOAP, LARS and LAMB say
    theirs for each layer, LARS that of this gradient `(P,)`. It is of flat vectors `(P,)` over the `trained`
    parameters in the model's order. One that never had a gradient, not even 0, does not move: its P is infinite
    (RMSProp counts no steps, so that it is eps there, where H is 0).

    Raises:
        UserError: without a live optimiser, when it is none of these, or keeps no second moment.
    """
    rule = adaptive(rule_in_use(snapshot))
    if snapshot.optimizer is None or rule is None:
        got = type(snapshot.optimizer).__name__ if snapshot.optimizer else f"no optimiser, and {snapshot.rule!r}"
        raise UserError("preconditioned sharpness needs the live Adam, AdamW, RMSProp, Shampoo, SOAP, LARS or LAMB "
                        f"that trains the model, with one set of numbers; got {got}: measure TopEigenvalues "
                        "instead")
    weights = _weights(snapshot, trained)
    states = {name: _state(snapshot.optimizer, p) for name, p in weights.items()}
    if isinstance(rule, Preconditions):
        layout = Layout.of(weights)
        parts = [rule.preconditioner(state, p.detach(), g) if state else None for p, state, g in zip(
            weights.values(), states.values(), layout.views(gradient), strict=True)]
        return None if all(part is None for part in parts) else Preconditioner.joined(layout, parts, gradient)
    assert isinstance(rule, (Adam, RMSProp))
    numbers = _diagonal(rule, weights, states)
    return None if bool(torch.isinf(numbers).all()) else Preconditioner.diagonal(numbers)


def live_mean(snapshot: Snapshot, trained: Collection[str], like: Tensor) -> Tensor | None:
    """Return the live optimiser's mean of gradients "m", `(P,)`, 0 where there was no step; None without one."""
    if snapshot.optimizer is None:
        return None
    parts = [_state(snapshot.optimizer, p).get("m", torch.zeros_like(p)).reshape(-1)
             for p in _weights(snapshot, trained).values()]
    return torch.cat(parts).to(like)


def _weights(snapshot: Snapshot, trained: Collection[str]) -> dict[str, nn.Parameter]:
    return {name: p for name, p in snapshot.model.named_parameters() if name in trained}


def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> State:
    """Return what is remembered of a parameter: a combinator's state holds its rule's."""
    state: State = optimizer.state.get(parameter, {})
    while "rule" in state:
        state = state["rule"]
    return state


def _diagonal(rule: Adam | RMSProp, weights: Mapping[str, Tensor], states: Mapping[str, State]) -> Tensor:
    counts = {name: torch.as_tensor(state["step"]) for name, state in states.items() if "step" in state}
    steps = dict(zip(counts, to_floats(*counts.values()), strict=True))
    return torch.cat([_layer_diagonal(rule, name, state, steps.get(name, 0.0)).reshape(-1) if state
                      else torch.full_like(weights[name].detach(), math.inf).reshape(-1)
                      for name, state in states.items()])


def _layer_diagonal(rule: Adam | RMSProp, name: str, state: State, t: float) -> Tensor:
    moment: Tensor | None = next((state[key] for key in SECOND_MOMENTS if key in state), None)
    if moment is None:
        raise UserError(f"the optimiser keeps no second moment for the parameter {name!r}: measure TopEigenvalues "
                        "instead")
    moment = moment.detach()
    if isinstance(rule, RMSProp):
        return moment.sqrt() + one(rule.eps)
    beta1, beta2 = one(rule.beta1), one(rule.beta2)
    if t == 0:
        return torch.full_like(moment, math.inf)
    diagonal: Tensor = (1 - beta1**t) * ((moment / (1 - beta2**t)).sqrt() + one(rule.eps))
    return diagonal
