"""What a comparison says: no false word, the tests it names, its margin, its order, and when it says nothing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy

from optscope.analyses.caveats import fairness
from optscope.analyses.differences import judged_by
from optscope.analyses.findings import findings, places
from optscope.analyses.headline import headline, nothing_to_compare
from optscope.engine.plan import Plan
from optscope.errors import UserError
from optscope.evidence.paired import example_interval
from optscope.evidence.records import Metric, Record, Records
from optscope.evidence.stats import holm
from optscope.optim import SGD
from optscope.probes.accuracy import Accuracy
from optscope.probes.chance import Chance
from optscope.probes.probe import Probe, Reading, Subject
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.margin import Margin, margin_said
from optscope.protocol.settings import Settings, read_settings
from tiny import TASK, Blobs

SEEDS = tuple(range(1, 9))


@dataclass(frozen=True, repr=False)
class Attacked(Probe):
    """The metrics of a probe that looks at three radii; it is never taken here."""

    @property
    def metrics(self):
        return (Metric("accuracy under attack", "%", "higher", axis="radius"),
                Metric("steps of the attack", better="neither", axis="radius"))

    def measure(self, subject: Subject) -> Reading:
        raise AssertionError


MEASURED = Comparison("demo", TASK, tuple(Arm(name, SGD(lr=0.1)) for name in ("A", "B", "C")), Plan(2, 32),
                      (Accuracy(), Attacked()), SEEDS, (1001, 1002))
TWO = replace(MEASURED, arms=MEASURED.arms[:2], probes=(Accuracy(),))


OF_MANY_LABELS = "exact match", "perplexity"
"""Metrics of accuracy that no task of one label an example has."""


def drawn(generator, shifts=None, arms=("A", "B", "C"), spread=1.0):
    """Records in which arms differ by `shifts[arm, metric]` alone, with seed effects that arms share."""
    rows = []
    for metric in (m for probe in MEASURED.probes for m in probe.metrics if m.name not in OF_MANY_LABELS):
        for at in (0.1, 0.5, 1.0) if metric.axis else (None,):
            common = generator.normal(size=len(SEEDS)) * 5 + 70
            for arm in arms:
                shift = (shifts or {}).get((arm, metric.name), 0.0)
                values = common + shift + spread * generator.normal(size=len(SEEDS))
                rows += [Record("demo", arm, seed, metric.name, float(v), at)
                         for seed, v in zip(SEEDS, values, strict=True)]
    return Records(rows)


def scored(metric="accuracy", phase="final", rule="", **arms):
    """Records of one metric: a list of values by seed for each arm."""
    return Records(Record("demo", arm, seed, metric, value, phase=phase, rule=rule, run=f"{arm}{seed}")
                   for arm, values in arms.items() for seed, value in enumerate(values, start=1))


def test_of_all_that_is_said_about_equal_arms_a_false_word_is_no_more_frequent_than_the_level():
    generator = np.random.default_rng(0)
    comparisons, false = 200, 0
    for _ in range(comparisons):
        found = [f for f in findings(MEASURED, drawn(generator)) if f.lead]
        assert len(found) == 2 * 4
        assert all(f.verdict.outcome != "fails" for f in found)
        false += any(f.verdict.outcome == "holds" for f in found)
    error = math.sqrt(0.05 * 0.95 / comparisons)
    assert 0 < false / comparisons < 0.05 + 3 * error  # above 0: the test could have failed


def test_the_p_that_is_corrected_is_that_of_the_test_that_is_named():
    records = drawn(np.random.default_rng(1), {("B", "accuracy"): 2.0})
    found = findings(MEASURED, records)
    raw = []
    for f in found:
        a, b = records.pairs("A", f.arm, f.place.metric.name, f.place.at)
        sides = [scipy.stats.ttest_1samp(a - b, s * 1.5, alternative="less" if s > 0 else "greater").pvalue
                 for s in (1, -1)]
        raw.append(scipy.stats.ttest_rel(a, b).pvalue if f.lead else max(sides))
    np.testing.assert_allclose([f.verdict.p for f in found], holm(raw), rtol=1e-9)
    for f, p in zip(found, raw, strict=True):
        name = "t test" if f.lead else "two one-sided t tests"
        assert f.verdict.test == f"{name}, Holm over 10"
        assert f"{name} p = {p:.2g})" in f.verdict.note
        assert (f.verdict.p <= 0.05) == (f.verdict.outcome != "undecided")


def test_a_planted_gap_is_found_with_the_right_lead_and_size_and_lower_is_turned():
    shifts = {("B", "accuracy under attack"): -5.0, ("C", "accuracy under attack"): 5.0,
              ("B", "loss"): 5.0, ("C", "loss"): -5.0}
    found = findings(MEASURED, drawn(np.random.default_rng(1), shifts))
    for metric, side in (("accuracy under attack", "higher"), ("loss", "lower")):
        b, c = (f for f in found if f.place.metric.name == metric)
        assert (b.arm, b.lead, c.arm, c.lead) == ("B", "A", "C", "C")
        for f in (b, c):
            assert f.verdict.outcome == "holds"
            assert f.verdict.low < 5 < f.verdict.high
            assert f.verdict.effect > 0
            assert f.verdict.n == 8
        place = " (radius 0.5)" if metric != "loss" else ""
        assert b.claim.text == f"A has {side} {metric}{place} than B"
        assert c.claim.text == f"C has {side} {metric}{place} than A"
        assert c.claim.falsified == "a difference that is shown to be on the other side of 0, in favour of A"
    assert {f.verdict.outcome for f in found if f.place.metric.name == "calibration error"} == {"undecided"}


def test_places_are_metrics_with_a_direction_at_the_middle_of_their_axis_and_accuracy_comes_first():
    records = drawn(np.random.default_rng(0))
    expected = [("accuracy", None), ("loss", None), ("calibration error", None), ("accuracy under attack", 0.5)]
    assert [(p.metric.name, p.at) for p in places(MEASURED, records)] == expected
    turned = [(p.metric.name, p.at) for p in places(replace(MEASURED, probes=MEASURED.probes[::-1]), records)]
    assert turned == [expected[0], expected[3], *expected[1:3]]
    unclassified = Records(row for row in records if row.metric != "accuracy")
    assert places(MEASURED, unclassified)[0].metric.name == "loss"
    assert places(MEASURED, Records()) == []


# The margin

@pytest.mark.parametrize(("margin", "outcome"), [(None, "fails"), (1.5, "holds"), (0.8, "holds"), ("20%", "fails"),
                                                 ("150 %", "holds"), ("0.3", "fails")])
def test_an_error_rate_that_is_nearly_doubled_is_not_equal_unless_one_says_so(margin, outcome):
    noise = np.array([-2, -1, 0, 0, 0, 0, 1, 2]) / 40
    records = scored(A=99.3 + noise, B=98.7 - noise)
    equal = findings(TWO, records, margin)[0]
    assert equal.verdict.outcome == outcome
    within = margin_said(margin, METRIC).text(METRIC)
    assert equal.claim.text == f"A and B reach the same accuracy (within {within})"


METRIC = Metric("accuracy", "%", "higher")


def test_the_usual_margin_is_the_smaller_of_points_and_a_share_of_the_error_and_a_loss_has_the_share():
    assert margin_said(None, METRIC).of(np.array([99.3, 92.5, 60.0]), METRIC) == pytest.approx([0.14, 1.5, 1.5])
    loss = Metric("loss", "", "lower")
    assert margin_said(None, loss).of(np.array([0.5, -2.0]), loss) == pytest.approx([0.1, 0.4])
    assert margin_said(0.3, loss) == margin_said("0.3", loss) == Margin(absolute=0.3)
    found = findings(TWO, scored("loss", A=1 + np.arange(8) / 100, B=1.01 + np.arange(8) / 100))
    assert found[0].claim.text == "A and B reach the same loss (within 20 % of the baseline's loss)"
    assert found[0].verdict.outcome == "holds"


def test_an_arm_that_errs_nowhere_has_no_share_of_its_error():
    verdict = findings(TWO, scored(A=[100.0] * 8, B=[100.0] * 8))[0].verdict
    assert verdict.outcome == "undecided"
    assert "A errs nowhere" in verdict.note


@pytest.mark.parametrize("bad", ["a bit", "-1", "0", 0.0, -2.0, math.inf, math.nan, "20 % of it"])
def test_a_margin_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="margin must be a positive number"):
        Settings(margin=bad)
    with pytest.raises(UserError, match=r"^margin must be a positive number .*; got .*: write for example 0.5"):
        read_settings(None, margin=bad)


def test_a_margin_is_read_from_a_file(tmp_path):
    (tmp_path / "s.toml").write_text('margin = "20%"')
    assert read_settings(tmp_path / "s.toml").margin == "20%"
    assert read_settings(tmp_path / "s.toml", margin="0.5").margin == "0.5"


# What the test part's size leaves open

def test_the_interval_over_examples_is_that_of_agresti_and_min():
    """Their Wald interval with half an observation added to each cell of the table of pairs."""
    a, b, c, d = 30, 12, 5, 3  # both right, only the first, only the second, neither
    first, second = [1] * (a + b) + [0] * (c + d), [1] * a + [0] * b + [1] * c + [0] * d
    n, only, other = a + b + c + d + 2, b + 0.5, c + 0.5
    half = scipy.stats.norm.ppf(0.975) * math.sqrt(only + other - (only - other) ** 2 / n) / n
    found = example_interval([first], [second])
    assert (found.estimate, found.n) == ((b - c) / 50, 50)
    centre = (only - other) / n
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), rel=1e-6)
    many = example_interval([first, first, first], [second])
    assert (many.low, many.high) == pytest.approx((found.low, found.high), rel=1e-12)
    with pytest.raises(UserError, match="verdicts on the same examples"):
        example_interval([first], [second[:-1]])


def test_a_difference_that_seeds_show_and_examples_do_not_is_said_to_be_so():
    """One example of 169, on every seed: certain over seeds, and nothing on others drawn alike."""
    right = {arm: {seed: np.arange(169) >= wrong for seed in SEEDS} for arm, wrong in (("A", 1), ("B", 2))}
    noise = np.arange(8) / 1000
    records = scored(A=100 * 168 / 169 + noise, B=100 * 167 / 169 - noise)
    found = findings(TWO, records, right=right)
    assert found[1].verdict.outcome == "holds"
    assert "That interval is over seeds, on these 169 test examples; on others drawn alike" in found[1].verdict.note
    low, high = found[1].examples.low, found[1].examples.high
    assert low < 0 < 100 / 169 < high
    assert f"(not by 169 test examples: on others {low:+.3g} to {high:+.3g})" in headline(TWO, records, found)


# The answer

def said(records, of=MEASURED, **settings):
    return headline(of, records, findings(of, records, **settings)).splitlines()


def test_the_headline_reads_well_and_accuracy_comes_first():
    generator = np.random.default_rng(2)
    shifts = {("B", "accuracy under attack"): -5.0, ("B", "loss"): -5.0, ("C", "accuracy"): 9.0}
    lines = said(drawn(generator, shifts, spread=0.2))
    number, within = r"[\d.]+ \[-?[\d.]+, [\d.]+\]", "1.5 points or 20 % of the baseline's error, whichever is less"
    assert len(lines) == 2
    assert re.fullmatch(rf"A against B: A's accuracy (higher|lower) by {number} points over 8 seeds, equal within "
                        rf"{within}; A is better in accuracy under attack \(radius 0\.5\) by {number} points; "
                        rf"B is better in loss by {number}\.", lines[0])
    assert re.fullmatch(rf"A against C: A's accuracy lower by {number} points over 8 seeds, shown; "
                        r"nothing else is shown to differ\.", lines[1])
    open_ = said(drawn(generator, spread=30.0))[0]
    assert re.fullmatch(rf"A against B: A's accuracy (higher|lower) by {number} points over 8 seeds, undecided: "
                        r"neither a difference nor equality is shown; nothing else is shown to differ\.", open_)
    assert said(Records()) == [f"A against {arm}: no difference is shown." for arm in "BC"]


def test_with_three_seeds_the_largest_difference_stands_first_and_undecided():
    gaps = np.array([-16.0, -9.0, -12.2])
    line, = said(scored(A=80 + gaps, B=[80.0, 80.0, 80.0]), of=replace(TWO, seeds=(1, 2, 3)))
    half = scipy.stats.t.ppf(0.975, 2) * gaps.std(ddof=1) / math.sqrt(3)
    assert line == (f"A against B: A's accuracy lower by 12.4 [{12.4 - half:.3g}, {12.4 + half:.3g}] points over "
                    "3 seeds, undecided: it takes 6 seeds to show a difference; nothing else is shown to differ.")


def test_seeds_on_which_an_arm_diverged_count_as_missing_and_are_said():
    records = drawn(np.random.default_rng(3), {("B", "accuracy"): -9.0})
    lost = Records([*(r for r in records if r.arm != "B" or r.seed > 3),
                    *(Record("demo", "B", s, "training loss", math.nan, status="diverged") for s in (1, 2, 3))])
    whole, part = (next(f.verdict for f in findings(MEASURED, given)
                        if f.lead and (f.arm, f.place.text) == ("B", "accuracy")) for given in (records, lost))
    assert whole.outcome == "holds"
    assert part.outcome == "undecided"
    assert "3 of 8 missing" in part.note
    assert said(lost)[0].startswith("A against B: B diverged or failed on 3 of 8 seeds; A's accuracy")
    assert "diverged" not in said(lost)[1]


@pytest.mark.parametrize(("moved", "gap", "spoken"), [(1e-13, 5.0, False), (0.001, 5.0, False), (0.4, 5.0, True),
                                                      (0.4, 0.0, False)])
def test_rounding_is_spoken_of_where_it_moves_a_printed_digit_of_a_difference_that_is_decided(moved, gap, spoken):
    noise = np.array([-2, -1, -0.5, 0, 0, 0.5, 1, 2]) / 2
    final = scored(A=80 + noise, B=80 - gap + noise[::-1])
    twins = [replace(row, phase="twin", rule=f"k = {k}", value=row.value + sign * moved)
             for row in final if row.seed <= 2 for k, sign in ((3, 1), (5, -1))]
    better = findings(TWO, final + twins, margin=0.01)[1]
    assert better.verdict.outcome == ("holds" if gap else "undecided")
    assert better.rounding_floor.value > 0
    assert ("Rounding alone moves" in better.verdict.note) == spoken


# When there is nothing to say

def test_if_all_runs_fail_or_nothing_is_measured_only_that_is_said():
    failed = Records(replace(row, status="failed", metric="training loss") for row in scored(A=[math.nan] * 8,
                                                                                          B=[math.nan] * 8))
    assert nothing_to_compare(TWO, failed) == "Nothing can be compared: all 16 final runs failed or diverged."
    assert nothing_to_compare(TWO, scored("training loss", A=[1.0] * 8, B=[1.0] * 8)) == (
        "Nothing can be compared: of 16 final runs no model could be measured.")
    assert nothing_to_compare(TWO, scored(A=[90.0] * 8, B=[math.nan] * 8)) == ""
    for given in (failed, Records()):
        rules = {check.text.partition(": ")[2]: check.met for check in fairness(TWO, given).checks}
        assert not rules["every arm finished, and was measured, on every seed"]


@pytest.mark.parametrize(("a", "b", "learnt"), [(0, 0, False), (3, 3, False), (4, 0, True), (8, 8, True)])
def test_if_no_arm_beats_chance_on_half_of_its_seeds_only_that_is_said(a, b, learnt):
    records = scored(A=[51.0] * 8, B=[50.5] * 8) + scored("accuracy of the commonest class", A=[50.0] * 8)
    records += scored("better than chance", A=[1.0] * a + [0.0] * (8 - a), B=[1.0] * b + [0.0] * (8 - b))
    assert nothing_to_compare(replace(TWO, described=(Chance(),)), records) == ("" if learnt else (
        "Nothing can be compared: no optimiser is shown to do better than an answer that never looks at the input. "
        "The accuracy of the commonest class is 50 %; mean accuracy over seeds: A 51 %, B 50.5 %."))


# The protocol

def test_the_protocol_names_examples_steps_and_the_test_and_what_an_exact_one_could_show():
    records = drawn(np.random.default_rng(0), arms=("A", "B")) + scored("training loss", A=[1.0] * 8, B=[1.0] * 8)
    verdicts = [f.verdict for f in findings(TWO, records)]
    n = [len(part) for part in (Blobs()().train, Blobs()().validation, Blobs()().test)]
    rules = {check.text.partition(": ")[2]: check for check in fairness(TWO, records).checks}
    rule = rules["every arm finished, and was measured, on every seed"]
    assert rule.met
    assert rule.note.endswith(f"; {n[0]} examples for training, {n[1]} examples for validation, "
                              f"{n[2]} examples for testing")
    assert f"2 epochs of {n[0] // 32} steps on 32 examples each make {2 * (n[0] // 32)} steps" in rule.note
    assert judged_by(TWO, verdicts) == (
        "Student's t test on paired seeds, which takes differences for normal; p are Holm-corrected over all 4 "
        "tests; intervals are of single tests, over seeds; an exact test of 8 seeds could show as much")  # 4/128
    many = judged_by(MEASURED, verdicts * 4)
    assert "whose p is 0.0078 at least, could show nothing among so many tests (it takes 10 seeds)" in many
    few = judged_by(replace(TWO, seeds=(1, 2, 3)), verdicts)
    assert few.startswith("the exact sign-flip test on paired seeds, whose p is 0.25 at least")
