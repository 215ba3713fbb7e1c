"""Linear regression on three frequencies, one of them empty: what GD and signGD leave there, in closed form.

A signal x of three numbers has the frequencies x̃ = Dᵀx, with D the orthonormal DCT-II. The data are Gaussian,
x̃₀ ~ N(0, s₀²), x̃₁ ~ N(0, s₁²), and x̃₂ = 0 always; the label is y = <w̃*, x̃> without noise. No data speak about
w̃₂, so every value of it has the same standard risk; but an attacker may use that frequency, so it costs
robustness. GD leaves w̃₂ where it started. signGD, which takes signs in the coordinates of x, moves it.

Source: arXiv 2308.06703, the linear analysis (section 4 and its figure of errors and risks). All weights here
are in frequency space; `weights @ BASIS.T` are the same weights in the space of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optscope.errors import UserError

Array = NDArray[np.float64]
Triple = tuple[float, float, float]


def _basis() -> Array:
    space, frequency = np.arange(3)[:, None], np.arange(3)
    columns = np.cos(math.pi * (2 * space + 1) * frequency / 6) * np.sqrt([1 / 3, 2 / 3, 2 / 3])
    columns.setflags(write=False)
    return columns


BASIS: Array = _basis()
"""D: column j is frequency j in space, (1,1,1)/√3, (1,0,-1)/√2 and (1,-2,1)/√6. DᵀD = I."""


@dataclass(frozen=True)
class Problem:
    """The regression: `s` standard deviations, `target` w̃* and `start` w̃(0), each one number a frequency.

    The defaults are the paper's.

    Raises:
        UserError: when a field is not three finite numbers, or `s` is not (positive, positive, 0).

    >>> Problem(target=(10, 5, 0)).s
    (0.1, 0.05, 0.0)
    """

    s: Triple = (0.1, 0.05, 0.0)
    target: Triple = (5.0, 10.0, 0.0)
    start: Triple = (0.01, -0.01, 0.02)

    def __post_init__(self) -> None:
        for name in ("s", "target", "start"):
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) == 3
                    and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)):
                raise UserError(f"Problem: {name} must be a tuple of three finite numbers, one a frequency; "
                                f"got {value!r}")
        if not (self.s[0] > 0 and self.s[1] > 0 and self.s[2] == 0):
            raise UserError("Problem: s must be (positive, positive, 0), because the third frequency is the "
                            f"empty one; got {self.s!r}: write for example s=(0.1, 0.05, 0.0)")

    @property
    def variances(self) -> Array:
        """The variances (s₀², s₁², 0)."""
        return np.square(np.array(self.s, dtype=np.float64))


PAPER = Problem()
"""The paper's regression: s = (0.1, 0.05, 0), w̃* = (5, 10, 0), w̃(0) = (0.01, -0.01, 0.02)."""


def population_gradient(problem: Problem, weights: ArrayLike) -> Array:
    """Return the gradient of the standard risk, (s₀²ẽ₀, s₁²ẽ₁, 0) with ẽ = w̃ - w̃*; `weights` are `(..., 3)`.

    >>> population_gradient(Problem(), (5, 0, 7)).round(6).tolist()
    [0.0, -0.025, 0.0]
    """
    return problem.variances * (np.asarray(weights, dtype=np.float64) - problem.target)


def standard_risk(problem: Problem, weights: ArrayLike) -> Array:
    """Return R_s = E ½(<w̃, x̃> - y)² = S/2 with S = Σ s_k² ẽ_k², `(...)`; `weights` are `(..., 3)`.

    >>> standard_risk(Problem(), [(5, 10, 0), (5, 10, 99), (5, 0, 0)]).round(9).tolist()
    [0.0, 0.0, 0.125]
    """
    return np.asarray(_energy(problem, weights) / 2)


