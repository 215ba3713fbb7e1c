"""What is known in closed form of single rules: noise, stability, cycles, and what a penalty minimises."""

from __future__ import annotations

import math

import pytest
import torch

from optscope.errors import UserError
from optscope.optim import (
    MARS,
    PNM,
    SAM,
    SGD,
    Adafactor,
    Extrapolated,
    GradientPenalty,
    ImplicitSGD,
    MAdam,
    Momentum,
    Noisy,
    RelativeClip,
    Shampoo,
)
from optscope.optim.positive_negative import signal_gain
from optscope.vector import Layout


def path(rule, gradient, start, steps):
    layout = Layout(("w",), (torch.Size([start.shape[-1]]),))
    w, state = start, rule.init(start, layout)
    for _ in range(steps):
        step, state = rule.seek(gradient, state, w, layout)
        w = w + step
    return w


@pytest.mark.parametrize("negative", [0.0, 0.5, 1.0, 3.0])
def test_positive_negative_momentum_keeps_noise_and_shrinks_signal(negative):
    """Var Δ = (1 − β²)/(1 + β²) of white noise, whatever β₀; a constant gradient is multiplied by the gain."""
    rule, drawn = PNM(lr=1.0, negative=negative), torch.Generator().manual_seed(0)
    state, steps = rule.init(torch.zeros(1, 20_000).double(), Layout(("w",), (torch.Size([20_000]),))), []
    layout = Layout(("w",), (torch.Size([20_000]),))
    for _ in range(120):
        grad = torch.randn(1, 20_000, generator=drawn, dtype=torch.float64)
        step, state = rule.update(grad, state, torch.zeros_like(grad), layout)
        steps.append(step)
    assert float(steps[-1].var()) == pytest.approx((1 - 0.81) / (1 + 0.81), rel=0.03)
    moved = path(rule, torch.ones_like, torch.zeros(1).double(), 401) - path(rule, torch.ones_like,
                                                                             torch.zeros(1).double(), 400)
    assert -float(moved) == pytest.approx(signal_gain(negative))


@pytest.mark.parametrize("product", [0.1, 1.0, 5.0, 100.0])
def test_implicit_steps_are_stable_at_every_rate(product):
    """On a quadratic with eigenvalue a a step multiplies by 1/(1 + lr a)."""
    curvature = torch.tensor([product, product / 3, product / 10]).double()
    found = path(ImplicitSGD(lr=1.0, gradients=3), lambda w: curvature * w, torch.ones(3).double(), 1)
    torch.testing.assert_close(found, 1 / (1 + curvature), rtol=1e-8, atol=1e-10)


def test_extrapolation_ends_the_cycles_of_a_bilinear_game():
    def turned(w):
        return torch.stack([w[..., 1], -w[..., 0]], dim=-1)
    start = torch.tensor([1.0, 0.0]).double()
    plain = path(SGD(lr=0.3), turned, start, 100).norm()
    ahead = path(Extrapolated(SGD(lr=0.3), ahead=0.3), turned, start, 100).norm()
    assert float(plain) == pytest.approx((1 + 0.09) ** 50)
    assert float(ahead) == pytest.approx((1 - 0.09 + 0.0081) ** 50)


def test_a_penalty_has_the_gradient_of_what_it_says():
    """L + μ‖g‖² of L = Σ a w²/2 is Σ (a/2 + μ a²) w²: the trap is a factor 2."""
    a = torch.tensor([1.0, 4.0]).double()
    w = torch.tensor([0.3, -0.2]).double().requires_grad_()
    ((a / 2 * w**2).sum() + 0.05 * ((a * w) ** 2).sum()).backward()
    found = path(GradientPenalty(SGD(lr=1.0), weight=0.05), lambda x: a * x, w.detach(), 1) - w.detach()
    torch.testing.assert_close(-found, w.grad, rtol=1e-9, atol=0)


def test_descent_follows_the_flow_of_a_penalty_of_a_quarter_of_its_rate():
    """One step of GD is nearer, by an order, to the flow of L + (η/4)‖g‖² than to that of L."""
    w = torch.tensor([1.0]).double()
    apart = []
    for rate in (0.1, 0.05):
        step = path(SGD(lr=rate), lambda x: x, w, 1)
        flow = w * math.exp(-rate * (1 + rate / 2))
        apart.append(float((step - flow).abs()))
    assert apart[0] / apart[1] == pytest.approx(8, rel=0.1)


