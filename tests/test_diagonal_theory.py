"""Limits, invariants, bounds and rates of diagonal models, against stiff integration of the flows themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import null_space

from optscope.errors import UserError
from optscope.tasks.diagonal import gaussian
from optscope.theory.diagonal import (
    basis_pursuit,
    excess_bound,
    fit,
    invariant,
    rate,
    robust_bound,
    square_norm,
    threshold,
)

M, N = 6, 12
CASES = [(depth, signed) for depth in (2, 3, 4) for signed in (True, False)]
cases = pytest.mark.parametrize(("depth", "signed"), CASES)


def instance(seed, signed, m=M, n=N, sparsity=2):
    """A random system with a sparse solution of ‖x‖₁ = 1, and a start that is not uniform."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, n)) / np.sqrt(m)
    x = np.zeros(n) if signed else rng.uniform(0, 0.3, n)  # x >= 0 must have neighbours that solve the system too
    x[rng.choice(n, sparsity, replace=False)] = rng.uniform(0.5, 1.5, sparsity)
    if signed:
        x *= rng.choice([-1, 1], n)
    x /= np.abs(x).sum()
    start = rng.uniform(0.01, 0.1, (2 if signed else 1, n))
    return A, A @ x, x, start


def gradient(A, y, z, depth, signed):
    """G by one factor z = (w; v), written out as in the paper."""
    n = A.shape[1]
    if not signed:
        return A.T @ (A @ z**depth - y) * z ** (depth - 1)
    w, v = z[:n], z[n:]
    g = A.T @ (A @ (w**depth - v**depth) - y)
    return np.concatenate([g * w ** (depth - 1), -g * v ** (depth - 1)])


def plain_flow(A, y, start, depth, signed, times=(0.0, 1e6)):
    found = solve_ivp(lambda t, z: -gradient(A, y, z, depth, signed), (0, times[-1]),
                      start.reshape(-1) ** (1 / depth), method="LSODA", rtol=1e-11, atol=1e-16, t_eval=times)
    assert found.success
    return found.y.T


def polar_flow(A, y, start, depth, signed, ratio, times=None):
    z = start.reshape(-1) ** (1 / depth)
    r = np.linalg.norm(z)

    def motion(t, state):
        r, u = state[0], state[1:]
        G = gradient(A, y, r * u, depth, signed)
        along = u @ G
        return np.concatenate([[-along], -ratio * r * (G - along * u)])

    found = solve_ivp(motion, (0, 1e6 if times is None else times[-1]), np.concatenate([[r], z / r]),
                      method="LSODA", rtol=1e-11, atol=1e-16, t_eval=times)
    assert found.success
    return found.y[0], found.y[1:].T


def joined(z, depth, signed, n=N):
    return z[:n] ** depth - (z[n:] ** depth if signed else 0)


@cases
def test_plain_limit_is_where_the_flow_ends(depth, signed):
    A, y, _, start = instance(depth, signed)
    z = plain_flow(A, y, start, depth, signed)
    limit = fit(A, y, start, depth=depth, signed=signed)
    np.testing.assert_allclose(limit.x, joined(z[-1], depth, signed), atol=1e-8)


@cases
@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_polar_flow_ends_at_the_plain_limit_from_rho_times_the_start(depth, signed, ratio):
    A, y, _, start = instance(depth + 10, signed)
    r, u = polar_flow(A, y, start, depth, signed, ratio)
    found = fit(A, y, start, depth=depth, ratio=ratio, signed=signed)
    r0, rho = np.sqrt(square_norm(start, depth)), np.exp(found.log_rho)
    assert abs(rho - (r[-1] / r0) ** depth * np.exp(-ratio * depth / 2 * (r[-1] ** 2 - r0**2))) < 1e-7 * rho
    np.testing.assert_allclose(found.x, joined(r[-1] * u[-1], depth, signed), atol=1e-8)
    np.testing.assert_allclose(found.x, fit(A, y, rho * start, depth=depth, signed=signed).x, atol=1e-12)
    assert np.abs(found.x - fit(A, y, start, depth=depth, signed=signed).x).max() > 1e-4  # or the test says nothing


