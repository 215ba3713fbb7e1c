"""Real problems with more unknowns than measurements: products of medical numbers, and patches of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from scipy.fft import idctn

from optscope.errors import UserError
from optscope.theory.bregman import Array


@dataclass(frozen=True, eq=False)
class Regression:
    """Rows to fit, `A` `(M, N)` and `y` `(M,)`, and rows to predict; targets are centred on those to fit."""

    A: Array
    y: Array
    other_rows: Array
    other_y: Array

    def r2(self, x: Array) -> float:
        """Return R² on the rows to predict, against the mean of the rows to fit."""
        return float(1 - ((self.other_rows @ x - self.other_y) ** 2).sum() / (self.other_y**2).sum())


def diabetes(seed: int, rows: int = 60, degree: int = 3) -> Regression:
    """Return scikit-learn's diabetes data (442 people, ten numbers each): all products of up to `degree` of them.

    `rows` random people are to be fitted, the others to be predicted. At degree 3 there are 285 columns,
    standardised on the people to be fitted. Efron et al. 2004, Annals of Statistics 32, 407.

    Raises:
        UserError: when scikit-learn is not installed.
    """
    numbers, target = _sklearn("datasets").load_diabetes(return_X_y=True)
    products = [numbers[:, list(which)].prod(1) for size in range(1, degree + 1)
                for which in combinations_with_replacement(range(numbers.shape[1]), size)]
    order = np.random.default_rng(seed).permutation(len(target))
    chosen, others = order[:rows], order[rows:]
    columns = np.stack(products, axis=1)
    spread = columns[chosen].std(0)
    columns = (columns - columns[chosen].mean(0))[:, spread > 0] / spread[spread > 0]
    centred = target - target[chosen].mean()
    return Regression(columns[chosen], centred[chosen], columns[others], centred[others])


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch of a photograph through random measurements: y = A x, with x its DCT coefficients, `(N,)`."""

    A: Array
    y: Array
    x: Array
    side: int

    def image(self, x: Array) -> Array:
        """Return the patch `(side, side)` that coefficients stand for, in [0, 1] where they are the true ones."""
        return np.asarray(idctn(x.reshape(self.side, self.side), norm="ortho"))


def patch(seed: int, side: int = 16, measurements: int = 100) -> Patch:
    """Return a random patch of china.jpg or flower.jpg (CC BY 2.0, danielbuechele), grey, seen through N(0, 1/M).

    Raises:
        UserError: when scikit-learn is not installed.
    """
    from scipy.fft import dctn

    rng = np.random.default_rng(seed)
    photo = _sklearn("datasets").load_sample_image(("china.jpg", "flower.jpg")[seed % 2]) / 255
    row, column = (int(rng.integers(n - side)) for n in photo.shape[:2])
    x = dctn(photo[row:row + side, column:column + side].mean(-1), norm="ortho").reshape(-1)
    A = rng.normal(size=(measurements, side * side)) / np.sqrt(measurements)
    return Patch(A, A @ x, x, side)


def lasso(A: Array, y: Array, seed: int = 0) -> Array:
    """Return scikit-learn's lasso with its penalty chosen by five-fold cross-validation, without intercept.

    Raises:
        UserError: when scikit-learn is not installed.
    """
    import warnings

    model = _sklearn("linear_model").LassoCV(cv=5, fit_intercept=False, random_state=seed, max_iter=20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its smallest penalties need not converge; they are not chosen for that
        found: Any = model.fit(A, y)
    return np.asarray(found.coef_, dtype=np.float64)


def _sklearn(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        raise UserError("the diabetes data, the photographs and the lasso come with scikit-learn, which is not "
                        'installed: pip install "optscope[digits]"') from error
