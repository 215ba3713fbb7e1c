"""Singular values: of matrices and kernels, the ranks that they say, and under which names readings keep them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optscope.devices import to_numpy

KEPT = "singular values of "
"""What the array of a matrix's singular values is called, before the matrix's own name."""


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of `(rows, columns)`, ascending and in float64, from the smaller Gram matrix.

    Each is right to about 1e-8 of the largest, as the Gram matrix squares them.
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    squares: Tensor = torch.linalg.eigvalsh(wide @ wide.T)
    return squares.clamp(min=0).sqrt()


def ranks(singular: Tensor) -> tuple[float, float]:
    """Return the stable rank Σσ²/max σ² and the effective rank exp(entropy of σ/Σσ); 0 and 0 without a σ > 0.

    >>> ranks(torch.tensor([2.0, 2.0, 0.0]))
    (2.0, 2.0)
    """
    largest = float(singular.max())
    if largest == 0:
        return 0.0, 0.0
    shares = singular / singular.sum()
    return float((singular / largest).square().sum()), float(torch.special.entr(shares).sum().exp())


def spectra(names: Iterable[str], singular: Iterable[Tensor]) -> dict[str, NDArray[np.generic]]:
    """Return the array of each matrix's singular values, descending, by the name under which a reading keeps it.

    >>> spectra(["weight"], [torch.tensor([0.5, 2.0])])
    {'singular values of weight': array([2. , 0.5], dtype=float32)}
    """
    return {KEPT + name: to_numpy(part.flip(0)) for name, part in zip(names, singular, strict=True)}
