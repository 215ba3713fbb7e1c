"""Fair comparisons: what is tried, which runs are needed, and who is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optscope.engine.run
from optscope.analyses.charts import edge_of_stability
from optscope.analyses.findings import places
from optscope.engine.execute import Inline
from optscope.engine.executor import Outcome
from optscope.engine.plan import Plan
from optscope.engine.run import Call
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.records import Metric, Record, Records
from optscope.optim import SGD, Adam, Foreign
from optscope.probes.accuracy import Accuracy
from optscope.probes.curvature import TopEigenvalues
from optscope.probes.edge import EdgeOfStability
from optscope.probes.geometry import Geometry
from optscope.probes.noise import GaussianNoise
from optscope.probes.probe import Probe, Reading, Subject
from optscope.protocol.comparison import Arm, Calls, Comparison, Criterion
from optscope.protocol.events import Ended, Named, Quiet
from optscope.protocol.search import Grid, Halton
from optscope.protocol.session import run_experiments
from optscope.protocol.space import Log, Space
from optscope.report.tables import metric_table
from optscope.tasks.task import Data, Task
from tiny import TASK, Blobs, Net, fail, succeed

PLAN = Plan(epochs=2, batch=32)
ARMS = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.03))))


def comparison(**changes):
    fields = {"name": "demo", "task": TASK, "arms": ARMS, "plan": PLAN, "probes": (Accuracy(),),
                "seeds": (1, 2, 3), "tuning_seeds": (1001, 1002)}
    return Comparison(**(fields | changes))


def tuned(given, values, criterion="loss"):
    """Records of the tuning runs with `values[arm, lr]` on every tuning seed; None is a run that diverged."""
    rows = []
    for job in given.jobs(Records()):
        e = job.use
        value = values[e.arm, job.work.rule.lr]
        value = value(e.seed) if callable(value) else value
        common = (e.experiment, e.arm, e.seed)
        rows.append(Record(*common, "training loss", 1.0, phase="tune", rule=e.rule, run=e.run,
                           status="diverged" if value is None else "ok"))
        if value is not None:
            rows.append(Record(*common, criterion, value, phase="tune", rule=e.rule, run=e.run))
    return Records(rows)


# Where rates are searched

def test_grid_gives_each_rate_and_knows_its_edges():
    grid = Grid((0.3, 0.1, 1.0))
    tried = grid.candidates(SGD(lr=5.0, momentum=0.9))
    assert tried == [SGD(lr=r, momentum=0.9) for r in (0.3, 0.1, 1.0)]
    assert [grid.at_edge(rule) for rule in tried] == [False, True, True]
    assert not Grid((0.1,)).at_edge(SGD(lr=0.1))


@pytest.mark.parametrize("rates", [(), (0.1, 0.2, 0.1)])
def test_grid_refuses_no_rate_and_the_same_twice(rates):
    with pytest.raises(UserError, match="different learning rates, at least one"):
        Grid(rates)


@settings(max_examples=20)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_halton_is_reproducible_inside_its_ranges_and_a_larger_budget_only_adds(few, more, seed):
    few, more = sorted((few, more))
    def search(trials):
        return Halton(trials, Space(lr=Log(1e-4, 1e-1), momentum=Log(0.5, 0.99)), seed)
    tried = search(more).candidates(SGD(lr=1.0))
    assert search(few).candidates(SGD(lr=1.0)) == tried[:few]
    assert search(more).candidates(SGD(lr=1.0)) == tried
    assert len(tried) == more
    assert all(1e-4 <= rule.lr <= 1e-1 and 0.5 <= rule.momentum <= 0.99 for rule in tried)
    rates = [rule.lr for rule in tried]
    assert [search(more).at_edge(rule) for rule in tried] == [
        more > 1 and rate in (min(rates), max(rates)) for rate in rates]


def test_halton_is_scrambled_by_its_seed_and_even_in_the_logarithm():
    rates = [[rule.lr for rule in Halton(64, Log(1e-4, 1.0), seed=s).candidates(SGD(lr=1.0))] for s in (0, 1)]
    assert rates[0] != rates[1]
    for tried in rates:
        decades = np.histogram(np.log10(tried), bins=[-4, -3, -2, -1, 0])[0]
        assert decades.tolist() == [16] * 4


@pytest.mark.parametrize("make", [lambda: Log(0.0, 1.0), lambda: Log(1.0, 1.0), lambda: Log(0.1, math.inf),
                                  lambda: Log(math.nan, 1.0), lambda: Halton(0, Log(0.1, 1.0)),
                                  lambda: Halton(True, Log(0.1, 1.0)), lambda: Halton(2.0, Log(0.1, 1.0))])
def test_ranges_and_budgets_that_cannot_be_searched_are_refused(make):
    with pytest.raises(UserError, match="got"):
        make()


# Which runs a comparison needs

def test_equal_candidates_are_parted_by_a_loss_and_else_by_the_smaller_rate():
    by_accuracy = comparison(criterion=Criterion("accuracy", "higher"))
    by_loss = comparison(criterion=Criterion("accuracy", "higher", "loss"))
    rates = {"SGD": (0.1, 0.3), "Adam": (0.01, 0.03)}
    same = tuned(by_accuracy, {(arm, rate): 80.0 for arm, each in rates.items() for rate in each}, "accuracy")
    losses = tuned(by_accuracy, {(arm, rate): -rate for arm, each in rates.items() for rate in each})
    assert [rule.lr for rule in by_accuracy.chosen(same + losses).values()] == [0.1, 0.01]
    assert [rule.lr for rule in by_loss.chosen(same + losses).values()] == [0.3, 0.03]
    scores = {("SGD", 0.1): 80.5, ("SGD", 0.3): 80.0, ("Adam", 0.01): 80.0, ("Adam", 0.03): None}
    better = tuned(by_accuracy, scores, "accuracy")
    assert [rule.lr for rule in by_loss.chosen(better + losses).values()] == [0.1, 0.01]


def test_candidates_may_be_judged_after_a_shorter_training():
    shorter = Plan(epochs=1, batch=32)
    given = comparison(tuning_plan=shorter)
    jobs = given.jobs(tuned(given, {(arm.name, rate): rate for arm in ARMS for rate in (0.01, 0.03, 0.1, 0.3)}))
    assert {(job.use.phase, job.work.plan) for job in jobs} == {("tune", shorter), ("final", PLAN)}
    whole = comparison().jobs(Records())
    assert not {job.work.id for job in whole} & {job.work.id for job in jobs}


@pytest.mark.parametrize(("changes", "words"), [
    ({"arms": ()}, "at least one; got none"),
    ({"arms": (ARMS[0], replace(ARMS[1], name="SGD"))}, "got SGD more than once"),
    ({"arms": (ARMS[0], replace(ARMS[1], search=Grid((0.1,))))},
     "same number of trials; got .*'SGD': 2, 'Adam': 1"),
    ({"seeds": (1, 1001)}, r"cannot also compare arms; got \[1001\] in both"),
    ({"seeds": (1, 2, 1)}, r"seeds must be different whole numbers, at least one; got \(1, 2, 1\)"),
    ({"seeds": ()}, r"seeds must be different whole numbers, at least one; got \(\)"),
    ({"tuning_seeds": ()}, "tuning_seeds must be different"),
])
def test_an_unfair_comparison_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        comparison(**changes)


def test_a_budget_may_be_drawn_differently_and_an_arm_may_stand():
    drawn = Arm("drawn", SGD(lr=0.1), Halton(2, Log(0.01, 1.0)))
    stands = Arm("stands", SGD(lr=0.1))
    jobs = comparison(arms=(*ARMS, drawn, stands)).jobs(Records())
    assert {job.use.arm for job in jobs} == {"SGD", "Adam", "drawn"}
    assert len(jobs) == 3 * 2 * 2


def test_tuning_uses_tuning_seeds_and_validation_data_alone():
    jobs = comparison().jobs(Records())
    assert {(j.use.phase, j.work.seed) for j in jobs} == {("tune", 1001), ("tune", 1002)}
    assert {j.work.probes for j in jobs} == {(Accuracy(split="validation"),)}
    assert len(jobs) == 2 * 2 * 2


def test_final_runs_share_seeds_and_carry_the_chosen_rule_and_all_probes():
    given = comparison()
    records = tuned(given, {("SGD", 0.1): 2.0, ("SGD", 0.3): 1.0, ("Adam", 0.01): 1.0, ("Adam", 0.03): 2.0})
    jobs = given.jobs(records)
    assert jobs[:8] == given.jobs(Records())
    final = jobs[8:]
    assert {j.use.phase for j in final} == {"final"}
    assert [(j.work.seed, j.work.rule) for j in final] == [
        (seed, rule) for seed in (1, 2, 3) for rule in (SGD(lr=0.3), Adam(lr=0.01))]
    assert {j.work.probes for j in final} == {(Accuracy(),)}
    assert all(j.use.probes == j.work.readings and j.use.run == j.work.id for j in final)


def test_what_is_watched_is_read_on_the_way_in_final_runs_alone():
    top = TopEigenvalues(rel=0.05)
    alone = comparison(arms=(Arm("SGD", SGD(lr=0.1)),), watched=(top,), moments=3)
    for job in alone.jobs(Records()):
        assert [(w.probe, w.moments) for w in job.work.watch][1:] == [(top, 3)]
    tuning = [job for job in comparison(watched=(top,)).jobs(Records()) if job.use.phase == "tune"]
    assert tuning
    assert not any(job.work.watch for job in tuning)


def test_nothing_is_chosen_before_every_tuning_run_of_this_very_plan_is_there():
    given, longer = comparison(), comparison(plan=Plan(epochs=3, batch=32))
    values = {("SGD", 0.1): 2.0, ("SGD", 0.3): 1.0, ("Adam", 0.01): 1.0, ("Adam", 0.03): 2.0}
    records = tuned(given, values)
    without_one = Records(r for r in records if (r.rule, r.seed) != ("SGD(lr=0.3)", 1002))
    assert given.jobs(without_one) == given.jobs(Records())
    assert longer.jobs(records) == longer.jobs(Records())
    # Both plans in one folder, the other one written last: its records must not choose.
    other = tuned(longer, {key: 3.0 - value for key, value in values.items()})
    assert given.jobs(records + other) == given.jobs(records)


def test_the_choice_is_the_best_mean_over_tuning_seeds_of_the_criterion():
    given = comparison()
    records = tuned(given, {("SGD", 0.1): 1.0, ("SGD", 0.3): lambda seed: 0.0 if seed == 1001 else 1.9,
                            ("Adam", 0.01): 0.5, ("Adam", 0.03): 0.6})
    assert given.chosen(records) == {"SGD": SGD(lr=0.3), "Adam": Adam(lr=0.01)}
    assert given.score(records, ARMS[0], SGD(lr=0.3)) == pytest.approx(0.95)
    by_accuracy = comparison(criterion=Criterion("accuracy", "higher"))
    records = tuned(by_accuracy, {("SGD", 0.1): 90.0, ("SGD", 0.3): 91.0, ("Adam", 0.01): 80.0,
                                  ("Adam", 0.03): 70.0}, "accuracy")
    assert by_accuracy.chosen(records) == {"SGD": SGD(lr=0.3), "Adam": Adam(lr=0.01)}


def test_final_test_and_intermediate_numbers_have_no_say_in_the_choice():
    given = comparison()
    records = tuned(given, {("SGD", 0.1): 1.0, ("SGD", 0.3): 2.0, ("Adam", 0.01): 1.0, ("Adam", 0.03): 2.0})
    better = [replace(r, value=-100.0, **change) for r in records if r.metric == "loss" and "0.3" in r.rule
              for change in ({"phase": "final"}, {"step": 3}, {"experiment": "other"}, {"arm": "Adam"})]
    assert given.chosen(records + better) == given.chosen(records)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf, lambda seed: 0.0 if seed == 1001 else None,
                                 lambda seed: 0.0 if seed == 1001 else math.nan])
def test_a_candidate_that_diverged_on_any_seed_is_the_worst_wherever_it_stands(bad):
    given = comparison()
    records = tuned(given, {("SGD", 0.1): bad, ("SGD", 0.3): 5.0, ("Adam", 0.01): 5.0, ("Adam", 0.03): bad})
    assert given.chosen(records) == {"SGD": SGD(lr=0.3), "Adam": Adam(lr=0.01)}
    assert given.score(records, ARMS[0], SGD(lr=0.1)) == math.inf


def test_if_all_candidates_diverged_the_smallest_rate_stands_for_the_arm():
    falling = Arm("SGD", SGD(lr=1.0), Grid((0.3, 0.1)))
    given = comparison(arms=(falling, ARMS[1]))
    records = tuned(given, dict.fromkeys([("SGD", 0.1), ("SGD", 0.3), ("Adam", 0.01), ("Adam", 0.03)]))
    assert given.chosen(records) == {"SGD": SGD(lr=0.1), "Adam": Adam(lr=0.01)}
    assert len(given.jobs(records)) == 8 + 6


# Conducting

@dataclass
class Counted:
    """Inline, with the names of what was done and the listener's log."""

    def __init__(self):
        self.done, self.log = [], []

    def run(self, works, folder):
        for report in Inline().run(works, folder):
            self.done += [report.id] if isinstance(report, Outcome) else []
            yield report

    def hear(self, event):
        if isinstance(event, Named):
            self.log.append((event.stage, event.total, event.done))
        elif isinstance(event, Ended):
            self.log.append(event.outcome.status)

    def close(self):
        self.log.append("closed")


