"""What momentum changes and what it leaves alone, in closed form: rates, noise, stability, drift along minima.

Momentum is in its averaged form throughout, so that η is the rate at which SGD without momentum moves alike:

    m_{k+1} = β_k m_k + (1 − β_k) g_k        x_{k+1} = x_k − η_k m_{k+1}        m₀ = 0

The practical form v ← β v + g, x ← x − γ v is the same with η = γ / (1 − β).

Source: Wang, Malladi, Wang, Lyu, Li 2023, arXiv 2307.15196.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optscope.errors import UserError
from optscope.theory import stability

Array = NDArray[np.float64]
Regime = Literal["noise", "between", "curvature"]

LONG = 20.0
"""Runs of fewer steps than this over 1 − β are too short for momentum's lag of β/(1 − β) steps to be forgotten."""


def averaged_rates(rates: ArrayLike, betas: ArrayLike) -> Array:
    """Return the rates at which SGD moves as momentum does under changing `rates` η_k and `betas` β_k, `(K,)`.

        η̄_k = (1 − β_k) Σ_{s ≥ k} η_s Π_{j=k+1..s} β_j

    After the last step, rate and β stay as they are; constant rates are their own average. Theorem 3.5.

    >>> averaged_rates([0.1, 0.1, 0.1, 0.01, 0.01], 0.5).round(5).tolist()
    [0.08875, 0.0775, 0.055, 0.01, 0.01]

    Raises:
        UserError: unless the rates are >= 0 and 0 <= β < 1.
    """
    rates = np.atleast_1d(np.asarray(rates, dtype=np.float64))
    betas = np.broadcast_to(np.asarray(betas, dtype=np.float64), rates.shape)
    _check_beta(betas)
    if not np.all(np.isfinite(rates) & (rates >= 0)):
        raise UserError("averaged_rates: rates must be finite numbers >= 0")
    sums = np.empty_like(rates)
    sums[-1] = rates[-1] / (1 - betas[-1])
    for k in range(len(rates) - 2, -1, -1):
        sums[k] = rates[k] + betas[k + 1] * sums[k + 1]
    return np.asarray((1 - betas) * sums)


def coupled(x: ArrayLike, m: ArrayLike, rate: float, beta: float) -> Array:
    """Return y_k = x_k − η̄_k β/(1 − β) m_k, which moves by y_{k+1} = y_k − η̄_k g_k exactly; β is constant.

    The weights of momentum trail those of this SGD by the displacement that its buffer still holds. The proof of
    theorem 3.5 compares the two.

    Raises:
        UserError: unless 0 <= beta < 1.
    """
    _check_beta(beta)
    return np.asarray(x, dtype=np.float64) - rate * beta / (1 - beta) * np.asarray(m, dtype=np.float64)


def lag(beta: float) -> float:
    """Return by how many steps momentum trails SGD of the same rate on a steady gradient, β/(1 − β).

    >>> round(lag(0.9), 9)
    9.0

    Raises:
        UserError: unless 0 <= beta < 1.
    """
    _check_beta(beta)
    return beta / (1 - beta)


def noise_ratio(beta: float, steps: int) -> float:
    """Return the variance of the weights after `steps` steps of pure noise, momentum's over SGD's.

        mean over s < K of (1 − β^{K−s})²

    The buffer's own variance is only (1 − β)/(1 + β) of the gradient's, but successive buffers are correlated: the
    ratio goes to 1 as K(1 − β) grows. The paper's warm-up example.

    >>> round(noise_ratio(0.9, 200), 3), round(noise_ratio(0.9, 20_000), 3)
    (0.931, 0.999)

    Raises:
        UserError: unless 0 <= beta < 1 and steps >= 1.
    """
    _check_beta(beta)
    if steps < 1:
        raise UserError(f"noise_ratio: steps must be a whole number >= 1; got {steps!r}")
    return float(np.mean((1 - beta ** np.arange(1, steps + 1)) ** 2))


