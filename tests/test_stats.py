"""Statistics against scipy, brute force, and their promised error rates in simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from optscope.errors import UserError
from optscope.evidence import paired, stats

NAN, INF = math.nan, math.inf
finite = st.floats(-1e6, 1e6)
pairs = st.lists(st.tuples(finite, finite), min_size=2, max_size=12).map(
    lambda rows: tuple(np.array(rows).T))
ps = st.lists(st.one_of(st.floats(0, 1), st.just(NAN)), min_size=1, max_size=12)


def sample(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1.0, n)


# Intervals of means, differences, medians, rates

@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_mean_interval_is_that_of_the_one_sample_t_test(n: int, confidence: float) -> None:
    x = sample(n)
    found = stats.mean_interval(x, confidence)
    oracle = scipy.stats.ttest_1samp(x, 0).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)
    assert (found.estimate, found.n, found.missing) == (pytest.approx(x.mean()), n, 0)


def test_paired_difference_is_that_of_the_paired_t_test() -> None:
    a, b = sample(9, 1), sample(9, 2)
    found, oracle = stats.paired_difference(a, b, 0.9), scipy.stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)


def test_t_interval_covers_what_it_promises_at_five_seeds() -> None:
    draws = np.random.default_rng(3).normal(2.0, 1.0, (2_000, 5))
    intervals = [stats.mean_interval(row) for row in draws]
    covered = np.mean([i.low <= 2.0 <= i.high for i in intervals])
    assert abs(covered - 0.95) <= 0.015


@pytest.mark.parametrize("n", [6, 7, 10, 25, 60])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_median_interval_is_the_narrowest_that_covers(n: int, confidence: float) -> None:
    found = stats.median_interval(np.arange(1, n + 1), confidence)
    half = scipy.stats.binom(n, 0.5)
    rank = int(found.low)
    assert found.high == n + 1 - rank
    assert 1 - 2 * half.cdf(rank - 1) >= confidence > 1 - 2 * half.cdf(rank)
    oracle = scipy.stats.quantile_test(np.arange(1, n + 1), p=0.5).confidence_interval(confidence)
    assert (found.low, found.high) == (oracle.low, oracle.high)


def test_median_interval_needs_six_values_and_takes_misses() -> None:
    assert math.isnan(stats.median_interval([1, 2, 3, 4, 5]).low)
    assert stats.median_interval([3, 1, INF, 2, INF, 4, NAN]) == stats.Interval(3.5, 1, INF, 6, 1)
    assert stats.median_interval([]).n == 0


@pytest.mark.parametrize(("successes", "n"), [(0, 8), (3, 10), (8, 8), (49, 100)])
def test_wilson_is_that_of_the_binomial_test(successes: int, n: int) -> None:
    found = stats.wilson(successes, n, 0.9)
    oracle = scipy.stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert found.low <= found.estimate == successes / n <= found.high


def test_wilson_of_nothing_is_nan() -> None:
    assert math.isnan(stats.wilson(0, 0).estimate)


def test_probability_better_counts_ties_and_misses_as_half() -> None:
    found = stats.probability_better([3, 1, 2, INF, NAN], [1, 3, 2, INF, 0])
    assert found == stats.Interval(0.5, stats.wilson(2, 4).low, stats.wilson(2, 4).high, 4, 1)
    assert stats.probability_better([3, 3, 2], [1, 2, 2]).estimate == pytest.approx(2.5 / 3)


def test_bootstrap_interval_of_a_mean_is_near_the_t_interval() -> None:
    x = sample(60, 4)
    found, exact = stats.bootstrap_interval(x, np.mean, resamples=4_000), stats.mean_interval(x)
    tenth = 0.1 * (exact.high - exact.low)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=tenth)
    assert found == stats.bootstrap_interval(x, np.mean, resamples=4_000)


def test_bootstrap_resamples_rows_and_agrees_with_scipy() -> None:
    rows = np.random.default_rng(5).normal(size=(24, 3)) * [1, 2, 3]

    def spread(values: np.ndarray) -> float:
        return float(values.std(axis=0).sum())

    found = stats.bootstrap_interval(np.vstack((rows, [NAN, 1, 1])), spread, resamples=999)
    oracle = scipy.stats.bootstrap(
        tuple(rows.T), lambda *columns, axis: sum(c.std(axis=axis) for c in columns), paired=True,
        n_resamples=999, rng=np.random.default_rng(0)).confidence_interval
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)
    assert (found.estimate, found.n, found.missing) == (pytest.approx(spread(rows)), 24, 1)


def test_bootstrap_is_refused_for_few_values_and_nan_where_undefined() -> None:
    with pytest.raises(UserError, match="20 values or more for a bootstrap, got 19"):
        stats.bootstrap_interval(sample(19), np.mean)
    flat = stats.bootstrap_interval(np.ones(20), np.mean, resamples=99)
    assert flat.estimate == 1
    assert math.isnan(flat.low)


# The sign-flip test and how many seeds it takes

def all_sign_patterns(differences: np.ndarray) -> float:
    signs = np.array(list(itertools.product((-1, 1), repeat=len(differences))))
    return float(np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9))


@pytest.mark.parametrize("n", [1, 2, 5, 8, 11])
def test_sign_flip_p_is_that_of_all_patterns_and_of_scipy(n: int) -> None:
    for differences in (sample(n, n), np.round(sample(n, n)), np.abs(sample(n, n))):  # ties and zeros too
        p = stats.sign_flip_p(differences)
        assert p == pytest.approx(all_sign_patterns(differences), abs=1e-12)
        if n > 1:
            oracle = scipy.stats.permutation_test((differences,), np.sum, permutation_type="samples",
                                                  n_resamples=INF, vectorized=True)
            assert p == pytest.approx(oracle.pvalue, abs=1e-12)


def test_sign_flip_counts_patterns_that_tie_up_to_rounding() -> None:
    assert stats.sign_flip_p([0.1, 0.2, 0.3, -0.6 + 1e-17]) == 1.0
    assert stats.sign_flip_p([0.1] * 3 + [0.3]) == 0.125  # 0.1+0.1+0.1+0.3 in any order


def test_sign_flip_beyond_twenty_pairs_agrees_with_the_enumeration() -> None:
    differences = sample(21, 6)
    p = stats.sign_flip_p(differences)
    totals = np.zeros(1)
    for d in differences:
        totals = np.concatenate((totals + d, totals - d))
    exact = np.mean(np.abs(totals) >= abs(differences.sum()) - 1e-9)
    assert 0.01 < exact < 0.9  # neither end, or the comparison would say nothing
    assert p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / stats.DRAWS))
    assert p == stats.sign_flip_p(differences)
    assert stats.sign_flip_p(np.ones(25)) == stats.smallest_p(25) == 1e-5


def test_sign_flip_p_without_differences_is_nan_and_leaves_nan_out() -> None:
    assert math.isnan(stats.sign_flip_p([NAN]))
    assert stats.sign_flip_p([1.0, NAN, 2.0]) == 0.5


@pytest.mark.parametrize(("n", "p"), [(3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125), (8, 0.0078125),
                                      (20, 2**-19)])
def test_smallest_p_is_reached_when_all_differences_have_one_sign(n: int, p: float) -> None:
    assert stats.smallest_p(n) == p == stats.sign_flip_p(np.abs(sample(n)))


@pytest.mark.parametrize(("arms", "seeds"), [(2, 6), (4, 8), (6, 10), (8, 11)])
def test_seeds_needed_for_all_pairs(arms: int, seeds: int) -> None:
    assert stats.seeds_needed(math.comb(arms, 2)) == seeds


@pytest.mark.parametrize(("arms", "seeds"), [(2, 6), (4, 7), (6, 8), (8, 9)])
def test_seeds_needed_against_one_baseline(arms: int, seeds: int) -> None:
    assert stats.seeds_needed(arms - 1) == seeds


@settings(deadline=None)
@given(st.integers(1, 200), st.sampled_from([0.01, 0.05, 0.2]))
def test_seeds_needed_is_the_first_n_whose_smallest_p_survives_holm(comparisons: int, alpha: float) -> None:
    def adjusted(n: int) -> float:
        return float(stats.holm([2.0 ** (1 - n)] + [1.0] * (comparisons - 1))[0])

    n = stats.seeds_needed(comparisons, alpha)
    assert adjusted(n) <= alpha < adjusted(n - 1)


def test_sign_flip_never_alarms_more_often_than_its_level() -> None:
    rng = np.random.default_rng(7)
    p = np.array([stats.sign_flip_p(rng.exponential(size=8) - rng.exponential(size=8)) for _ in range(2_000)])
    assert 0.03 < np.mean(p <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2_000)


# Equivalence, Holm

@pytest.mark.parametrize("margin", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("shift", [-1.0, 0.1, 2.5])
def test_equivalence_is_two_one_sided_t_tests(margin: float, shift: float) -> None:
    a, b = sample(10, 8) + shift, sample(10, 9)
    found = paired.equivalence(a, b, margin)
    above = scipy.stats.ttest_1samp(a - b, -margin, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(a - b, margin, alternative="less").pvalue
    assert found.p == pytest.approx(max(above, below), rel=1e-9)
    assert found.equivalent == (-margin < found.interval.low and found.interval.high < margin)
    oracle = scipy.stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.interval.low, found.interval.high) == pytest.approx((oracle.low, oracle.high), rel=1e-12)


def test_equivalence_below_six_pairs_is_exact_and_so_for_equal_differences() -> None:
    same = paired.equivalence([1, 2, 3], [1, 2, 3], 0.5)
    assert same == paired.Equivalence(stats.Interval(0, 0, 0, 3), "sign-flip test", 2**-3, False)
    assert paired.equivalence(np.arange(8), np.arange(8), 0.5).p == 2**-8
    assert paired.equivalence([2, 3], [1, 2], 1.0).p == 1.0
    five = paired.equivalence([0.1, -0.2, 0.3, 0.0, -0.1], np.zeros(5), 1.0)
    assert (five.p, five.equivalent) == (2**-5, True)
    one = paired.equivalence([1.0], [1.0], 0.5)
    assert math.isnan(one.p)
    assert not one.equivalent


def test_a_margin_a_pair_is_tested_at_its_mean_with_its_variance() -> None:
    """A share of the baseline's error: the ratio of the means lies within 1 ± share (Hauschke et al. 1999)."""
    errors, others = 2 + 0.2 * sample(10, 8), 2.1 + 0.2 * sample(10, 9)
    found = paired.equivalence(errors, others, 0.2 * errors)
    above = scipy.stats.ttest_1samp(1.2 * errors - others, 0, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(others - 0.8 * errors, 0, alternative="greater").pvalue
    assert found.p == pytest.approx(max(above, below), rel=1e-9)
    assert found.interval == stats.paired_difference(errors, others, 0.9)
    assert paired.equivalence([*errors, NAN], [*others, 1.0], [*(0.2 * errors), NAN]).p == found.p
    assert paired.equivalence(errors, others, np.full(10, 0.4)).p == paired.equivalence(errors, others, 0.4).p


# The one test of pairs

@pytest.mark.parametrize("n", [6, 8, 30])
def test_from_six_pairs_on_pairs_are_judged_by_the_t_test(n: int) -> None:
    a, b = sample(n, 3) + 0.4, sample(n, 4)
    for side, one in (("two-sided", False), ("greater", True)):
        assert paired.paired_test(a, b, one) == paired.Tested(
            "t test", pytest.approx(scipy.stats.ttest_rel(a, b, alternative=side).pvalue, rel=1e-12))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_below_six_pairs_are_judged_by_all_patterns_of_signs(n: int) -> None:
    a, b = sample(n, 3) + 0.4, sample(n, 4)
    sums = [sum(s * d for s, d in zip(signs, a - b, strict=True)) for signs in itertools.product((1, -1), repeat=n)]
    observed = sums[0]
    one = np.mean([total >= observed - 1e-12 for total in sums])
    two = np.mean([abs(total) >= abs(observed) - 1e-12 for total in sums])
    assert paired.paired_test(a, b) == paired.Tested("sign-flip test", two)
    assert paired.paired_test(a, b, one_sided=True) == paired.Tested("sign-flip test", one)


def test_equal_differences_have_no_scale_and_are_judged_exactly() -> None:
    base = np.float32(0.1) * np.arange(8)
    assert paired.paired_test(base + 0.1, base) == paired.Tested("sign-flip test", 2**-7)
    assert paired.paired_test(base, base) == paired.Tested("sign-flip test", 1.0)
    assert paired.paired_test([1.0], [0.0]).p != paired.paired_test([1.0], [0.0]).p  # nan


def test_equivalence_has_its_size_at_the_margin_and_power_at_zero() -> None:
    d = np.random.default_rng(10).normal(0, 1, (2_000, 12))
    zero = np.zeros(12)
    alarms = np.mean([paired.equivalence(row + 2.0, zero, 2.0).equivalent for row in d])
    assert 0.035 < alarms <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2_000)
    assert np.mean([paired.equivalence(row, zero, 2.0).equivalent for row in d]) > 0.95


