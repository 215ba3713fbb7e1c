"""Forms of momentum, the SGD that matches them, and SVAG: against torch, exact couplings and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.optim import SGD, SVAG, Adam, Decayed, Foreign, Momentum, Rule, Scheduled, StepDecay, matched
from optscope.optim.momentum import AveragedSchedule, averaged, momentum_of, practical
from optscope.probes.gradient_noise import effective_rate
from optscope.probes.rule_in_use import threshold
from optscope.tasks.fresh import epoch_permutation, fresh_model, streams
from optscope.theory.momentum import coupled
from optscope.vector import Layout
from tiny import TASK

LAYOUT = Layout(("w",), (torch.Size([5]),))


def gradients(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def path(rule: Rule, grads: torch.Tensor) -> torch.Tensor:
    """Return the weights after each step on gradients that do not depend on them, from zero."""
    params = torch.zeros(5, dtype=torch.float64)
    state, points = rule.init(params, LAYOUT), []
    for grad in grads:
        step, state = rule.update(grad, state, params, LAYOUT)
        params = params + step
        points.append(params)
    return torch.stack(points)


def torch_path(grads: torch.Tensor, **options: float) -> torch.Tensor:
    weight = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer, points = torch.optim.SGD([weight], **options), []
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        points.append(weight.detach().clone())
    return torch.stack(points)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_both_forms_and_torch_move_alike(beta):
    grads, eta = gradients(60), 0.3
    ours = path(Momentum(lr=eta, beta=beta), grads)
    torch.testing.assert_close(ours, path(SGD(lr=eta * (1 - beta), momentum=beta), grads), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours, torch_path(grads, lr=eta * (1 - beta), momentum=beta), rtol=0, atol=1e-13)


def test_both_forms_move_alike_under_a_schedule():
    grads = gradients(60)
    decay = StepDecay(at=(0.5,))
    ours, other = (path(Scheduled(rule, decay, 60), grads)
                   for rule in (Momentum(lr=0.3, beta=0.8), SGD(lr=0.06, momentum=0.8)))
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-13)


def test_dampening_is_a_trap():
    """torch's first buffer is undamped: the first step is too long, and the surplus stays for ever."""
    beta, eta, grads = 0.9, 0.3, gradients(400)
    ours = path(Momentum(lr=eta, beta=beta), grads)
    theirs = torch_path(grads, lr=eta, momentum=beta, dampening=beta)
    torch.testing.assert_close(theirs[0], ours[0] / (1 - beta))
    torch.testing.assert_close(theirs[-1] - ours[-1], -eta * beta / (1 - beta) * grads[0], rtol=1e-9, atol=0)
    assert (theirs[-1] - ours[-1]).norm() > 1


def test_conversions_are_each_others_inverse():
    rule = Momentum(lr=0.5, beta=0.75)
    assert practical(rule) == SGD(lr=0.125, momentum=0.75)
    assert averaged(practical(rule)) == rule
    assert matched(rule) == matched(practical(rule)) == SGD(lr=0.5)
    assert matched(Decayed(rule, decay=0.1)) == Decayed(SGD(lr=0.5), decay=0.1)
    assert matched(SGD(lr=0.1, momentum=0.9, nesterov=True)).lr == pytest.approx(1.0)
    assert momentum_of(Scheduled(Decayed(practical(rule), 0.1), StepDecay(), 10)) == 0.75
    assert effective_rate(rule) == 0.5
    assert threshold(rule) == pytest.approx(threshold(practical(rule)), rel=1e-15)


@pytest.mark.parametrize("rule", [Momentum(lr=0.2, beta=0.8), SGD(lr=0.04, momentum=0.8)])
def test_the_matched_schedule_makes_the_coupling_exact(rule):
    """y = x − η̄ β/(1 − β) m moves as matched SGD does, whatever the schedule."""
    steps, beta = 50, 0.8
    decay = StepDecay(at=(0.4, 0.7), factor=0.1)
    grads = gradients(steps)
    x = path(Scheduled(rule, decay, steps), grads)
    z = path(matched(Scheduled(rule, decay, steps)), grads)
    m = -path(Momentum(lr=1.0, beta=beta), grads).diff(dim=0, prepend=torch.zeros(1, 5, dtype=torch.float64))
    factors = AveragedSchedule(decay, beta, steps)
    for k in range(1, steps):
        y = coupled(x[k - 1].numpy(), m[k - 1].numpy(), 0.2 * factors(k / steps), beta)
        np.testing.assert_allclose(y, z[k - 1].numpy(), rtol=0, atol=1e-12)
    assert (x - z).abs().max() > 0.01


