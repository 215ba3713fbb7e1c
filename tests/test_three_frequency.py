"""The three-frequency regression: closed forms against brute force, batches as covariances, rules on them."""

import math

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st

from optscope.errors import UserError
from optscope.optim import SGD, Adam, RMSProp, SignSGD
from optscope.tasks.signals import ThreeFrequency, simulate, three_frequency_task
from optscope.theory.three_frequency import (
    BASIS,
    PAPER,
    Problem,
    adversarial_risk,
    gd_limit,
    gd_trajectory,
    norm_ratio,
    population_gradient,
    sign_knots,
    sign_limit,
    sign_trajectory,
    standard_risk,
)

ZERO = (0.0, 0.0, 0.0)
REGIMES = {  # s₀, s₁, w̃*₀, w̃*₁
    "A first": (0.1, 0.05, 5.0, 10.0),
    "A first, weak": (0.1, 0.05, 10.0, 5.0),
    "A first, near the border": (0.1, 0.05, 5.0, 15.0),
    "B first": (0.1, 0.05, 5.0, 40.0),
    "B first, negative": (0.1, 0.05, -5.0, 40.0),
    "slides from the start": (0.1, 0.1, 10.0, 3.0),
    "slides after B": (0.1, 0.1, 5.0, 8.0),
    "slides, white beyond": (0.05, 0.1, 8.0, -5.0),
    "fits A before it can slide": (0.1, 0.07, 2.0, 20.0),
    "border of the slopes": (math.sqrt(3) / 10, 0.1, 5.0, 5.0),
}


def regime(name, start=ZERO):
    s0, s1, w0, w1 = REGIMES[name]
    return Problem((s0, s1, 0.0), (w0, w1, 0.0), start)


def brute_sign_gd(problem, lr, steps):
    """Population signGD in space coordinates, float64; all the weights on its way in frequency space."""
    scipy_basis = scipy.fft.idct(np.eye(3), axis=0, norm="ortho")
    curvature = scipy_basis @ np.diag(np.square(problem.s)) @ scipy_basis.T
    w, goal = scipy_basis @ problem.start, scipy_basis @ problem.target
    path = [w]
    for _ in range(steps):
        w = w - lr * np.sign(curvature @ (w - goal))
        path.append(w)
    return np.array(path) @ scipy_basis


def normals(n, problem, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3)) * problem.s


# --- the problem and its risks -----------------------------------------------------------------------------

def test_the_basis_is_the_orthonormal_dct():
    np.testing.assert_allclose(BASIS, scipy.fft.idct(np.eye(3), axis=0, norm="ortho"), atol=1e-15)
    np.testing.assert_allclose(BASIS[:, 2], np.array([1, -2, 1]) / math.sqrt(6), atol=1e-15)


@pytest.mark.parametrize("fields", [
    {"s": (0.1, 0.0, 0.0)}, {"s": (0.1, 0.05, 0.1)}, {"s": (-0.1, 0.05, 0.0)}, {"s": (0.1, 0.05)},
    {"target": (1.0, math.nan, 0.0)}, {"target": [5.0, 10.0, 0.0]}, {"start": (1.0, 2.0)},
    {"start": ("1", 2, 3)}])
def test_a_wrong_problem_is_named(fields):
    with pytest.raises(UserError, match=f"Problem: {next(iter(fields))} must be"):
        Problem(**fields)


def test_the_population_gradient_in_space_is_a_plus_b_a_a_minus_b():
    e0, e1, _ = np.subtract(PAPER.start, PAPER.target)
    a, b = 0.01 * e0 / math.sqrt(3), 0.0025 * e1 / math.sqrt(2)
    np.testing.assert_allclose(BASIS @ population_gradient(PAPER, PAPER.start), [a + b, a, a - b], atol=1e-16)
    assert (round(abs(a), 4), round(abs(b), 4)) == (0.0288, 0.0177)


def test_the_population_gradient_is_the_slope_of_the_standard_risk():
    weights, h = np.array([1.0, -2.0, 3.0]), 1e-4
    slope = [(standard_risk(PAPER, weights + h * d) - standard_risk(PAPER, weights - h * d)) / (2 * h)
             for d in np.eye(3)]
    np.testing.assert_allclose(population_gradient(PAPER, weights), slope, atol=1e-12)


@pytest.mark.parametrize("weights", [(4.0, 9.0, -4.3), (0.5, -10.0, 0.3), (5.0, 10.0, 3.0)])
@pytest.mark.parametrize("eps", [0.1, math.sqrt(2)])
def test_the_risks_agree_with_monte_carlo(weights, eps):
    w, x = np.array(weights), normals(500_000, PAPER)
    error = x @ (w - PAPER.target)
    worst = (np.abs(error) + eps * np.linalg.norm(w)) ** 2 / 2
    control = error**2  # its mean, 2 R_s, is checked here, and then takes most of the noise out of R_a
    slope = np.cov(worst, control)[0, 1] / max(control.var(), 1e-30)
    risk = float(standard_risk(PAPER, w))
    assert control.mean() / 2 == pytest.approx(risk, rel=1e-2, abs=1e-12)
    assert worst.mean() - slope * (control.mean() - 2 * risk) == pytest.approx(
        float(adversarial_risk(PAPER, w, eps)), rel=1e-3)