@cases
def test_invariants_are_constant_along_the_flow(depth, signed):
    A, y, _, start = instance(depth + 20, signed)
    r, u = polar_flow(A, y, start, depth, signed, 3.0)
    kernel = null_space(np.hstack([A, -A]) if signed else A)
    kept = invariant(u, r, depth, 3.0) @ kernel
    assert np.ptp(kept, axis=0).max() < 1e-6 * np.abs(kept).max()
    moved = (np.log(u) if depth == 2 else u ** -(depth - 2)) @ kernel  # without the norm's part
    assert np.ptp(moved, axis=0).max() > 1e-3


def test_a_ratio_of_one_over_the_square_norm_is_plain_flow():
    A, y, _, start = instance(1, True)
    z0 = start.reshape(-1) ** (1 / 3)

    def motion(t, state):
        r, u = state[0], state[1:]
        G = gradient(A, y, r * u, 3, True)
        return np.concatenate([[-(u @ G)], -(G - (u @ G) * u) / r])

    r0 = np.linalg.norm(z0)
    found = solve_ivp(motion, (0, 1e6), np.concatenate([[r0], z0 / r0]), method="LSODA", rtol=1e-11, atol=1e-16)
    z = plain_flow(A, y, start, 3, True)
    np.testing.assert_allclose(found.y[0, -1] * found.y[1:, -1], z[-1], atol=1e-7)


@cases
@pytest.mark.parametrize("ratio", [None, 3.0])
def test_residual_decays_at_the_predicted_rate(depth, signed, ratio):
    A, y, _, start = instance(depth + 30, signed)
    limit = fit(A, y, start, depth=depth, ratio=ratio, signed=signed)
    predicted = rate(A, limit.parts, limit.signs, depth, ratio)
    times = np.linspace(0, 30 / predicted, 1000)
    if ratio is None:
        z = plain_flow(A, y, start, depth, signed, times)
    else:
        r, u = polar_flow(A, y, start, depth, signed, ratio, times)
        z = r[:, None] * u
    log_gap = np.log([np.linalg.norm(A @ joined(each, depth, signed) - y) for each in z])
    last = (log_gap < -17) & (log_gap > -22)
    slope = -np.polyfit(times[last], log_gap[last], 1)[0]
    assert last.sum() > 20
    assert abs(slope / predicted - 1) < 0.05


@pytest.mark.parametrize("alpha", [1.0, 1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("depth", [2, 3, 4, 10])
def test_newton_solves_the_optimality_conditions_from_large_and_small_starts(alpha, depth):
    batch = [instance(seed, True, 20, 50, 3) for seed in range(10)]
    A, y = np.stack([b[0] for b in batch]), np.stack([b[1] for b in batch])
    found = fit(A, y, alpha, depth=depth)
    assert np.abs((A @ found.x[..., None])[..., 0] - y).max() < 1e-12
    p = 1 - 2 / depth
    for a, parts in zip(A, found.parts, strict=True):  # the slope of the objective is in the range of Bᵀ
        slope = np.log(parts / alpha) if depth == 2 else alpha**-p - parts**-p
        nu = np.linalg.lstsq(a.T, slope[0], rcond=None)[0]
        np.testing.assert_allclose(a.T @ nu, slope[0], atol=1e-9 * np.abs(slope).max())
        np.testing.assert_allclose(slope[0], -slope[1], atol=1e-9 * np.abs(slope).max())


@pytest.mark.parametrize("alpha", [1e-20, 1e-40, 1e-200])
@pytest.mark.parametrize("depth", [2, 3, 4, 10])
def test_limits_from_tiny_starts_are_the_sparse_solutions(alpha, depth):
    batch = [instance(seed, True, 20, 50, 3) for seed in range(10)]
    found = fit(np.stack([b[0] for b in batch]), np.stack([b[1] for b in batch]), alpha, depth=depth)
    np.testing.assert_allclose(found.x, [b[2] for b in batch], atol=1e-4 if (alpha, depth) == (1e-20, 2) else 1e-10)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_tiny_starts_and_large_ratios_give_basis_pursuit(depth):
    A, y, x, _ = instance(5, True, 20, 50, 3)
    least = basis_pursuit(A, y)
    np.testing.assert_allclose(least, x, atol=1e-9)
    np.testing.assert_allclose(fit(A, y, 1e-80, depth=depth).x, least, atol=1e-10)
    alpha = 0.2 * threshold(x, depth)
    far = fit(A, y, alpha, depth=depth)
    near = fit(A, y, alpha, depth=depth, ratio=100.0)
    assert np.abs(near.x - least).max() < 1e-6 < 1e-5 < np.abs(far.x - least).max()


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_tiny_start_and_a_small_ratio_magnify_as_the_root_says(seed):
    rng, start, ratio = np.random.default_rng(seed), 1e-12, 1e-3
    A = rng.normal(size=(5, 20))  # here a step by a kept factor goes too far, and is taken again by a new one
    found = fit(A, A[:, :3].sum(1), start, ratio=ratio)
    square, square0 = found.square_norm, 2 * 20 * start
    assert found.log_rho > 10
    assert abs(found.log_rho - np.log(square / square0) + ratio * (square - square0)) < 1e-9
    np.testing.assert_allclose(found.x, fit(A, A[:, :3].sum(1), np.exp(found.log_rho) * start).x, atol=1e-10)


def test_a_solution_without_positive_neighbours_is_found_too():
    A, x = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]), np.array([1.0, 0.0, 0.0])  # x >= 0 has this solution alone
    for depth in (2, 3):
        for ratio in (None, 2.0):
            found = fit(A, A @ x, 0.1, depth=depth, ratio=ratio, signed=False)
            np.testing.assert_allclose(found.x, x, atol=1e-9)