def test_noisy_descent_is_langevin_dynamics():
    """On x²/2 with rate η and noise σ the stationary variance is η σ²/(2 − η)."""
    rule = Noisy(SGD(lr=0.1), sigma=2.0)
    w = path(rule, lambda x: x, torch.zeros(20_000).double(), 120)
    assert float(w.var()) == pytest.approx(0.1 * 4 / 1.9, rel=0.03)
    again = path(rule, lambda x: x, torch.zeros(20_000).double(), 120)
    other = path(Noisy(SGD(lr=0.1), sigma=2.0, seed=1), lambda x: x, torch.zeros(20_000).double(), 120)
    assert torch.equal(w, again)
    assert abs(float(torch.corrcoef(torch.stack([w, other]))[0, 1])) < 0.03


@pytest.mark.parametrize(("exact", "kept"), [(True, 0.0), (False, 0.5)])
def test_exact_mars_corrects_without_noise_that_does_not_depend_on_weights(exact, kept):
    """Of g = 0.1 w + ξ, g − h is 0.1 (w − w₋₁), and with the last batch's gradient ξ − ξ₋₁ too."""
    rule, layout = MARS(SGD(lr=1.0), gamma=0.5, beta=0.5, exact=exact), Layout(("w",), (torch.Size([2]),))
    w, past = torch.tensor([0.3, -0.2]).double(), None
    state, old = rule.init(w, layout), torch.zeros(2).double()
    for t in range(4):
        noise = torch.tensor([math.sin(5 * t + 1), math.cos(7 * t)]).double() * 0.2
        step, state = rule.seek(lambda x, noise=noise: 0.1 * x + noise, state, w, layout)
        if past is not None:
            expected = 0.1 * w + noise + 0.5 * 0.1 * (w - past) + kept * (noise - old)
            torch.testing.assert_close(-step, expected, rtol=1e-12, atol=0)
        past, w, old = w, w + step, noise


def test_relative_clipping_turns_weights_by_no_more_than_it_says():
    layout = Layout(("0.weight", "0.bias"), (torch.Size([4, 4]), torch.Size([4])), ("matrix", "bias"), ("", ""))
    rule, w = RelativeClip(lr=0.1, decay=0.02), torch.ones(20).double()
    step, _ = rule.update(1000 * torch.ones(20).double(), {}, w, layout)
    shrink = 0.1 * 0.02
    assert float((step[:16] + shrink * w[:16]).norm()) == pytest.approx(math.sqrt(2 * 0.02 * 0.1) * 4)
    torch.testing.assert_close(step[16:], torch.full((4,), -100.0).double())
    torch.testing.assert_close(rule.update(0.001 * w, {}, w, layout)[0][:16], -0.0001 * w[:16] - shrink * w[:16])


def test_adafactor_of_rank_one_takes_signs_and_clips_what_grows():
    """Where g² has rank one, V is g² and u is sign g; of a gradient k times as large it is clipped to that."""
    layout = Layout(("kernel", "bias"), (torch.Size([2, 3, 1, 2]), torch.Size([5])))
    grad = torch.cat([torch.outer(torch.tensor([1.0, -3.0]), torch.linspace(-2, 2, 6)).reshape(-1),
                      torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0])]).double()
    w = torch.cat([torch.full((12,), 2.0), torch.zeros(5)]).double()
    sizes = torch.cat([torch.full((12,), 2.0), torch.full((5,), 1e-3, dtype=torch.float64)])  # RMS(w), or eps2
    rule, state = Adafactor(lr=0.6), Adafactor(lr=0.6).init(w, layout)
    for t, k in enumerate((1.0, 1.0, 100.0, 1e-3), start=1):
        step, state = rule.scaled_update(k * grad, state, w, layout, 0.99)
        if t < 4:
            rate = min(0.6 * 0.99, t**-0.5)
            torch.testing.assert_close(step, -rate * sizes * grad.sign(), rtol=1e-12, atol=0)
    assert float(step.abs().max()) < 1e-4  # after a large one a small one is small
    assert sum(value.numel() for value in state["0"].values()) == 2 + 6 + 1  # rows, columns and the count


@pytest.mark.parametrize("make", [
    lambda: Adafactor(lr=0.1, clip=0.0),
    lambda: SAM(SGD(lr=0.1), rho=0.0), lambda: MARS(SAM(SGD(lr=0.1))), lambda: SAM(MARS(SGD(lr=0.1), exact=True)),
    lambda: Noisy(SGD(lr=0.1), sigma=0.0),
    lambda: ImplicitSGD(lr=0.1, gradients=0), lambda: Extrapolated(ImplicitSGD(lr=0.1), ahead=0.1),
    lambda: GradientPenalty(Momentum(lr=0.1), weight=-1.0), lambda: MAdam(lr=0.1, low=0.9, high=0.5),
    lambda: Shampoo(lr=0.1, every=0), lambda: RelativeClip(lr=0.1, decay=0.0)])
def test_settings_that_cannot_be_are_one_sentence(make):
    with pytest.raises(UserError, match=r"must"):
        make()
