"""Param groups with different numbers: their threshold, against the dense matrices of the linearised steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from optscope import Task
from optscope.optim import AdamW, ByKind
from optscope.probes.edge import EdgeOfStability
from optscope.probes.rule_in_use import rule_in_use
from optscope.tasks.snapshot import Snapshot


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def waves():
    x = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)).double()
    y = torch.sin(6 * x[:, :1])
    return Task.from_tensors(network, (x, y), (x, y), validation=(x, y), kind="regression", bounds=None)


def groups(model, **second):
    """Matrices with the optimiser's own numbers, biases with others."""
    pairs = list(model.named_parameters())
    return [{"params": [p for name, p in pairs if name.endswith("weight")]},
            {"params": [p for name, p in pairs if name.endswith("bias")], **second}]


def trained(make, steps=20):
    """Return a network after some steps in full batches, its optimiser, and its data."""
    torch.manual_seed(3)
    task, model = waves(), network()
    optimizer = make(model)
    batch = task.data().train
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch.inputs), batch.targets).backward()
        optimizer.step()
    return task, model, optimizer, batch


def hessian(model, batch):
    """Return the Hessian of the loss, (P, P), its parameters in their order."""
    names = [name for name, _ in model.named_parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(weights):
        parts = torch.split(weights, [p.numel() for p in model.parameters()])
        views = {name: part.view_as(p) for name, part, p in zip(names, parts, model.parameters(), strict=True)}
        return nn.functional.mse_loss(torch.func.functional_call(model, views, (batch.inputs,)), batch.targets)

    return torch.autograd.functional.hessian(loss, flat).numpy()


def by_parameter(model, optimizer, of):
    """Return what `of` says of a parameter and its group, repeated for each of its weights."""
    return np.concatenate([np.broadcast_to(of(p, group), p.shape).reshape(-1) for p in model.parameters()
                           for group in optimizer.param_groups if any(p is each for each in group["params"])])


def second_moment(optimizer):
    def of(p, group):
        state, (beta1, beta2) = optimizer.state[p], group["betas"]
        t = float(state["step"])
        return (1 - beta1**t) * ((state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]).numpy()
    return of


ADAMW = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 5.0}
CASES = {
    "no decay of biases": (lambda m: torch.optim.AdamW(groups(m, weight_decay=0.0), **ADAMW), True),
    "another rate too": (lambda m: torch.optim.AdamW(groups(m, weight_decay=0.0, lr=0.03), **ADAMW), True),
    "another momentum": (lambda m: torch.optim.AdamW(groups(m, betas=(0.5, 0.99)), **ADAMW), True),
    "L2 of SGD": (lambda m: torch.optim.SGD(groups(m, weight_decay=0.0, lr=0.2), lr=0.05, momentum=0.8,
                                            weight_decay=2.0), False),
}


@pytest.mark.parametrize(("make", "is_adam"), CASES.values(), ids=CASES)
def test_the_ratio_is_where_the_linearised_steps_have_a_multiplier_of_minus_one(make, is_adam):
    task, model, optimizer, batch = trained(make)
    reading = EdgeOfStability(rel=1e-6, examples=40)(Snapshot(model, task, 0, 20, optimizer=optimizer))
    assert reading.silence == ""
    ratio = reading.values["sharpness / threshold"]
    H, n = hessian(model, batch), sum(p.numel() for p in model.parameters())
    rate = by_parameter(model, optimizer, lambda p, g: g["lr"])
    decay = by_parameter(model, optimizer, lambda p, g: g["weight_decay"])
    kept = by_parameter(model, optimizer, lambda p, g: g["betas"][0] if is_adam else g["momentum"])
    P = by_parameter(model, optimizer, second_moment(optimizer)) if is_adam else np.ones(n)

    def multipliers(share):
        """Return those of w, m -> the next on the quadratic with Hessian `share` H, P held still."""
        new = (1 - kept) if is_adam else np.ones(n)
        slope = share * H if is_adam else share * H + np.diag(decay)
        shrunk = 1 - rate * decay if is_adam else np.ones(n)
        on_m = np.hstack([new[:, None] * slope, np.diag(kept)])
        step = (rate / P)[:, None] * on_m
        return np.linalg.eigvals(np.vstack([np.hstack([np.diag(shrunk), np.zeros((n, n))]) - step, on_m]))

    assert np.abs(multipliers(1 / ratio) + 1).min() < 1e-4
    real = multipliers(0.99 / ratio)
    assert real[np.abs(real.imag) < 1e-9].real.min() > -1  # none was beyond before
    real = multipliers(1.01 / ratio)
    assert real[np.abs(real.imag) < 1e-9].real.min() < -1


def test_the_rule_is_that_of_its_groups_and_none_where_one_is_none():
    task, model, optimizer, _ = trained(CASES["no decay of biases"][0], steps=1)
    snapshot = Snapshot(model, task, 0, 1, optimizer=optimizer)
    rule = rule_in_use(snapshot)
    assert isinstance(rule, ByKind)
    assert [part for _, part in rule.parts] == [AdamW(0.01, 0.9, 0.99, 1e-8, decay) for decay in (5.0, 0.0)]
    assert repr(rule).startswith("ByKind((param group 1, AdamW(")
    optimizer.param_groups[1]["maximize"] = True
    assert rule_in_use(snapshot) is None
    assert "for AdamW as it is set" in EdgeOfStability()(snapshot).silence
    optimizer.param_groups[1]["maximize"] = False
    optimizer.param_groups[1]["params"].clear()  # which training leaves as they are
    assert [part for _, part in rule_in_use(snapshot).parts] == [AdamW(0.01, 0.9, 0.99, 1e-8, 5.0)]
