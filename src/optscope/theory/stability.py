"""The largest curvature at which an optimiser's steps stay bounded on a quadratic, in closed form.

On f(w) = λ w²/2 every rule below is a linear recurrence in w. It is stable while both roots of its characteristic
polynomial lie in the unit disc; as λ grows, the first to leave does so through −1, and the polynomial at
z = −1 gives the threshold. Training at the edge of stability hovers about it (Cohen et al. 2021, arXiv
2103.00065, section 2 and appendix B; for adaptive rules Cohen et al. 2022, arXiv 2207.14484).
"""

from __future__ import annotations

import math

from optscope.errors import UserError


def gradient_descent(lr: float) -> float:
    """Return 2/η: w ← w − η λ w is multiplied by 1 − η λ.

    >>> gradient_descent(0.1)
    20.0

    Raises:
        UserError: unless lr > 0.
    """
    return heavy_ball(lr, 0.0)


def heavy_ball(lr: float, momentum: float) -> float:
    """Return 2 (1 + β)/η for v ← β v + λ w, w ← w − η v.

    z² − (1 + β − η λ) z + β = 0.

    >>> round(heavy_ball(0.1, 0.9), 9)
    38.0

    Raises:
        UserError: unless lr > 0 and 0 <= momentum < 1.
    """
    _check(lr, momentum)
    return 2 * (1 + momentum) / lr


def nesterov(lr: float, momentum: float) -> float:
    """Return 2 (1 + β)/((1 + 2 β) η) for v ← β v + λ w, w ← w − η (λ w + β v).

    z² − (1 + β) (1 − η λ) z + β (1 − η λ) = 0.

    >>> round(nesterov(0.1, 0.9), 3)
    13.571

    Raises:
        UserError: unless lr > 0 and 0 <= momentum < 1.
    """
    _check(lr, momentum)
    return 2 * (1 + momentum) / ((1 + 2 * momentum) * lr)


def averaged(lr: float, momentum: float, decay: float = 0.0) -> float:
    """Return (2 − η δ) (1 + β)/((1 − β) η) for m ← β m + (1 − β) λ w, w ← (1 − η δ) w − η m.

    z² − (1 − η δ + β − η (1 − β) λ) z + (1 − η δ) β = 0. This is Adam's momentum with its preconditioner D held
    still: λ is then an eigenvalue of D⁻¹ᐟ² H D⁻¹ᐟ², and for β = 0.9, δ = 0 the threshold is the 38/η of
    arXiv 2207.14484. δ is the decoupled weight decay of AdamW.

    >>> round(averaged(0.001, 0.9), 6)
    38000.0

    Raises:
        UserError: unless lr > 0, 0 <= momentum < 1 and 0 <= lr * decay < 2.
    """
    _check(lr, momentum)
    _check_decay(lr, decay)
    return (2 - lr * decay) * (1 + momentum) / ((1 - momentum) * lr)


def mixed(lr: float, used: float, kept: float, decay: float = 0.0) -> float:
    """Return the threshold of a step along a mean that is used with one weight β₁ and kept with another β₂.

        w ← a w − η (β₁ m + (1 − β₁) λ w),   m ← β₂ m + (1 − β₂) λ w,   both from the old w and m;  a = 1 − η δ

    z² − (a + β₂ − η (1 − β₁) λ) z + a β₂ − η (β₂ − β₁) λ = 0: it is (1 + a)(1 + β₂)/((1 + β₂ − 2 β₁) η), and for
    β₁ > β₂ no more than (1 − a β₂)/((β₁ − β₂) η), where a pair of roots leaves. With β₁ = β₂ it is `averaged`;
    Lion's usual 0.9 and 0.99 bear 20.9/η, where 0.9 and 0.9 bear 38/η.

    >>> round(mixed(1.0, 0.9, 0.99), 3), round(mixed(1.0, 0.9, 0.9), 6), mixed(1.0, 0.0, 0.9)
    (20.947, 38.0, 2.0)

    Raises:
        UserError: unless lr > 0, 0 <= used, kept < 1 and 0 <= lr * decay < 2.
    """
    _check(lr, used)
    _check(lr, kept)
    _check_decay(lr, decay)
    a, flip = 1 - lr * decay, 1 + kept - 2 * used
    return min((1 + a) * (1 + kept) / (flip * lr) if flip > 0 else math.inf,
               (1 - a * kept) / ((used - kept) * lr) if used > kept else math.inf)


def normalized(lr: float, dual: float, used: float = 0.0, kept: float = 0.0, decay: float = 0.0) -> float:
    """Return `mixed(lr, used, kept, decay)` ‖c‖_*, which is 2 ‖g‖_*/η without a memory, for steps of one length.

        w ← (1 − η δ) w − η d,   d = argmax over ‖d‖ <= 1 of ⟨c, d⟩,   ⟨c, d⟩ = ‖c‖_*,   c = β₁ m + (1 − β₁) g

    It is the threshold of the steepest descent whose steps are η' ‖c‖_* d (arXiv 2603.05002 has that form without a
    memory), at the η' = η/‖c‖_* of this moment, for S, the largest dᵀHd in the ball: exact where d has dᵀHd = S and
    w and m are multiples of d and Hd. Without memory and decay the loss changes by −η ‖g‖_* + η²/2 dᵀHd to second
    order, so that it falls while S is below.

    >>> normalized(0.1, 3.0)
    60.0

    Raises:
        UserError: as `mixed`.
    """
    return dual * mixed(lr, used, kept, decay)


def batch_edges(lr: float, momentum: float) -> tuple[float, float]:
    """Return 2 (1 − β)/η and 2 (1 + β)/η, where batch sharpness settles under SGD with momentum.

    The first in small batches, the second, which is `heavy_ball`'s own, in large ones: arXiv 2604.14108 (read in
    its abstract).

    >>> tuple(round(edge, 9) for edge in batch_edges(0.1, 0.9))
    (2.0, 38.0)

    Raises:
        UserError: unless lr > 0 and 0 <= momentum < 1.
    """
    return 2 * (1 - momentum) / lr, heavy_ball(lr, momentum)


def _check(lr: float, momentum: float) -> None:
    if not (0 < lr < math.inf and 0 <= momentum < 1):
        raise UserError("a stability threshold needs a learning rate > 0 and a momentum in [0, 1); "
                        f"got {lr:g} and {momentum:g}")


def _check_decay(lr: float, decay: float) -> None:
    if not 0 <= lr * decay < 2:
        raise UserError(f"a decay shrinks the weights only for 0 <= lr * decay < 2; got {lr:g} * {decay:g}")
