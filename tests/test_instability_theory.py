"""The closed forms of restrained instability against simulation, brute force and the published set-ups."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.signal import correlate2d

from optscope.errors import UserError
from optscope.theory import heat
from optscope.theory.checkerboard import ScalarMap, checkerboard
from optscope.theory.one_layer import (
    OneLayer,
    convolved_gradient,
    distance,
    gram,
    patches,
    swish,
    swish_bend,
    swish_slope,
    window,
)

RNG = np.random.default_rng(0)
SMALL = ScalarMap(size=24, kernel=6, decay=2.0)


# Heat

@pytest.mark.parametrize("nodes", [5, 31, 64])
def test_rates_are_the_spectrum_of_the_second_difference(nodes):
    inner = nodes - 2
    matrix = 2 * np.eye(inner) - np.eye(inner, k=1) - np.eye(inner, k=-1)
    np.testing.assert_allclose(heat.rates(nodes), np.linalg.eigvalsh(matrix), atol=1e-13)
    np.testing.assert_allclose(heat.rates(nodes, dx=0.5), 4 * heat.rates(nodes))


@pytest.mark.parametrize("dt", [0.3, 0.51])
def test_every_mode_grows_by_its_factor(dt):
    i = np.arange(31)
    for j, rate in enumerate(heat.rates(31), start=1):
        states, _ = heat.march(np.sin(j * np.pi * i / 30), dt, 1)
        np.testing.assert_allclose(states[1], (1 - dt * rate) * states[0], atol=1e-13)


def test_the_step_limit_divides_decay_from_growth():
    limit = heat.step_limit(31)
    for dt, grows in ((limit * (1 - 1e-6), False), (limit * (1 + 1e-6), True)):
        assert (abs(1 - dt * heat.rates(31)[-1]) > 1) == grows
    sizes = [np.abs(heat.march(heat.tent(), dt, 2000)[0][-1]).max() for dt in (0.5013, 0.502, 0.51)]
    assert sizes[0] < 0.002
    assert sizes[1] == pytest.approx(0.49, abs=0.01)  # of a pilot
    assert 1e26 < sizes[2] < 1e27


@pytest.mark.parametrize("dt", [0.51, 0.6, 0.8])
def test_feedback_tunes_itself_to_the_edge(dt):
    states, diffusivities = heat.march(heat.tent(), dt, 5000, feedback=1.0)
    assert diffusivities[-1] == pytest.approx(heat.step_limit(31) / dt, abs=1e-6)
    assert 0 < np.abs(states[-1]).max() < 3


# One layer

@pytest.mark.parametrize("beta", [1.0, 5.0])
def test_slopes_and_bends_are_derivatives(beta):
    z, h = np.linspace(-4, 4, 101), 1e-5
    np.testing.assert_allclose(swish_slope(z, beta), (swish(z + h, beta) - swish(z - h, beta)) / 2 / h, atol=1e-8)
    np.testing.assert_allclose(swish_bend(z, beta), (swish_slope(z + h, beta) - swish_slope(z - h, beta)) / 2 / h,
                               atol=1e-8)
    assert np.isfinite(swish(np.array([-1e4, 1e4]), beta)).all()


@pytest.mark.parametrize(("shape", "size"), [((9, 9), 3), ((7, 12), 5), ((6, 6), 6), ((8, 5), 1)])
def test_gram_is_the_sum_over_patches_and_the_operator(shape, size):
    image = RNG.normal(size=shape)
    rows = patches(image, size)
    G = gram(image, size)
    np.testing.assert_allclose(G, sum(np.outer(p, p) for p in rows), atol=1e-12)
    kernel = RNG.normal(size=(size, size))
    there_and_back = correlate2d(image, correlate2d(image, kernel, mode="valid"), mode="valid")
    np.testing.assert_allclose(G @ kernel.ravel(), there_and_back.ravel(), atol=1e-11)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_gradient_and_hessian_are_derivatives_of_the_loss(label):
    layer = OneLayer.of(RNG.normal(size=(7, 8)), 3, decay=0.3, beta=2.0, label=label)
    kernel, h = RNG.normal(size=9), 1e-5
    steps = h * np.eye(9)
    slopes = (layer.loss(kernel + steps) - layer.loss(kernel - steps)) / 2 / h
    np.testing.assert_allclose(layer.gradient(kernel), slopes, atol=1e-9)
    bends = (layer.gradient(kernel + steps) - layer.gradient(kernel - steps)) / 2 / h
    np.testing.assert_allclose(layer.hessian(kernel), bends, atol=1e-9)


def test_gradient_is_the_convolution():
    image, kernel = RNG.normal(size=(9, 11)), RNG.normal(size=(4, 4))
    found = OneLayer.of(image, 4, decay=0.7, beta=3.0).gradient(kernel.ravel())
    np.testing.assert_allclose(found, convolved_gradient(image, kernel, 0.7, beta=3.0).ravel(), atol=1e-13)


def test_the_window_of_the_paper():
    rate = float(np.linalg.eigvalsh(gram(checkerboard(64), 8))[-1])
    assert rate == pytest.approx(57**2 * 64)
    low, high = window(np.array([0.0, 225**2 * 1024]), lr=1e-8)
    assert low == pytest.approx(1.296e7, rel=1e-12)
    assert high == pytest.approx(2.0e8, rel=1e-12)
    # For a > 0 the bounds change sides: any decay >= 0 is enough, and the largest rate limits it.
    assert window(np.array([0.0, 4.0]), lr=0.1, a=0.5) == (0.0, 19.0)


@pytest.mark.parametrize("place", ["inside", "below", "above"])
def test_the_window_decides_what_the_linear_equation_does(place):
    image, lr = RNG.normal(size=(10, 10)), 1e-4
    low, high = window(np.linalg.eigvalsh(gram(image, 3)), lr)
    decay = {"inside": (low + high) / 2, "below": 0.9 * low, "above": 1.02 * high}[place]
    path = OneLayer.of(image, 3, decay).descend_linear(np.ones(9), lr, 60_000 if place == "below" else 6000)
    change = np.linalg.norm(path[-1] - path[-2]) / np.linalg.norm(path[1] - path[0])
    assert (change < 1e-6) if place == "inside" else (change > 10)


def test_the_linear_equation_starts_with_the_gradient_of_the_loss_and_its_growth_knows_no_constant():
    rng, lr = np.random.default_rng(3), 1e-3
    image = rng.random((12, 14))
    layer = OneLayer.of(image, 4, decay=0.3)
    first = layer.descend_linear(np.zeros(16), lr, 1)[1]
    np.testing.assert_allclose(first, -lr * layer.gradient(np.zeros(16)), rtol=1e-12)
    theirs = np.full(16, 0.25 * lr * image.mean())  # as the authors' script has it
    assert np.abs(first - theirs).max() > 1e-3 * theirs.max()
    kernels = rng.normal(size=(2, 16))
    moved = layer.descend_linear(kernels, lr, 1)[1]
    expected = (1 - lr * 0.3) * np.eye(16) + lr / 4 * gram(image, 4)
    np.testing.assert_allclose(moved[0] - moved[1], expected @ (kernels[0] - kernels[1]), rtol=1e-10)


def test_a_kernel_must_fit():
    with pytest.raises(UserError, match="a kernel of 9 x 9 needs a grey image of at least that size"):
        gram(np.ones((8, 20)), 9)


def test_distance_ends():
    a = np.array([[1.0, 0.0, -2.0]])
    assert distance(a, a) == 0
    assert distance(a, -a) == pytest.approx(4 / 3)


# The checkerboard

def test_the_full_computation_is_the_scalar_map():
    image = checkerboard(SMALL.size)
    kernel = RNG.normal(size=(6, 6))
    full, z = kernel.copy(), float(kernel.ravel() @ SMALL.layer().patches[0])
    path = SMALL.layer().descend(kernel.ravel(), 0.4, 40)
    for n in range(40):
        full = full - 0.4 * convolved_gradient(image, full, SMALL.decay)
        z = z + 0.4 * float(SMALL.force(z))
        np.testing.assert_allclose(full.ravel(), path[n + 1], atol=1e-12)
        np.testing.assert_allclose(full.ravel() @ SMALL.layer().patches[0], z, rtol=1e-12, atol=1e-12)


def test_force_and_slope():
    z, h = np.linspace(-12, 12, 97), 1e-5
    np.testing.assert_allclose(SMALL.slope(z), (SMALL.force(z + h) - SMALL.force(z - h)) / 2 / h, atol=1e-7)
    p = SMALL.layer().patches[0]
    kernels = np.outer(z, p) / SMALL.squared_norm
    np.testing.assert_allclose(-SMALL.layer().gradient(kernels) @ p, SMALL.force(z), atol=1e-12)
    along = p @ SMALL.layer().hessian(kernels[60]) @ p / SMALL.squared_norm
    assert along == pytest.approx(-float(SMALL.slope(z[60])), rel=1e-12)


def test_the_three_regimes_of_the_paper():
    paper = ScalarMap()
    assert paper.fixed_point == pytest.approx(3.865217, abs=1e-6)
    assert paper.step_limit == pytest.approx(0.03226, abs=1e-5)
    assert paper.bounded_limit == 0.1
    assert float(paper.slope(0.0)) == pytest.approx(236, abs=1e-6)
    rates = np.array([0.01, 0.03, 0.035, 0.04, 0.05, 0.06, 0.07, 0.09, 0.099, 0.11])
    found = paper.orbits(rates, 0.036, steps=4000)
    pilot = [-0.97, -0.15, -0.42, -1.37, 0.39, -0.10, 0.79, 0.65, 0.28]
    np.testing.assert_allclose(found.exponents[:-1], pilot, atol=0.1)
    np.testing.assert_allclose(np.abs(found.tail[:, :2]), paper.fixed_point, rtol=1e-9)
    np.testing.assert_allclose(np.unique(np.abs(found.tail[:, 2]).round(2)), [2.72, 5.79])
    assert (np.abs(found.tail[:, :-1]) < 25).all()
    assert np.isnan(found.tail[:, -1]).all()  # overflowed


def test_an_exponent_is_the_growth_of_a_small_difference():
    paper, h = ScalarMap(), 1e-9
    rates = np.array([0.05, 0.07, 0.09])
    a, b = np.full(3, -0.5), np.full(3, -0.5 + h)
    total = np.zeros(3)
    for _ in range(4000):
        a, b = a + rates * paper.force(a), b + rates * paper.force(b)
        total += np.log(np.abs(b - a) / h)
        b = a + h * np.sign(b - a)
    np.testing.assert_allclose(total / 4000, paper.orbits(rates, -0.5, steps=8000).exponents, atol=0.05)


def test_a_thousand_steps_of_a_thousand_rates_are_one_array():
    start = time.process_time()
    found = ScalarMap().orbits(np.linspace(0.001, 0.12, 1000), -0.036)
    assert found.tail.shape == (64, 1000)
    assert time.process_time() - start < 10  # a loop over rates takes minutes; the bar is in benchmarks/


def test_rounding_is_amplified_where_the_exponent_is_positive():
    layer, kernel = ScalarMap().layer(), np.random.RandomState(7).randn(1024)
    assert layer.loss(kernel) == pytest.approx(9498.2, abs=0.1)
    for lr, parts in ((0.03, False), (0.06, False), (0.07, True)):
        twins = [layer.descend(kernel, lr, 600, k) for k in (1, 3, 4)]
        assert np.array_equal(twins[0], twins[2])
        assert (distance(twins[0], twins[1]).max() > 0.1) == parts
    single = ScalarMap().layer(np.float32)
    assert single.descend(kernel.astype(np.float32), 0.05, 3).dtype == np.float32