def told(records):
    return [repr(r) for r in records]


def test_the_same_call_again_repeats_no_run_and_gives_the_same_records(tmp_path):
    first, again = Counted(), Counted()
    one = run_experiments([comparison()], Store(tmp_path), first, first)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/*")}
    two = run_experiments([comparison()], Store(tmp_path), again, again)
    assert len(first.done) == len(set(first.done)) == 8 + 6
    assert first.log == [("tuning", 8, 0), *["ok"] * 8, ("training and measuring", 14, 8), *["ok"] * 6, "closed"]
    assert again.done == []
    assert told(one.records) == told(two.records)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/*")}
    assert one.failures == one.inapplicable == two.failures == two.inapplicable == ()
    accuracies = one.records.by_seed("SGD", "accuracy")
    assert accuracies.keys() == {1, 2, 3}
    assert all(0 <= value <= 100 for value in accuracies.values())


def test_what_is_described_and_watched_is_in_the_table_and_nothing_of_it_is_tested(tmp_path):
    given = comparison(described=(Geometry(),), watched=(EdgeOfStability(),), moments=2, seeds=(1, 2))
    found = run_experiments([given], Store(tmp_path), Inline(), Quiet()).records
    metrics, rows = given.measured(found)
    names = [metric.name for metric in metrics]
    assert {"accuracy", "distance from initialisation", "sharpness", "sharpness / threshold"} <= set(names)
    assert all(len(rows.values(arm, name)) == 2 for arm in ("SGD", "Adam") for name in names)
    for name in ("sharpness / threshold", "loss"):  # the watched at the last step, the others after it
        last = {r.seed: r.value for r in found.where(arm="SGD", metric=name, phase="final",
                                                     step=6 if "/" in name else None)}
        assert rows.by_seed("SGD", name) == last
    table = metric_table(rows, metrics, "SGD")
    assert table.header == ("metric", "SGD", "Adam")
    assert len(table.rows) == len(metrics)
    assert {place.metric.name for place in places(given, found)} == {"accuracy", "loss", "calibration error"}
    picture = edge_of_stability(given, found)
    assert [panel.title for panel in picture.panels] == ["SGD", "Adam"]
    met, edge = picture.panels[1].series
    assert (met.x, edge.mark) == ([3.0, 6.0], "theory")
    assert edge.y[-1] == pytest.approx(38 / float(given.chosen(found)["Adam"].lr))
    assert edge_of_stability(comparison(), found.where(metric="loss")) is None


def test_two_plans_in_one_folder_keep_apart(tmp_path):
    executor = Counted()
    short, longer = comparison(), comparison(plan=Plan(epochs=4, batch=32))
    before = run_experiments([short], Store(tmp_path), executor, executor)
    there = len(executor.done)
    run_experiments([longer], Store(tmp_path), executor, executor)
    assert len(executor.done) == 2 * there  # no final run under a rate that the other plan had chosen
    after = run_experiments([short], Store(tmp_path), executor, executor)
    assert len(executor.done) == 2 * there
    assert told(before.records) == told(after.records)


def test_a_run_of_two_experiments_is_trained_once_and_takes_the_probes_of_both(tmp_path, monkeypatch):
    trained = []
    real = optscope.engine.run.Observed.run
    monkeypatch.setattr(optscope.engine.run.Observed, "run", lambda self: (trained.append(self), real(self))[1])
    fixed = (Arm("SGD", SGD(lr=0.1)),)
    noise = GaussianNoise(variances=(0.01,))
    one = comparison(name="one", arms=fixed, seeds=(1, 2))
    two = comparison(name="two", arms=fixed, seeds=(2, 3), probes=(noise,))
    found = run_experiments([one, two], Store(tmp_path), Inline(), Quiet()).records
    assert len(trained) == 3
    one_, two_ = (found.where(experiment=name) for name in ("one", "two"))
    (shared,) = {r.run for r in one_} & {r.run for r in two_}
    assert {r.seed for r in found if r.run == shared} == {2}
    summary = {"learning rate", "seconds", "CPU seconds a step", "training loss"}
    last = [set(part.where(run=shared, step=None).metrics()) - summary for part in (one_, two_)]
    assert last == [{"accuracy", "loss", "calibration error"}, {noise.metrics[0].name}]


@dataclass(frozen=True, repr=False)
class Shy(Probe):
    """A probe that refuses every model."""

    @property
    def metrics(self):
        return (Metric("shyness", better="lower"),)

    def measure(self, subject: Subject) -> Reading:
        raise UserError("Shy: this model has too few layers")


def test_a_probe_that_refuses_a_model_is_a_warning_and_not_a_failure(tmp_path):
    given = comparison(arms=(Arm("SGD", SGD(lr=0.1)),), probes=(Accuracy(), Shy()))
    executor = Counted()
    found = run_experiments([given], Store(tmp_path), executor, executor)
    assert found.failures == ()
    assert found.inapplicable == ("Shy(): this model has too few layers",)
    assert found.records.by_seed("SGD", "accuracy").keys() == {1, 2, 3}
    assert [p.metric.name for p in places(given, found.records)] == ["accuracy", "loss", "calibration error"]
    run_experiments([given], Store(tmp_path), executor, executor)
    assert len(executor.done) == 3


@dataclass(frozen=True)
class Needs:
    """Data that cannot be had until a file is there."""

    path: str

    def __call__(self) -> Data:
        if not Path(self.path).exists():
            raise KeyError("no data yet")
        return Blobs()()


def test_a_failing_run_is_reported_the_others_finish_and_the_next_call_tries_it_again(tmp_path):
    needs = Needs(str(tmp_path / "there"))
    arms = (Arm("good", SGD(lr=0.1)), Arm("bad", SGD(lr=0.1), task=Task("late", Net(), needs)))
    experiments = [comparison(arms=arms, seeds=(1, 2)),
                   Calls("sums", [Call(fail), Call(succeed, {"value": 2.0})])]
    executor = Counted()
    first = run_experiments(experiments, Store(tmp_path / "out"), executor, executor)
    assert len(executor.done) == 6  # each once, although there are two stages
    assert len(first.failures) == 3
    assert "bad SGD(lr=0.1) seed 1: failed, KeyError: 'no data yet' (test_comparison.py:" in first.failures[0]
    assert "sums  seed 0: failed, ZeroDivisionError: on purpose (tiny.py:" in first.failures[2]
    assert first.records.by_seed("good", "accuracy").keys() == {1, 2}
    assert first.records.where(experiment="sums").by_seed("a", "value") == {0: 2.0}
    assert {r.status for r in first.records.where(arm="bad")} == {"failed"}
    Path(needs.path).touch()
    second = run_experiments(experiments, Store(tmp_path / "out"), executor, executor)
    assert len(executor.done) == 6 + 3
    assert len(second.failures) == 1
    assert second.records.by_seed("bad", "accuracy").keys() == {1, 2}
    assert {r.status for r in second.records.where(arm="bad")} == {"ok"}


def test_when_it_is_stopped_the_listener_is_let_go_and_the_folder_too(tmp_path):
    class Stopped(Counted):
        def hear(self, event):
            if isinstance(event, Ended):
                raise KeyboardInterrupt

    listener = Stopped()
    with pytest.raises(KeyboardInterrupt):
        run_experiments([comparison()], Store(tmp_path), Inline(), listener)
    assert listener.log[-1] == "closed"
    executor = Counted()
    run_experiments([comparison()], Store(tmp_path), executor, executor)
    assert len(executor.done) == 8 + 6 - 1


class Half(torch.optim.SGD):
    """Makes another rate of the one it is given."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, lr=lr / 2)


def test_the_edge_is_found_of_a_class_that_makes_another_rate_of_its_own():
    grid = Grid((0.01, 0.03, 0.1))
    assert [grid.at_edge(rule) for rule in grid.candidates(Foreign(Half))] == [True, False, True]
