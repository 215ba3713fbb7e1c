"""Verdicts: the rule that decides, the sentence, and how often it alarms when nothing differs."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from optscope.errors import UserError
from optscope.evidence import stats
from optscope.evidence.claims import Outcome, Verdict
from optscope.evidence.records import Record, Records
from optscope.evidence.verdicts import (
    all_of,
    at_least_k,
    close,
    equivalent,
    greater,
    holm_corrected,
    most_of,
    within,
)

NAN = math.nan
ZERO = np.zeros(8)
# Of mean 0; the 95 % interval reaches to ±0.512, the 90 % interval to ±0.410.
SPREAD = np.array([-1.0, -0.5, -0.25, 0.0, 0.0, 0.25, 0.5, 1.0])


def made(outcome: Outcome, p: float = NAN, n: int = 8) -> Verdict:
    return Verdict(outcome, f"It {outcome}.", n=n, p=p)


def swapped(outcome: Outcome) -> Outcome:
    flipped: dict[Outcome, Outcome] = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    return flipped[outcome]


# greater

@pytest.mark.parametrize(("shift", "margin", "outcome"), [
    (0.6, 0.0, "holds"), (0.5, 0.0, "undecided"), (0.0, 0.0, "undecided"), (-0.5, 0.0, "undecided"),
    (-0.6, 0.0, "fails"), (2.0, 1.4, "holds"), (2.0, 1.6, "undecided"), (2.0, 2.6, "fails"),
    (-0.2, -1.0, "holds"),  # non-inferior
])
def test_greater_is_decided_by_the_interval_and_the_margin(shift: float, margin: float, outcome: str) -> None:
    found = greater(SPREAD + shift, ZERO, margin)
    interval = stats.paired_difference(SPREAD + shift, ZERO)
    assert found.outcome == outcome
    assert (found.effect, found.low, found.high, found.n) == (
        interval.estimate, interval.low, interval.high, 8)
    assert found.test == "t test"
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(SPREAD + shift, margin).pvalue, rel=1e-9)
    assert (found.p <= 0.05) == (outcome != "undecided")


def test_greater_writes_its_numbers_with_units() -> None:
    note = greater(SPREAD + 2, ZERO, 1.0, "robust accuracy, SGD - Adam", "points").note
    assert note == ("robust accuracy, SGD - Adam: +2 points (95 % interval +1.49 to +2.51, 8 pairs, "
                    "t test p = 0.0024), above 1 points.")


@pytest.mark.parametrize("n", [2, 5, 6, 8])
def test_greater_says_when_n_can_never_reach_significance(n: int) -> None:
    note = greater(SPREAD[:n] + 9, ZERO[:n]).note
    assert (f"{n} pairs can never reach p < 0.05, it takes 6" in note) == (n < 6)


@pytest.mark.parametrize(("a", "reason"), [([], "there are none"), ([1.0], "there is one"),
                                           ([1.0, NAN], "there is one; 1 of 2 missing")])
def test_fewer_than_two_pairs_are_undecided_with_the_reason(a: list[float], reason: str) -> None:
    for found in (greater(a, [0.0] * len(a)), equivalent(a, [0.0] * len(a), 5.0)):
        assert found.outcome == "undecided"
        assert reason in found.note
        assert math.isnan(found.low)
        assert math.isnan(found.p)


def test_missing_pairs_are_counted_and_too_many_leave_it_undecided() -> None:
    a = SPREAD + 9
    one, two = a.copy(), a.copy()
    one[0], two[:2] = NAN, NAN
    assert greater(one, ZERO).outcome == "holds"
    assert greater(one, ZERO).n == 7
    assert greater(one, ZERO).note.endswith("; 1 of 8 missing.")
    assert greater(two, ZERO).outcome == "undecided"
    assert greater(two, ZERO).note.endswith("; too many are missing to judge; 2 of 8 missing.")
    assert equivalent(two, two, 5.0).outcome == "undecided"


@pytest.mark.parametrize(("n", "outcome"), [(2, "undecided"), (5, "undecided"), (6, "holds")])
def test_a_difference_takes_six_pairs_however_clear_it_is(n: int, outcome: str) -> None:
    base = np.linspace(0.1, 0.7, n)
    for gain in (np.full(n, 0.1), np.linspace(5.0, 5.1, n)):
        assert greater(base + gain, base).outcome == outcome
    assert greater(base + 0.1, base).p == 2.0 ** (1 - n)
    assert greater(base, base).outcome == "undecided"
    assert equivalent(base + 0.1, base, 0.2).outcome == ("holds" if n >= 5 else "undecided")
    assert equivalent(base + 0.1, base, 0.2).test == "two one-sided sign-flip tests"
    assert equivalent(base + 0.5, base, 0.2).outcome == ("fails" if n >= 6 else "undecided")


def test_infinite_numbers_and_unpaired_arms_are_refused() -> None:
    with pytest.raises(UserError, match="expected finite"):
        greater([1.0, math.inf], [0.0, 0.0])
    with pytest.raises(UserError, match="paired by seed"):
        equivalent([1.0, 2.0], [0.0, 0.0, 1.0], 1.0)


def test_greater_takes_pairs_from_records() -> None:
    rows = Records(Record("demo", arm, seed, "accuracy", 80 + gain * arm.count("s") + seed % 3, rule=arm)
                   for arm, gain in (("sgd", 2), ("adam", 0)) for seed in range(8))
    found = greater(*rows.pairs("sgd", "adam", "accuracy"), what="accuracy, SGD - Adam", unit="points")
    assert (found.outcome, found.effect, found.n) == ("holds", 2.0, 8)


def test_two_names_for_one_optimiser_differ_in_at_most_five_of_a_hundred_comparisons() -> None:
    rng, alarms = np.random.default_rng(0), {"greater": 0, "p": 0}
    for _ in range(1_000):
        seed_effect = rng.normal(0, 1, 8)  # shared by both arms, as pairing has it
        found = greater(seed_effect + rng.normal(0, 1, 8), seed_effect + rng.normal(0, 1, 8))
        alarms["greater"] += found.outcome != "undecided"
        alarms["p"] += found.p <= 0.05
    most = 1_000 * 0.05 + 3 * math.sqrt(1_000 * 0.05 * 0.95)
    assert 20 < alarms["greater"] <= most
    assert 20 < alarms["p"] <= most


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_coarse_scores_alarm_no_more_often_than_fine_ones(n: int) -> None:
    """Counts (modes, rounded accuracies) often give equal differences, at which t would alarm too often."""
    rng = np.random.default_rng(1)
    arms = rng.integers(6, 9, (1_000, 2, n))
    alarms = np.mean([greater(a, b).outcome != "undecided" for a, b in arms])
    unguarded = np.mean([i.low > 0 or i.high < 0 for i in (stats.paired_difference(a, b) for a, b in arms)])
    assert alarms <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1_000)
    assert alarms < unguarded


arms = st.lists(st.tuples(*[st.floats(-100, 100)] * 2), min_size=2, max_size=8).map(
    lambda rows: tuple(np.array(rows).T))


@settings(deadline=None)
@given(arms, st.floats(0, 10))
def test_swapping_the_arms_flips_the_verdict(pair: tuple[np.ndarray, np.ndarray], margin: float) -> None:
    a, b = pair
    forth, back = greater(a, b, margin), greater(b, a, -margin)
    assert back.outcome == swapped(forth.outcome)
    assert (back.effect, back.low, back.high, back.p) == (-forth.effect, -forth.high, -forth.low, forth.p)
    assert equivalent(a, b, margin + 1).outcome == equivalent(b, a, margin + 1).outcome


# equivalent

@pytest.mark.parametrize(("shift", "margin", "outcome"), [
    (0.0, 0.45, "holds"),  # the 90 % interval is inside, the 95 % interval is not
    (0.0, 0.40, "undecided"), (0.5, 1.0, "holds"), (0.6, 1.0, "undecided"), (-0.6, 1.0, "undecided"),
    (1.5, 1.0, "undecided"), (1.6, 1.0, "fails"), (-1.6, 1.0, "fails"),
])
def test_equivalent_is_decided_by_tost_and_by_the_interval_outside(shift: float, margin: float,
                                                                   outcome: str) -> None:
    found = equivalent(SPREAD + shift, ZERO, margin)
    assert found.outcome == outcome
    interval = stats.paired_difference(SPREAD + shift, ZERO)
    assert (found.low, found.high) == (interval.low, interval.high)
    oracle = (2 * scipy.stats.ttest_1samp(SPREAD + abs(shift), margin, alternative="greater").pvalue
              if outcome == "fails"
              else scipy.stats.ttest_1samp(SPREAD + abs(shift), margin, alternative="less").pvalue)
    assert found.p == pytest.approx(oracle, rel=1e-9)
    assert (found.p <= 0.05) == (outcome != "undecided")


def test_equivalent_writes_the_interval_that_decided() -> None:
    assert equivalent(SPREAD, ZERO, 0.5, "clean accuracy", "points").note == (
        "clean accuracy: +0 points (90 % interval -0.41 to +0.41, 8 pairs, two one-sided t tests p = 0.027), "
        "within ±0.5 points.")
    assert equivalent(SPREAD + 2, ZERO, 0.5, "clean accuracy", "points").note == (
        "clean accuracy: +2 points (95 % interval +1.49 to +2.51, 8 pairs, t test p = 0.00023), "
        "outside ±0.5 points.")


# within, close

@pytest.mark.parametrize(("value", "low", "high", "outcome", "note"), [
    (0.97, 0.8, 1.05, "holds", "ratio: 0.97, within 0.8 to 1.05."),
    (0.8, 0.8, 1.05, "holds", "ratio: 0.8, within 0.8 to 1.05."),
    (1.1, 0.8, 1.05, "fails", "ratio: 1.1, not within 0.8 to 1.05."),
    (3.0, 2.0, math.inf, "holds", "ratio: 3, at least 2."),
    (math.inf, -math.inf, 2.0, "fails", "ratio: inf, not at most 2."),
    (NAN, 0.8, 1.05, "undecided", "ratio: not measured."),
])
def test_within_judges_a_number(value: float, low: float, high: float, outcome: str, note: str) -> None:
    found = within(value, low, high, "ratio")
    assert (found.outcome, found.note, found.n) == (outcome, note, 0)
    assert found.effect == value or math.isnan(value)


@pytest.mark.parametrize(("interval", "outcome"), [
    (stats.Interval(-0.5, -0.8, -0.1, 12), "holds"), (stats.Interval(-0.5, -0.8, 0.1, 12), "undecided"),
    (stats.Interval(0.5, 0.1, 0.8, 12), "fails"), (stats.Interval(-0.5, NAN, NAN, 3), "undecided"),
    (stats.Interval(-0.5, -0.8, -0.1, 12, missing=3), "holds"),
    (stats.Interval(-0.5, -0.8, -0.1, 12, missing=4), "undecided"),
])
def test_within_judges_a_whole_interval(interval: stats.Interval, outcome: str) -> None:
    found = within(interval, high=0.0, what="rank correlation")
    assert found.outcome == outcome
    assert (found.effect, found.n) == (interval.estimate, interval.n)
    assert (f"{interval.missing} of {12 + interval.missing} missing" in found.note) == (interval.missing > 0)


@pytest.mark.parametrize(("value", "outcome"), [(1.02, "holds"), (0.97, "fails"), (math.inf, "fails"),
                                                (NAN, "undecided")])
def test_close_holds_within_its_tolerance(value: float, outcome: str) -> None:
    assert close(value, 1.0, 0.025).outcome == outcome


def test_bounds_and_tolerances_are_checked() -> None:
    assert close(1.0, 1.0, 0.0).outcome == "holds"
    with pytest.raises(UserError, match="low <= high, got 2 and 1"):
        within(1.0, 2, 1)
    with pytest.raises(UserError, match="tolerance of 0 or more"):
        close(1.0, 1.0, -1.0)


# combinations

H, F, U = made("holds"), made("fails"), made("undecided")


@pytest.mark.parametrize(("parts", "k", "of_all", "of_most", "of_k"), [
    ([H, H, H], 2, "holds", "holds", "holds"),
    ([H, H, U], 2, "undecided", "holds", "holds"),
    ([H, H, F], 2, "fails", "fails", "holds"),
    ([H, U, U], 2, "undecided", "undecided", "undecided"),
    ([H, U, F], 2, "fails", "fails", "undecided"),
    ([H, F, F], 2, "fails", "fails", "fails"),
    ([H], 2, "holds", "undecided", "undecided"),  # fewer parts than asked: not measured, not refuted
    ([], 1, "undecided", "undecided", "undecided"),
])
def test_combinations(parts: list[Verdict], k: int, of_all: str, of_most: str, of_k: str) -> None:
    assert all_of(parts).outcome == of_all
    assert most_of(parts, k).outcome == of_most
    assert at_least_k(parts, k).outcome == of_k


def test_combinations_list_their_parts() -> None:
    found = at_least_k([H, made("fails", n=5), close(1, 1, 0, "x")], 2)
    assert found.note == ("2 of 3 hold, 2 needed: [holds] It holds. [fails] It fails. "
                          "[holds] x: 1, off the expected 1 by 0, tolerance 0.")
    assert found.n == 5
    assert all_of([]).note == "0 of 0 hold, 0 needed: nothing to judge."


def test_holm_corrected_leaves_undecided_what_does_not_survive() -> None:
    found = holm_corrected([made("holds", 0.01), made("fails", 0.03), made("undecided", 0.3), made("holds")])
    assert [v.outcome for v in found] == ["holds", "undecided", "undecided", "holds"]
    assert [v.p for v in found[:3]] == pytest.approx([0.03, 0.06, 0.3])
    assert found[0].note == "It holds. Holm over 3 tests: p = 0.03."
    assert found[1].note == "It fails. Holm over 3 tests: p = 0.06, so undecided."
    assert repr(found[3]) == repr(made("holds"))  # of nan, from Python 3.13 on == says that it differs from itself
    assert holm_corrected([]) == []
    assert holm_corrected([made("holds", 0.05)])[0].outcome == "holds"


def test_holm_keeps_the_false_alarms_of_a_family_at_five_per_cent() -> None:
    d = np.random.default_rng(2).normal(size=(400, 6, 10))
    zero = np.zeros(10)
    families = [[greater(row, zero) for row in family] for family in d]
    any_raw = np.mean([any(v.outcome != "undecided" for v in family) for family in families])
    any_holm = np.mean([any(v.outcome != "undecided" for v in holm_corrected(family)) for family in families])
    assert any_raw > 0.2
    assert any_holm <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("verdict", [
    greater(SPREAD, ZERO), greater([1.0], [0.0]), equivalent(SPREAD, ZERO, 1.0), within(1.0, 0.0, 2.0),
    within(stats.wilson(3, 8), low=0.5), close(1, 2, 3), all_of([H, F]), all_of([])])
def test_every_note_is_a_sentence(verdict: Verdict) -> None:
    assert verdict.note.endswith(".")
    assert not re.search(r"\s\s|\s[.,;]|\.\.|nan", verdict.note)