def test_the_worst_perturbation_attains_the_maximum_and_none_passes_it():
    rng, eps, w = np.random.default_rng(1), 0.7, np.array([4.0, 9.0, -4.3])
    x = normals(200, PAPER)
    y, norm = x @ PAPER.target, np.linalg.norm(w)
    error = x @ w - y
    bound = (np.abs(error) + eps * norm) ** 2 / 2
    worst = eps * np.sign(error)[:, None] * w / norm
    np.testing.assert_allclose(((x + worst) @ w - y) ** 2 / 2, bound, rtol=1e-12)
    ball = rng.standard_normal((4000, 3))
    ball *= eps / np.linalg.norm(ball, axis=1, keepdims=True)
    tried = (((x[:, None] + ball) @ w - y[:, None]) ** 2 / 2).max(axis=1)
    assert np.all(tried <= bound * (1 + 1e-12))
    assert np.all(tried >= 0.99 * bound)


def test_risks_are_batched_and_at_a_fit_the_adversarial_one_is_the_norm():
    weights = np.array([[[5.0, 10.0, 2.0]], [[0.0, 0.0, 0.0]]])
    assert standard_risk(PAPER, weights).shape == adversarial_risk(PAPER, weights).shape == (2, 1)
    assert adversarial_risk(PAPER, weights)[0, 0] == pytest.approx(129)
    assert adversarial_risk(PAPER, weights)[1, 0] == pytest.approx(0.25)  # w = 0: nothing to attack
    assert standard_risk(PAPER, weights)[1, 0] == pytest.approx(0.25)
    with pytest.raises(UserError, match="eps must be"):
        adversarial_risk(PAPER, weights, -1.0)


# --- closed forms ------------------------------------------------------------------------------------------

def test_gd_at_the_papers_horizon_is_not_converged():
    weights = gd_trajectory(PAPER, 0.01, 200_000)
    assert weights @ weights == pytest.approx(123.66, abs=0.01)
    assert float(adversarial_risk(PAPER, weights)) == pytest.approx(123.70, abs=0.02)
    np.testing.assert_array_equal(gd_limit(PAPER), [5, 10, 0.02])


def test_gd_with_too_large_a_rate_diverges_without_a_word():
    assert np.isinf(gd_trajectory(PAPER, 1e4, 10_000)[0])


@pytest.mark.parametrize(("name", "expected"), [
    ("A first", -4.330), ("B first", -7.071), ("A first, near the border", -6.494),
    ("A first, weak", -2.165)])
def test_sign_limit_has_the_reference_values(name, expected):
    assert sign_limit(regime(name))[2] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("start", [ZERO, PAPER.start, (12.0, -7.0, 1.0)], ids=["zero", "small", "far"])
@pytest.mark.parametrize("name", REGIMES)
def test_sign_gd_goes_along_its_closed_form_in_every_regime(name, start):
    problem, lr = regime(name, start), 1e-3
    times, knots = sign_knots(problem)
    path = brute_sign_gd(problem, lr, math.ceil(times[-1] / lr) + 1000)
    np.testing.assert_allclose(knots[-1], sign_limit(problem), atol=1e-9)
    drift = abs(sign_limit(problem)[2] - start[2])
    assert abs(path[-1, 2] - sign_limit(problem)[2]) < 0.01 * drift
    travelled = np.abs(np.subtract(problem.start, problem.target)).max()
    along = sign_trajectory(problem, lr, np.arange(len(path)))
    assert np.abs(along - path).max() < 0.01 * travelled


finite = st.floats(-20, 20).map(lambda v: round(v, 3))
deviation = st.floats(0.01, 1).map(lambda v: round(v, 3))


@given(deviation, deviation, st.tuples(finite, finite, finite), st.tuples(finite, finite, finite))
def test_the_knots_lead_from_the_start_to_the_limit(s0, s1, target, start):
    problem = Problem((s0, s1, 0.0), target, start)
    times, knots = sign_knots(problem)
    assert times.shape == knots.shape[:1]
    assert np.all(np.diff(times) > 0)
    np.testing.assert_array_equal(knots[0], start)
    np.testing.assert_allclose(knots[-1], sign_limit(problem), atol=1e-8)
    assert np.all(np.diff(standard_risk(problem, knots)) <= 1e-12)


