"""The momentum study: what its claims read off records, on records whose answer is known; and every scale."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from optscope.engine.run import Run
from optscope.evidence.records import Record, Records
from optscope.optim import SGD, Momentum
from optscope.protocol.comparison import Comparison
from optscope.protocol.study import check_scale
from optscope.studies.marginal_momentum import STUDY
from optscope.studies.marginal_momentum.calculations import beyond_stability, identities, on_quadratic, pure_noise
from optscope.studies.marginal_momentum.claims import (
    CALM,
    Calm,
    Corrected,
    FineTuned,
    Grows,
    GrowsWithRate,
    Meet,
    NoiseRules,
    TunedEqual,
    at_equal_rates,
    few_shot,
)
from optscope.studies.marginal_momentum.finetuning import CALM_FINE, FEW_SHOT, best_checkpoint, equal_rates
from optscope.studies.marginal_momentum.readings import (
    CHANCE,
    EXAMPLES,
    batches,
    cell_arm,
    cells,
    experiment,
    gap,
    method,
    outcome,
    rates,
    scores,
    slopes,
    svag_experiment,
)
from optscope.studies.marginal_momentum.theory_claims import Exact
from optscope.tasks.images import Digits

SEEDS = range(1, 13)
NOISE = np.random.default_rng(0).normal(0, 0.2, (50, len(SEEDS)))


Place = dict[str, Any]


def at_rate(batch: int, beta: float, rate: float, view: str = "grid") -> Place:
    """Where a run of momentum β at an effective rate on digits stands."""
    return {"experiment": experiment("digits", batch, "" if view == "grid" else view), "arm": cell_arm(beta, rate),
            "factors": {"data": "digits", "batch": batch, "view": view, "momentum": beta, "rate": rate}}


def tuned(batch: int, beta: float) -> Place:
    """Where a run at its tuned rate stands."""
    return {"experiment": experiment("digits", batch, "tuned"), "arm": method(beta),
            "factors": {"data": "digits", "batch": batch, "view": "tuned", "momentum": beta}}


def svag(level: int, beta: float) -> Place:
    """Where a run at a level of SVAG stands."""
    return {"experiment": svag_experiment("digits", level), "arm": method(beta),
            "factors": {"data": "digits", "view": "svag", "momentum": beta, "level": level}}


def accuracies(place: Place, mean: float, draw: int, diverged: tuple[int, ...] = ()) -> list[Record]:
    return [Record(seed=seed, metric="accuracy", value=math.nan if seed in diverged else mean + NOISE[draw, i],
                   status="diverged" if seed in diverged else "ok", **place)
            for i, seed in enumerate(SEEDS)]


def grid(gaps: dict[int, float]) -> Records:
    """Records of one data set in which momentum gains `gaps` by batch size, at equal and at tuned rates."""
    rows: list[Record] = []
    for i, (batch, gain) in enumerate(gaps.items()):
        for sgd, momentum in ([at_rate(batch, beta, CALM["digits"]) for beta in (0.0, 0.9)],
                              [tuned(batch, beta) for beta in (0.0, 0.9)]):
            rows += accuracies(sgd, 90.0, 2 * i) + accuracies(momentum, 90 + gain, 2 * i + 1)
    return Records(rows)


def test_batches_and_rates_are_those_of_the_grid():
    records = grid({16: 0.0, 1200: 1.0})
    assert batches(records, "digits") == [16, 1200]
    assert batches(records, "cifar10") == []
    assert rates(records.where(experiment=experiment("digits", 16)), 0.9) == [CALM["digits"]]


def test_a_diverged_run_counts_with_chance_and_pairs_stay_paired():
    rows = accuracies(tuned(16, 0.0), 90, 0, diverged=(2,)) + accuracies(tuned(16, 0.9), 90, 0)[:-1]
    records = Records(rows)
    assert scores(records, "SGD")[1] == CHANCE
    first, second = gap(records, "momentum 0.9", "SGD")
    assert len(first) == len(SEEDS) - 1
    assert np.count_nonzero(first - second) == 1


def test_equal_small_batches_and_gains_that_grow():
    records = grid({16: 0.0, 100: 1.0, 1200: 2.0})
    assert Calm("digits")(records).outcome == "holds"
    assert TunedEqual("digits")(records).outcome == "holds"
    assert Grows("digits")(records).outcome == "holds"
    assert Grows("digits")(grid({16: 2.0, 1200: 0.0})).outcome == "fails"
    assert Calm("digits")(grid({16: 2.0})).outcome == "fails"
    assert Calm("digits")(Records()).outcome == "undecided"


def test_slopes_are_those_of_a_line_for_each_seed():
    gaps = [(np.array([1.0, 5.0]), np.zeros(2)), (np.array([2.0, 3.0]), np.zeros(2)),
            (np.array([3.0, 1.0]), np.zeros(2))]
    np.testing.assert_allclose(slopes(gaps, (4, 8, 16)), [1.0, -2.0])
    assert slopes([], ()).size == 0


@pytest.mark.parametrize(("last", "expected"), [(0.0, "holds"), (30.0, "fails")])
def test_svag_curves_meet_or_do_not(last, expected):
    rows = []
    for i, (level, gain) in enumerate({1: 40.0, 2: 20.0, 4: last}.items()):
        rows += accuracies(svag(level, 0.0), 90 - gain, 2 * i) + accuracies(svag(level, 0.9), 90, 2 * i + 1)
    assert Meet("digits")(Records(rows)).outcome == expected
    level_1 = Records(row for row in rows if row.experiment == svag_experiment("digits", 1))
    assert Meet("digits")(level_1).outcome == "undecided"


def test_momentum_that_is_worse_at_level_1_refutes():
    rows = accuracies(svag(1, 0.0), 90, 0) + accuracies(svag(1, 0.9), 85, 1)
    assert Meet("digits")(Records(rows)).outcome == "fails"


def test_the_noise_left_is_that_of_the_images_there_are():
    assert len(Digits()().train) == EXAMPLES["digits"]


def test_a_gap_that_was_never_there_cannot_close():
    rows = []
    for i, level in enumerate((1, 2)):
        rows += accuracies(svag(level, 0.0), 90, 2 * i) + accuracies(svag(level, 0.9), 90, 2 * i + 1)
    assert Meet("digits")(Records(rows)).outcome == "undecided"


@pytest.mark.parametrize(("slope", "expected"), [(1.0, "holds"), (-1.0, "fails")])
def test_gains_grow_with_the_rate(slope, expected):
    rows = []
    for i, rate in enumerate((0.25, 0.5, 1.0)):
        rows += accuracies(at_rate(16, 0.0, rate), 80, 2 * i)
        rows += accuracies(at_rate(16, 0.9, rate), 80 + slope * i, 2 * i + 1)
    assert GrowsWithRate("digits")(Records(rows)).outcome == expected


def test_holm_is_over_the_data_sets():
    records = grid({16: 0.0, 1200: 2.0})
    alone, corrected = Calm("digits")(records), Corrected(Calm, "digits")(records)
    assert corrected.p == pytest.approx(alone.p)  # the other two sets were not measured, and do not count
    assert "Holm over 1" in corrected.note


def watched(batch: int, rate: float, sharpness: float, ratio: float) -> list[Record]:
    return [Record(seed=1001, metric=metric, value=value, step=step, **at_rate(batch, 0.9, rate, "watched"))
            for step in (10, 400)
            for metric, value in (("sharpness / threshold", rate * sharpness / 38), ("curvature-induced", ratio),
                                  ("noise-induced", 1.0))]


def test_cells_hold_prediction_and_outcome():
    calm = CALM["digits"]
    records = grid({16: 0.0, 1200: 3.0}) + watched(16, calm, 1 / calm, 0.1) + watched(1200, calm, 9 / calm, 2.0)
    small, large = cells(records, {"digits": 0.5})
    assert (small.predicted, small.outcome, small.agrees) == ("noise", "equal", True)
    assert (large.predicted, large.outcome, large.agrees) == ("curvature", "helps", True)
    assert small.product == pytest.approx(1.0)
    assert NoiseRules("digits")(records).effect == pytest.approx(0.1 * 1199 / 1184)
    wrong = cells(grid({16: 3.0}) + watched(16, calm, 1 / calm, 0.1), {"digits": 0.5})
    assert wrong[0].agrees is False
    hurts = cells(grid({16: 0.0, 1200: -3.0}) + watched(1200, calm, 9 / calm, 2.0), {"digits": 0.5})
    assert (hurts[0].predicted, hurts[0].outcome, hurts[0].agrees) == ("curvature", "hurts", False)
    full = cells(grid({16: 0.0, 1200: 0.0}) + watched(1200, calm, 1 / calm, 0.1), {"digits": 0.5})
    assert (full[0].noise, full[0].predicted) == (0.0, "between")  # a batch of all images has no noise


def test_outcomes():
    ones = 90 + NOISE[0, :8] / 10
    assert outcome(ones, ones + 0.01, 0.5) == "equal"
    assert outcome(ones + 2 + NOISE[1, :8], ones, 0.5) == "helps"
    assert outcome(ones - 2 + NOISE[1, :8], ones, 0.5) == "hurts"
    assert outcome(ones + 20 * NOISE[2, :8], ones, 0.5) == "open"
    assert outcome(np.full(8, CHANCE), np.full(8, CHANCE), 0.5) == "open"


def test_the_best_checkpoint_is_chosen_by_validation_alone():
    rows = [Record("rotten-tomatoes 16, subset 0", arm, 1, f"{part} accuracy at checkpoint", value, step=step,
                   factors={"setting": "rotten-tomatoes 16", "subset": 0})
            for arm, shift in (("SGD", 0), (method(0.9), 1))
            for step, validation, test in ((5, 70, 60), (9, 65, 99))
            for part, value in (("validation", validation), ("test", test + shift))]
    momentum, sgd = best_checkpoint(Records(rows), "rotten-tomatoes 16", method(0.9), "SGD")
    assert (momentum.tolist(), sgd.tolist()) == ([61.0], [60.0])
    assert FineTuned("rotten-tomatoes 16")(Records(rows)).outcome == "undecided"


def fine_tuned(setting, subset, arm, seed, test, phase="final", step=9, **more):
    """The rows of one fine-tuned model."""
    return [Record(f"{setting}, subset {subset}", arm, seed, f"{part} accuracy at checkpoint", value, step=step,
                   phase=phase, factors={"setting": setting, "subset": subset}, **more)
            for part, value in (("validation", 70.0), ("test", test))]


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, "holds"), (3.0, "fails")])
def test_few_shot_settings_are_judged_together_a_subset_a_pair(shift, outcome):
    rows = [row for i, setting in enumerate(FEW_SHOT) for subset in range(4) for seed in (1, 2)
            for arm, plus in (("SGD", 0.0), (method(0.9), shift + NOISE[i, 2 * subset + seed - 1]))
            for row in fine_tuned(setting, subset, arm, seed, 60.0 + plus)]
    verdict = few_shot(Records(rows))
    assert (verdict.outcome, verdict.n) == (outcome, 16)
    first = [row for row in rows if row.experiment == f"{FEW_SHOT[0]}, subset 0"]
    assert len(best_checkpoint(Records(first), FEW_SHOT[0], method(0.9), "SGD")[0]) == 1  # seeds are no pairs


def test_equal_rates_are_those_of_tuning_and_a_diverged_run_has_chance_accuracy():
    rows = [row for i, setting in enumerate(FEW_SHOT) for subset in range(4) for lr in (CALM_FINE, 0.1)
            for rule, plus in ((SGD(lr=lr), 0.0), (Momentum(lr=lr), NOISE[i, subset]))
            for row in fine_tuned(setting, subset, "arm", 1001, 100 * lr + plus, "tune", None, rule=repr(rule))]
    momentum, sgd = equal_rates(Records(rows), FEW_SHOT[1], CALM_FINE)
    np.testing.assert_allclose(momentum - sgd, NOISE[1, :4])
    assert sgd.tolist() == [1.0] * 4
    verdict = at_equal_rates(Records(rows))
    assert (verdict.outcome, verdict.n) == ("holds", 16)
    lost = [dataclasses.replace(row, status="diverged") for row in rows if "Momentum" in row.rule]
    assert equal_rates(Records([*rows, *lost]), FEW_SHOT[0], CALM_FINE)[0].tolist() == [50.0] * 4
    assert equal_rates(Records([*rows, *lost]), FEW_SHOT[2], CALM_FINE)[0].tolist() == [20.0] * 4


def test_calculations_find_what_is_known():
    rows, _ = identities(steps=40, size=5)
    records = Records(Record("identities", r.arm, r.seed, r.metric, r.value) for r in rows)
    assert all(Exact(name)(records).outcome == "holds" for name in ("two forms", "coupling", "averaged rates"))
    (sgd, momentum), _ = beyond_stability(2.5, (0.0, 0.9), steps=200)
    assert sgd.value > 1
    assert momentum.value < -1
    rows, _ = on_quadratic((1.0, 6.0), (0.0, 0.9), paths=2000)
    found = [r.value for r in rows if r.metric == "variance over closed form"]
    assert len(found) == 3
    np.testing.assert_allclose(found, 1, atol=0.15)
    rows, _ = pure_noise(0.9, (20, 100), paths=2000)
    assert rows[2].value == pytest.approx(rows[3].value, rel=0.1)


@pytest.mark.parametrize("scale", list(STUDY.costs))
def test_every_scale_can_be_made(scale):
    experiments = STUDY.experiments(check_scale(scale, STUDY))
    assert len({e.name for e in experiments}) == len(experiments)
    grids = [e for e in experiments if isinstance(e, Comparison)]
    assert all(isinstance(job.work, Run) for job in grids[0].jobs(Records()))


def test_views_of_one_grid_share_their_runs():
    whole, tuned, looked = [e for e in STUDY.experiments("smoke") if isinstance(e, Comparison)][:3]
    rows = [Record(tuned.name, job.use.arm, job.use.seed, "accuracy", 50.0, phase="tune", rule=job.use.rule,
                   run=job.work.id) for job in tuned.jobs(Records())]
    final = {job.work.id for job in tuned.jobs(Records(rows)) if job.use.phase == "final"}
    assert final < {job.work.id for job in whole.jobs(Records())}
    assert {job.work.id for job in looked.jobs(Records())} < {row.run for row in rows}


def test_without_records_every_claim_is_undecided_and_nothing_is_drawn():
    verdicts = STUDY.judge(Records(), "paper")
    assert len({claim.id for claim, _ in verdicts}) == len(verdicts)
    assert {claim.id: v.outcome for claim, v in verdicts if v.outcome != "undecided"} == {}
    assert STUDY.pictures(Records(), {}) == []
