"""The two-mode GAN: gradients by differentiation, the reduction against all d coordinates, starts and outcomes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from optscope.errors import UserError
from optscope.optim import SGD, Adam, NormalizedSGD, Players
from optscope.tasks.two_modes import BATCH, batches, gradient, labels, layout_of, simulate
from optscope.theory.gan_modes import OUTCOMES, TwoModes, activation

SMALL = TwoModes(dimension=40, correlation=0.15, together=0.25, neurons=3, columns=4)


def normalised(d, g):
    return Players(discriminator=NormalizedSGD(lr=d, per="model"), generator=NormalizedSGD(lr=g, per="model"))


def plain(d, g):
    return Players(discriminator=SGD(lr=d), generator=SGD(lr=g))


def value(problem, params, modes, z):
    """f = E log D(X) + E log(1 − D(G(z))), from its definition, with the samples themselves."""
    w, b, v = layout_of(problem, modes.shape[-1]).views(params)
    cut = problem.cut

    def d(x):
        inner = x @ w.T
        low = inner.clamp(-cut, cut)
        return (low**3 + 3 * cut**2 * (inner - low)).sum(-1) + problem.bias_scale * b
    data = torch.stack([modes[0], modes[1], modes[0] + modes[1]])
    chances = torch.from_numpy(problem.chances)
    return ((chances * torch.nn.functional.logsigmoid(d(data))).sum()
            + torch.nn.functional.logsigmoid(-d(z @ v)).mean())


@pytest.mark.parametrize("scale", [0.3, 3.0])  # the second reaches beyond the cut
def test_gradients_are_those_of_the_value(scale):
    rng = np.random.default_rng(0)
    seeds, cells, n = 2, 3, SMALL.span
    modes = torch.from_numpy(np.stack([SMALL.modes()] * seeds))
    layout = layout_of(SMALL, n)
    params = torch.from_numpy(scale * rng.standard_normal((seeds * cells, layout.size)))
    z = torch.from_numpy(np.stack([SMALL.latents(rng, 8) for _ in range(seeds)]))
    found, doubt = gradient(SMALL, params, modes, z)
    for i in range(seeds * cells):
        p = params[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(value(SMALL, p, modes[i // cells], z[i // cells]), p)
        of_d = layout.sizes[0] + 1
        torch.testing.assert_close(found[i, :of_d], -expected[:of_d], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(found[i, of_d:], expected[of_d:], rtol=1e-10, atol=1e-14)
    assert ((doubt > 0) & (doubt < 1)).all()


def test_the_activation_is_smooth_at_its_cut():
    x = np.linspace(-5, 5, 10_001)
    y = activation(x, cut=2.0)
    inside = np.abs(x) <= 2
    np.testing.assert_allclose(y[inside], x[inside] ** 3)
    slope = np.gradient(y, x)
    np.testing.assert_allclose(slope[1:-1], 3 * np.minimum(np.abs(x[1:-1]), 2) ** 2, atol=0.01)


@pytest.mark.parametrize("rule", [normalised(0.1, 0.05), plain(0.3, 0.5), Players(
    discriminator=SGD(lr=0.2, momentum=0.5), generator=NormalizedSGD(lr=0.02, per="model"))], ids=repr)
def test_the_span_is_all_there_is(rule):
    problem = TwoModes(dimension=300, correlation=0.15, together=0.25)
    modes, w, v = problem.start_in_space(np.random.default_rng(3))
    basis, _ = np.linalg.qr(np.concatenate([modes, w, v]).T)  # (d, span)
    ends = []
    for coordinates in (np.eye(300), basis):
        layout = layout_of(problem, coordinates.shape[1])
        parts = [torch.from_numpy(x @ coordinates) for x in (modes, w, v)]
        params = torch.cat([parts[1].flatten(), torch.zeros(1, dtype=torch.float64), parts[2].flatten()])[None]
        state, stream = rule.init(params, layout), batches(problem, (3,), BATCH)
        for _ in range(150):
            grad, _ = gradient(problem, params, parts[0][None], next(stream))
            step, state = rule.update(grad, state, params, layout)
            params = params + step
        ends.append(layout.views(params[0])[2].numpy() @ coordinates.T)
    assert np.abs(ends[0]).max() > 1e-3
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-8, atol=1e-12)


def test_starts_in_the_span_are_distributed_as_in_space():
    problem = TwoModes(dimension=60, correlation=0.3)
    grams: dict[bool, list] = {True: [], False: []}
    for seed in range(400):
        reduced = (problem.modes(), *problem.start(np.random.default_rng(seed)))
        for inside, (u, w, v) in ((True, reduced), (False, problem.start_in_space(np.random.default_rng(seed)))):
            grams[inside].append([w[9] @ w[9], w[0] @ w[5], w[3] @ u[1], v[13] @ v[13], v[2] @ w[7], u[0] @ u[1]])
    a, b = (np.array(grams[inside]) for inside in (True, False))
    for column in range(5):
        assert scipy.stats.ks_2samp(a[:, column], b[:, column]).pvalue > 0.005
    np.testing.assert_allclose(a[:, 5], 0.3)
    np.testing.assert_allclose(b[:, 5], 0.3)


def test_latent_vectors_are_bernoulli_given_that_they_are_not_zero():
    z = TwoModes().latents(np.random.default_rng(0), 200_000)
    assert set(np.unique(z)) == {0.0, 1.0}
    assert z.sum(1).min() == 1
    some = 1 - (13 / 14) ** 14
    np.testing.assert_allclose(z.mean(0), 1 / 14 / some, atol=0.003)
    np.testing.assert_allclose((z[:, 0] * z[:, 9]).mean(), 1 / 14**2 / some, atol=0.001)
    one = TwoModes(latent="one").latents(np.random.default_rng(0), 1000)
    assert (one.sum(1) == 1).all()


def test_cells_and_seeds_together_equal_separate_plays():
    together = simulate(SMALL, normalised((0.1, 0.2), (0.05, 0.02)), 60, (4, 7), checkpoints=5)
    for i, (seed, d, g) in enumerate(((4, 0.1, 0.05), (4, 0.2, 0.02), (7, 0.1, 0.05), (7, 0.2, 0.02))):
        alone = simulate(SMALL, normalised(d, g), 60, (seed,), checkpoints=5)
        np.testing.assert_allclose(together.moved[:, i], alone.moved[:, 0], rtol=1e-9)
        np.testing.assert_allclose(together.shares[:, i], alone.shares[:, 0], atol=2e-3)
        assert together.fitted[i] == alone.fitted[0]


def test_normalised_steps_have_the_pace_they_are_given():
    play = simulate(TwoModes(), normalised(0.1, 0.05), 5, (1,), checkpoints=5)
    w, v = TwoModes().start(np.random.default_rng((1, 0)))
    assert play.pace[0, 0] == pytest.approx(np.log10(0.1 / np.linalg.norm(w) / (0.05 / np.linalg.norm(v))))


def test_normalised_descent_finds_both_modes_and_plain_descent_none():
    found = simulate(TwoModes(), normalised(0.1, 0.05), 800, range(10))
    assert (found.outcomes == 0).any(0).sum() >= 8
    assert np.isfinite(found.first_both()).sum() >= 8
    lost = simulate(TwoModes(), plain(0.03, 3e-4), 2000, range(10), checkpoints=10)
    assert (lost.outcomes == OUTCOMES.index("noise")).all()
    assert np.isinf(lost.first_move()).all()


def test_it_is_judged_when_the_discriminator_has_fitted_and_at_the_budget():
    play = simulate(TwoModes(), plain(1.0, 1.0), 300, (0, 1), budget=100, checkpoints=120)
    assert np.isfinite(play.fitted).all()
    assert [OUTCOMES[i] for i in labels(play.at_fit)] == ["noise", "noise"]
    assert not np.isnan(play.at_budget).any()
    last = simulate(TwoModes(), normalised(1.0, 0.5), 100, (0, 1), budget=100, checkpoints=5)
    np.testing.assert_array_equal(last.at_budget, last.shares[-1])
    never = simulate(TwoModes(), plain(1e-3, 1e-3), 50, (0,), checkpoints=3)
    assert np.isinf(never.fitted).all()
    assert labels(never.at_fit).tolist() == labels(never.at_budget).tolist() == [-1]


def test_rules_that_treat_coordinates_apart_play_in_space():
    rule = Players(discriminator=Adam(lr=0.01), generator=Adam(lr=0.003))
    play = simulate(TwoModes(dimension=50), rule, 20, (0,), checkpoints=3, in_space=True)
    assert np.isfinite(play.moved).all()


@pytest.mark.parametrize(("call", "words"), [
    (lambda: TwoModes(dimension=20), "at least 26"), (lambda: TwoModes(correlation=1.0), r"lie in \[0, 1\)"),
    (lambda: TwoModes(latent="gauss"), "got 'gauss'"),
    (lambda: simulate(TwoModes(), plain(0.1, 0.1), 0, (1,)), "steps >= 1"),
    (lambda: simulate(TwoModes(), plain(0.1, 0.1), 5, (1, 1)), "distinct seeds"),
    (lambda: simulate(TwoModes(), plain((0.1, 0.2), (0.1, 0.2, 0.3)), 5, (1,)), "as many cells"),
    (lambda: simulate(TwoModes(), Players(generator=SGD(lr=0.1), critic=SGD(lr=0.1)), 5, (1,)), "discriminator"),
])
def test_bad_input(call, words):
    with pytest.raises(UserError, match=words):
        call()
