"""The one test of a claim over pairs: Student's t from six pairs on, the exact sign-flip test below."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from optscope.errors import UserError
from optscope.evidence.level import ALPHA, level
from optscope.evidence.stats import Interval, complete_pairs, paired_difference, seeds_needed, sign_flip_p

FEWEST = seeds_needed(1, ALPHA)
"""From so many pairs on the t test is taken, and below the exact one can show no difference."""
SAME = 1e-6
"""Metrics are computed in float32: differences that vary by less than this share of the values are equal."""


@dataclass(frozen=True)
class Tested:
    """What the test of a claim found: the test's name and its p."""

    test: str
    p: float


@dataclass(frozen=True)
class Equivalence:
    """What two one-sided tests found: the 1 - 2·alpha interval, their name, the larger p, whether p <= alpha."""

    interval: Interval
    test: str
    p: float
    equivalent: bool


def paired_test(a: ArrayLike, b: ArrayLike, one_sided: bool = False, margin: ArrayLike = 0.0) -> Tested:
    """Test on pairs whether the mean of a - b - margin is 0, or is not above 0 (`one_sided`); nan below two pairs.

    From six pairs on it is Student's paired t test, which takes differences for normal. Below six there are too few
    to bear that: differences that are near one of two values, a false alarm of the t test in 25 of 100 cases at
    three pairs, are told from normal ones by nobody. There, and where all differences are equal so that t has no
    scale, it is the exact sign-flip test, which takes them for symmetric about 0 and no more.
    `docs/statistics.md` measures both.

    >>> paired_test([2.0, 3.0, 4.5, 2.5, 4.0, 5.0], [1.0, 1.5, 3.0, 0.5, 1.0, 3.5])
    Tested(test='t test', p=0.0015...)
    >>> paired_test([2.0, 3.0, 4.5], [1.0, 1.5, 3.0])
    Tested(test='sign-flip test', p=0.25)
    """
    first, second, _ = complete_pairs(a, b)
    gaps = (first - second) - np.asarray(margin)  # so that swapped arms have the same bits, turned
    if len(gaps) < 2:
        return Tested("t test" if len(gaps) >= FEWEST else "sign-flip test", math.nan)
    if len(gaps) < FEWEST or np.ptp(gaps) <= SAME * max(np.abs(first).max(), np.abs(second).max()):
        return Tested("sign-flip test", sign_flip_p(gaps, one_sided))
    t = float(gaps.mean()) / (float(gaps.std(ddof=1)) / math.sqrt(len(gaps)))
    tail = float(scipy.special.stdtr(len(gaps) - 1, -t if one_sided else -abs(t)))
    return Tested("t test", tail if one_sided else 2 * tail)


def sooner_test(a: ArrayLike, b: ArrayLike) -> Tested:
    """Test on pairs whether two take as many steps to a target, inf for one that never gets there.

    Where all get there it is `paired_test`. Else nothing is known of never but that it comes after all others: then
    it is the exact sign test, 2 · P(Binomial(m, 1/2) ≤ the fewer of m signs of a − b), in which equal pairs (never
    and never too) have no say.

    >>> sooner_test([10.0, 10.0, 20.0, 10.0, 30.0, 10.0], [20.0, 40.0, 30.0, float("inf"), 40.0, float("inf")])
    Tested(test='sign test', p=0.03125)
    """
    first, second, _ = complete_pairs(a, b, infinite=True)
    if np.isfinite(first).all() and np.isfinite(second).all():
        return paired_test(first, second)
    more, less = int(np.sum(first > second)), int(np.sum(first < second))
    tail = float(scipy.special.bdtr(min(more, less), more + less, 0.5)) if more + less else 1.0
    return Tested("sign test", min(1.0, 2 * tail) if len(first) > 1 else math.nan)


def equivalence(a: ArrayLike, b: ArrayLike, margin: ArrayLike, alpha: float | None = None) -> Equivalence:
    """Test on pairs whether the mean of a - b lies within ±margin, by two one-sided tests (TOST).

    p is the larger of the p of mean(a - b + margin) > 0 and of mean(margin - (a - b)) > 0, each by `paired_test`;
    with the t test p <= alpha exactly when the 1 - 2·alpha interval lies within ±margin. A `margin` of one number a
    pair (a share of a baseline that itself varies) is tested at its mean, its variance included. It has the unit of
    a. Below two pairs p is nan. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657.

    Raises:
        UserError: unless alpha is between 0 and 0.5 and the margin positive and finite.
    """
    alpha = level() if alpha is None else alpha
    first, second, _ = complete_pairs(a, b)
    given = np.asarray(margin, dtype=np.float64)
    kept = given if given.ndim == 0 else given[~np.isnan(np.asarray(a) + np.asarray(b))]
    if kept.size and not 0 < float(kept.mean()) < math.inf:
        raise UserError(f"expected a positive margin, fixed before the runs, got {margin!r}")
    if not 0 < alpha < 0.5:
        raise UserError(f"expected alpha between 0 and 0.5, got {alpha}")
    found = paired_difference(a, b, 1 - 2 * alpha)
    sides = paired_test(first, second, True, -kept), paired_test(second, first, True, -kept)
    p = max(side.p for side in sides)
    return Equivalence(found, sides[0].test, p, p <= alpha)


def example_interval(a: ArrayLike, b: ArrayLike) -> Interval:
    """Return the difference of two rates over examples with the 95 % interval that their number leaves.

    `a` and `b` are `(models, n)`, 1 where a model is right about an example and 0 where it is wrong, of the same n
    examples. With d_i the difference of the means over models at example i, D = Σ d_i and S = Σ d_i²,

        D/(n + 2) ± 1.96 · √(S + 1 − D²/(n + 2)) / (n + 2)

    which for one model each is the interval for matched pairs of Agresti and Min, Stat. Med. 24 (2005) 729. It is
    about other examples drawn alike and these very models, so it says nothing about seeds.

    >>> example_interval([[1, 1, 1, 0]], [[1, 0, 0, 0]])
    Interval(estimate=0.5, low=-0.16..., high=0.83..., n=4, missing=0)

    Raises:
        UserError: unless both are `(models, n)` of the same n examples, and not empty.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not first.size * second.size:
        raise UserError(f"expected (models, n) verdicts on the same examples, got {first.shape} and {second.shape}")
    gaps = first.mean(0) - second.mean(0)
    n, total = len(gaps), float(gaps.sum())
    half = 1.959964 * math.sqrt(float(gaps @ gaps) + 1 - total**2 / (n + 2)) / (n + 2)
    return Interval(total / n, total / (n + 2) - half, total / (n + 2) + half, n)