def holm_by_closed_testing(p: list[float]) -> list[float]:
    """The closed test with Bonferroni: the largest p of any subset of hypotheses that holds this one."""
    tests = [i for i, value in enumerate(p) if not math.isnan(value)]
    subsets = [s for k in range(1, len(tests) + 1) for s in itertools.combinations(tests, k)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) if i in tests else NAN
            for i in range(len(p))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(NAN)), min_size=1, max_size=7))
def test_holm_is_the_closed_bonferroni_test(p: list[float]) -> None:
    np.testing.assert_allclose(stats.holm(p), holm_by_closed_testing(p), rtol=1e-12)


@settings(deadline=None)
@given(ps, st.randoms())
def test_holm_is_monotone_at_least_raw_and_follows_its_p(p: list[float], random: object) -> None:
    adjusted, raw = stats.holm(p), np.array(p)
    tests = ~np.isnan(raw)
    assert np.array_equal(np.isnan(adjusted), ~tests)
    assert np.all(adjusted[tests] >= raw[tests])
    assert np.all(np.diff(adjusted[tests][np.argsort(raw[tests])]) >= 0)
    order = list(range(len(p)))
    random.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(stats.holm(raw[order]), adjusted[order])


def test_holm_keeps_its_argument_and_refuses_what_is_no_p() -> None:
    p = np.array([0.04, 0.01])
    assert stats.holm(p).tolist() == [0.04, 0.02]
    assert p.tolist() == [0.04, 0.01]
    assert stats.holm([]).size == 0
    with pytest.raises(UserError, match="p-values between 0 and 1"):
        stats.holm([1.2])


