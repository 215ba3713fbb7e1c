"""The two-mode GAN of the theory: its data, networks and starts, and what counts as having found the modes.

Jelassi, Dobre, Mensch, Li, Gidel, arXiv 2210.04319, section on theory; constants that the paper leaves to o(1) and
polylog are fields here, and the setting is partly recalled. Real data are X = s₁u₁ + s₂u₂ with unit u₁, u₂ in R^d;
the generator is linear, G(z) = Σ z_j v_j with sparse z in {0, 1}^m; the discriminator is D(X) =
sigmoid(Σ_i σ(⟨w_i, X⟩) + λ b) with a truncated cubic σ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError

Array = NDArray[np.float64]

HIT, AVERAGE, LOST = 0.9, 0.9, 0.2
"""Cosines: to a mode or to u₁ + u₂, above which a sample shows it; to both modes, below which it is noise."""
SHARE, MOST = 0.03, 0.5
"""The share of samples that shows a mode (about half of 1/m), and the share that makes noise or an average."""
OUTCOMES = ("both", "single", "average", "noise", "other")


@dataclass(frozen=True)
class TwoModes:
    """The setting: `dimension` d, `correlation` ⟨u₁, u₂⟩, `together` the probability of X = u₁ + u₂.

    `latent` is "bernoulli" (independent Bernoulli(1/m), never all 0) or "one" (exactly one active coordinate).

    >>> TwoModes().cut, round(TwoModes().bias_scale, 5)
    (3.981..., 0.00458)

    Raises:
        UserError: when d is smaller than what the networks span, or a probability is none.
    """

    dimension: int = 1000
    correlation: float = 0.0
    together: float = 0.0
    latent: Literal["bernoulli", "one"] = "bernoulli"
    neurons: int = 10
    columns: int = 14

    def __post_init__(self) -> None:
        if self.dimension < self.span:
            raise UserError(f"TwoModes: dimension must be at least {self.span}, as many as there are modes, "
                            f"neurons and columns; got {self.dimension}")
        if not (0 <= self.correlation < 1 and 0 <= self.together <= 1):
            raise UserError("TwoModes: correlation must lie in [0, 1) and together in [0, 1]; "
                            f"got {self.correlation} and {self.together}")
        if self.latent not in ("bernoulli", "one"):
            raise UserError(f'TwoModes: latent must be "bernoulli" or "one"; got {self.latent!r}')

    @property
    def span(self) -> int:
        """How many dimensions the modes and all weights span at the start, and so for ever."""
        return 2 + self.neurons + self.columns

    @property
    def cut(self) -> float:
        """Λ = d^0.2, where the cubic goes over into its tangent."""
        return float(self.dimension**0.2)

    @property
    def bias_scale(self) -> float:
        """λ = 1/(√d log d)."""
        return 1 / (math.sqrt(self.dimension) * math.log(self.dimension))

    @property
    def chances(self) -> Array:
        """The probabilities of u₁, u₂ and u₁ + u₂."""
        return np.array([(1 - self.together) / 2, (1 - self.together) / 2, self.together])

    def modes(self) -> Array:
        """Return u₁, u₂ in the span's own basis, `(2, span)`."""
        found = np.zeros((2, self.span))
        found[0, 0] = 1.0
        found[1, :2] = self.correlation, math.sqrt(1 - self.correlation**2)
        return found

    def start(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw w_i ~ N(0, I/d) and v_j ~ N(0, I/d²) in an orthonormal basis of the span, `(m, span)` each.

        The basis is u₁, u₂ and then each vector's part that is new. By rotational invariance vector k has k + 2
        independent normal coordinates along what came before, and a new one whose square is χ²(d − k − 2)
        (Bartlett). So any dimension costs the same, exactly.
        """
        d, count = self.dimension, self.neurons + self.columns
        rows = np.tril(rng.standard_normal((count, self.span)), 1)
        rows[np.arange(count), np.arange(2, self.span)] = np.sqrt(rng.chisquare(d - 2 - np.arange(count)))
        return rows[:self.neurons] / math.sqrt(d), rows[self.neurons:] / d

    def start_in_space(self, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Draw the modes `(2, d)`, w and v in all d coordinates, for rules that treat coordinates apart (Adam)."""
        d = self.dimension
        first, second = rng.standard_normal((2, d))
        first /= np.linalg.norm(first)
        second -= (second @ first) * first
        second /= np.linalg.norm(second)
        modes = np.stack([first, self.correlation * first + math.sqrt(1 - self.correlation**2) * second])
        return (modes, rng.standard_normal((self.neurons, d)) / math.sqrt(d),
                rng.standard_normal((self.columns, d)) / d)

    def latents(self, rng: np.random.Generator, n: int) -> Array:
        """Draw `n` latent vectors, `(n, columns)` of 0 and 1.

        Bernoulli vectors are drawn given that they are not 0: first the place of the first 1, which is truncated
        geometric, then what follows it.
        """
        m, place = self.columns, np.arange(self.columns)
        if self.latent == "one":
            return np.asarray(place == rng.integers(m, size=n)[:, None], dtype=np.float64)
        q = 1 / m
        first = np.floor(np.log1p(-rng.random(n) * (1 - (1 - q)**m)) / math.log1p(-q))[:, None]
        after = (rng.random((n, m)) < q) & (place > first)
        return np.asarray(after | (place == first), dtype=np.float64)


def activation(x: Array, cut: float) -> Array:
    """Return σ(x) = x³ for |x| ≤ Λ, and beyond it the tangent sign(x)(3Λ²|x| − 2Λ³).

    >>> activation(np.array([1.0, -3.0]), cut=2.0)
    array([  1., -20.])
    """
    small = np.minimum(np.abs(x), cut)
    return np.asarray(np.sign(x) * (small**3 + 3 * cut**2 * (np.abs(x) - small)))


def outcome(first: Array, second: Array, average: Array, noise: Array) -> NDArray[np.int64]:
    """Return the number in `OUTCOMES` of what generators show, from shares of their samples, all `(...)`.

    `both` when each mode has at least 3 % of the samples, `single` when one has, `average` and `noise` when half of
    them are, else `other`.

    >>> shares = np.array([0.1, 0.1, 0]), np.array([0.04, 0.01, 0]), np.zeros(3), np.ones(3)
    >>> [OUTCOMES[i] for i in outcome(*shares)]
    ['both', 'single', 'noise']
    """
    low, high = np.minimum(first, second), np.maximum(first, second)
    found = np.select([low >= SHARE, high >= SHARE, average >= MOST, noise >= MOST], [0, 1, 2, 3], 4)
    return found.astype(np.int64)