def test_rows_of_any_size_count_alike():
    A, y, _, start = instance(7, True)
    factors = 10.0 ** np.linspace(-12, 6, len(A))
    for depth in (2, 3):
        expected = fit(A, y, start, depth=depth).x
        found = fit(A * factors[:, None], y * factors, start, depth=depth)
        np.testing.assert_allclose(found.x, expected, atol=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("ratio", [None, 3.0])
@pytest.mark.parametrize(("condition", "most"), [(1e2, 1e-12), (3e4, 1e-11), (1e5, 3e-11), (1e7, 3e-9)])
@pytest.mark.parametrize(("m", "n"), [(20, 60), (59, 401)])
def test_systems_of_a_bad_condition_are_solved(m, n, condition, most, ratio, depth):
    """The rows are U diag(s) Vᵀ: V says what the limit must fulfil without squaring the condition."""
    rng = np.random.default_rng(m)
    U, V = (np.linalg.qr(rng.normal(size=(size, m)))[0] for size in (m, n))
    A = U * np.geomspace(1, 1 / condition, m) @ V.T
    y = rng.normal(size=m)
    found = fit(A, y, 1e-3, depth=depth, ratio=ratio)
    assert np.abs(A @ found.x - y).max() < most
    if ratio is None:  # the slope of the objective lies in the range of Aᵀ, hence of V
        p = 1 - 2 / depth
        slope = np.log(found.parts / 1e-3) if depth == 2 else 1e-3**-p - found.parts**-p
        np.testing.assert_allclose(V @ (V.T @ slope[0]), slope[0], atol=1e-6 * np.abs(slope).max())


def test_rows_that_repeat_others_are_no_obstacle():
    A, y, _, start = instance(4, True)
    again = np.concatenate([A, A[:2] + A[2:4]])
    expected = fit(A, y, start).x
    np.testing.assert_allclose(fit(again, again @ expected, start).x, expected, atol=1e-9)
    with pytest.raises(UserError, match="has no solution"):
        fit(again, np.append(y, [0.0, 7.0]), start)


def test_a_start_far_below_the_floor_is_no_failure():
    problems = gaussian((8,), measurements=20, sparsity=8)  # some entries go with the start, and are tiny with it
    limit = fit(problems.A, problems.y, 2.787276144918332e-06, depth=3, ratio=15.147277)
    np.testing.assert_allclose(problems.A[0] @ limit.x[0], problems.y[0], atol=1e-7)


def test_a_start_that_rounding_drowns_the_solution_in_is_refused():
    for start in (1e100, 1e14, 1e12):
        with pytest.raises(UserError, match="start nearer to it"):
            fit([[1.0, 2.0]], [2.0], start)


def test_problems_in_a_batch_equal_problems_alone():
    batch = [instance(seed, False) for seed in range(5)]
    A, y, start = (np.stack([b[i] for b in batch]) for i in (0, 1, 3))
    for ratio in (None, np.array([0.5, 1.0, 3.0, 10.0, 100.0])):
        together = fit(A, y, start, depth=3, ratio=ratio, signed=False).x
        apart = [fit(A[i], y[i], start[i], depth=3, ratio=None if ratio is None else ratio[i], signed=False).x
                 for i in range(5)]
        np.testing.assert_allclose(together, apart, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_bounds_hold(depth):
    for seed in range(5):
        A, y, _, _ = instance(seed, True, 20, 50, 3)
        least = np.abs(basis_pursuit(A, y)).sum()
        for alpha in (1e-6, 1e-4, 1e-3, 5e-3):
            excess = (fit(A, y, alpha, depth=depth).l1 - least) / least
            assert excess <= excess_bound(alpha, 100, least, depth)
            polar = fit(A, y, alpha, depth=depth, ratio=30.0)
            bound = excess_bound(np.exp(polar.log_rho) * alpha, 100, least, depth)
            assert (polar.l1 - least) / least <= bound + 1e-14  # it may be below rounding
            if depth == 2:
                assert (polar.l1 - least) / least <= robust_bound(alpha, 100, least, 30.0) < 0.5


def test_torch_default_ratio_never_magnifies():
    for depth in (2, 3, 4):
        A, y, x, _ = instance(3, True, 20, 50, 3)
        for share in (0.01, 0.5, 1.0, 3.0):
            alpha = share * threshold(x, depth)
            ratio = 1 / square_norm(np.full((2, 50), alpha), depth)
            assert fit(A, y, alpha, depth=depth, ratio=ratio).log_rho <= 1e-12


def test_threshold_is_where_the_norms_are_equal():
    x = np.array([0.5, 0.0, -0.25, 0.0])
    for depth in (2, 3):
        alpha = threshold(x, depth)
        assert np.isclose(square_norm(np.full((2, 4), alpha), depth), (np.abs(x) ** (2 / depth)).sum())
    assert np.isclose(threshold(np.abs(x), 2, signed=False), 0.75 / 4)


A2, Y2 = np.array([[1.0, 2.0]]), np.array([2.0])


@pytest.mark.parametrize(("arguments", "words"), [
    ({"start": 0.0}, "must be finite and > 0; got 0.0"),
    ({"start": -1e-3}, "must be finite and > 0"),
    ({"start": np.nan}, "must be finite and > 0"),
    ({"start": np.ones(3)}, "start must be one number"),
    ({"ratio": 0.0}, "must be a finite number > 0; got 0.0"),
    ({"ratio": -2.0}, "must be a finite number > 0; got -2.0"),
    ({"ratio": np.inf}, "must be a finite number > 0"),
    ({"ratio": 1e-12}, "log ρ was not found in 400 steps; the ratio 1e-12 or the start may be extreme"),
    ({"depth": 1}, "must be a whole number >= 2; got 1"),
    ({"depth": 2.5}, "must be a whole number >= 2; got 2.5"),
    ({"y": [0.0]}, "y must not be 0"),
    ({"y": [1.0, 2.0]}, r"A must be \(..., M, N\) and y \(..., M\); got \(1, 2\) and \(2,\)"),
    ({"y": [np.nan]}, "must be finite"),
    ({"A": [[1.0, 1.0], [2.0, 2.0]], "y": [1.0, 1.0]}, "has no solution"),
    ({"y": [-1.0], "signed": False}, "no solution of A x = y with all entries above 0 was found"),
], ids=str)
def test_bad_input_gets_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        fit(**{"A": A2, "y": Y2, **arguments})


@pytest.mark.parametrize(("A", "y"), [(A2, [1.0, 2.0]), (A2[0], [1.0]), (A2[None], [[1.0]]), (A2, 1.0),
                                      (np.empty((0, 3)), [])], ids=["rows", "vector", "batch", "number", "empty"])
def test_basis_pursuit_takes_one_system_whose_shapes_match(A, y):
    with pytest.raises(UserError, match=r"A must be \(M, N\) and y \(M,\); got "):
        basis_pursuit(A, y)


def test_basis_pursuit_needs_numbers():
    with pytest.raises(UserError, match="A and y must be finite"):
        basis_pursuit(A2, [np.nan])


def test_basis_pursuit_says_when_there_is_no_solution():
    with pytest.raises(UserError, match="no solution with x >= 0; write signed=True"):
        basis_pursuit(A2, [-1.0], signed=False)
    with pytest.raises(UserError, match=r"has no solution$"):
        basis_pursuit([[1.0, 1.0], [2.0, 2.0]], [1.0, 1.0])
