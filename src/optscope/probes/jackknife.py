"""What products of gradients say of signal, noise and curvature, with jackknife intervals.

Gradients g_1 .. g_k are independent draws with mean G. Statistics that take products of different ones alone are
unbiased; leaving out one at a time gives pseudo-values, which vary as if each draw had a value of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from optscope.evidence.stats import Interval, mean_interval

Array = NDArray[np.float64]


def signal_and_noise(products: Array) -> Array:
    """Return |G|² and tr Σ / b from the products g_i · g_j of the parts' gradients, `(k, k)`: `(2,)`.

    >>> g = np.array([[3.0, 1.0], [3.0, -1.0]])
    >>> signal_and_noise(g @ g.T)
    array([8., 2.])
    """
    k, same = len(products), np.trace(products)
    square = (products.sum() - same) / (k * (k - 1))
    return np.array([square, same / k - square])


def curvatures(products: Array) -> Array:
    """Return GᵀHG and tr(HΣ) / b from g_iᵀ H_m g_j at [m, i, j], `(k, k, k)`, zero where m is i or j: `(2,)`."""
    k, same = len(products), np.einsum("mii->", products)
    curved = (products.sum() - same) / (k * (k - 1) * (k - 2))
    return np.array([curved, same / (k * (k - 1)) - curved])


def example_values(squares: Array, along: Array, mean: float) -> Array:
    """Return the jackknife's pseudo-values of |G|² and tr Σ over n examples, `(n, 2)`, as `pseudo_values` would.

    They follow from |g_i|², g_i · Ḡ `(n,)` and |Ḡ|², Ḡ the mean of all, so that no products of pairs are needed.

    >>> g = np.array([[3.0, 1.0], [3.0, -1.0], [1.0, 2.0]])
    >>> found = example_values((g**2).sum(1), g @ g.mean(0), g.mean(0) @ g.mean(0))
    >>> np.allclose(found, pseudo_values(signal_and_noise, g @ g.T))
    True
    """
    n, same = len(squares), squares.sum()
    square = (n * n * mean - same) / (n * (n - 1))
    left = n * n * mean - same - 2 * n * along + 2 * squares  # of products of pairs without example i
    squares_without = left / ((n - 1) * (n - 2))
    noise_without = (same - squares) / (n - 1) - squares_without
    found = np.stack([n * square - (n - 1) * squares_without,
                      n * (same / n - square) - (n - 1) * noise_without], axis=1)
    return np.asarray(found)


def pseudo_values(statistic: Callable[[Array], Array], products: Array) -> Array:
    """Return the jackknife's pseudo-values of q statistics of k parts, `(k, q)`: k θ - (k - 1) θ_without_one.

    Their mean is θ itself for the statistics here, and they vary as if each part had a value of its own. Every axis
    of `products` runs over the parts. Arvesen 1969, Ann. Math. Stat. 40, 2076.
    """
    k = len(products)
    kept = [np.delete(np.arange(k), part) for part in range(k)]
    without = np.stack([statistic(products[np.ix_(*[rest] * products.ndim)]) for rest in kept])
    return k * statistic(products) - (k - 1) * without


def positive_interval(values: Array, confidence: float = 0.95) -> Interval:
    """Return the mean of pseudo-values of a statistic >= 0, m, with the interval m exp(± t se / m).

    It is Student's t on a log scale, which suits variances: they spread in proportion to their size.

    >>> positive_interval(np.array([1.0, 2.0, 3.0]))
    Interval(estimate=2.0, low=0.57..., high=6.9..., n=3, missing=0)
    """
    plain = mean_interval(values, confidence)
    m = plain.estimate
    factor = math.exp((plain.high - m) / m) if m > 0 else 1.0
    return Interval(m, m / factor, m * factor, plain.n)


def ratio_interval(numerator: Array, denominator: Array, confidence: float = 0.95) -> Interval:
    """Return the ratio of the means of paired values, one known to be >= 0, with Fieller's interval.

    It holds every ρ >= 0 for which the mean of numerator - ρ denominator may be zero by Student's t. A denominator
    that may be zero leaves it unbounded above, and one with a mean <= 0 makes the estimate infinite. Fieller 1954,
    J. R. Stat. Soc. B 16, 175.

    >>> ratio_interval(np.array([1.9, 2.1, 2.0]), np.array([1.1, 1.0, 0.9]))
    Interval(estimate=2.0, low=1.4..., high=2.8..., n=3, missing=0)
    """
    n = len(numerator)
    t = float(stdtrit(n - 1, (1 + confidence) / 2))
    top, bottom = float(numerator.mean()), float(denominator.mean())
    spread = t**2 * np.cov(numerator, denominator) / n
    # ρ is inside where a ρ² - 2 h ρ + c <= 0.
    a, h, c = bottom**2 - spread[1, 1], top * bottom - spread[0, 1], top**2 - spread[0, 0]
    root = math.sqrt(max(h * h - a * c, 0.0))
    low = c / (h + root) if c > 0 and h + root > 0 else 0.0
    high = (h + root) / a if a > 0 and bottom > 0 else math.inf
    return Interval(top / bottom if bottom > 0 else math.inf, float(low), float(high), n)
