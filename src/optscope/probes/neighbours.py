"""Balls that reach the k-th neighbour, by distances in which ties are ties.

Who lies in a ball is a question of `<` between two distances, and data on a grid (pixels of 8 bits, whole numbers,
decimals) are full of equal ones, as are copies of real things. Products of matrices are fast and round every
distance in its own way. So grids are counted in whole numbers, where products are exact; and elsewhere distances
too close to tell apart are taken again, number by number in one order, so that equal pairs give equal distances.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512
"""Rows of a distance matrix that are held at once: 12 MB for 3,000 columns."""

PAIRS = 2**22
"""Numbers of differences that are held at once."""

GRIDS = (1, 10, 100, 255, 1000, 10_000, 65_535)
"""Steps in one unit that data may be counted in: whole numbers, decimals, and pixels of 8 and 16 bits."""

EXACT = 2.0**53
"""Whole numbers below it are exact in float64."""


def neighbourhoods(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    """Return precision, recall, density and coverage of clouds `(n, f)` and `(m, f)` with k-th neighbour balls.

    With r_i the distance of real i to its k-th real neighbour, and s_j that of generated j to its own kind's,

        precision = mean_j 1[∃i: d_ij < r_i]            recall = mean_i 1[∃j: d_ij < s_j]
        density = mean_j Σ_i 1[d_ij < r_i] / k          coverage = mean_i 1[min_j d_ij < r_i]

    A distance that equals a radius lies outside, as in the authors' code (the package prdc).

    >>> points = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # each has its next neighbour at 1
    >>> neighbourhoods(points, points + 1, 1)["density"], neighbourhoods(points, points + 0.5, 1)["density"]
    (0.75, 1.75)
    """
    real, fake, exact = _counted(real.double(), fake.double())
    radii, radii_fake = _kth_squares(real, k, exact), _kth_squares(fake, k, exact)
    precise, dense = 0, 0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    for block, radius in zip(fake.split(BLOCK), radii_fake.split(BLOCK), strict=True):
        squares = _squares(block, real)
        slack = 0.0 if exact else _slack(block, real)
        inside, recalling = (_below(squares, limits, slack, block, real) for limits in (radii, radius[:, None]))
        precise += int(inside.any(1).sum())
        dense += int(inside.sum())
        covered |= inside.any(0)
        recalled |= recalling.any(0)
    return {"precision": precise / len(fake), "recall": float(recalled.double().mean()),
            "density": dense / (k * len(fake)), "coverage": float(covered.double().mean())}


def _counted(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return both clouds about their centre, and whether in whole steps of a grid they lie on, or else as they are.

    The centre goes first, as squares of large numbers would cancel in the distances.
    """
    centre, both = real.mean(0), torch.cat([real, fake])
    largest, spread = max(1.0, float(both.abs().max())), float(both.max() - both.min())
    for steps in GRIDS:
        if steps * spread < 0.5:  # all of it would be one point of the grid, of data in a small unit as well
            continue
        rounding = min(2.0**-22 * steps * largest, 0.02)  # of float32, in which pixels mostly come
        counts = (part * steps for part in both.split(BLOCK))
        if all(float((count - count.round()).abs().max()) <= rounding for count in counts):
            whole = (both * steps).round() - (centre * steps).round()
            if 4 * whole.shape[1] * float(whole.abs().max()) ** 2 < EXACT:
                return whole[:len(real)], whole[len(real):], True
    return real - centre, fake - centre, False


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances of the rows of `a` and `b`, `(len(a), len(b))`."""
    lengths = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(lengths, a, b.T, alpha=-2)


def _slack(a: Tensor, b: Tensor) -> float:
    """Return how far rounding may move a squared distance of rows of `a` and `b`."""
    return 2.0**-50 * (a.shape[1] + 8) * float(a.square().sum(1).max() + b.square().sum(1).max())


def _below(squares: Tensor, radii: Tensor, slack: float, a: Tensor, b: Tensor) -> Tensor:
    """Return which distances of `a` from `b` are below `radii`; those too close to tell are taken again."""
    below = squares < radii - slack
    if slack > 0:
        perhaps = squares <= radii + slack
        if perhaps.sum() > below.sum():
            rows, columns = torch.nonzero(perhaps & ~below, as_tuple=True)
            below[rows, columns] = _again(a, b, rows, columns) < radii.expand_as(squares)[rows, columns]
    return below


def _kth_squares(cloud: Tensor, k: int, exact: bool) -> Tensor:
    """Return for every row the squared distance to its k-th nearest other row."""
    found = []
    for block in cloud.split(BLOCK):
        squares = _squares(block, cloud)
        radii, places = squares.kthvalue(k + 1, dim=1)
        if not exact:
            slack = _slack(block, cloud)
            below, perhaps = squares < (radii - slack)[:, None], squares <= (radii + slack)[:, None]
            tied = (perhaps.sum(1) - below.sum(1) > 1).nonzero().squeeze(1)
            radii = _again(block, cloud, torch.arange(len(block), device=places.device), places)
            if len(tied):
                some, close = squares[tied], (perhaps & ~below)[tied]
                rows, columns = close.nonzero(as_tuple=True)
                some[rows, columns] = _again(block[tied], cloud, rows, columns)
                radii[tied] = some.kthvalue(k + 1, dim=1).values
        found.append(radii)
    return torch.cat(found)


def _again(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the squared distances of some rows of `a` and `b`, their squares added up one after the other."""
    found = []
    size = max(1, PAIRS // a.shape[1])
    for row, column in zip(rows.split(size), columns.split(size), strict=True):
        total = torch.zeros(len(row), dtype=a.dtype, device=a.device)
        for square in (a[row] - b[column]).square_().T.contiguous():
            total += square
        found.append(total)
    return torch.cat(found)
