"""The one-layer network on a checkerboard: all of its dynamics in one number, exactly.

Every patch of a checkerboard is p or −p. Then z = ⟨K, p⟩ moves by itself, and what is orthogonal to p shrinks by
1 − lr α each step. With q the share of the patches −p, and because r(z) − r(−z) = z:

    u(z) = r(z) − q z,        F(z) = −‖p‖² (s(u) − y) u'(z) − α z,        z ← z + lr F(z)

Sun et al. 2022, arXiv 2206.02001, figures 3 and 4, train on this image; the reduction is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit

from optscope.theory.one_layer import OneLayer

Array = NDArray[np.float64]


def checkerboard(size: int = 256) -> Array:
    """Return the paper's image: −1 where row + column is even, else +1."""
    return np.asarray(np.indices((size, size)).sum(0) % 2 * 2.0 - 1)


@dataclass(frozen=True)
class Orbits:
    """What trajectories of the map did: their last values `(tail, ...)`, and Lyapunov exponents a step `(...)`."""

    tail: Array
    exponents: Array


@dataclass(frozen=True)
class ScalarMap:
    """The map of z for an image of `size` x `size`, kernels of `kernel` x `kernel` and weight decay α = `decay`.

    >>> paper = ScalarMap()
    >>> round(paper.fixed_point, 6), round(float(paper.slope(paper.fixed_point)), 3)
    (3.865217, -61.998)
    """

    size: int = 256
    kernel: int = 32
    decay: float = 20.0
    beta: float = 1.0
    label: float = 1.0

    @property
    def squared_norm(self) -> int:
        """‖p‖²."""
        return self.kernel**2

    @property
    def counts(self) -> tuple[int, int]:
        """At how many positions the patch is p, whose corner is −1, and −p."""
        positions = (self.size - self.kernel + 1) ** 2
        return (positions + 1) // 2, positions // 2

    def layer(self, dtype: type[np.floating] = np.float64) -> OneLayer:
        """Return the network itself, on its two different patches."""
        p = checkerboard(self.kernel).reshape(1, -1)
        return OneLayer(np.concatenate((p, -p)).astype(dtype), np.array(self.counts, dtype), self.decay, self.beta,
                        self.label)

    def force(self, z: ArrayLike) -> Array:
        """Return F(z), the speed of z along the gradient flow."""
        return self._force_and_slope(np.asarray(z, dtype=np.float64))[0]

    def slope(self, z: ArrayLike) -> Array:
        """Return F'(z): the map multiplies small errors by 1 + lr F'(z)."""
        return self._force_and_slope(np.asarray(z, dtype=np.float64))[1]

    def _force_and_slope(self, z: Array) -> tuple[Array, Array]:
        q = self.counts[1] / sum(self.counts)
        s = expit(self.beta * z)
        spread = self.beta * s * (1 - s)
        pull, bend = s + z * spread - q, spread * (2 + self.beta * z * (1 - 2 * s))  # u' and u''
        f = expit(z * (s - q))
        error = f - self.label
        force = -self.squared_norm * error * pull - self.decay * z
        slope = -self.squared_norm * (f * (1 - f) * pull**2 + error * bend) - self.decay
        return force, slope

    @cached_property
    def fixed_point(self) -> float:
        """The positive z at which F vanishes; near 0 it is the unstable equilibrium that pushes away."""
        return float(brentq(lambda z: float(self.force(z)), 0.1, 100.0, xtol=1e-13))

    @property
    def step_limit(self) -> float:
        """The largest learning rate at which the fixed point is stable, −2/F'(z*): the classical bound."""
        return float(-2 / self.slope(self.fixed_point))

    @property
    def bounded_limit(self) -> float:
        """The largest learning rate at which all is bounded, 2/α: far out F(z) is −α z and a constant."""
        return 2 / self.decay

    def orbits(self, lr: ArrayLike, start: ArrayLike, steps: int = 1000, tail: int = 64) -> Orbits:
        """Iterate the map for all learning rates and starts, broadcast against each other.

        A Lyapunov exponent is the mean of log|1 + lr F'(z)| over the second half of the steps: errors grow when
        it is positive. Trajectories that overflow are nan.
        """
        lr, z = np.broadcast_arrays(np.asarray(lr, dtype=np.float64), np.asarray(start, dtype=np.float64))
        kept, total = np.empty((tail, *z.shape)), np.zeros(z.shape)
        with np.errstate(all="ignore"):
            for n in range(steps):
                force, slope = self._force_and_slope(z)
                if n >= steps // 2:
                    total += np.log(np.abs(1 + lr * slope))
                z = z + lr * force
                if n >= steps - tail:
                    kept[n - steps + tail] = z
        lost = ~np.isfinite(kept).all(0)
        return Orbits(np.where(lost, np.nan, kept), np.where(lost, np.nan, total / (steps - steps // 2)))