def adversarial_risk(problem: Problem, weights: ArrayLike, eps: float = math.sqrt(2)) -> Array:
    """Return R_a = E max_{‖δ‖₂ ≤ eps} ½(<w, x + δ> - y)², `(...)`; `weights` are `(..., 3)`, `eps` >= 0.

    The worst δ = ±eps w/‖w‖ gives ½(|<ẽ, x̃>| + eps‖w‖)², and <ẽ, x̃> ~ N(0, S), so that

        R_a = S/2 + eps ‖w‖ √(2S/π) + (eps²/2) ‖w‖².

    At zero standard risk it is the weight norm alone; with the default eps = √2, R_a = ‖w‖².

    >>> float(adversarial_risk(Problem(), (5, 10, -4.3)).round(6))
    143.49

    Raises:
        UserError: unless eps is finite and >= 0.
    """
    if not (math.isfinite(eps) and eps >= 0):
        raise UserError(f"adversarial_risk: eps must be a finite radius >= 0; got {eps!r}")
    energy = _energy(problem, weights)
    reach = eps * np.linalg.norm(np.asarray(weights, dtype=np.float64), axis=-1)
    return np.asarray(energy / 2 + reach * np.sqrt(2 * energy / math.pi) + reach**2 / 2)


def _energy(problem: Problem, weights: ArrayLike) -> Array:
    """Return S, the variance of the prediction error."""
    error = np.asarray(weights, dtype=np.float64) - problem.target
    return np.asarray(np.sum(problem.variances * error**2, axis=-1), dtype=np.float64)


def gd_trajectory(problem: Problem, lr: float, steps: ArrayLike) -> Array:
    """Return the weights of population GD after `steps` `(...)` iterations, `(..., 3)`.

    ẽ_k(t) = (1 - lr s_k²)^t ẽ_k(0), so w̃₂ never moves.

    >>> gd_trajectory(Problem(), 0.01, 200_000).round(3).tolist()
    [5.0, 9.933, 0.02]
    """
    count = _checked("gd_trajectory", lr, steps)
    target = np.array(problem.target, dtype=np.float64)
    with np.errstate(over="ignore"):  # lr s² > 2 diverges, which is an answer
        return np.asarray(target + (1 - lr * problem.variances) ** count * (problem.start - target))


def gd_limit(problem: Problem) -> Array:
    """Return where GD ends, (w̃*₀, w̃*₁, w̃₂(0)): the minimiser nearest to the start."""
    return np.array([*problem.target[:2], problem.start[2]], dtype=np.float64)


def sign_limit(problem: Problem) -> Array:
    """Return where population signGD ends as lr -> 0: frequencies 0 and 1 are fitted, frequency 2 has moved.

        w̃₂(∞) = w̃₂(0) + sign(ẽ₀) min( √2 |ẽ₀|, √3 min(s₁²/s₀², 1/3) |ẽ₁| ),   ẽ = w̃(0) - w̃*.

    The paper's three cases are the branches of the two minima. In space the gradient is (A+B, A, A-B) with
    A = s₀²ẽ₀/√3 and B = s₁²ẽ₁/√2, and w̃₂ moves only while the three signs differ and A is not yet 0:

    * |B| >= |A| at first, and frequency 0 is fitted before |B| comes down to |A|: √2 |ẽ₀|;
    * |B| < |A| at first and s₁² < s₀²/3 (the paper's numbers): √3 (s₁/s₀)² |ẽ₁|;
    * s₁² >= s₀²/3 otherwise: the iterate slides along |A| = |B| to the end: |ẽ₁|/√3.

    The formula needs no small start: it holds for every w̃(0). A finite lr leaves an error of the order of lr.

    >>> sign_limit(Problem(start=(0, 0, 0))).round(3).tolist()
    [5.0, 10.0, -4.33]
    """
    (e0, e1, _), (v0, v1, _) = np.subtract(problem.start, problem.target), problem.variances
    drift = min(math.sqrt(2) * abs(e0), math.sqrt(3) * min(v1 / v0, 1 / 3) * abs(e1))
    return np.array([*problem.target[:2], problem.start[2] + np.sign(e0) * drift], dtype=np.float64)


