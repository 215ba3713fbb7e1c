"""Lanczos, quadrature and Hutch++ on known matrices: against dense eigenvalues, over many random starts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from optscope.bisection import crossing
from optscope.errors import UserError
from optscope.optim.preconditioner import Preconditioner
from optscope.probes.hessian import Preconditioned, SymmetricOperator
from optscope.probes.lanczos import Krylov, largest, spectrum, trace
from optscope.vector import Layout


class Dense(SymmetricOperator):
    """A matrix that is there."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(Layout(("w",), (torch.Size([len(matrix)]),)), matrix)
        self.matrix = matrix

    def _product(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector


def matrix(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A random symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64)).Q
    full = q * eigenvalues.double() @ q.T
    return (full + full.T) / 2


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outliers(n: int = 300) -> Tensor:
    """A spectrum like that of a trained network: a bulk about zero, some of it negative, and a few outliers."""
    bulk = torch.randn(n - 5, generator=generator(1), dtype=torch.float64) * 0.05
    return torch.cat([bulk, torch.tensor([1.0, 1.8, 2.5, 7.0, 10.0], dtype=torch.float64)])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_agrees_with_dense_eigenvalues_and_with_arpack(k):
    a = matrix(outliers())
    found = largest(Dense(a), k, rel=1e-9)
    truth = torch.linalg.eigvalsh(a).flip(0)[:k]
    torch.testing.assert_close(found.values, truth, rtol=1e-12, atol=0)
    arpack = eigsh(LinearOperator(a.shape, matvec=lambda v: a.numpy() @ v, dtype=np.float64), k, which="LA")[0]
    np.testing.assert_allclose(found.values.numpy(), arpack[::-1], rtol=1e-9)
    assert found.converged
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-12)
    residual = (a @ found.vectors.T - found.vectors.T * found.values).norm(dim=0)
    assert bool((residual <= found.errors).all())
    torch.testing.assert_close(found.errors, residual, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rel", [1e-1, 1e-2, 1e-3])
def test_the_printed_error_and_limit_keep_their_word_over_many_starts(dtype, rel):
    eigenvalues = outliers()
    operator = Dense(matrix(eigenvalues).to(dtype))
    top = float(eigenvalues.max())
    missed = above = 0
    for seed in range(100):
        found = largest(operator, rel=rel, generator=generator(seed))
        value, error = float(found.values[0]), float(found.errors[0])
        assert found.converged
        assert error <= rel * value
        assert found.limit <= 1.5 * value
        assert float((eigenvalues - value).abs().min()) <= error  # always: an eigenvalue lies there
        missed += abs(value - top) > error  # rarely: it is not the top one
        above += found.limit < top  # and then the limit still covers the top one
    assert missed <= (0 if rel == 1e-3 else 10)
    assert above <= 4  # 1 expected at most; more than 4 of 100 has probability 0.3 %


def test_the_limit_fails_about_as_often_as_it_says_when_the_top_is_hard_to_see():
    """The top eigenvalue hides behind the second: stopped early, Lanczos sees only that one in most starts."""
    eigenvalues = torch.cat([torch.zeros(398), torch.tensor([1.0, 1.02])]).double()
    operator = Dense(torch.diag(eigenvalues))
    found = [largest(operator, rel=0.5, most=2, generator=generator(seed)) for seed in range(400)]
    tight = sum(f.limit < 1.02 for f in found)
    assert tight <= 10  # at most 4 expected; more than 10 of 400 has probability 0.3 %
    assert np.median([f.limit for f in found]) < 100  # and it says something
    converged = [largest(operator, rel=1e-6, generator=generator(seed)) for seed in range(20)]
    assert max(f.limit for f in converged) < 1.021


def test_no_ghosts():
    """Plain Lanczos repeats converged eigenvalues; these must come out once each, whatever the steps."""
    a = matrix(outliers(200))
    truth = torch.linalg.eigvalsh(a).flip(0)
    krylov = Krylov(Dense(a), torch.ones(200, dtype=torch.float64), generator(0))
    for _ in range(120):
        krylov.extend()
    values, _, _ = krylov.ritz()
    np.testing.assert_allclose(values[:5], truth[:5].numpy(), rtol=1e-12)
    assert int((values > 0.5).sum()) == 5
    gram = krylov.basis @ krylov.basis.T
    torch.testing.assert_close(gram, torch.eye(120, dtype=torch.float64), rtol=0, atol=1e-13)


def test_float32_has_no_ghosts_either():
    krylov = Krylov(Dense(matrix(outliers(200)).float()), torch.ones(200), generator(0))
    for _ in range(120):
        krylov.extend()
    assert int((krylov.ritz()[0] > 0.5).sum()) == 5


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12), st.integers(0, 1000))
@settings(max_examples=60)
def test_any_small_matrix_is_solved_in_full(eigenvalues, seed):
    """Zero, repeated, negative and clustered eigenvalues: the basis restarts until it spans everything."""
    a = matrix(torch.tensor(eigenvalues))
    found = largest(Dense(a), len(a), rel=1e-10, generator=generator(seed))
    truth = torch.linalg.eigvalsh(a).flip(0)
    scale = 1e-12 * max(1.0, float(truth.abs().max()))
    torch.testing.assert_close(found.values, truth, rtol=0, atol=scale)
    assert found.products == len(a)
    assert found.limit >= float(truth[0]) - scale


