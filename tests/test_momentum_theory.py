"""The closed forms of momentum and the noisy oracle: against sums, linear algebra and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg

from optscope.errors import UserError
from optscope.theory import stability
from optscope.theory.momentum import (
    averaged_rates,
    coupled,
    descent_split,
    lag,
    noise_ratio,
    regime,
    slow_limit,
    stationary_variance,
)
from optscope.theory.noisy_oracle import (
    distance,
    drift,
    order,
    quadratic,
    settled_variance,
    together,
    valley,
    wells,
)
from optscope.theory.valley import account, mean_drift, still_drift


def momentum_path(grads: np.ndarray, rates: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, m, points, buffers = 0.0, 0.0, [0.0], [0.0]
    for g, rate, beta in zip(grads, rates, betas, strict=True):
        m = beta * m + (1 - beta) * g
        x -= rate * m
        points.append(x)
        buffers.append(m)
    return np.array(points), np.array(buffers)


def test_averaged_rates_are_the_sum_and_end_where_momentum_ends():
    rng = np.random.default_rng(0)
    k, tail = 30, 400
    rates, betas = rng.uniform(0.01, 1, k), rng.uniform(0, 0.9, k)
    long_rates = np.concatenate([rates, np.full(tail, rates[-1])])
    long_betas = np.concatenate([betas, np.full(tail, betas[-1])])
    found = averaged_rates(rates, betas)
    for i in range(k):
        weights = np.concatenate([[1.0], np.cumprod(long_betas[i + 1:])])
        assert found[i] == pytest.approx((1 - betas[i]) * np.sum(long_rates[i:] * weights), abs=1e-12)
    # Gradients that stop: momentum ends exactly where SGD at the averaged rates does.
    grads = np.concatenate([rng.normal(size=k), np.zeros(tail)])
    x, _ = momentum_path(grads, long_rates, long_betas)
    assert x[-1] == pytest.approx(-found @ grads[:k], abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95])
def test_the_coupling_is_exact(beta):
    grads = np.random.default_rng(1).normal(size=50)
    x, m = momentum_path(grads, np.full(50, 0.2), np.full(50, beta))
    y = coupled(x, m, 0.2, beta)
    np.testing.assert_allclose(np.diff(y), -0.2 * grads, rtol=0, atol=1e-14)


def test_the_lag_and_the_noise_of_plain_sums():
    beta, steps = 0.9, 200
    x, _ = momentum_path(np.ones(steps), np.ones(steps), np.full(steps, beta))
    assert -x[-1] == pytest.approx(steps - lag(beta), abs=1e-6)
    impulses = np.eye(steps)
    ends = np.array([momentum_path(g, np.ones(steps), np.full(steps, beta))[0][-1] for g in impulses])
    assert noise_ratio(beta, steps) == pytest.approx(np.mean(ends**2), rel=1e-12)


def test_the_descent_split_is_exact_on_a_quadratic():
    rng = np.random.default_rng(2)
    half, spread = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
    h, x, eta = half + half.T, rng.normal(size=3), 0.3
    corners = spread.T * math.sqrt(3)  # six equally likely noises, ± each row: their covariance is spread spreadᵀ
    noises = np.concatenate([corners, -corners])
    after = [0.5 * (p @ h @ p) for p in x - eta * (h @ x + noises)]
    expected = np.mean(after) - 0.5 * (x @ h @ x)
    assert descent_split(eta, h @ x, h, spread @ spread.T).sum() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("rate", "beta", "curvature"), [(0.1, 0.0, 15.0), (0.1, 0.9, 15.0), (0.5, 0.5, 3.0),
                                                         (0.1, 0.9, 350.0), (0.01, 0.99, 1.0)])
def test_the_stationary_variance_solves_the_lyapunov_equation(rate, beta, curvature):
    a = np.array([[1 - rate * (1 - beta) * curvature, -rate * beta], [(1 - beta) * curvature, beta]])
    b = np.array([-rate * (1 - beta), 1 - beta])
    exact = scipy.linalg.solve_discrete_lyapunov(a, np.outer(b, b))[0, 0]
    assert stationary_variance(rate, beta, curvature) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_the_stability_limit_is_where_the_iteration_s_radius_is_one(beta):
    limit = stability.averaged(1.0, beta)
    assert limit == pytest.approx(2 * (1 + beta) / (1 - beta))
    for curvature, inside in ((0.999 * limit, True), (1.001 * limit, False)):
        a = np.array([[1 - (1 - beta) * curvature, -beta], [(1 - beta) * curvature, beta]])
        assert (np.abs(np.linalg.eigvals(a)).max() < 1) == inside
        assert math.isfinite(stationary_variance(1.0, beta, curvature)) == inside


def test_simulated_variance_settles_at_the_closed_form():
    for beta in (0.0, 0.9):
        found = settled_variance(0.1, beta, 15.0, paths=20_000)
        assert found == pytest.approx(stationary_variance(0.1, beta, 15.0), rel=0.04)


def test_oracles_have_the_gradient_and_noise_they_claim():
    x, h = np.linspace(-2, 2, 9), 1e-6
    loss = lambda x: x**2 / 2 + np.cos(2 * x)  # noqa: E731
    np.testing.assert_allclose(wells(1.0).gradient(x), (loss(x + h) - loss(x - h)) / (2 * h), atol=1e-8)
    at = np.array([[1.5, 0.4], [0.3, -2.0]])
    plus, minus = (valley(0.7)(at, np.full(2, s)) for s in (1.0, -1.0))
    along = np.column_stack([at[:, 1], at[:, 0]])
    np.testing.assert_allclose((plus + minus) / 2, (at[:, :1] * at[:, 1:] - 1) * along, atol=1e-15)
    np.testing.assert_allclose((plus - minus) / 2, 0.7 * along, atol=1e-15)


def test_runs_together_share_their_noise_and_follow_the_equations():
    runs = list(together(quadratic(2.0, 0.5), np.ones(3), 0.1, (0.0, 0.8), 1, seed=5))
    draw = np.random.default_rng(5).standard_normal(3)
    np.testing.assert_allclose(runs[-1][0], 1 - 0.1 * (2 + 0.5 * draw), atol=1e-15)
    np.testing.assert_allclose(runs[-1][1], 1 - 0.1 * 0.2 * (2 + 0.5 * draw), atol=1e-15)


def test_weak_approximation_holds_below_alpha_one_and_not_at_it():
    rates = (2.0**-4, 2.0**-5, 2.0**-6)
    half, one = ([distance(rate, alpha, paths=2000).coupled for rate in rates] for alpha in (0.5, 1.0))
    assert 0.15 < order(rates, half) < 0.35
    assert -0.1 < order(rates, one) < 0.1


def test_the_slow_drift_of_one_exact_step_and_of_many():
    start, sigma, eta = 3.75, 1.0, 0.05
    found = drift(eta, (0.0,), paths=4, time=eta**2, moments=1)
    assert found.mean[-1, 0] == pytest.approx(start * (1 - eta**2 * sigma**2), abs=1e-12)
    many = drift(eta, (0.0, 0.9), paths=400, moments=10)
    assert many.limit[-1] == pytest.approx(float(slow_limit(start, 1.0, 1.0)))
    np.testing.assert_allclose(many.mean[-1], many.limit[-1], rtol=0.1)
    assert len(many.time) == len(many.mean) == 11


def test_regimes():
    assert regime(0.5, 1.0, 1.0, 100) == "noise"
    assert regime(0.5, 1.0, 0.9, 100) == "between"
    assert regime(0.5, -1.0, 0.0, 100) == "between"
    assert regime(0.5, 1.0, 1.0, 19) == "between"
    assert regime(2.1, 0.0, 1.0, 100) == "between"
    assert regime(4.1, 0.0, 1.0, 100) == "curvature"
    assert regime(math.nan, 0.0, 1.0, 100) == "between"


@pytest.mark.parametrize(("call", "says"), [
    (lambda: averaged_rates([0.1], 1.0), "0 <= beta < 1"),
    (lambda: averaged_rates([-0.1], 0.5), "rates must be finite numbers >= 0"),
    (lambda: noise_ratio(0.9, 0), "steps must be a whole number >= 1"),
    (lambda: stationary_variance(0.1, 0.5, 0.0), "curvature > 0"),
    (lambda: stationary_variance(0.0, 0.5, 1.0), "learning rate > 0"),
])
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_the_account_of_the_valley_closes_and_says_how_large_each_part_is():
    found = account(0.05, 0.9, paths=2000)
    assert abs(found.unexplained) < 1e-10  # the equations of the means are exact
    assert abs(found.still) < 0.002 * found.limit
    assert 0.005 < found.moving / found.limit < 0.03  # the 1 to 2 % that curvature and buffer do not explain
    sgd = account(0.05, 0.0, paths=400)
    assert sgd.still / sgd.limit == pytest.approx(-0.081, abs=0.001)
    assert abs(sgd.moving / sgd.limit) < 0.002


def test_a_valley_without_memory_is_sgd_of_the_closed_form():
    steps, rate = 40, 0.1
    squares = [3.75 * (1 - rate**2) ** k for k in range(steps)]  # e = ±1 throughout: the error stays 0
    assert mean_drift(rate, 0.0, squares, [0.0] * steps) == pytest.approx(3.75 * (1 - rate**2) ** steps)


def test_still_drift_has_its_first_order_terms_and_its_limit():
    rate, beta, time = 0.004, 0.9, 0.25
    held = rate**2 * beta * (2 + beta) / (1 - beta**2)  # what the buffer holds, as a share of D
    d = 3.75 * np.exp(-np.linspace(0, time, 1001))
    curved = rate / 2 * (1 - beta) / (1 + beta) * float(np.sqrt(d**2 + 4).mean()) * time
    found = still_drift(rate, beta, time=time) / float(slow_limit(3.75, 1.0, time)) - 1
    start = rate**2 * beta / (1 - beta) / 2 * 1.1  # of the error's own beginning at 0, in steps of 1/(1 − β)
    assert found == pytest.approx(held * (1 - time) - curved, abs=start)
    assert still_drift(0.004, 0.0, sigma=0.5) == pytest.approx(float(slow_limit(3.75, 0.5, 1.0)), rel=0.003)
