"""The cosine transform against SciPy's, the bands and masks against the paper's numbers and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optscope.dct import dct2, energy_mask, equal_count_bands, idct2, low_pass_mask, matrix, radius
from optscope.errors import UserError

# arXiv 2308.06703, authors' code: the radii r_1 .. r_9 between the ten bands.
PAPER_BOUNDARIES = {
    28: (9.2356, 13.4298, 16.5731, 19.2467, 21.6505, 23.7704, 25.7192, 27.5252, 30.4256),
    32: (10.7814, 15.3020, 19.0498, 22.0402, 24.7590, 27.2210, 29.4414, 31.5783, 34.7134),
    224: (79.9959, 113.4811, 138.1238, 159.7796, 178.8104, 195.5345, 211.4561, 226.3509, 250.1010),
}


@settings(deadline=None, max_examples=30)
@given(batch=st.lists(st.integers(1, 3), max_size=2), height=st.integers(1, 20), width=st.integers(1, 20),
       seed=st.integers(0, 2**16))
def test_agrees_with_scipy(batch: list[int], height: int, width: int, seed: int) -> None:
    x = torch.randn(*batch, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    forward = scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    back = scipy.fft.idctn(x.numpy(), axes=(-2, -1), norm="ortho")
    torch.testing.assert_close(dct2(x), torch.from_numpy(forward), rtol=0, atol=1e-12)
    torch.testing.assert_close(idct2(x), torch.from_numpy(back), rtol=0, atol=1e-12)


def test_float32_keeps_its_type_and_six_digits() -> None:
    x = torch.rand(4, 3, 32, 32)
    expected = scipy.fft.dctn(x.double().numpy(), axes=(-2, -1), norm="ortho")
    torch.testing.assert_close(dct2(x), torch.from_numpy(expected).float(), rtol=0, atol=2e-5)
    torch.testing.assert_close(idct2(dct2(x)), x, rtol=0, atol=1e-5)


def test_the_matrix_of_three_points_is_the_papers_basis() -> None:
    basis = [np.array(b) / math.sqrt(n) for b, n in (((1, 1, 1), 3), ((1, 0, -1), 2), ((1, -2, 1), 6))]
    np.testing.assert_allclose(matrix(3).numpy(), np.stack(basis, axis=1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 28, 32, 224])
def test_the_matrix_is_orthogonal(n: int) -> None:
    D = matrix(n)
    assert float((D.T @ D - torch.eye(n, dtype=D.dtype)).abs().max()) < 2e-14


def test_gradients_pass_after_a_first_use_in_inference_mode() -> None:
    with torch.inference_mode():
        dct2(torch.ones(7, 11))
    x = torch.ones(7, 11, requires_grad=True)
    dct2(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), rtol=0, atol=1e-5)  # Parseval: the gradient of |x|^2


@pytest.mark.parametrize("x", [torch.ones(4, 4, dtype=torch.uint8), torch.ones(4)])
def test_refuses_what_it_cannot_transform(x: torch.Tensor) -> None:
    with pytest.raises(UserError, match="floating-point images"):
        dct2(x)


def test_the_radius_counts_cycles_a_pixel() -> None:
    i, j = np.mgrid[:9, :9]
    np.testing.assert_array_equal(radius(9, 9).numpy(), np.sqrt(i**2 + j**2))
    i, j = np.mgrid[:12, :8]
    np.testing.assert_allclose(radius(12, 8).numpy(), 12 * np.hypot(i / 12, j / 8), rtol=1e-15)


@pytest.mark.parametrize("n", PAPER_BOUNDARIES)
def test_bands_are_the_papers(n: int) -> None:
    band = equal_count_bands(n, n).numpy()
    i, j = np.mgrid[:n, :n]
    rho = np.sqrt(i**2 + j**2)
    paper = np.digitize(rho, PAPER_BOUNDARIES[n])
    shares = np.bincount(band.ravel()) / n**2
    assert len(shares) == 10
    assert shares.min() > 0.097
    assert shares.max() < 0.105
    # The paper's boundaries lie on a grid of radii (1,000 for 28 and 32, 100 for 224), so each of its discs
    # may hold some more or fewer of the coefficients on its rim; none is further than one band away.
    assert abs(band - paper).max() <= 1
    assert (band != paper).sum() == {28: 10, 32: 28, 224: 1366}[n]  # what the docstring says
    for k, boundary in enumerate(PAPER_BOUNDARIES[n], start=1):
        assert (band < k).sum() == pytest.approx((rho < boundary).sum(), abs={28: 2, 32: 4, 224: 210}[n])


@pytest.mark.parametrize(("height", "width", "bands"),
                         [(28, 28, 10), (8, 8, 10), (30, 45, 7), (5, 1, 5), (3, 3, 1)])
def test_bands_follow_the_radius_without_parting_equals(height: int, width: int, bands: int) -> None:
    rho, band = radius(height, width).flatten(), equal_count_bands(height, width, bands).flatten()
    assert band.unique().tolist() == list(range(bands))
    order = rho.argsort()
    assert bool((band[order].diff() >= 0).all())
    assert all(len(band[rho == r].unique()) == 1 for r in rho.unique())
    largest_tie = int(rho.unique(return_counts=True)[1].max())
    counts = torch.bincount(band).double()
    assert float((counts - height * width / bands).abs().max()) <= largest_tie


@pytest.mark.parametrize("bands", [0, 5])
def test_refuses_bands_that_would_be_empty(bands: int) -> None:
    with pytest.raises(UserError, match=f"into {bands} radial bands"):
        equal_count_bands(2, 2, bands)


@pytest.mark.parametrize("n", [28, 32])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_low_pass_is_the_papers_search(n: int, keep: float) -> None:
    i, j = np.mgrid[:n, :n]
    rho = np.sqrt(i**2 + j**2)
    grid = (n * math.sqrt(2) * (1 - step / 2000) for step in range(2000))
    paper = next(rho < r for r in grid if (rho < r).mean() < keep)
    mask = low_pass_mask(n, n, keep).numpy()
    assert not (paper & ~mask).any()
    assert (mask & ~paper).sum() <= 2  # one pair of equal radii that the grid steps over
    assert mask.mean() < keep


def test_low_pass_of_everything() -> None:
    assert bool(low_pass_mask(6, 4, 1.0).all())


@pytest.mark.parametrize("keep", [0.03, 0.1, 0.5, 0.9, 1.0])
def test_energy_mask_is_a_quantile_of_each_image(keep: float) -> None:
    images = torch.rand(5, 3, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = energy_mask(images, keep).numpy()
    assert mask.shape == (5, 1, 9, 6)
    for image, kept in zip(images.numpy(), mask[:, 0], strict=True):
        energy = np.abs(scipy.fft.dctn(image, axes=(-2, -1), norm="ortho")).mean(0)
        np.testing.assert_array_equal(kept, energy >= np.quantile(energy, 1 - keep) - 1e-12)
        assert kept.sum() == pytest.approx(keep * 54, abs=1)


@pytest.mark.parametrize(("keep", "advice"), [(50, "write 0.5 for 50 %"), (0, "got 0"), (-0.1, "above 0"),
                                              (float("nan"), "above 0")])
def test_keep_is_a_share(keep: float, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        low_pass_mask(28, 28, keep)
    with pytest.raises(UserError, match=advice):
        energy_mask(torch.rand(1, 1, 28, 28), keep)


def test_low_pass_refuses_to_leave_nothing() -> None:
    with pytest.raises(UserError, match="keep more than"):
        low_pass_mask(8, 8, 0.01)
