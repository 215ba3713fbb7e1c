"""The statistics that verdicts stand on: intervals over seeds, the exact test on pairs, Holm.

Seeds are few (five to thirty), so intervals are Student's; the bootstrap, whose 95 % interval covers about 83 % at
five seeds, is refused below twenty. One rule for gaps holds throughout: nan
marks a number that is missing (a diverged run), its whole pair is left out, and the result counts it in
`missing`. Intervals are those of `confidence`, 95 % where nothing is said and claims are tested at 5 %
(`optscope.evidence.level`). Infinite numbers raise UserError, except where a function says that it takes them.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from optscope.errors import UserError
from optscope.evidence.level import level

Array = NDArray[np.float64]

ENUMERATED = 20  # the largest n at which the sign-flip test looks at all sign patterns
DRAWS = 99_999  # random sign patterns beyond that: with the observed one, p moves in steps of 1e-5
BOOTSTRAP_LEAST = 20  # the smallest n at which a bootstrap interval covers about what it promises


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from `n` values or pairs, `missing` more being nan.

    Bounds that n is too small for are nan.
    """

    estimate: float
    low: float
    high: float
    n: int
    missing: int = 0


def _complete(rows: Array, infinite: bool) -> tuple[Array, int]:
    """Return the rows without nan, and how many were left out."""
    if not infinite and np.isinf(rows).any():
        raise UserError("expected finite numbers, or nan for a missing one, got an infinite one; "
                        "write nan for a run that diverged, or compare medians or ranks")
    kept = rows[~np.isnan(rows).any(axis=tuple(range(1, rows.ndim)))]
    return kept, len(rows) - len(kept)


def _values(values: ArrayLike, infinite: bool = False) -> tuple[Array, int]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise UserError(f"expected one number a seed, got an array of shape {array.shape}; reduce it first")
    return _complete(array, infinite)


