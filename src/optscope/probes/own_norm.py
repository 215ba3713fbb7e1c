"""Sharpness in a rule's own norm: how far a quadratic form reaches in the norm's ball, from below and above.

    S = max over ‖d‖ <= 1 of dᵀHd

For l∞ that is a maximum over signs (of a cut, if H is a graph's), and NP-hard: what is found is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from optscope.optim.norm import Ball
from optscope.probes.hessian import SymmetricOperator


@dataclass(frozen=True)
class Reach:
    """The largest dᵀHd found, the d `(P,)` that has it, and how many products it took."""

    value: float
    vector: Tensor
    products: int


def reach(operator: SymmetricOperator, ball: Ball, starts: Iterable[Tensor], *, rel: float = 1e-3,
          most: int = 10) -> Reach:
    """Return the largest dᵀHd that a generalised power method finds in a ball from at least one start `(P,)`.

        d ← argmax over ‖e‖ <= 1 of ⟨H d, e⟩            until dᵀHd grows by no more than `rel`

    It is a lower bound of S. Without negative eigenvalues of H, dᵀHd never falls on the way; with them it may, and
    the climb ends there. A start takes `most` products at most. Journée et al. 2010, arXiv 0811.4724, algorithm 1,
    is this ascent.
    """
    before = operator.products
    climbed = [_climb(operator, ball, start, rel, most) for start in starts]
    value, vector = max(climbed, key=lambda found: found[0])
    return Reach(value, vector, operator.products - before)


def _climb(operator: SymmetricOperator, ball: Ball, start: Tensor, rel: float, most: int) -> tuple[float, Tensor]:
    d = ball.furthest(start, operator.layout)
    best, at = -math.inf, d
    for _ in range(most):
        bent = operator(d)
        value = float(d @ bent)
        done = value <= best + rel * abs(best)
        if value > best:
            best, at = value, d
        if done:
            break
        d = ball.furthest(bent, operator.layout)
    return best, at