# Rank correlation, tuning curves

def test_rank_correlation_has_the_bonett_wright_interval() -> None:
    x = np.arange(12.0)
    y = x + 4 * sample(12, 11)
    r = 1 - 6 * np.sum((scipy.stats.rankdata(x) - scipy.stats.rankdata(y)) ** 2) / (12**3 - 12)  # no ties
    found = stats.rank_correlation(x, y)
    half = 1.959963984540054 * math.sqrt((1 + r**2 / 2) / 9)
    assert found.estimate == pytest.approx(r)
    assert np.arctanh([found.low, found.high]) == pytest.approx([math.atanh(r) - half, math.atanh(r) + half])


def test_rank_correlation_covers_what_it_promises() -> None:
    rng, rho = np.random.default_rng(12), 0.6
    truth = 6 / math.pi * math.asin(rho / 2)  # Spearman's r of normal pairs
    x = rng.normal(size=(600, 25))
    y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=(600, 25))
    intervals = [stats.rank_correlation(a, b) for a, b in zip(x, y, strict=True)]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert abs(covered - 0.95) <= 0.03


def test_rank_correlation_at_its_ends() -> None:
    perfect = stats.rank_correlation([1, 2, 3, 4, 5, NAN], [1, 4, 9, 16, INF, 0])
    assert (perfect.estimate, perfect.high) == pytest.approx((1, 1), abs=1e-12)
    assert (perfect.n, perfect.missing) == (5, 1)
    assert 0 < perfect.low < 0.9  # five pairs in order do not prove r = 1
    assert math.isnan(stats.rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).estimate)
    short = stats.rank_correlation([1, 2, 3], [3, 2, 1])
    assert short.estimate == pytest.approx(-1)
    assert math.isnan(short.low)


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("n", [1, 4, 9])
def test_expected_best_is_the_mean_over_all_subsets(better: str, n: int) -> None:
    scores = np.round(sample(n, n + 20), 1)
    best = max if better == "higher" else min
    for k in range(1, n + 1):
        brute = np.mean([best(subset) for subset in itertools.combinations(scores, k)])
        assert stats.expected_best(scores, k, better) == pytest.approx(brute, rel=1e-12)  # type: ignore[arg-type]


