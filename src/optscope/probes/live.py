"""What a live optimiser remembers: the preconditioner that it divides by, and its mean of gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.optim.adaptive import Adam, RMSProp
from optscope.optim.by_kind import ByKind
from optscope.optim.combinator import bare
from optscope.optim.graft import Graft
from optscope.optim.preconditioner import Preconditioner, Preconditions
from optscope.optim.rule import Rule, State
from optscope.optim.sign import norms_of, safe_inverse
from optscope.probes.rule_in_use import bounded, holds_some, one, present, rule_in_use, steps_made, threshold
from optscope.tasks.snapshot import Snapshot
from optscope.vector import Layout

SECOND_MOMENTS = ("v", "max_exp_avg_sq", "exp_avg_sq", "square_avg")
"""Where rules and torch's optimisers keep the running mean of the squared gradient."""


def adaptive(rule: Rule | None) -> Rule | None:
    """Return the rule inside schedules, decay and rounding when it divides by a preconditioner, else None.

    `ByKind` does, if each of its parts has a threshold, and `Graft`, if its direction has one.
    """
    inner = None if rule is None else bare(rule)[0]
    if isinstance(inner, (ByKind, Graft)):
        return inner if bounded(inner) else None
    return inner if isinstance(inner, (Adam, RMSProp, Preconditions)) else None


def preconditioner(snapshot: Snapshot, layout: Layout, gradient: Tensor) -> Preconditioner | None:
    """Return the P by which an adaptive rule divides the gradient, or None before its first step.

        RMSProp: P = √v + eps        Adam: P = (1 − beta1ᵗ) (√(v/(1 − beta2ᵗ)) + eps)         on the diagonal

    The first factor is the bias correction of Adam's momentum (arXiv 2207.14484). Shampoo, SOAP, LARS and LAMB say
    theirs for each layer, LARS that of this gradient `(P,)`. P acts on flat vectors of the layers of `layout`. One
    that never had a gradient, not even 0, does not move: its P is infinite (RMSProp counts no steps, so that it is
    eps there, where H is 0).

    Under `ByKind` a part's P (the identity for SGD and Momentum) is multiplied by its threshold T over that of the
    first part. So one number tells of all: on a quadratic growth sets in where every part changes its sign a step,
    which for a part is where its rows of H w are T P w. (At any other point of the unit circle the imaginary parts
    of what the parts ask of wᵀHw have one sign.)

    `Graft` has its direction's P over ‖M‖/‖D‖ of each layer, the lengths of both rules' steps from this gradient.

    Raises:
        UserError: without a live optimiser of this model, when it is none of these, or keeps no second moment.
    """
    rule, optimizer = rule_in_use(snapshot), snapshot.optimizer
    inner = adaptive(rule)
    if optimizer is None or rule is None or inner is None:
        got = type(optimizer).__name__ if optimizer else f"no optimiser, and {snapshot.rule!r}"
        raise UserError("preconditioned sharpness needs the live Adam, AdamW, RMSProp, Shampoo, SOAP, LARS, LAMB, "
                        "ByKind of these or Graft in the direction of one that trains the model, with one set of "
                        f"numbers; got {got}: measure TopEigenvalues instead")
    if not holds_some(snapshot):
        raise UserError("preconditioned sharpness needs the model that its optimiser steps; "
                        f"{type(optimizer).__name__} holds no parameter of this one: measure the other, and not a "
                        "copy or an average of it")
    named, grads = dict(snapshot.model.named_parameters()), layout.views(gradient)
    layers = [(name, named[name].detach(), _state(optimizer, named[name]), g)
              for name, g in zip(layout.names, grads, strict=True)]
    parts: list[Preconditioner | None] = [None] * len(layers)
    for own, numbers, share in _shares(rule, steps_made(snapshot), layout):
        found = _parts(own, [layers[i] for i in numbers])
        if not any(found) or share == 0:
            return None
        for i, part in zip(numbers, found, strict=True):
            parts[i] = part if part is None or share == 1 else part.times(share)
    return Preconditioner.joined(layout, parts, gradient)


def _shares(rule: Rule, step: int, layout: Layout) -> Iterator[tuple[Rule, Sequence[int], float]]:
    """Yield each rule in use, the numbers of its layers, and its threshold over that of the whole rule."""
    now = present(rule, step)[0] or bare(rule)[0]  # while the rate is 0, shares are those of rates to come
    if not isinstance(now, ByKind):
        yield now, range(len(layout.names)), 1.0
        return
    for _, own, numbers, _ in now.rules_in(layout):
        yield present(own, step)[0] or bare(own)[0], numbers, threshold(own, step) / threshold(now, step)


_Layer = tuple[str, Tensor, State, Tensor]
"""Name, weights, state and gradient."""


def _parts(rule: Rule, layers: Sequence[_Layer]) -> list[Preconditioner | None]:
    """Return a rule's P of each layer, None for an infinite one."""
    if isinstance(rule, Graft):
        return _grafted(rule, layers)
    if isinstance(rule, Preconditions):
        return [rule.preconditioner(state, p, g) if state else None for _, p, state, g in layers]
    if not isinstance(rule, (Adam, RMSProp)):
        return [Preconditioner(torch.clone)] * len(layers)
    counts = {name: step if isinstance(step := state["step"], Tensor) else torch.tensor(step, device="cpu")
              for name, _, state, _ in layers if "step" in state}
    steps = dict(zip(counts, to_floats(*counts.values()), strict=True))
    found = [_diagonal(rule, name, state, steps.get(name, 0.0)) if state else torch.full_like(p, math.inf)
             for name, p, state, _ in layers]
    smallest = to_floats(torch.stack([d.min() for d in found if d.numel()]).min())[0]
    if not smallest > 0:
        raise UserError(f"a preconditioner must hold positive numbers; got {smallest:g}")
    return [None if math.isinf(smallest) else Preconditioner.diagonal(d) for d in found]


def _grafted(rule: Graft, layers: Sequence[_Layer]) -> list[Preconditioner | None]:
    if not all(state for _, _, state, _ in layers):
        return [None] * len(layers)
    params, grads = [p for _, p, _, _ in layers], [g for *_, g in layers]
    lengths = []
    for part, name in ((rule.magnitude, "magnitude"), (rule.direction, "direction")):
        steps = [torch.zeros_like(p) for p in params]
        part.add_step_(steps, grads, copy.deepcopy([state[name] for _, _, state, _ in layers]), params)
        lengths.append(norms_of(steps))
    shrunk = (lengths[0] * safe_inverse(lengths[1])).reciprocal().unbind()
    found = _parts(bare(rule.direction)[0], [(name, p, _innermost(state["direction"]), g)
                                             for name, p, state, g in layers])
    return [None if part is None else part.times(factor) for part, factor in zip(found, shrunk, strict=True)]


def live_mean(snapshot: Snapshot, layout: Layout, like: Tensor) -> Tensor | None:
    """Return the live optimiser's mean of gradients "m", `(P,)`, 0 where there was no step; None without one."""
    if snapshot.optimizer is None:
        return None
    named = dict(snapshot.model.named_parameters())
    parts = [_state(snapshot.optimizer, named[name]).get("m", torch.zeros_like(named[name])).reshape(-1)
             for name in layout.names]
    return torch.cat(parts).to(like)


def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> State:
    """Return what is remembered of a parameter."""
    return _innermost(optimizer.state.get(parameter, {}))


def _innermost(state: State) -> State:
    while "rule" in state:  # a combinator's state holds its rule's
        state = state["rule"]
    return state


def _diagonal(rule: Adam | RMSProp, name: str, state: State, t: float) -> Tensor:
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