@pytest.mark.parametrize(("name", "ratio"), [
    ("A first", 1 + 3 * 0.5**4 * 100 / 125), ("B first", 1 + 2 * 25 / (25 + 1600)),
    ("slides from the start", 1 + 9 / 3 / 109), ("fits A before it can slide", 1 + 2 * 4 / (4 + 400))])
def test_the_norm_ratio_of_each_case_at_a_zero_start(name, ratio):
    assert norm_ratio(regime(name)) == pytest.approx(ratio, rel=1e-12)


def test_the_norm_ratio_of_nothing_is_an_error():
    with pytest.raises(UserError, match="must not be zero"):
        norm_ratio(Problem(target=ZERO, start=ZERO))


@pytest.mark.parametrize(("lr", "steps", "words"), [(0.0, 5, "lr must be"), (math.nan, 5, "lr must be"),
                                                    (0.1, -1, "whole numbers"), (0.1, 1.5, "whole numbers")])
@pytest.mark.parametrize("closed_form", [gd_trajectory, sign_trajectory])
def test_closed_forms_refuse_nonsense(closed_form, lr, steps, words):
    with pytest.raises(UserError, match=words):
        closed_form(PAPER, lr, steps)


# --- batches as covariances --------------------------------------------------------------------------------

@pytest.mark.parametrize(("batch", "repeats"), [(5000, 1500), (2, 200_000), (4, 200_000)])
def test_covariances_are_those_of_explicit_batches(batch, repeats):
    def entries(c):
        return np.stack([c[:, 0, 0], c[:, 0, 1], c[:, 1, 1]], axis=1)

    explicit, rng = [], np.random.default_rng(5)
    for part in np.array_split(np.arange(repeats), max(1, batch * repeats // 500_000)):
        x = rng.standard_normal((len(part), batch, 2)) * PAPER.s[:2]
        explicit.append(x.transpose(0, 2, 1) @ x / batch)
    scale = np.array([0.01, 0.005, 0.0025])
    seen = entries(np.concatenate(explicit)) / scale
    drawn = entries(ThreeFrequency(batch=batch).covariances(np.random.default_rng(6), repeats)) / scale
    exact = np.array([2, 1, 2]) / batch  # variances of Wishart entries, in units of s_i² s_j²
    for sample in (seen, drawn):
        assert np.all(np.abs(sample.mean(0) - [1, 0, 1]) < 5 * np.sqrt(exact / repeats))
        spread = ((sample - sample.mean(0)) ** 2).std(0) / math.sqrt(repeats)
        assert np.all(np.abs(sample.var(0) - exact) < 5 * spread)
    # beyond two moments: the determinants, which mix all three entries
    root = [np.sqrt(np.maximum(s[:, 0] * s[:, 2] - s[:, 1] ** 2, 0)) for s in (seen, drawn)]
    error = math.hypot(root[0].std(), root[1].std()) / math.sqrt(repeats)
    assert abs(root[0].mean() - root[1].mean()) < 5 * error


def test_hessians_are_the_covariances_in_space_with_nothing_on_the_empty_frequency():
    regression = ThreeFrequency()
    drawn = regression.covariances(np.random.default_rng(3), 1024)
    stream = regression.hessians((7, 3))
    for expected in drawn[:5]:
        hessian = next(stream)
        assert hessian.shape == (2, 3, 3)
        assert hessian.dtype == torch.float64
        turned = BASIS.T @ hessian[1].numpy() @ BASIS
        np.testing.assert_allclose(turned[:2, :2], expected, atol=1e-16)
        np.testing.assert_allclose(turned[2], 0, atol=1e-16)
    population = next(ThreeFrequency(batch=None).hessians((0,)))[0].numpy()
    np.testing.assert_allclose(BASIS.T @ population @ BASIS, np.diag(PAPER.variances), atol=1e-16)


@pytest.mark.parametrize(("settings", "words"), [
    ({"batch": 1}, "batch must be"), ({"batch": 2.5}, "batch must be"),
    ({"basis": np.ones((3, 3))}, "orthonormal"), ({"basis": np.eye(2)}, "orthonormal")])
def test_a_wrong_stream_is_named(settings, words):
    with pytest.raises(UserError, match=words):
        ThreeFrequency(**settings)


# --- rules on the stream -----------------------------------------------------------------------------------

def test_sgd_on_the_population_is_the_closed_form():
    run = simulate(SGD(lr=2.0), PAPER, 2000, [0], batch=None)
    np.testing.assert_allclose(run.weights[:, 0], gd_trajectory(PAPER, 2.0, run.steps), atol=1e-10)


def test_sign_sgd_on_the_population_is_the_closed_form():
    run = simulate(SignSGD(lr=1e-3), PAPER, 9000, [0], batch=None)
    np.testing.assert_allclose(run.weights[:, 0], sign_trajectory(PAPER, 1e-3, run.steps), atol=0.01)
    assert run.final[0] == pytest.approx(sign_limit(PAPER), rel=0.01)


@pytest.mark.parametrize(("rule", "steps", "low", "high"), [
    (SignSGD(lr=0.01), 1500, 141.0, 142.9), (Adam(lr=0.01), 6000, 148.8, 149.4),
    (RMSProp(lr=0.01), 6000, 153.4, 154.2)], ids=repr)
def test_the_papers_adversarial_risks(rule, steps, low, high):
    run = simulate(rule, PAPER, steps, range(20))
    assert np.all(run.standard_risk()[-1] < 1e-5)
    risk = run.adversarial_risk()[-1]
    assert low < risk.min() <= risk.max() < high
    assert np.all(np.linalg.norm(run.final, axis=-1) > np.linalg.norm(gd_limit(PAPER)))


def test_gd_on_batches_leaves_the_empty_frequency_alone():
    run = simulate(SGD(lr=0.01), PAPER, 20_000, (0, 1))
    np.testing.assert_allclose(run.weights[..., 2], 0.02, atol=1e-9)
    np.testing.assert_allclose(run.final, np.tile(gd_trajectory(PAPER, 0.01, 20_000), (2, 1)), atol=0.02)


@pytest.mark.parametrize("rule", [SignSGD(lr=0.01), Adam(lr=0.01), RMSProp(lr=0.01)], ids=repr)
def test_in_frequency_coordinates_the_effect_is_gone(rule):
    run = simulate(rule, PAPER, 2500, (0, 1), basis=np.eye(3))
    assert np.all(run.weights[..., 2] == 0.02)
    assert np.all(np.abs(run.final[:, :2] - [5, 10]) < 0.05)


def test_a_run_depends_on_its_seed_alone_and_begins_like_a_longer_one():
    alone = simulate(Adam(lr=0.01), PAPER, 1000, [4], checkpoints=4)
    among = simulate(Adam(lr=0.01), PAPER, 3000, (2, 4, 9))
    assert alone.steps.tolist() == [0, 1, 32, 1000]
    shared, ours, theirs = np.intersect1d(alone.steps, among.steps, return_indices=True)
    assert len(shared) >= 2
    np.testing.assert_allclose(alone.weights[ours, 0], among.weights[theirs, 1], rtol=1e-9)
    assert not np.allclose(among.final[0], among.final[1], rtol=1e-9)


def test_checkpoints_are_spread_in_the_logarithm_and_end_with_the_last_step():
    run = simulate(SGD(lr=0.01), PAPER, 777, (0,), checkpoints=50)
    assert run.steps[0] == 0
    assert run.steps[1] == 1
    assert run.steps[-1] == 777
    assert np.all(np.diff(run.steps) > 0)
    assert len(run.steps) == len(run.weights) <= 50
    np.testing.assert_allclose(run.weights[0], [PAPER.start], atol=1e-15)
    np.testing.assert_allclose(run.errors[-1], np.abs(run.final - PAPER.target))


def test_a_diverged_run_is_data():
    run = simulate(SGD(lr=1e4), PAPER, 1000, (0,))
    assert not np.isfinite(run.standard_risk()[-1, 0])
    assert not np.isfinite(run.adversarial_risk()[-1, 0])


@pytest.mark.parametrize(("steps", "seeds", "checkpoints"), [(0, [0], 10), (5, [], 10), (5, [1, 1], 10),
                                                             (5, [-1], 10), (5, [0], 2)])
def test_simulate_refuses_nonsense(steps, seeds, checkpoints):
    with pytest.raises(UserError, match="simulate: "):
        simulate(SGD(lr=0.1), PAPER, steps, seeds, checkpoints=checkpoints)


# --- the finite task ---------------------------------------------------------------------------------------

def test_the_task_is_the_same_regression_on_a_finite_sample():
    task = three_frequency_task()
    data, model = task.data(), task.model()
    x, y = data.train.inputs, data.train.targets
    frequencies = x.double().numpy() @ BASIS
    np.testing.assert_allclose(frequencies[:, 2], 0, atol=1e-7)
    np.testing.assert_allclose(frequencies.std(0)[:2], PAPER.s[:2], rtol=0.05)
    np.testing.assert_allclose(y.squeeze(-1), frequencies @ PAPER.target, atol=1e-6)
    assert torch.equal(x, task.data().train.inputs)
    assert not torch.equal(x[:1000], data.test.inputs)
    loss = task.loss(model(x), y)
    loss.backward()
    error = BASIS @ np.subtract(PAPER.start, PAPER.target)
    covariance = x.double().numpy().T @ x.double().numpy() / len(x)
    assert loss.item() == pytest.approx(error @ covariance @ error / 2, rel=1e-5)
    np.testing.assert_allclose(model.weight.grad[0], covariance @ error, rtol=1e-4)