def test_a_good_guess_saves_products_and_a_bad_one_is_overcome():
    a = matrix(outliers())
    values, vectors = torch.linalg.eigh(a)
    near = vectors[:, -1] + 0.01 * vectors[:, 3]
    for seed in range(20):
        cold = largest(Dense(a), margin=np.inf, generator=generator(seed))
        warm = largest(Dense(a), margin=np.inf, start=near, generator=generator(seed))
        assert warm.products < cold.products
        wrong = largest(Dense(a), start=vectors[:, -2], generator=generator(seed))  # exactly the second eigenvector
        for found in (warm, wrong):
            assert abs(float(found.values[0]) - float(values[-1])) <= float(found.errors[0])


def test_products_are_counted_and_limited():
    operator = Dense(matrix(torch.linspace(0, 1, 300)))
    found = largest(operator, rel=1e-9, most=7)
    assert (operator.products, found.products, found.converged) == (7, 7, False)
    truth = torch.linspace(0, 1, 300).double()
    assert float((truth - found.values[0]).abs().min()) <= float(found.errors[0])


def test_an_operator_that_is_not_symmetric_prints_a_large_error():
    a = matrix(outliers(50))
    skew = torch.randn(50, 50, generator=generator(3), dtype=torch.float64)
    found = largest(Dense(a + skew - skew.T), most=50)
    assert float(found.errors[0]) > 0.1


def test_preconditioned_has_the_eigenvalues_of_the_quotient():
    a, d = matrix(outliers(40)), torch.rand(40, generator=generator(2), dtype=torch.float64) + 0.1
    truth = torch.linalg.eigvals(torch.diag(1 / d) @ a).real.max()
    found = largest(Preconditioned(Dense(a), Preconditioner.diagonal(d)), rel=1e-9)
    torch.testing.assert_close(found.values[0], truth, rtol=1e-10, atol=0)


def test_quadrature_is_exact_for_polynomials_of_its_own_start():
    """With m steps, moments up to 2 m - 1 of the start's own spectral measure are exact."""
    a = matrix(outliers(60))
    v = torch.randn(60, generator=generator(5), dtype=torch.float64)
    krylov = Krylov(Dense(a), v, generator(0))
    for _ in range(6):
        krylov.extend()
    nodes, vectors, _ = krylov.ritz()
    unit = v / v.norm()
    for power in range(12):
        exact = float(unit @ torch.linalg.matrix_power(a, power) @ unit)
        assert float((vectors[0] ** 2 * nodes**power).sum()) == pytest.approx(exact, rel=1e-10)


