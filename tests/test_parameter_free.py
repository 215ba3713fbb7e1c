"""Rules that find their learning rate: how far d grows, and which gradients it is found from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optscope.optim import DAdaptAdam, DAdaptSGD, Prodigy
from optscope.vector import Layout

RULES = (Prodigy(d0=1e-3), DAdaptSGD(d0=1e-3), DAdaptAdam(d0=1e-3))
rules = pytest.mark.parametrize("rule", RULES, ids=repr)
ONE = Layout(("w",), (torch.Size([1]),))


def distance_found(rule):
    """Return d after 400 steps on |w − 100| from 0."""
    w, state = torch.zeros(1).double(), rule.init(torch.zeros(1).double(), ONE)
    for _ in range(400):
        step, state = rule.update((w - 100).sign(), state, w, ONE)
        w = w + step
    return float(state["d"])


@pytest.mark.parametrize(("rule", "largest"), [(Prodigy(), 100), (DAdaptSGD(momentum=0.0), 200)], ids=repr)
def test_d_grows_to_the_order_of_the_distance_and_not_over_its_bound(rule, largest):
    assert 20 < distance_found(rule) <= largest


def test_momentum_lets_d_grow_over_the_bound():
    assert distance_found(DAdaptSGD()) == pytest.approx(469, abs=1)


def shared(optimizer, params):
    return {float(optimizer.state[p]["d"]) for p in params}


def train(optimizer, params, steps, targets=(3.0, -5.0, 2.0)):
    """Step on Σ cosh(p − target); parameters beyond the targets have no gradient."""
    for _ in range(steps):
        for p, target in zip(params, targets, strict=False):
            p.grad = (p.detach() - target).sinh().clamp(-9, 9)
        optimizer.step()
        for p in params:
            p.grad = None


def made():
    return [nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (2, 3, 1)]


@rules
def test_a_tensor_without_gradients_is_as_if_it_were_not_there(rule):
    first, second = made(), made()[:2]
    for params in (first, second):
        train(rule.optimizer(params), params, 30, targets=(3.0, -5.0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=False))
    assert torch.equal(first[2], torch.zeros(1).double())
    assert float(first[0].detach().abs().max()) > 0.01


@rules
def test_gradients_may_come_and_go(rule):
    """A tensor that pauses keeps its weights to the bit, and comes back with the d that others found."""
    params = made()
    optimizer = rule.optimizer(params)
    train(optimizer, params, 5)
    kept, at_first = params[2].detach().clone(), shared(optimizer, params)
    train(optimizer, params, 40, targets=(3.0, -5.0))
    assert torch.equal(params[2], kept)
    later = shared(optimizer, params)
    assert len(at_first) == len(later) == 1
    assert max(later) > 2 * max(at_first)
    train(optimizer, params, 1)
    assert float((params[2] - kept).abs().detach()) > 0
    assert min(shared(optimizer, params)) >= max(later)


@rules
def test_a_tensor_that_begins_later_takes_the_d_of_the_others(rule):
    params = made()
    params[2].requires_grad_(False)
    optimizer = rule.optimizer(params)
    train(optimizer, params, 40, targets=(3.0, -5.0))
    found = max(shared(optimizer, params[:2]))
    params[2].requires_grad_()
    train(optimizer, params, 1)
    assert found > 2e-3
    assert len(shared(optimizer, params)) == 1
    assert max(shared(optimizer, params)) >= found


@rules
def test_gradients_of_zero_are_waited_out(rule):
    """‖g₀‖₂ is that of the first gradient that is not 0."""
    params = made()
    optimizer = rule.optimizer(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert shared(optimizer, params) == {rule.d0}
    assert all(torch.equal(p, torch.zeros_like(p)) for p in params)
    train(optimizer, params, 40)
    assert 2e-3 < max(shared(optimizer, params)) < 100