def descent_split(rate: float, gradient: ArrayLike, hessian: ArrayLike, covariance: ArrayLike) -> Array:
    """Return the three parts of E L(x − η g) − L(x) on a quadratic, where they are exact: `(3,)`.

        −η |∇L|²  (descent)      η²/2 ∇LᵀH∇L  (curvature-induced)      η²/2 tr(H σ²Σ)  (noise-induced)

    `covariance` is σ²Σ, that of the gradient g. Lemma 2.4; on a network, `optscope.probes.gradient_noise` measures
    the same.

    >>> descent_split(0.1, [2.0], [[3.0]], [[4.0]]).round(6).tolist()
    [-0.4, 0.06, 0.06]
    """
    g, h, c = (np.asarray(v, dtype=np.float64) for v in (gradient, hessian, covariance))
    return np.array([-rate * g @ g, rate**2 / 2 * g @ h @ g, rate**2 / 2 * np.trace(h @ c)])


def stationary_variance(rate: float, beta: float, curvature: float, sigma: float = 1.0) -> float:
    """Return the variance at which the weight of a quadratic h x²/2 under gradient noise σ settles.

        (η σ² / h) / (2 − η h (1 − β)/(1 + β))

    It is the same for every β up to O(ηh), and infinite from the stability limit ηh = 2(1 + β)/(1 − β) on.

    >>> [round(stationary_variance(0.1, beta, 15.0), 4) for beta in (0.0, 0.9)]
    [0.0133, 0.0035]

    Raises:
        UserError: unless rate, curvature and sigma are > 0 and 0 <= beta < 1.
    """
    if not (0 < curvature < math.inf and 0 < sigma < math.inf):
        raise UserError(f"a stationary variance needs curvature > 0 and sigma > 0; got {curvature:g} and {sigma:g}")
    if curvature >= stability.averaged(rate, beta):
        return math.inf
    return rate * sigma**2 / curvature / (2 - rate * curvature * (1 - beta) / (1 + beta))


def slow_limit(start: float, sigma: float, time: ArrayLike) -> Array:
    """Return E(u² − v²) on the valley uv = 1 of (uv − 1)²/2 under label noise ±σ, at slow time t = k η².

        D(t) = D₀ exp(−σ² t)

    With or without momentum: theorem 4.5 for this loss, where a step multiplies u² − v² by 1 − η²e², e the error.

    >>> round(float(slow_limit(2.0**2 - 0.5**2, 1.0, 1.0)), 3)
    1.38
    """
    return np.asarray(start * np.exp(-(sigma**2) * np.asarray(time, dtype=np.float64)))


def noise_left(examples: int, batch: int) -> float:
    """Return the variance of the mean of a batch drawn without replacement from n examples over that of σ²/B.

        (n − B)/(n − 1)

    A batch of all examples has no noise.

    >>> noise_left(1001, 1), noise_left(1001, 501), noise_left(1001, 4000)
    (1.0, 0.5, 0.0)
    """
    return max(examples - batch, 0) / max(examples - 1, 1)


def regime(rate_times_sharpness: float, curvature_induced: float, noise_induced: float, memories: float) -> Regime:
    """Return what limits a run with momentum, from its largest ηλ: gradient noise, curvature, or neither clearly.

    λ is the largest eigenvalue of the Hessian, `memories` the length of the run in steps times 1 − β. "noise":
    ηλ <= 2, so SGD of the same rate is stable there too, and the noise-induced term of a step is positive and at
    least the curvature-induced one; momentum is predicted to change nothing, unless the run has fewer than 20
    memories, in which the steps by which momentum trails count. "curvature": ηλ > 4, where SGD does not come back;
    momentum is predicted to help. In between SGD leaves for a flatter place and trains on (Lewkowycz et al. 2020,
    arXiv 2003.02218: its catapult phase, 2 < ηλ < 4).

    >>> regime(0.3, 1e-4, 1e-3, 500), regime(5.0, 1e-4, 1e-3, 500), regime(0.3, 1e-4, 1e-3, 10)
    ('noise', 'curvature', 'between')
    """
    if rate_times_sharpness > 4:
        return "curvature"
    calm = rate_times_sharpness <= 2 and noise_induced > 0 and noise_induced >= curvature_induced
    return "noise" if calm and memories >= LONG else "between"


def _check_beta(beta: ArrayLike) -> None:
    values = np.asarray(beta, dtype=np.float64)
    if not np.all((values >= 0) & (values < 1)):
        raise UserError(f"momentum needs 0 <= beta < 1; got {beta!r}")