def test_the_averaged_schedule_is_the_paper_s_sum():
    schedule, beta, steps = StepDecay(at=(0.3,), factor=0.5), 0.7, 20
    averages = AveragedSchedule(schedule, beta, steps)
    for k in range(steps):
        far = [schedule(min(s, steps - 1) / steps) * beta ** (s - k) for s in range(k, k + 200)]
        assert averages(k / steps) == pytest.approx((1 - beta) * sum(far), abs=1e-12)


def test_nesterov_moves_as_far_as_its_matched_rate_says():
    grads = torch.ones(300, 5, dtype=torch.float64)
    x = path(SGD(lr=0.01, momentum=0.9, nesterov=True), grads)
    assert float((x[-1] - x[-2])[0]) == pytest.approx(-0.1, rel=1e-9)


@pytest.mark.parametrize("level", [1, 2, 7])
def test_svag_coefficients_keep_the_mean_and_amplify_the_covariance(level):
    r1, r2 = SVAG(SGD(lr=0.1), level).coefficients
    assert r1 + r2 == pytest.approx(1, abs=1e-15)
    assert r1**2 + r2**2 == pytest.approx(level, rel=1e-14)


@pytest.mark.parametrize("rule", [SGD(lr=0.3), Momentum(lr=0.3), Adam(lr=0.01),
                                  Foreign("torch.optim:NAdam", lr=0.1)])
def test_svag_is_the_rule_on_combined_gradients(rule):
    """One small inner step from each two gradients, which are taken at the same weights."""
    level, grads = 3, gradients(40)
    ours = path(SVAG(rule, level), grads)
    r1, r2 = (1 - math.sqrt(5)) / 2, (1 + math.sqrt(5)) / 2
    inner = path(rule.with_(lr=rule.lr / level), r1 * grads[::2] + r2 * grads[1::2])
    torch.testing.assert_close(ours[1::2], inner, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[2::2], ours[1:-1:2], rtol=0, atol=0)


def test_svag_in_training_is_a_plain_loop_over_pairs_of_batches():
    level, plan, seed = 2, Plan(epochs=4, batch=16, schedule=StepDecay(at=(0.5,))), 3
    trained = train(TASK, SVAG(SGD(lr=0.5), level), plan, seed).snapshot.model
    model, data = fresh_model(TASK, seed), TASK.data().train
    batches = [b for epoch in range(4) for b in epoch_permutation(96, streams(seed)[1], epoch).split(16)]
    r1, r2 = SVAG(SGD(lr=1.0), level).coefficients
    for k in range(0, len(batches), 2):
        first, second = (nn.functional.cross_entropy(model(data.inputs[b]), data.targets[b])
                         for b in batches[k:k + 2])
        grads = torch.autograd.grad(r1 * first + r2 * second, list(model.parameters()))
        rate = 0.5 / level * plan.schedule((k + 1) / len(batches))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= rate * g
    for ours, obvious in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, obvious, rtol=0, atol=1e-6)


def test_svag_of_many_levels_covers_the_same_time():
    """Over 2 l times the epochs, a steady gradient moves the weights as far as plain training does."""
    for level in (1, 3):
        grads = torch.ones(2 * level * 10, 5, dtype=torch.float64)
        assert float(path(SVAG(SGD(lr=0.1), level), grads)[-1][0]) == pytest.approx(-1.0)


@pytest.mark.parametrize(("make", "says"), [
    (lambda: Momentum(lr=0.0), "lr must be a finite number > 0"),
    (lambda: Momentum(lr=0.1, beta=1.0), "beta must be a finite number >= 0 and < 1"),
    (lambda: SVAG(SGD(lr=0.1), level=0), "level must be a whole number >= 1"),
    (lambda: SVAG(SGD(lr=0.1), level=True), "level must be a whole number >= 1"),
    (lambda: matched(Adam(lr=0.1)), "can be matched to SGD or Momentum"),
    (lambda: matched(SGD(lr=(0.1, 0.2))), "one rule at a time"),
    (lambda: averaged(SGD(lr=0.1, momentum=0.9, nesterov=True)), "Nesterov's momentum has no averaged form"),
])
def test_bad_input_is_refused_in_one_sentence(make, says):
    with pytest.raises(UserError, match=says):
        make()
