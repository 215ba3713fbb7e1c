"""Why momentum's drift along a valley of minima is off its limit at a finite rate: an account that closes.

On the valley uv = 1 of (uv − 1)²/2 with label noise, g = e (v, u), e = uv − 1 + σξ, ξ = ±1, momentum keeps these
exactly, whatever the noise is (A = u m_u − v m_v, B = m_u² − m_v², C = m_u v − m_v u, D = u² − v²; a prime is the
next step's, and A' is taken before the weights move):

    A' = β(A − ηB)                  B' = β²B + 2β(1 − β) e C − (1 − β)² e² D
    C' = βC − (1 − β) e D           D' = D − 2ηA' + η²B'

So the mean of D follows from two means alone, E[e² D] and E[e C]. The first is σ² E D and what curvature adds.
The second would be −E[cM] E D, c = uv − 1, if D stood still over the memory of momentum (M is the running mean of
e); it does not, and that is what is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from optscope.theory.noisy_oracle import together, valley


def mean_drift(rate: float, beta: float, squares: Iterable[float], products: Iterable[float],
               start: tuple[float, float] = (2.0, 0.5)) -> float:
    """Return E(u² − v²) after as many steps as there are means E[e² D] and E[e C], from buffers of 0. Exact."""
    d, a, b = start[0] ** 2 - start[1] ** 2, 0.0, 0.0
    for square, product in zip(squares, products, strict=True):
        a = beta * (a - rate * b)
        b = beta**2 * b + 2 * beta * (1 - beta) * product - (1 - beta) ** 2 * square
        d = d - 2 * rate * a + rate**2 * b
    return d


def still_drift(rate: float, beta: float, sigma: float = 1.0, time: float = 1.0,
                start: tuple[float, float] = (2.0, 0.5)) -> float:
    """Return what E(u² − v²) would be at slow time k η² if D stood still over momentum's memory.

    The error c then is a quadratic's of curvature h = u² + v² = √(D² + 4), whose second moments move by

        E M'² = β² E M² + 2β(1 − β) E cM + (1 − β)² (E c² + σ²)      E cM' = β E cM + (1 − β) E c²
        E c'² = E c² − 2ηh E cM' + η²h² E M'²                        E c'M' = E cM' − ηh E M'²

    and D as in `mean_drift` with E[e² D] = (σ² + E c²) D and E[e C] = −E[cM] D. To first order in η it falls at
    the rate σ² (1 + ηh/2 · (1 − β)/(1 + β)): curvature speeds SGD up, by ηh/2, and momentum 0.9 nineteen times
    less. What momentum still holds in its buffer puts D up by the fall of β(2 + β)/(1 − β²) steps, and D's fall by
    the same share: at slow time 1/σ² the two cancel.

    >>> round(still_drift(0.025, 0.0), 4), round(still_drift(0.025, 0.9), 4)
    (1.3246, 1.3781)
    """
    d, a, b = start[0] ** 2 - start[1] ** 2, 0.0, 0.0
    cc = cm = mm = 0.0
    for _ in range(round(time / rate**2)):
        h = math.sqrt(d * d + 4)
        a = beta * (a - rate * b)
        b = beta**2 * b - d * (2 * beta * (1 - beta) * cm + (1 - beta) ** 2 * (cc + sigma**2))
        d = d - 2 * rate * a + rate**2 * b
        mm = beta**2 * mm + 2 * beta * (1 - beta) * cm + (1 - beta) ** 2 * (cc + sigma**2)
        ahead = beta * cm + (1 - beta) * cc
        cc, cm = cc - 2 * rate * h * ahead + (rate * h) ** 2 * mm, ahead - rate * h * mm
    return d


@dataclass(frozen=True)
class Account:
    """E(u² − v²) at slow time 1: as `seen` over paths, its limit, and from the limit what each cause adds.

    `still` is what curvature and the buffer add (`still_drift`), `moving` what D's motion within momentum's memory
    does to E[e C], with E[e² D] as it was seen; `unexplained` is 0 to rounding, for the equations are exact.
    """

    seen: float
    limit: float
    still: float
    moving: float

    @property
    def unexplained(self) -> float:
        """What no cause adds."""
        return self.seen - self.limit - self.still - self.moving


def account(rate: float, beta: float, sigma: float = 1.0, paths: int = 4000, seed: int = 0,
            start: tuple[float, float] = (2.0, 0.5)) -> Account:
    """Follow u² − v² of momentum β to slow time k η² = 1 on simulated paths, and say where it is and why."""
    x, m = np.tile(start, (paths, 1)), np.zeros((paths, 2))
    squares, products = [], []
    for (moved,) in together(valley(sigma), x, rate, (beta,), round(1 / rate**2), seed):
        new = (x - moved) / rate  # the buffer, after this step's gradient
        error = (new[:, 0] - beta * m[:, 0]) / ((1 - beta) * x[:, 1])
        squares.append(float(np.mean(error**2 * (x[:, 0] ** 2 - x[:, 1] ** 2))))
        products.append(float(np.mean(error * (m[:, 0] * x[:, 1] - m[:, 1] * x[:, 0]))))
        x, m = moved.copy(), new
    seen, first = float(np.mean(x[:, 0] ** 2 - x[:, 1] ** 2)), start[0] ** 2 - start[1] ** 2
    limit, still = first * math.exp(-(sigma**2)), still_drift(rate, beta, sigma, start=start)
    whole = mean_drift(rate, beta, squares, products, start)
    return Account(seen, limit, still - limit, whole - still)
