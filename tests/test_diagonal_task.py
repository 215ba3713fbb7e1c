"""Descent on diagonal models against torch: autograd, `weight_norm` and `PolarSGD`; instances and real problems."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from optscope.errors import UserError
from optscope.optim import SGD, PolarSGD
from optscope.studies.weight_normalization.starts import convolution
from optscope.tasks.convolution import ConvolutionReadout
from optscope.tasks.diagonal import Settings, arrival, descend, flow, gaussian
from optscope.tasks.recovery import diabetes, lasso, patch
from optscope.theory.diagonal import fit

cases = pytest.mark.parametrize(("depth", "signed"), [(2, True), (2, False), (3, True), (4, False)])
H = 0.5


class Network(nn.Module):
    """The diagonal model as anyone would write it: `depth` factors, each a layer (1, N) or (1, 2N) without bias."""

    def __init__(self, depth, size, signed, alpha):
        super().__init__()
        self.signed, width = signed, size * (1 + signed)
        self.factors = nn.ModuleList(nn.Linear(width, 1, bias=False).double() for _ in range(depth))
        for factor in self.factors:
            nn.init.constant_(factor.weight, alpha ** (1 / depth))

    def forward(self):
        z = torch.stack([factor.weight[0] for factor in self.factors]).prod(0)
        return z[:len(z) // 2] - z[len(z) // 2:] if self.signed else z


def torch_descent(model, problems, optimizer, steps):
    A, y = torch.from_numpy(problems.A[0]), torch.from_numpy(problems.y[0])
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (A @ model() - y).square().sum()).backward()
        optimizer.step()
    return model().detach().numpy()


def one(signed, seed=3):
    return gaussian([seed], 20, 8, 3, signed)


def settings(depth, alpha=0.02, ratio=None, **more):
    return Settings(depth, np.array([alpha]), np.array([H]), None if ratio is None else np.array([ratio]), **more)


@cases
def test_plain_descent_is_gradient_descent_on_every_factor(depth, signed):
    problems = one(signed)
    model = Network(depth, 20, signed, 0.02)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(H / problems.gram_norm[0]))
    expected = torch_descent(model, problems, optimizer, 100)
    np.testing.assert_allclose(descend(problems, settings(depth), 100).x[0, :, 0], expected, atol=1e-12)


@cases
@pytest.mark.parametrize("ratio", [0.4, 5.0])
def test_polar_descent_is_the_rule_on_every_factor(depth, signed, ratio):
    problems = one(signed)
    model = Network(depth, 20, signed, 0.02)
    rule = PolarSGD(lr=H / problems.gram_norm[0] / max(1.0, ratio), ratio=ratio, per="layer")
    expected = torch_descent(model, problems, rule.optimizer(model.parameters()), 100)
    found = descend(problems, settings(depth, ratio=ratio), 100)
    np.testing.assert_allclose(found.x[0, :, 0], expected, atol=1e-12)


@cases
def test_the_rule_without_a_ratio_is_torchs_weight_norm_on_a_diagonal_model(depth, signed):
    problems = one(signed)
    ours, theirs = Network(depth, 20, signed, 0.02), Network(depth, 20, signed, 0.02)
    for factor in theirs.factors:
        parametrizations.weight_norm(factor, dim=None)
    lr = float(H / problems.gram_norm[0])
    found = torch_descent(ours, problems, PolarSGD(lr=lr, per="layer").optimizer(ours.parameters()), 100)
    expected = torch_descent(theirs, problems, torch.optim.SGD(theirs.parameters(), lr=lr), 100)
    np.testing.assert_allclose(found, expected, atol=1e-10)


@cases
@pytest.mark.parametrize("ratio", [None, 3.0])
def test_untied_factors_that_start_alike_stay_alike(depth, signed, ratio):
    problems = one(signed)
    tied = descend(problems, settings(depth, ratio=ratio), 200)
    untied = descend(problems, settings(depth, ratio=ratio, tied=False), 200)
    np.testing.assert_allclose(untied.x, tied.x, atol=1e-13)
    np.testing.assert_allclose(untied.norms, tied.norms, atol=1e-13)


def test_norms_of_parts_are_those_of_a_rule_with_a_norm_a_part():
    problems = one(True)
    apart = descend(problems, settings(2, ratio=5.0, blocks="part"), 100).x[0, :, 0]
    weights = [nn.Parameter(torch.full((2, 20), 0.02**0.5, dtype=torch.float64)) for _ in range(2)]
    rule = PolarSGD(lr=H / problems.gram_norm[0] / 5, ratio=5.0, per="unit")  # a unit is a part: w or v
    optimizer = rule.optimizer(weights)
    A, y = torch.from_numpy(problems.A[0]), torch.from_numpy(problems.y[0])
    for _ in range(100):
        optimizer.zero_grad()
        z = weights[0] * weights[1]
        (0.5 * (A @ (z[0] - z[1]) - y).square().sum()).backward()
        optimizer.step()
    z = (weights[0] * weights[1]).detach().numpy()
    np.testing.assert_allclose(apart, z[0] - z[1], atol=1e-12)
    assert np.abs(apart - descend(problems, settings(2, ratio=5.0), 100).x[0, :, 0]).max() > 1e-3


def test_many_settings_and_seeds_at_once_equal_one_by_one():
    problems = gaussian([1, 2], 20, 8, 2)
    starts, steps = np.array([[0.01, 0.02, 0.03], [0.02, 0.01, 0.005]]), np.array([0.2, 0.5, 1.0])
    ratios = np.array([1, 3, 9.0])
    together = descend(problems, Settings(3, starts, steps, ratios), 50)
    for s in range(2):
        for k in range(3):
            alone = descend(gaussian([s + 1], 20, 8, 2), Settings(3, starts[s:s + 1, k:k + 1], steps[k:k + 1],
                                                                 ratios[k:k + 1]), 50)
            np.testing.assert_allclose(together.x[s, :, k], alone.x[0, :, 0], atol=1e-14)


@pytest.mark.parametrize(("depth", "ratio"), [(2, None), (2, 5.0), (3, None), (3, 5.0)])
def test_small_steps_end_at_the_exact_limit_of_the_flow(depth, ratio):
    problems = one(True)
    kappa = None if ratio is None else np.array([ratio])
    run = descend(problems, Settings(depth, np.array([0.03]), np.array([0.1]), kappa), 30_000, stop=1e-7)
    limit = fit(problems.A, problems.y, 0.03, depth=depth, ratio=ratio)
    assert run.residual.max() <= 1e-7
    assert np.abs(run.x[..., 0] - limit.x).max() < 4e-3
    np.testing.assert_allclose(run.norms[:, 0], limit.square_norm, rtol=1e-2)


def test_a_descent_stops_and_says_when_targets_were_met():
    problems = gaussian([1, 2], 20, 15, 1)
    run = descend(problems, Settings(2, np.array([1e-6, 0.5]), np.array([1.0])), 5000, stop=1e-2)
    assert run.steps[-1] < 5000
    assert (run.residual <= 1e-2).all()
    assert np.isfinite(run.reached["error 5 %"][:, 0]).all()
    assert np.isinf(run.reached["error 1 %"][:, 1]).all()  # a large start is no sparse solution
    for s in range(2):
        first = int(run.reached["error 5 %"][s, 0])
        before = descend(problems, Settings(2, np.array([1e-6, 0.5]), np.array([1.0])), first - 1)
        assert before.error[s, 0] > 0.05


def test_the_flow_starts_along_the_gradient_of_the_loss():
    problems = one(True)
    start = 0.02
    run = flow(problems.A[0], problems.y[0], start, 3, times=(0.0, 1e-6))
    model = Network(3, 20, True, start)
    A, y = torch.from_numpy(problems.A[0]), torch.from_numpy(problems.y[0])
    (0.5 * (A @ model() - y).square().sum()).backward()
    z = run.r[:, None] * run.u
    np.testing.assert_allclose((z[1] - z[0]) / 1e-6, -model.factors[0].weight.grad.numpy()[0], rtol=1e-4, atol=1e-9)


def test_instances_are_what_they_say():
    problems = gaussian([5, 6], 50, 20, 4)
    assert (np.count_nonzero(problems.x, axis=1) == 4).all()
    np.testing.assert_allclose(np.abs(problems.x).sum(1), 1)
    np.testing.assert_allclose((problems.A @ problems.x[..., None])[..., 0], problems.y)
    np.testing.assert_allclose(np.linalg.norm(problems.A, axis=1).mean(), 1, atol=0.05)
    np.testing.assert_array_equal(gaussian([6], 50, 20, 4).A[0], problems.A[1])
    assert (gaussian([5], 50, 20, 4, signed=False).x >= 0).all()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: settings(1), "must be a whole number >= 2; got 1"),
    (lambda: settings(2, alpha=0.0), "must be finite and > 0"),
    (lambda: settings(2, ratio=0.0), "must be a finite number > 0"),
    (lambda: Settings(2, np.array([0.1]), np.array([0.0])), "the step must be finite and > 0"),
    (lambda: settings(2, blocks="layer"), 'blocks must be "stack" or "part"; got \'layer\''),
    (lambda: gaussian([1], 10, 5, 11), "expected 1 <= sparsity <= unknowns"),
    (lambda: flow(np.ones((1, 2)), np.ones(1), -1.0, 2), "must be finite and > 0"),
    (lambda: flow(np.ones((1, 2)), np.ones(1), 1.0, 2, -3.0), "must be a finite number > 0; got -3.0"),
])
def test_bad_input_gets_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_diabetes_has_more_columns_than_rows_and_no_one_twice():
    problem = diabetes(0)
    assert problem.A.shape == (60, 285)
    assert problem.other_rows.shape == (382, 285)
    np.testing.assert_allclose(problem.A.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(problem.A.std(0), 1)
    assert abs(problem.y.mean()) < 1e-9
    assert problem.r2(np.zeros(285)) <= 0
    linear = np.linalg.lstsq(problem.A[:, :10], problem.y, rcond=None)[0]
    assert 0.2 < problem.r2(np.concatenate([linear, np.zeros(275)])) < 0.6  # the first ten columns are the numbers
    assert problem.r2(lasso(problem.A, problem.y)) > 0.2


def test_patches_are_seen_through_random_measurements():
    problem = patch(1)
    assert problem.A.shape == (100, 256)
    np.testing.assert_allclose(problem.A @ problem.x, problem.y)
    assert 0 <= problem.image(problem.x).min() < problem.image(problem.x).max() <= 1
    assert np.sort(np.abs(problem.x))[-50:].sum() > 0.5 * np.abs(problem.x).sum()


def test_without_scikit_learn_the_sentence_says_what_to_install(monkeypatch):
    def refuse(name):
        raise ImportError(name)
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UserError, match=r'pip install "optscope\[digits\]"'):
        diabetes(0)


@pytest.mark.parametrize(("blocks", "ratio"), [("stack", None), ("stack", 4.0), ("part", 4.0)])
def test_unequal_factors_are_trained_as_torch_trains_them(blocks, ratio):
    problems, depth = one(True), 3
    tilt = np.exp(0.5 * np.random.default_rng(5).normal(size=(depth, 1, 2, 20)))
    shape = (1, 40) if blocks == "stack" else (2, 20)  # a unit of the rule is what has a norm
    weights = [nn.Parameter(torch.from_numpy(0.02 ** (1 / depth) * each).reshape(shape)) for each in tilt]
    h = float(H / problems.gram_norm[0])
    rule = (PolarSGD(lr=h / ratio, ratio=ratio) if ratio else SGD(lr=h)).optimizer(weights)
    A, y = torch.from_numpy(problems.A[0]), torch.from_numpy(problems.y[0])

    def product():
        w, v = torch.stack([each.reshape(2, 20) for each in weights]).prod(0)
        return w - v
    for _ in range(100):
        rule.zero_grad()
        (0.5 * (A @ product() - y).square().sum()).backward()
        rule.step()
    found = descend(problems, settings(depth, ratio=ratio, tied=False, tilt=tilt, blocks=blocks), 100)
    np.testing.assert_allclose(found.x[0, :, 0], product().detach().numpy(), atol=1e-12)


@pytest.mark.parametrize(("depth", "alpha"), [(2, 1e-3), (3, 3e-3)])
def test_the_flow_has_fitted_when_a_descent_that_follows_it_has(depth, alpha):
    problems, ratio = gaussian([1], 30, 15, 2), 10.0
    step = 0.1
    run = descend(problems, Settings(depth, np.array([alpha]), np.array([step]), np.array([ratio])), 60_000,
                  stop=1e-2)
    time, x = arrival(problems.A[0], problems.y[0], alpha, depth, ratio, 1e-2)
    steps = time * ratio * problems.gram_norm[0] / step
    assert run.residual[0, 0] <= 1e-2
    assert steps == pytest.approx(run.steps[-1], rel=0.03)
    np.testing.assert_allclose(x, run.x[0, :, 0], atol=5e-3)


def test_a_flow_that_has_not_fitted_in_time_never_came():
    problems = gaussian([1], 30, 15, 2)
    assert arrival(problems.A[0], problems.y[0], 1e-3, 3, 10.0, 1e-2, end=1.0)[0] == np.inf


def test_tilt_is_for_untied_factors_and_positive():
    tilt = np.ones((2, 1, 2, 20))
    for wrong in ({"tilt": tilt}, {"tilt": -tilt, "tied": False}):
        with pytest.raises(UserError, match="tilt multiplies"):
            settings(2, **wrong)


def test_the_convolution_is_one_of_mirrored_signals():
    n = 6
    network, x = ConvolutionReadout(n), torch.randn(3, n, dtype=torch.float64)
    kernel = torch.zeros(2 * n, dtype=torch.float64)  # h0 = 1, h±1 = 1/4, around the circle
    kernel[0], kernel[1], kernel[-1] = 1.0, 0.25, 0.25
    mirrored = torch.cat([x, x.flip(-1)], dim=-1)
    expected = torch.fft.ifft(torch.fft.fft(mirrored) * torch.fft.fft(kernel)).real[:, :n]
    response = 1 + 0.5 * torch.cos(torch.pi * torch.arange(n, dtype=torch.float64) / n)
    with torch.no_grad():
        network.filter.copy_(network.cosines @ response)
        network.readout.copy_(torch.arange(float(n)))
    torch.testing.assert_close(network.convolved(x), expected)
    torch.testing.assert_close(network(x), expected @ torch.arange(float(n), dtype=torch.float64))


def filters(problems, start, ratio, steps):
    """The spectra of filter and readout by the update of each, written out; h = 1/‖A‖²."""
    A, y, w = problems.A[0], problems.y[0], start.copy()
    h = 1 / problems.gram_norm[0]
    for _ in range(steps):
        G = (A.T @ (A @ (w[0] * w[1]) - y)) * w[::-1]
        if ratio is None:
            w = w - h * G
            continue
        r = np.linalg.norm(w, axis=1, keepdims=True)
        along = (w / r * G).sum(1, keepdims=True)
        u = w / r - h * r * (G - along * w / r)
        w = (r - h / ratio * along) * u / np.linalg.norm(u, axis=1, keepdims=True)
    return w


def test_the_convolution_is_trained_as_its_spectra_are_and_ends_at_the_limit_of_the_diagonal_model():
    problems = gaussian([902], 50, 25, 3)
    square = float(np.abs(problems.x).sum())
    start = np.random.default_rng([902, 2]).normal(size=(2, 50))
    start *= np.sqrt(0.2 * square) / np.linalg.norm(start, axis=1, keepdims=True)
    rows, _ = convolution([902], 0.2, 10.0, 40)
    parts = ((start[0] + [[1], [-1]] * start[1]) / 2) ** 2
    for arm, ratio in (("SGD", None), ("PolarSGD", 10 / square)):
        (found,) = (row.value for row in rows if row.arm == arm and row.metric == "residual")
        after = filters(problems, start, ratio, 40).prod(0)
        assert found == pytest.approx(np.linalg.norm(problems.A[0] @ after - problems.y[0])
                                      / np.linalg.norm(problems.y[0]), rel=1e-10)
        end = filters(problems, start, ratio, 8000).prod(0)
        limit = fit(problems.A, problems.y, parts[None], ratio=ratio).x[0]
        assert np.linalg.norm(end - limit) < 0.01 * np.linalg.norm(problems.x)