def norm_ratio(problem: Problem) -> float:
    """Return ‖w_signGD‖²/‖w_GD‖² at the two limits: the ratio of their adversarial risks, for every radius.

    >>> round(norm_ratio(Problem(start=(0, 0, 0))), 3)
    1.15

    Raises:
        UserError: when descent's limit is 0.
    """
    sign, gd = sign_limit(problem), gd_limit(problem)
    if not gd.any():
        raise UserError("norm_ratio: GD's limit must not be zero; got target and start that vanish: "
                        "write a target with a weight on frequency 0 or 1")
    return float(sign @ sign / (gd @ gd))


def sign_knots(problem: Problem) -> tuple[Array, Array]:
    """Return the path of signGD as lr -> 0, which is piecewise linear: times `(K,)` and weights `(K, 3)`.

    Time is lr times steps; the first knot is the start, the last the limit. Up to three legs lie between:
    the signs agree (|A| > |B|, only ẽ₀ falls); they differ (ẽ₀ and ẽ₁ fall and w̃₂ drifts); then A = 0 dithers
    and ẽ₁ falls alone, or |A| = |B| dithers and all three go on together. A and B as in `sign_limit`.

    >>> times, weights = sign_knots(Problem(start=(0, 0, 0)))
    >>> times.round(3).tolist()  # with lr = 0.01, frequency 0 is fitted at step 642
    [0.0, 1.119, 6.422, 8.19]
    """
    (e0, e1, _), (v0, v1, _) = np.subtract(problem.start, problem.target), problem.variances
    a, b = v0 * abs(e0) / math.sqrt(3), v1 * abs(e1) / math.sqrt(2)
    legs: list[tuple[float, float, float, float]] = []  # duration; rates at which |ẽ₀|, |ẽ₁| fall, w̃₂ moves
    if a > b:
        legs.append(((a - b) / v0, math.sqrt(3), 0.0, 0.0))
        a = b
    fitted = 3 * a / v0
    met = (b - a) / (v1 - v0 / 3) if v1 > v0 / 3 else math.inf
    legs.append((min(fitted, met), 1 / math.sqrt(3), math.sqrt(2), math.sqrt(6) / 3))
    if fitted <= met:
        legs.append((b / v1 - fitted, 0.0, math.sqrt(2), 0.0))
    else:
        dither = (3 * v1 - 4 * v0) / (3 * v1 + 2 * v0)  # the mean sign of A - B that keeps |A| = |B|
        legs.append((2 * (b - v1 * met) / (v1 * (1 - dither)),
                     (2 + dither) / math.sqrt(3), (1 - dither) / math.sqrt(2), (1 - dither) / math.sqrt(6)))
    moves = np.array([leg for leg in legs if leg[0] > 0], dtype=np.float64).reshape(-1, 4)
    travelled = moves[:, :1] * moves[:, 1:] * [-np.sign(e0), -np.sign(e1), np.sign(e0)]
    start = np.array([problem.start], dtype=np.float64)
    return (np.concatenate([[0.0], np.cumsum(moves[:, 0])]),
            np.concatenate([start, start + np.cumsum(travelled, axis=0)]))


def sign_trajectory(problem: Problem, lr: float, steps: ArrayLike) -> Array:
    """Return the weights of population signGD after `steps` `(...)` iterations, `(..., 3)`, to order lr.

    >>> sign_trajectory(Problem(), 0.01, [0, 100, 10_000]).round(2).tolist()
    [[0.01, -0.01, 0.02], [1.74, -0.01, 0.02], [5.0, 10.0, -4.31]]
    """
    times, knots = sign_knots(problem)
    time = lr * _checked("sign_trajectory", lr, steps)[..., 0]
    return np.stack([np.interp(time, times, knots[:, k]) for k in range(3)], axis=-1)


def _checked(owner: str, lr: float, steps: ArrayLike) -> Array:
    """Return step counts as `(..., 1)` once they and `lr` make sense."""
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"{owner}: lr must be a finite number > 0; got {lr!r}")
    count = np.asarray(steps, dtype=np.float64)
    if not (np.all(count >= 0) and np.all(count == np.round(count))):
        raise UserError(f"{owner}: steps must be whole numbers >= 0; got {steps!r}")
    return count[..., None]