def complete_pairs(a: ArrayLike, b: ArrayLike, infinite: bool = False) -> tuple[Array, Array, int]:
    """Return the pairs of `a` and `b` without nan, and how many pairs were left out.

    Raises:
        UserError: unless both are lists of one length.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise UserError(f"expected two lists of one length, paired by seed, got shapes {first.shape} and "
                        f"{second.shape}; take them from Records.pairs")
    rows, missing = _complete(np.column_stack((first, second)), infinite)
    return rows[:, 0], rows[:, 1], missing


def _upper_level(confidence: float | None) -> float:
    confidence = 1 - level() if confidence is None else confidence
    if not 0 < confidence < 1:
        raise UserError(f"expected a confidence between 0 and 1, got {confidence}; write 0.95 for 95 %")
    return (1 + confidence) / 2


def mean_interval(values: ArrayLike, confidence: float | None = None) -> Interval:
    """Return the mean with its Student t interval, mean ± t_{n-1} · sd / √n (nan bounds below n = 2).

    >>> mean_interval([1.0, 2.0, 3.0])
    Interval(estimate=2.0, low=-0.48..., high=4.48..., n=3, missing=0)
    """
    quantile = _upper_level(confidence)
    kept, missing = _values(values)
    n = len(kept)
    if n < 2:
        return Interval(float(kept[0]) if n else math.nan, math.nan, math.nan, n, missing)
    mean = float(kept.mean())
    half = float(scipy.special.stdtrit(n - 1, quantile)) * float(kept.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, missing)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float | None = None) -> Interval:
    """Return the mean of a - b over pairs (seeds) with its Student t interval."""
    first, second, missing = complete_pairs(a, b)
    return replace(mean_interval(first - second, confidence), missing=missing)


def median_interval(values: ArrayLike, confidence: float | None = None) -> Interval:
    """Return the median with its order-statistic interval, which assumes no distribution.

    x_(l) to x_(n+1-l) with the largest l for which P(Binomial(n, 1/2) < l) <= (1 - confidence)/2, which
    covers at least `confidence`; at 95 % the bounds are nan below six values. Infinite values are taken: a
    run that never reached its target has time inf.
    """
    tail = 1 - _upper_level(confidence)
    kept, missing = _values(values, infinite=True)
    ordered, n = np.sort(kept), len(kept)
    rank = int(np.searchsorted(scipy.special.bdtr(np.arange(n), n, 0.5), tail)) if n else 0
    low, high = (float(ordered[rank - 1]), float(ordered[n - rank])) if rank else (math.nan, math.nan)
    return Interval(float(np.median(ordered)) if n else math.nan, low, high, n, missing)


def bootstrap_interval(values: ArrayLike, statistic: Callable[[Array], float],
                       confidence: float | None = None, resamples: int = 9_999) -> Interval:
    """Return a statistic of the rows of `values` with its BCa bootstrap interval (fixed seed).

    Rows (seeds) are resampled whole. Bounds are nan where BCa is not defined: where no single row changes the
    statistic. Efron, JASA 82 (1987) 171.

    Raises:
        UserError: below 20 rows.
    """
    covered = 2 * _upper_level(confidence) - 1
    kept, missing = _complete(np.asarray(values, dtype=np.float64), infinite=False)
    if len(kept) < BOOTSTRAP_LEAST:
        raise UserError(f"expected {BOOTSTRAP_LEAST} values or more for a bootstrap, got {len(kept)}; "
                        "use mean_interval or median_interval, or run more seeds")
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        bounds = scipy.stats.bootstrap(
            (np.arange(len(kept)),), lambda rows: statistic(kept[rows]), vectorized=False, method="BCa",
            confidence_level=covered, n_resamples=resamples, rng=np.random.default_rng(0),
        ).confidence_interval
    return Interval(float(statistic(kept)), float(bounds.low), float(bounds.high), len(kept), missing)


def wilson(successes: float, n: int, confidence: float | None = None) -> Interval:
    """Return a rate with its Wilson score interval; half successes (ties) are taken.

    low, high = (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)        Wilson, JASA 22 (1927) 209.

    Raises:
        UserError: unless 0 <= successes <= n.
    """
    z = float(scipy.special.ndtri(_upper_level(confidence)))
    if not 0 <= successes <= n:
        raise UserError(f"expected between 0 and n = {n} successes, got {successes}")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    rate, z2 = successes / n, z * z
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)), n)


def probability_better(a: ArrayLike, b: ArrayLike, confidence: float | None = None) -> Interval:
    """Return P(a > b) + P(a = b)/2 over pairs, with the Wilson interval that counts each tie as half a win.

    Infinite values are taken (a miss ties with a miss). Swap the arguments where lower is better.
    """
    first, second, missing = complete_pairs(a, b, infinite=True)
    wins = float(np.sum(first > second) + 0.5 * np.sum(first == second))
    return replace(wilson(wins, len(first), confidence), missing=missing)


def sign_flip_p(differences: ArrayLike, one_sided: bool = False) -> float:
    """Return the p of the exact sign-flip test on paired differences (nan without any).

    p = the share of the 2ⁿ sign patterns s with |Σ s_i d_i| >= |Σ d_i|, or with Σ s_i d_i >= Σ d_i where it is
    asked whether they lie above 0 (`one_sided`): all patterns up to n = 20, beyond that (1 + hits) / (1 + 99,999)
    over random ones of a fixed seed, which is a valid test too (Phipson and Smyth, Stat. Appl. Genet. Mol. Biol.
    9 (2010) 39).

    >>> sign_flip_p([0.1, 0.2, 0.1, 0.3, 0.2]), sign_flip_p([0.1, 0.2, 0.1, 0.3, 0.2], one_sided=True)
    (0.0625, 0.03125)
    """
    kept, _ = _values(differences)
    if not len(kept):
        return math.nan
    turn = (lambda sums: sums) if one_sided else np.abs
    # Sums in another order differ by rounding; patterns that tie with the observed one must count.
    reached = turn(kept.sum()) - 1e-12 * np.abs(kept).sum()
    if len(kept) <= ENUMERATED:
        totals = np.zeros(1)
        for difference in kept:
            totals = np.concatenate((totals + difference, totals - difference))
        return float(np.mean(turn(totals) >= reached))
    rng, totals = np.random.default_rng(0), np.zeros(DRAWS)
    for difference in kept:
        totals += np.where(rng.integers(0, 2, DRAWS, dtype=bool), difference, -difference)
    return float((1 + np.sum(turn(totals) >= reached)) / (1 + DRAWS))


def smallest_p(n: int) -> float:
    """Return the smallest p that `sign_flip_p` can reach on n pairs: 2^(1-n), and 1e-5 beyond n = 20.

    >>> smallest_p(5), smallest_p(8)
    (0.0625, 0.0078125)
    """
    if n > ENUMERATED:
        return 1 / (1 + DRAWS)
    return 2.0 ** (1 - n) if n > 0 else math.nan


def seeds_needed(comparisons: int, alpha: float = 0.05) -> int:
    """Return the fewest seeds at which a sign-flip test can come out, Holm-corrected for `comparisons`.

    The smallest n with 2^(1-n) · comparisons <= alpha.

    >>> [seeds_needed(m * (m - 1) // 2) for m in (2, 4, 6, 8)]  # all pairs of m arms
    [6, 8, 10, 11]

    Raises:
        UserError: unless comparisons >= 1 and 0 < alpha < 1.
    """
    if comparisons < 1 or not 0 < alpha < 1:
        raise UserError(f"expected 1 comparison or more and 0 < alpha < 1, got {comparisons} and {alpha}")
    return next(n for n in itertools.count(1) if 2.0 ** (1 - n) * comparisons <= alpha)


def holm(p_values: ArrayLike) -> Array:
    """Return Holm's adjusted p-values in the given order; nan is no test, stays nan and is not counted.

    p~_(i) = max_{j<=i} min(1, (m - j + 1) p_(j))        Holm, Scand. J. Stat. 6 (1979) 65.

    >>> [round(float(p), 12) for p in holm([0.01, 0.04, float("nan"), 0.03])]
    [0.03, 0.06, nan, 0.06]

    Raises:
        UserError: for a p that is not within [0, 1].
    """
    adjusted = np.array(p_values, dtype=np.float64)
    tests = ~np.isnan(adjusted)
    raw = adjusted[tests]
    if np.any((raw < 0) | (raw > 1)):
        raise UserError("expected p-values between 0 and 1, or nan where there was no test")
    order = np.argsort(raw, kind="stable")
    steps = np.maximum.accumulate(np.arange(len(raw), 0, -1) * raw[order])
    raw[order] = np.minimum(steps, 1.0)
    adjusted[tests] = raw
    return adjusted


def rank_correlation(x: ArrayLike, y: ArrayLike, confidence: float | None = None) -> Interval:
    """Return Spearman's r with a Fisher z interval, var z = (1 + r²/2)/(n - 3), over independent pairs.

    Bonett and Wright, Psychometrika 65 (2000) 23. At |r| = 1, where z is infinite, r is taken half a swap of
    neighbours lower, 1 - 6/(n³ - n). r is nan when x or y is constant; bounds are nan below four pairs.
    Infinite values are taken.
    """
    z = float(scipy.special.ndtri(_upper_level(confidence)))
    first, second, missing = complete_pairs(x, y, infinite=True)
    n = len(first)
    if n < 2 or np.all(first == first[0]) or np.all(second == second[0]):
        return Interval(math.nan, math.nan, math.nan, n, missing)
    r = float(scipy.stats.spearmanr(first, second).statistic)
    if n < 4:
        return Interval(r, math.nan, math.nan, n, missing)
    most = 1 - 6 / (n**3 - n)
    centre = math.atanh(min(max(r, -most), most))
    half = z * math.sqrt((1 + r * r / 2) / (n - 3))
    return Interval(r, min(math.tanh(centre - half), r), max(math.tanh(centre + half), r), n, missing)


def expected_best(scores: ArrayLike, k: int, better: Literal["higher", "lower"] = "higher") -> float:
    """Return the mean over all subsets of k trials of the best score in each: a tuning curve at budget k.

    E_k = Σ_i s_(i) C(i-1, k-1) / C(n, k) for scores sorted from worst to best. A diverged trial has to be
    given its worst score, possibly infinite; dropping it would flatter, so nan raises UserError.

    >>> expected_best([0.7, 0.9, 0.8], 3), expected_best([0.7, 0.9, 0.8], 3, better="lower")
    (0.9, 0.7)

    Raises:
        UserError: unless 1 <= k <= n, and for a score that is nan or infinitely good.
    """
    gain = np.sort(np.asarray(scores, dtype=np.float64) * (1.0 if better == "higher" else -1.0))
    n = len(gain)
    if not 1 <= k <= n:
        raise UserError(f"expected a budget k from 1 to the number of trials {n}, got {k}")
    if np.any(np.isnan(gain) | np.isposinf(gain)):
        raise UserError("expected a score for every trial, got nan or an infinitely good one; give a "
                        "diverged trial its worst score (chance accuracy, or an infinite loss)")
    weights = np.array([math.comb(i, k - 1) / math.comb(n, k) for i in range(k - 1, n)])
    best = float(weights @ gain[k - 1:])
    return best if better == "higher" else -best
