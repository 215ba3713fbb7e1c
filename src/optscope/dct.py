"""Images as sums of cosines: the orthonormal 2-D DCT-II, radial frequency, and which coefficients to keep.

With the matrix `D` of cosines (space index i, frequency index j),

    D[i, j] = c_j cos(pi (2i + 1) j / 2N),   c_0 = sqrt(1/N),   c_j = sqrt(2/N) for j > 0,

an image `X` has the coefficients `D^T X D`. `D` is orthogonal, so inner products, l2 norms and white noise
are the same in both. Reference: Ma, Pan, Farahmand, arXiv 2308.06703.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from optscope.errors import UserError


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)  # a matrix made inside inference mode could never enter a gradient
def matrix(n: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Tensor:
    """Return the orthonormal DCT-II matrix `D` `(n, n)`: columns are the cosines. Do not write into it.

    >>> D = matrix(3)
    >>> torch.allclose(D.T @ D, torch.eye(3, dtype=torch.float64))
    True
    """
    i, j = torch.arange(n, device="cpu").unsqueeze(1), torch.arange(n, device="cpu")
    turns = (2 * i + 1) * j % (4 * n)  # whole numbers, so that large angles lose no digits
    D = math.sqrt(2 / n) * torch.cos(turns.double() * (math.pi / (2 * n)))
    D[:, 0] = math.sqrt(1 / n)
    return D.to(device=device, dtype=dtype)


def dct2(x: Tensor) -> Tensor:
    """Return the coefficients `D^T X D` of images `(..., height, width)`, over the last two axes.

    >>> torch.allclose(dct2(torch.ones(2, 2)), torch.tensor([[2.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    True

    Raises:
        UserError: when `x` is not floating point, or has fewer than two axes.
    """
    down, across = _matrices(x)
    return down.mT @ (x @ across)


def idct2(x: Tensor) -> Tensor:
    """Return the images `D X D^T` whose coefficients are `x` `(..., height, width)`; undoes `dct2`.

    Raises:
        UserError: when `x` is not floating point, or has fewer than two axes.
    """
    down, across = _matrices(x)
    return down @ (x @ across.mT)


def _matrices(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim < 2 or not x.is_floating_point():
        raise UserError("the cosine transform needs floating-point images (..., height, width); "
                        f"got {x.dtype} of shape {tuple(x.shape)}: use images.float()")
    return matrix(x.shape[-2], x.dtype, x.device), matrix(x.shape[-1], x.dtype, x.device)


def radius(height: int, width: int) -> Tensor:
    """Return the radial frequency rho `(height, width)` of each coefficient, float64, 0 at the constant one.

    For square images `rho = sqrt(i^2 + j^2)`. Otherwise the shorter side's index is stretched, so that equal
    rho means equally many cycles a pixel: `rho = N sqrt((i/height)^2 + (j/width)^2)`, N the longer side.

    >>> radius(5, 5)[3, 4]
    tensor(5., dtype=torch.float64)
    """
    common = math.gcd(height, width)
    a, b = width // common, height // common  # whole numbers under the root, so that equal radii are equal
    i, j = torch.arange(height, device="cpu").unsqueeze(1), torch.arange(width, device="cpu")
    return ((a * i) ** 2 + (b * j) ** 2).double().sqrt() / min(a, b)


def equal_count_bands(height: int, width: int, bands: int = 10) -> Tensor:
    """Return the radial band of each coefficient, `(height, width)` of int64 from 0 (lowest) to `bands - 1`.

    Bands hold equally many coefficients as nearly as can be without parting equal radii, hence equal shares
    of white noise. Band k is `r_k <= rho < r_(k+1)`, where r_k is the radius whose disc `rho < r_k` holds
    nearest to k/`bands` of all coefficients. The code of arXiv 2308.06703 takes its radii from a grid of some
    hundred: there 10 of the 784 coefficients of a 28x28 image lie in the next band, 28 of 1,024 at 32x32, and 1,366
    of 50,176 at 224x224, where its bands hold 9.7 to 10.2 % of the coefficients each, and these 10.0 %.

    >>> equal_count_bands(28, 28).flatten().bincount()
    tensor([79, 77, 80, 78, 78, 79, 78, 77, 80, 78])

    Raises:
        UserError: when there are too few coefficients for so many bands.
    """
    rho = radius(height, width)
    radii, inside = _discs(rho)
    ideal = torch.tensor([k * rho.numel() / bands for k in range(1, bands)], dtype=torch.float64, device="cpu")
    nearest = (inside - ideal.unsqueeze(1)).abs().argmin(1)
    band = torch.bucketize(rho, radii[nearest], right=True)
    if bands < 1 or len(band.unique()) < bands:
        raise UserError(f"a {height}x{width} image cannot be cut into {bands} radial bands: ask for fewer, "
                        "and for at least 1")
    return band


def low_pass_mask(height: int, width: int, keep: float) -> Tensor:
    """Return which coefficients lie in the largest disc `rho < r` that holds less than the share `keep`.

    `keep` is a share in (0, 1]; 1 keeps everything. Boolean, `(height, width)`, one mask for all images.
    (The paper's code finds r on a grid, which at times stops a few coefficients sooner.)

    >>> low_pass_mask(28, 28, keep=0.5).sum()
    tensor(390)

    Raises:
        UserError: when `keep` is not in (0, 1], or so small that nothing would be left.
    """
    check_keep(keep)
    rho = radius(height, width)
    if keep == 1:
        return torch.ones_like(rho, dtype=torch.bool)
    radii, inside = _discs(rho)
    r = radii[inside < keep * rho.numel()][-1]
    if r == 0:
        raise UserError(f"keep={keep} leaves none of the {rho.numel()} coefficients of a {height}x{width} "
                        f"image: keep more than {1 / rho.numel():.2g}")
    return rho < r


def energy_mask(images: Tensor, keep: float) -> Tensor:
    """Return which coefficients of each image are its strongest: those at or above its `1 - keep` quantile.

    The strength is `|D^T X D|`, averaged over the channels. `images` is `(n, channels, height, width)`, the
    mask boolean `(n, 1, height, width)`. `keep` is a share in (0, 1].

    Raises:
        UserError: when `keep` is not in (0, 1].
    """
    check_keep(keep)
    energy = dct2(images).abs().mean(1, keepdim=True)
    flat = energy.flatten(1)
    # A value reaches the interpolated quantile exactly when it reaches the order statistic just above it.
    # Rounding keeps 1 - 0.9 from missing a whole position by the last bit.
    position = math.ceil(round((1 - keep) * (flat.shape[1] - 1), 6))
    threshold = flat.kthvalue(position + 1, dim=1).values
    return energy >= threshold.view(-1, 1, 1, 1)


def _discs(rho: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct radii, rising, and how many coefficients lie strictly inside each."""
    radii, counts = rho.unique(return_counts=True)
    return radii, counts.cumsum(0) - counts


def check_keep(keep: float) -> None:
    """Raise UserError unless `keep` is a share in (0, 1]."""
    if not 0 < keep <= 1:
        raise UserError(f"keep must be the share of coefficients to keep, above 0 and at most 1; got {keep!r}"
                        + (f": write {keep / 100:g} for {keep:g} %" if 1 < keep <= 100 else ""))
