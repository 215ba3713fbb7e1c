"""Gradients with noise of a chosen scale, and paths of SGD with and without momentum that share it.

An oracle returns g = ∇L(x) + σ v with E v = 0 and Cov v = Σ(x); a batch of B examples has σ = 1/√B. With
σ = η^{-1/2} noise and drift matter equally over O(1/η) steps. Wang et al. 2023, arXiv 2307.15196, definition 2.1.
Paths are simulated together, on the first axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optscope.theory.momentum import slow_limit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Oracle:
    """A gradient `∇L(x)`, a noise `v` as a function of x and of a draw ξ `(paths, ...)`, and its scale σ.

    `draw(rng, paths)` returns ξ. Two paths that share ξ see the same noise at their own x.
    """

    gradient: Callable[[Array], Array]
    noise: Callable[[Array, Array], Array]
    draw: Callable[[np.random.Generator, int], Array]
    sigma: float

    def __call__(self, x: Array, draw: Array) -> Array:
        """Return ∇L(x) + σ v(x, ξ)."""
        return self.gradient(x) + self.sigma * self.noise(x, draw)


def wells(sigma: float) -> Oracle:
    """Return the oracle of L = x²/2 + cos 2x, two wells in one dimension, with Σ(x) = (1 + sin²(x)/2)².

    Gradient and noise are smooth and Lipschitz, as theorem 3.5 asks.
    """
    return Oracle(lambda x: x - 2 * np.sin(2 * x), lambda x, xi: (1 + 0.5 * np.sin(x) ** 2) * xi,
                  _normals, sigma)


def valley(sigma: float) -> Oracle:
    """Return the oracle of L = (uv − 1)²/2 with label noise, g = (uv − 1 + σξ)(v, u), ξ = ±1; x is `(paths, 2)`."""
    def along(x: Array, error: Array) -> Array:
        return np.asarray(error[:, None] * x[:, ::-1])

    return Oracle(lambda x: along(x, x[:, 0] * x[:, 1] - 1), along,
                  _signs, sigma)


def _normals(rng: np.random.Generator, paths: int) -> Array:
    return rng.standard_normal(paths)


def _signs(rng: np.random.Generator, paths: int) -> Array:
    return np.asarray(2.0 * rng.integers(0, 2, paths) - 1, dtype=np.float64)


def quadratic(curvature: float, sigma: float) -> Oracle:
    """Return the oracle of h x²/2 with standard normal noise times σ."""
    return Oracle(lambda x: curvature * x, lambda x, xi: xi, _normals, sigma)


def together(oracle: Oracle, start: Array, rate: float, betas: Sequence[float], steps: int,
             seed: int) -> Iterator[list[Array]]:
    """Yield, after each step, the weights of one run a β; all runs start alike and see the same draws.

        m ← β m + (1 − β) g        x ← x − η m

    `start` is `(paths, ...)`.
    """
    rng = np.random.default_rng(seed)
    points = [start.copy() for _ in betas]
    buffers = [np.zeros_like(start) for _ in betas]
    for _ in range(steps):
        draw = oracle.draw(rng, len(start))
        for beta, x, m in zip(betas, points, buffers, strict=True):
            m *= beta
            m += (1 - beta) * oracle(x, draw)
            x -= rate * m
        yield points


@dataclass(frozen=True)
class Distance:
    """How far momentum is from SGD, the largest over a run: `coupled` RMS of x − z; `weak` |E x − E z|."""

    coupled: float
    weak: float


def distance(rate: float, alpha: float, scale: float = 1.0, time: float = 2.0, paths: int = 20_000,
             seed: int = 0) -> Distance:
    """Return the distance of momentum with 1 − β = scale · η^alpha from SGD on `wells`, over time = steps · η.

    The noise is σ = η^{-1/2}. Theorem 3.5 bounds the weak distance by O(η^{(1−alpha)/2}) for alpha < 1, and its
    proof the coupled one.
    """
    beta = 1 - scale * rate**alpha
    runs = together(wells(rate**-0.5), np.full(paths, 1.0), rate, (0.0, beta), round(time / rate), seed)
    far = [(float(np.mean((x - z) ** 2)), abs(float(np.mean(x - z)))) for z, x in runs]
    squares, means = zip(*far, strict=True)
    return Distance(math.sqrt(max(squares)), max(means))


def order(rates: Sequence[float], errors: Sequence[float]) -> float:
    """Return the slope of log error against log rate, by least squares.

    >>> round(order((0.1, 0.01), (0.2, 0.002)), 9)
    2.0
    """
    return float(np.polyfit(np.log(rates), np.log(errors), 1)[0])


@dataclass(frozen=True)
class Drift:
    """E(u² − v²) of each β along `valley`, `(moments, betas)`, its standard error at the end, and its limit.

    `time` `(moments,)` is k η².
    """

    time: Array
    mean: Array
    error: Array
    limit: Array


def drift(rate: float, betas: Sequence[float], sigma: float = 1.0, time: float = 1.0, paths: int = 4000,
          moments: int = 50, seed: int = 0, start: tuple[float, float] = (2.0, 0.5)) -> Drift:
    """Follow u² − v² along the minima of `valley` over slow time k η² <= `time`, for each β.

    The limit as η -> 0 is `slow_limit`, for every fixed β (theorem 4.5).
    """
    steps = round(time / rate**2)
    kept = {round(steps * i / moments): i for i in range(1, moments + 1)}
    first = start[0] ** 2 - start[1] ** 2
    mean, error = np.full((moments + 1, len(betas)), first), np.zeros(len(betas))
    runs = together(valley(sigma), np.tile(start, (paths, 1)), rate, betas, steps, seed)
    for k, points in enumerate(runs, start=1):
        if k in kept:
            found = [x[:, 0] ** 2 - x[:, 1] ** 2 for x in points]
            mean[kept[k]] = [d.mean() for d in found]
            error = np.array([d.std(ddof=1) / math.sqrt(paths) for d in found])
    at = np.array([0, *kept]) * rate**2
    return Drift(at, mean, error, slow_limit(first, sigma, at))


def settled_variance(rate: float, beta: float, curvature: float, sigma: float = 1.0, paths: int = 200_000,
                     seed: int = 0) -> float:
    """Return the variance of the weight of `quadratic` over paths, after 40 times the slowest relaxation."""
    a, b = 1 + beta - rate * curvature * (1 - beta), -beta  # x_{k+1} = a x_k + b x_{k-1} + noise
    slowest = float(np.abs(np.roots([1, -a, -b])).max())
    steps = 100 if slowest <= 0.01 else min(100_000, round(20 / -math.log(slowest)) + 100)
    *_, (last,) = together(quadratic(curvature, sigma), np.zeros(paths), rate, (beta,), steps, seed)
    return float(last.var())
