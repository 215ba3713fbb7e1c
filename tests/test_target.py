"""Steps to a target: when each run gets there, runs that never do, and the tests and ratios of steps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from optscope.analyses.target import aim, costs, ratio, reached, readings, target
from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.evidence.paired import paired_test, sooner_test
from optscope.evidence.records import Record, Records
from optscope.lab import compare
from optscope.optim import SAM, SGD
from optscope.probes.accuracy import Accuracy
from optscope.protocol.comparison import Arm, Comparison, Criterion
from optscope.protocol.events import Quiet
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import OptimiserSettings, Settings
from optscope.report.figures import draw
from tiny import TASK

INF, NAN = math.inf, math.nan
SEEDS = tuple(range(1, 9))
DEMO = Comparison("demo", TASK, (Arm("A", SGD(lr=0.1)), Arm("B", SGD(lr=0.2)), Arm("C", SAM(SGD(lr=0.1)))),
                  Plan(2, 32), (Accuracy(),), SEEDS, (1001,))
TWO = replace(DEMO, arms=DEMO.arms[:2])


def watched(status="ok", metric="loss", **curves):
    """Records of validation during training: a list of curves by seed for each arm, read every ten steps."""
    return Records(Record("demo", arm, seed, metric, value, step=10 * moment, status=status, run=f"{arm}{seed}")
                   for arm, seeds in curves.items() for seed, curve in enumerate(seeds, start=1)
                   for moment, value in enumerate(curve, start=1))


def steps_of(records, comparison=TWO):
    """The steps of every arm to the target of the first."""
    goal = aim(comparison, readings(comparison, records))
    return {arm.name: reached(comparison, records, arm.name, goal) for arm in comparison.arms}


def test_a_run_has_reached_the_target_at_the_first_moment_that_is_as_good_and_nothing_is_interpolated():
    records = watched(A=[[4.0, 3.0, 2.0, 1.0], [4.0, 3.9, 3.0, 3.0]],
                      B=[[2.0, 5.0, 5.0, 5.0], [3.0, 2.1, 1.9, 1.0]])
    assert aim(TWO, readings(TWO, records)) == 2.0
    assert steps_of(records) == {"A": {1: 30.0, 2: INF}, "B": {1: 10.0, 2: 30.0}}
    other = watched(metric="accuracy", A=[[90.0] * 4] * 2, B=[[0.0] * 4] * 2)
    tests = [replace(row, step=None) for row in records if row.step == 40]
    tuning = [replace(row, phase="tune", value=0.0) for row in records]
    elsewhere = [replace(row, experiment="other", value=0.0) for row in records]
    assert steps_of(records + other + tests + tuning + elsewhere) == steps_of(records)


def test_of_a_criterion_that_is_better_when_higher_the_sides_are_turned():
    by_accuracy = replace(TWO, criterion=Criterion("accuracy", "higher"))
    records = watched(metric="accuracy", A=[[50.0, 70.0, 80.0]], B=[[80.0, 60.0, 60.0]])
    assert steps_of(records, by_accuracy) == {"A": {1: 30.0}, "B": {1: 10.0}}
    table, = target(by_accuracy, records).tables
    assert table.title == "Steps to the target: validation accuracy of at least 80, A's mean at the end"


def test_diverged_runs_count_where_they_got_and_failed_ones_are_missing():
    good = watched(A=[[3.0, 2.0], [3.0, 2.0], [3.0, 2.0], [3.0, 2.0]], B=[[1.0, 1.0]])
    diverged = [replace(row, seed=2, run="B2") for row in watched("diverged", B=[[1.0]])]
    before = Record("demo", "B", 3, "training loss", NAN, status="diverged", run="B3")
    failed = Record("demo", "B", 4, "training loss", NAN, status="failed", run="B4")
    wild = [Record("demo", "B", 5, "loss", NAN, step=10, status="diverged", run="B5")]
    found = steps_of(good + diverged + [before, failed] + wild)
    assert found["B"].keys() == {1, 2, 3, 4, 5}
    assert [found["B"][seed] for seed in (1, 2, 3, 5)] == [10.0, 10.0, INF, INF]
    assert math.isnan(found["B"][4])
    assert found["A"] == dict.fromkeys((1, 2, 3, 4), 20.0)


def test_the_target_is_of_the_runs_that_ended_and_without_one_nothing_is_said():
    records = watched(A=[[3.0, 2.0], [3.0, 4.0]], B=[[9.0, 9.0]])
    lost = [replace(row, seed=3, value=-50.0) for row in watched("diverged", A=[[1.0]])]
    assert aim(TWO, readings(TWO, records + lost)) == 3.0
    nothing = Records(replace(row, status="diverged") for row in watched(A=[[3.0]], B=[[9.0]]))
    assert target(TWO, nothing) == target(TWO, Records()) == type(target(TWO, Records()))()


def test_what_is_read_before_the_first_step_is_no_step_to_the_target():
    records = watched(A=[[3.0, 2.0]], B=[[2.0, 2.0]])
    assert steps_of(records + [replace(row, step=0, value=0.0) for row in records]) == steps_of(records)


# The test and the ratio

@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.sampled_from([10.0, 20.0, 30.0, INF])] * 2), min_size=2, max_size=12))
def test_with_runs_that_never_get_there_it_is_the_exact_sign_test(pairs):
    a, b = np.array(pairs).T
    found = sooner_test(a, b)
    if np.isfinite(pairs).all():
        assert found == paired_test(a, b)
        return
    sooner, later = int(np.sum(a < b)), int(np.sum(a > b))
    expected = scipy.stats.binomtest(sooner, sooner + later).pvalue if sooner + later else 1.0
    assert found.test == "sign test"
    assert found.p == pytest.approx(expected, rel=1e-12)


def test_a_pair_that_lacks_a_run_is_left_out_and_one_pair_tests_nothing():
    found = sooner_test([1.0, NAN, 3.0, INF], [2.0, 1.0, INF, 1.0])
    assert (found.test, found.p) == ("sign test", 1.0)
    assert math.isnan(sooner_test([INF], [1.0]).p)


def test_equal_arms_get_there_equally_often_and_are_told_apart_no_more_often_than_the_level():
    generator, draws = np.random.default_rng(0), 600
    alarms, there = [], []
    for _ in range(draws):
        ends = 0.3 * generator.exponential(size=(2, 12, 1)) + 0.2 * generator.normal(size=(12, 1))
        slopes = 0.15 * np.exp(0.3 * generator.normal(size=(2, 12, 1)))
        curves = ends + slopes * np.arange(10)[::-1]
        good = curves <= curves[0, :, -1].mean()
        steps = np.where(good.any(-1), good.argmax(-1) + 1.0, INF)
        alarms.append(sooner_test(*steps).p <= 0.05)
        there.append(np.isfinite(steps).mean(1))
    assert 0 < np.mean(alarms) < 0.05
    first, other = np.mean(there, 0)
    assert abs(first - other) < 3 * math.hypot(*np.std(there, 0)) / math.sqrt(draws) + 0.01


def test_ratios_have_the_median_and_count_never_as_the_moment_after_the_end():
    moments = [10, 20, 30, 40]
    first = dict(zip(SEEDS, [40.0, 40.0, 40.0, 40.0, INF, INF, 20.0, 20.0], strict=True))
    other = dict(zip(SEEDS, [10.0, 20.0, 30.0, 40.0, 25.0, INF, INF, NAN], strict=True))
    by_hand = [0.25, 0.5, 0.75, 1.0, 0.5, 1.0, 2.5]
    found = ratio({"A": first, "B": other}, "B", "A", moments)
    assert (found.estimate, found.low, found.high, found.n, found.missing) == (0.75, 0.25, 2.5, 7, 1)
    assert found.estimate == np.median(by_hand)
    turned = ratio({"A": other, "B": first}, "B", "A", moments)
    assert (turned.low, turned.high) == (1 / 2.5, 4.0)


def test_the_table_and_the_figure_say_the_rule_the_resolution_and_what_was_found():
    a = [[9.0, 8.0, 5.0, 2.0]] * 8
    b = [[9.0, 2.0, 2.0, 2.0]] * 4 + [[2.0, 3.0, 3.0, 3.0]] * 4
    c = [[9.0, 9.0, 9.0, 9.0]] * 7 + [[9.0, 9.0, 2.0, 2.0]]
    section = target(DEMO, watched(A=a, B=b, C=c))
    table, = section.tables
    assert table.title == "Steps to the target: validation loss of at most 2, A's mean at the end"
    raw = [paired_test([20.0] * 4 + [10.0] * 4, [40.0] * 8).p, scipy.stats.binomtest(1, 8).pvalue]
    assert list(table.rows) == [
        ("A", "8 of 8", "40 [40, 40]", "", "", ""),
        ("B", "8 of 8", "15 [10, 20]", "0.375 [0.25, 0.5]", "8, 0, 0", f"{2 * raw[0]:.2g} (t test)"),
        ("C", "1 of 8", "never [30, never]", "1.25 [0.75, 1.25]", "1, 0, 7", f"{raw[1]:.2g} (sign test)")]
    for words in ("fixed before the runs: A's mean over seeds at the end", "4 times, every 10 steps",
                  "at step 50", "Gradients a step: C 2, else 1.", "Seconds are not compared"):
        assert words in table.note
    figure, = section.figures
    assert figure.title == "Steps to A's mean final validation loss (2), relative to A's: B 0.375, C 1.25"
    series, = figure.panels[0].series
    assert (series.y, series.low, series.high) == ([0.375, 1.25], [0.25, 0.75], [0.5, 1.25])
    assert figure.panels[0].categories == ["B", "C"]
    assert "steps / steps of A" in draw(figure)
    priced = Records(Record("demo", arm, seed, "CPU seconds a step", price * (1 + 0.1 * (seed == 8)))
                     for arm, price in (("A", 0.01), ("B", 0.04), ("C", 0.02)) for seed in SEEDS)
    timed, = target(DEMO, watched(A=a, B=b, C=c) + priced).tables
    assert [(row[3], row[5]) for row in timed.rows] == [
        ("0.4 [0.4, 0.4]", ""), ("0.6 [0.4, 0.8]", "1.5 [1, 2]"), ("never [0.6, never]", "2.5 [1.5, 2.5]")]
    assert [row[:3] + row[4:5] + row[6:] for row in timed.rows] == list(table.rows)
    assert timed.header[3:6] == ("CPU seconds, median", "steps by A's, median", "CPU seconds by A's")
    assert "CPU seconds are steps by" in timed.note
    some = target(DEMO, watched(A=a, B=b, C=c) + priced.where(arm=["A", "B"])).tables[0]
    assert some == table
    alone = target(replace(DEMO, arms=DEMO.arms[:1]), watched(A=a))
    assert (len(alone.tables), alone.figures) == (1, [])


def test_a_comparison_that_trains_agrees_with_a_plain_reading_of_its_curves(tmp_path):
    given = replace(TWO, arms=(Arm("slow", SGD(lr=0.05)), Arm("fast", SGD(lr=0.5))), plan=Plan(8, 16),
                    seeds=(1, 2, 3), moments=6)
    records = run_experiments([given], Store(tmp_path), Inline(), Quiet()).records
    curves = {arm: {s: {r.step: r.value for r in records.where(arm=arm, seed=s, metric="loss") if r.step}
                    for s in given.seeds} for arm in ("slow", "fast")}
    goal = np.mean([curves["slow"][s][48] for s in given.seeds])
    assert aim(given, readings(given, records)) == pytest.approx(goal, rel=1e-12)
    expected = {arm: {s: next((step for step, value in sorted(curve.items()) if value <= goal), INF)
                      for s, curve in each.items()} for arm, each in curves.items()}
    assert steps_of(records, given) == expected
    assert all(step < 48 for step in expected["fast"].values())
    table, = target(given, records).tables
    assert table.rows[1][1] == "3 of 3"
    assert table.rows[1][6] == "3, 0, 0"
    cost = costs(given, records)
    whole = {arm: [Store(tmp_path).run_folder(row.run).result()["cpu_seconds"] for row in
                   records.where(arm=arm, metric="seconds")] for arm in cost}
    assert all(0 < 48 * cost[arm] <= max(each) for arm, each in whole.items())


def test_a_report_has_the_section(tmp_path):
    chosen = {"sgd": OptimiserSettings(lr=[0.1]), "adam": OptimiserSettings(lr=[0.01])}
    result = compare(TASK, tmp_path / "out", executor=Inline(),
                     settings=Settings(optimisers=chosen, seeds=2, epochs=8, batch=16, examples=20))
    page = result.report.read_text()
    assert "Steps to the target: validation loss of at most" in page
    assert "steps-to-target" in page
