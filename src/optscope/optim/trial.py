"""Trial steps: what an optimiser does that its class does not say, found before anything is trained."""

from __future__ import annotations

import dataclasses
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from optscope.devices import forked
from optscope.errors import UserError
from optscope.optim.adaptive import AdamW
from optscope.optim.foreign import Foreign
from optscope.optim.kinds import layout_of
from optscope.optim.rates import has_modes, set_mode
from optscope.optim.rule import Rule, State
from optscope.optim.torch_bridge import as_real
from optscope.vector import Layout

STEPS, LONG = 3, 24
"""How many steps are tried on a model, and on two small tensors, where they cost next to nothing."""
SAME = 1e-6
"""How far two steps of one algorithm from the same float64 numbers may differ, relative to their length."""
SMALL = torch.linspace(-1, 1, 6).double().reshape(3, 2), torch.linspace(0.5, 1, 3).double()
"""The two small tensors."""

Gradients = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]
"""What a trial asks for: gradients at given weights, one a tensor, in any dtype."""


def check_on(rule: Rule, model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
    """Raise unless every foreign optimiser inside a combinator makes the same steps there as alone.

    In Graft, Rounded and other combinators a `Foreign` is made anew at every step from its state dict. One that
    keeps something elsewhere, draws random numbers, or has train and eval modes would be another algorithm there.
    Its pure step is compared with its own for three steps on `model`, and for 24 on two small tensors, in float64
    and from the same weights, gradients and random numbers. Rules without a Foreign, and a Foreign that stands
    alone, cost nothing and always pass.

    `model` is used up: hand over a copy, or a fresh one. `loss(model)` returns the loss of a batch, with its graph.

    Raises:
        UserError: one sentence with what differs and what to use instead.
    """
    if isinstance(rule, Foreign):
        return
    for inner in rule.walk():
        if isinstance(inner, Foreign):
            fault = pure_fault(inner, model, loss)
            if fault:
                raise UserError(f"{inner!r} cannot be used inside {type(rule).__name__}, where only the change "
                                f"that it makes to the weights is taken: {fault}; use it by itself")


def pure_fault(rule: Foreign, model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> str:
    """Return why the pure step of an optimiser is not its own on this model, or "" when it is: see `check_on`."""
    if rule.way.alone:
        return rule.way.alone
    layout = layout_of(model)
    where = [i for i, shape in enumerate(layout.shapes) if len(shape) == 2 or not rule.way.matrices]
    trained = [p for p in model.parameters() if p.requires_grad]
    params = [trained[i] for i in where]

    def gradients(weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        with torch.no_grad():
            for p, w in zip(params, weights, strict=True):
                p.copy_(w)
        model.zero_grad()
        loss(model).backward()
        return [p.grad for p in params]

    small = SMALL[:1] if rule.way.matrices else SMALL
    return (_fault(rule, [p.detach() for p in params], layout.take(where), gradients, STEPS)
            or _fault(rule, small, Layout.of(small), slope, LONG))


def slope(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the gradients of a small loss that is no quadratic, Σ w²/2 + sin 3w."""
    return [w + 3 * torch.cos(3 * w) for w in weights]


def _fault(rule: Foreign, start: Sequence[Tensor], layout: Layout, gradients: Gradients, steps: int) -> str:
    weights = [nn.Parameter(w.clone().to(torch.complex128 if w.is_complex() else torch.float64)) for w in start]
    with own_stream(0):
        try:
            itself = rule.of_tensors(weights, layout)
        except Exception:  # alone it cannot be made of them either: no matter of its pure form
            return ""
        if has_modes(itself):
            return "it has train and eval modes, between which the weights differ"
        real = [as_real(w) for w in weights]
        states = rule.begin(real, Layout.of_layers(layer._replace(shape=w.shape)
                                                   for layer, w in zip(layout.layers, real, strict=True)))
        for _ in range(steps):
            before = [w.detach().clone() for w in weights]
            given = [None if g is None else g.to(w.dtype) for g, w in zip(gradients(before), weights, strict=True)]
            drawn = torch.get_rng_state()
            for w, g in zip(weights, given, strict=True):
                w.grad = None if g is None else g.clone()
            try:
                itself.step()
            except Exception as error:
                alone = _steps_alone(rule, start, layout, given)
                return f"of float64 weights, which are used there, it says {_said(error)}" if alone else ""
            if not torch.equal(drawn, torch.get_rng_state()):
                return "it draws random numbers, and others there"
            own = [w.detach() - b for w, b in zip(weights, before, strict=True)]
            try:
                pure = _pure(rule, before, given, states)
            except Exception as error:
                return f"made anew from its state dict, it stops with {_said(error)}"
            length = max((float(s.norm()) for s in own), default=0.0)
            apart = max((float((a - b).norm()) for a, b in zip(own, pure, strict=True)), default=0.0)
            if apart > SAME * length:
                return "made anew from its state dict, its step is another one, for it keeps something elsewhere"
    return ""


def _steps_alone(rule: Foreign, start: Sequence[Tensor], layout: Layout,
                 grads: Sequence[Tensor | None]) -> bool:
    """Return whether an optimiser can step weights of the dtype they have."""
    weights = [nn.Parameter(w.clone()) for w in start]
    for w, g in zip(weights, grads, strict=True):
        w.grad = None if g is None else g.to(w.dtype)
    try:
        rule.of_tensors(weights, layout).step()
    except Exception:
        return False
    return True


def _said(error: Exception) -> str:
    return f"{type(error).__name__} ({' '.join(str(error).split()) or 'no reason given'})"


def _pure(rule: Foreign, params: Sequence[Tensor], grads: Sequence[Tensor | None],
          states: Sequence[State]) -> list[Tensor]:
    """Return the steps that `rule` makes in place, advancing `states`; zeros for tensors without a gradient."""
    steps = [torch.zeros_like(p) for p in params]
    there = [i for i, g in enumerate(grads) if g is not None]
    rule.add_step_([as_real(steps[i]) for i in there], [as_real(g) for g in grads if g is not None],
                   [states[i] for i in there], [as_real(params[i]) for i in there])
    return steps


def holds_foreign(rule: Rule) -> bool:
    """Return whether an optimiser of another author takes part in a rule."""
    return any(isinstance(inner, Foreign) for inner in rule.walk())


def notes(rule: Rule) -> list[str]:
    """Return what a reader of a comparison should know of a rule and would not guess, one sentence each.

    Measured on a small problem: whether a tenth of the learning rate makes other steps at all, and whether the
    rate is read again after the first step, without which schedules do nothing. Read: a weight decay that is not 0
    though nobody asked for it, and train and eval modes. It takes milliseconds, and no model.

    >>> notes(Foreign("torch.optim:AdamW"))
    ["Foreign('torch.optim.adamw:AdamW') decays weights by 0.01, its default."]
    """
    found = []
    for inner in rule.walk():
        if isinstance(inner, AdamW) and inner.decay == _default(inner, "decay"):
            found.append(f"{inner!r} decays weights by {inner.decay}, its default.")
        if isinstance(inner, Foreign):
            found += [f"{inner!r} {words}" for words in (*_rate_notes(inner), *_kind_notes(inner))]
    return list(dict.fromkeys(found))


def _rate_notes(rule: Foreign) -> Iterator[str]:
    plain, later, tenth = (_path(rule, *factors) for factors in ((1.0, 1.0), (1.0, 0.1), (0.1, 1.0)))
    if plain is None or later is None:
        return
    if _near(plain, tenth):
        yield "makes the same steps at a tenth of its learning rate: tuning the rate and schedules do nothing."
    elif _near(plain, later):
        yield "reads its learning rate at its first step only: schedules do nothing after it."


def _kind_notes(rule: Foreign) -> Iterator[str]:
    optimizer = rule.small()
    decay = optimizer.param_groups[0].get("weight_decay")
    if decay and "weight_decay" not in dict(rule.options):
        yield f"decays weights by {decay}, its default."
    if has_modes(optimizer):
        yield ("is measured at the weights of its eval mode; batch normalisation keeps the statistics of those it "
               "trains with.")


def _path(rule: Foreign, first: float, later: float) -> Tensor | None:
    """Return where the long trial leads at `first` times the rate, after one step times `later`; or None."""
    small = SMALL[:1] if rule.way.matrices else SMALL
    weights = [nn.Parameter(w.clone()) for w in small]
    with own_stream(0):
        try:
            at_rate = rule if first == 1 else rule.with_(lr=rule.lr * first)  # type: ignore[operator]
            optimizer = at_rate.of_tensors(weights, Layout.of(weights))
            set_mode(optimizer, "train")
            for t in range(LONG):
                for w, g in zip(weights, slope([w.detach() for w in weights]), strict=True):
                    w.grad = g
                for group in optimizer.param_groups if t == 1 else ():
                    group["lr"] *= later
                optimizer.step()
        except Exception:
            return None
    moves = torch.cat([(w.detach() - s).reshape(-1) for w, s in zip(weights, small, strict=True)])
    return moves if bool(moves.any()) else None


def _near(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and float((a - b).norm()) <= SAME * float(a.norm())


def takes(rule: Rule, model: nn.Module) -> bool:
    """Return whether a rule can step all layers of a model; one that steps matrices alone is for some of them."""
    try:
        rule.check_layers(layout_of(model))
    except UserError:
        return False
    return True


def draws_elsewhere(rule: Rule) -> bool:
    """Return whether a foreign optimiser draws random numbers from NumPy's or Python's global generator.

    Of one that steps in training only it is not known, and counts as so.
    """
    if any(isinstance(inner, Foreign) and inner.way.alone for inner in rule.walk()):
        return True
    kept = np.random.get_state(), random.getstate()
    before = pickle.dumps(kept)
    try:
        for inner in rule.walk():
            if isinstance(inner, Foreign):
                _path(inner, 1.0, 1.0)
        return pickle.dumps((np.random.get_state(), random.getstate())) != before
    finally:
        np.random.set_state(kept[0])
        random.setstate(kept[1])


def _default(rule: Rule, name: str) -> object:
    return next(f.default for f in dataclasses.fields(rule) if f.name == name)


@contextmanager
def own_stream(seed: int) -> Iterator[None]:
    """Seed torch's global generator, and leave it as it was."""
    with forked():
        torch.manual_seed(seed)
        yield