def test_density_has_the_moments_and_the_mass_of_the_spectrum():
    eigenvalues = outliers()
    a = matrix(eigenvalues)
    found = spectrum(Dense(a), samples=40, steps=30)
    assert found.products == 1200
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
    n = len(eigenvalues)
    for power in (1, 2):
        spread = float((2 * (eigenvalues ** (2 * power)).sum()).sqrt()) / n / np.sqrt(40)
        assert found.mean(power) == pytest.approx(float((eigenvalues**power).mean()), abs=4 * spread)
    at = np.linspace(-2, 12, 4001)
    density = found.density(at, 0.05)
    assert np.trapezoid(density, at) == pytest.approx(1, abs=1e-6)
    gaps = (at[:, None] - eigenvalues.numpy()) / 0.05
    kernel = np.exp(-(gaps**2) / 2).mean(1) / (0.05 * np.sqrt(2 * np.pi))
    assert np.trapezoid(np.abs(density - kernel), at) < 0.1
    assert float(found.nodes.max()) == pytest.approx(10, rel=1e-9)


def test_density_of_few_distinct_eigenvalues_stops_early():
    found = spectrum(Dense(torch.diag(torch.tensor([1.0, 1.0, 1.0, 3.0]).double())), samples=3)
    assert found.products == 6
    assert float(found.weights.sum()) == pytest.approx(1)
    assert sorted({round(float(x), 9) for x, w in zip(found.nodes.ravel(), found.weights.ravel(), strict=True)
                   if w > 1e-12}) == [1.0, 3.0]


def test_trace_is_unbiased_and_its_standard_error_is_right():
    a = matrix(outliers(120))
    truth = float(a.trace())
    found = [trace(Dense(a), 30, generator=generator(seed)) for seed in range(300)]
    scores = np.array([(f.value - truth) / f.error for f in found])
    values, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(300)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.15)
    assert 0.9 < (np.abs(scores) < 2.26).mean() < 0.99  # 95 % of Student's t with 9 degrees of freedom
    hutchinson = np.sqrt(2 * float((a - torch.diag(a.diagonal())).square().sum()) / 30)
    assert values.std() < 0.5 * hutchinson


def test_trace_is_exact_when_the_rank_is_small():
    low = torch.zeros(80)
    low[:6] = torch.arange(1.0, 7.0)
    found = trace(Dense(matrix(low)), 30)
    assert found.value == pytest.approx(21, rel=1e-10)
    assert found.error < 1e-9
    tiny = trace(Dense(matrix(torch.arange(1.0, 6.0))), 30)
    assert (tiny.value, tiny.error) == (pytest.approx(15, rel=1e-12), 0.0)


@pytest.mark.parametrize(("call", "says"), [
    (lambda a: largest(a, 0), "between 1 and the 5"), (lambda a: largest(a, 6), "between 1 and the 5"),
    (lambda a: largest(a, rel=0.0), "rel"), (lambda a: trace(a, 5), "at least 6 products"),
    (lambda a: a(torch.ones(4)), r"shape \(5,\); got \(4,\)"),
])
def test_wrong_settings_are_named(call, says):
    with pytest.raises(UserError, match=says):
        call(Dense(torch.eye(5)))


@pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
def test_a_crossing_is_found_as_scipy_finds_it(power):
    for zero in np.random.default_rng(1).random(200):
        def rising(x, zero=zero):
            return float(np.sign(x - zero) * abs(x - zero) ** power)

        assert crossing(rising, 0.0, 1.0, 1e-6) == scipy.optimize.bisect(rising, 0, 1, xtol=1e-6)
    assert crossing(lambda x: x, 0.0, 1.0, 1e-6) == 0