def test_expected_best_keeps_diverged_trials() -> None:
    losses = [0.5, INF, 0.3]
    assert stats.expected_best(losses, 1, "lower") == INF
    assert stats.expected_best(losses, 2, "lower") == pytest.approx((0.5 + 0.3 + 0.3) / 3)
    assert stats.expected_best([0.9, -INF], 2) == 0.9
    for bad in ([0.5, NAN], [0.5, INF]):
        with pytest.raises(UserError, match="score for every trial"):
            stats.expected_best(bad, 1)
    with pytest.raises(UserError, match="from 1 to the number of trials 2, got 3"):
        stats.expected_best([1, 2], 3)


# Gaps, and what is refused

@settings(deadline=None)
@given(pairs)
def test_swapping_the_arms_flips_every_sign(arms: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = arms
    ab, ba = stats.paired_difference(a, b), stats.paired_difference(b, a)
    assert (ab.estimate, ab.low, ab.high) == (-ba.estimate, -ba.high, -ba.low)
    assert stats.sign_flip_p(a - b) == stats.sign_flip_p(b - a)
    forth, back = stats.probability_better(a, b), stats.probability_better(b, a)
    assert (forth.estimate, forth.low) == pytest.approx((1 - back.estimate, 1 - back.high), abs=1e-12)
    assert paired.equivalence(a, b, 1.0).p == paired.equivalence(b, a, 1.0).p


@settings(deadline=None)
@given(pairs, st.integers(0, 12))
def test_a_pair_with_nan_counts_as_missing_and_changes_nothing_else(
        arms: tuple[np.ndarray, np.ndarray], where: int) -> None:
    a, b = arms
    gap_a, gap_b = np.insert(a, where % len(a), NAN), np.insert(b, where % len(b), 1.0)
    for function in (stats.paired_difference, stats.probability_better, stats.rank_correlation):
        whole, gappy = function(a, b), function(gap_a, gap_b)
        assert (whole.missing, gappy.missing, gappy.n) == (0, 1, len(a))
        np.testing.assert_array_equal([gappy.estimate, gappy.low, gappy.high],
                                      [whole.estimate, whole.low, whole.high])


def test_too_few_values_give_nan_bounds() -> None:
    one = stats.mean_interval([3.0, NAN])
    assert (one.estimate, one.n, one.missing) == (3.0, 1, 1)
    assert math.isnan(one.low)
    nothing = stats.paired_difference([], [])
    assert math.isnan(nothing.estimate)
    assert nothing.n == 0


@pytest.mark.parametrize("call", [
    lambda: stats.mean_interval([1.0, INF]),
    lambda: stats.paired_difference([1.0, 2.0], [INF, 1.0]),
    lambda: stats.sign_flip_p([-INF, 1.0]),
    lambda: paired.equivalence([INF, 1.0], [INF, 1.0], 1.0),
    lambda: stats.bootstrap_interval([INF] * 20, np.mean),
])
def test_infinite_numbers_are_refused(call: object) -> None:
    with pytest.raises(UserError, match="expected finite numbers"):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: stats.paired_difference([1, 2], [1, 2, 3]), "paired by seed"),
    (lambda: stats.mean_interval([[1, 2], [3, 4]]), "one number a seed"),
    (lambda: stats.mean_interval([1, 2], 95), "write 0.95"),
    (lambda: paired.equivalence([1, 2], [1, 2], 0), "positive margin"),
    (lambda: paired.equivalence([1, 2], [1, 2], 1, alpha=0.5), "alpha between 0 and 0.5"),
    (lambda: stats.wilson(3, 2), "between 0 and n = 2"),
    (lambda: stats.seeds_needed(0), "1 comparison or more"),
])
def test_wrong_arguments_are_refused_with_a_sentence(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


def test_swapped_arms_have_one_p_to_the_bit_whatever_the_margin() -> None:
    rng = np.random.default_rng(5)
    for n in (5, 8):
        for _ in range(200):
            a, b, margin = rng.normal(70, 5, n), rng.normal(70, 5, n), rng.uniform(0, 3)
            assert paired.paired_test(a, b, margin=margin) == paired.paired_test(b, a, margin=-margin)
