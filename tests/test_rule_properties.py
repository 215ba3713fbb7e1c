"""What makes each rule the rule it is, on random gradients."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from optscope.optim import SGD, Adam, Graft, NormalizedSGD, RMSProp, SignSGD
from optscope.vector import Layout
from test_rules import ROWS, run_pure, tensors

seeds = st.integers(0, 2**31 - 1)
scales = st.floats(1e-6, 1e6)
some_rules = st.sampled_from([SGD(lr=0.1), SGD(lr=0.1, momentum=0.9), SignSGD(lr=0.01), RMSProp(lr=0.01),
                              Adam(lr=0.01), NormalizedSGD(lr=0.1)])
LAYOUT = Layout.of(tensors())


def vector(seed: int) -> torch.Tensor:
    return torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_step(rule, grad, params=None):
    params = vector(0) if params is None else params
    return rule.update(grad, rule.init(params, LAYOUT), params, LAYOUT)[0]


@given(seeds, st.sampled_from([row.rule for row in ROWS]), st.sampled_from(["layer", "model"]))
def test_a_rule_grafted_on_itself_is_itself(seed, rule, per):
    start = vector(seed)
    torch.testing.assert_close(run_pure(Graft(rule, rule, per=per), start, LAYOUT, steps=3),
                               run_pure(rule, start, LAYOUT, steps=3), rtol=1e-10, atol=1e-12)


@given(seeds, some_rules, some_rules)
def test_graft_has_the_length_of_one_and_the_direction_of_the_other(seed, magnitude, direction):
    grad = vector(seed)
    m, d = first_step(magnitude, grad), first_step(direction, grad)
    by_layer = first_step(Graft(magnitude, direction), grad)
    whole = first_step(Graft(magnitude, direction, per="model"), grad)
    torch.testing.assert_close(LAYOUT.norms(by_layer), LAYOUT.norms(m))
    torch.testing.assert_close(whole.norm(), m.norm())
    for step, goal in zip(LAYOUT.views(by_layer), LAYOUT.views(d), strict=True):
        torch.testing.assert_close(step / step.norm(), goal / goal.norm())
    torch.testing.assert_close(whole / whole.norm(), d / d.norm())


@given(seeds, scales)
def test_sign_and_normalised_steps_ignore_the_gradients_scale(seed, scale):
    grad = vector(seed)
    for rule in (SignSGD(lr=0.1), NormalizedSGD(lr=0.1), NormalizedSGD(lr=0.1, per="model")):
        scaled, plain = first_step(rule, scale * grad), first_step(rule, grad)
        torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-12)


@given(seeds)
def test_normalised_steps_have_length_lr(seed):
    grad = vector(seed)
    by_layer = LAYOUT.norms(first_step(NormalizedSGD(lr=0.1), grad))
    whole = first_step(NormalizedSGD(lr=0.1, per="model"), grad).norm()
    torch.testing.assert_close(by_layer, torch.full((4,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(whole, torch.tensor(0.1, dtype=torch.float64))


def test_a_zero_gradient_makes_no_step():
    zero = torch.zeros(LAYOUT.size, dtype=torch.float64)
    for rule in (SignSGD(lr=0.1), NormalizedSGD(lr=0.1), NormalizedSGD(lr=0.1, per="model"),
                 Graft(Adam(lr=0.1), SGD(lr=1.0))):
        assert torch.equal(first_step(rule, zero), zero)


@given(seeds)
def test_descent_commutes_with_rotations_and_adam_does_not(seed):
    n = 6
    layout = Layout(("w",), (torch.Size([n]),))
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    matrix = torch.randn(n, n, generator=g, dtype=torch.float64)
    hessian = matrix @ matrix.T / n
    start = torch.randn(n, generator=g, dtype=torch.float64)

    def train(rule, turned):
        h = rotation @ hessian @ rotation.T if turned else hessian
        w = rotation @ start if turned else start
        state = rule.init(w, layout)
        for _ in range(10):
            step, state = rule.update(h @ w, state, w, layout)
            w = w + step
        return w

    for rule in (SGD(lr=0.05), SGD(lr=0.05, momentum=0.9), NormalizedSGD(lr=0.05)):
        torch.testing.assert_close(train(rule, True), rotation @ train(rule, False), rtol=1e-8, atol=1e-10)
    for rule in (Adam(lr=0.05), SignSGD(lr=0.05), RMSProp(lr=0.05)):
        assert (train(rule, True) - rotation @ train(rule, False)).norm() > 1e-3
