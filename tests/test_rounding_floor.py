"""The rounding floor: what it is by definition, where it is measured, and what it says in a report."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from optscope import lab
from optscope.analyses import rounding_levels
from optscope.analyses.charts import floor_picture
from optscope.analyses.findings import Place
from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.records import Metric, Record, Records
from optscope.evidence.rounding_floor import rounding_floor
from optscope.optim import SGD, Adam, Rounded
from optscope.probes.accuracy import Accuracy
from optscope.protocol import rounding_twins
from optscope.protocol.comparison import TWINS, Arm, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import Settings
from optscope.report.tables import metric_table
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Ring
from tiny import TASK


def records(rng: np.random.Generator, deviations: dict[str, float], seeds: int, twins: int,
            effect: float = 0.0) -> Records:
    """Arms whose runs spread by `deviations` within a seed, by 1 over seeds, and differ by `effect`."""
    rows, base = [], rng.normal(80, 1, seeds)
    for i, (arm, sd) in enumerate(deviations.items()):
        for seed in range(seeds):
            for k in (1, *(TWINS if seed < twins else ())):
                rows.append(Record("demo", arm, seed, "accuracy", base[seed] + i * effect + rng.normal(0, sd),
                                   phase="final" if k == 1 else "twin", rule=f"k={k}"))
    return Records(rows)


def test_the_floor_is_what_rounding_does_to_two_runs():
    rng, sd = np.random.default_rng(0), {"a": 0.2, "b": 0.5}
    floors = [rounding_floor(records(rng, sd, 3, 2), "a", "b", "accuracy") for _ in range(2000)]
    differences = rng.normal(0, math.hypot(*sd.values()), 2000)
    assert 0.93 < np.mean([f.covers(d) for f, d in zip(floors, differences, strict=True)]) < 0.975
    many = rounding_floor(records(rng, sd, 2000, 2000), "a", "b", "accuracy")
    assert many.deviations == pytest.approx((0.2, 0.5), rel=0.05)
    assert many.value == pytest.approx(1.96 * math.hypot(0.2, 0.5), rel=0.05)
    assert many.runs == 2 * 2000 * 3


def test_without_twins_there_is_no_floor():
    found = rounding_floor(records(np.random.default_rng(0), {"a": 0.2, "b": 0.5}, 5, 0), "a", "b", "accuracy")
    assert math.isnan(found.value)
    assert not found.covers(0.0)


def test_twins_that_agree_make_a_floor_of_zero_which_covers_nothing():
    found = rounding_floor(records(np.random.default_rng(0), {"a": 0.0, "b": 0.0}, 3, 2), "a", "b", "accuracy")
    assert found.value == 0
    assert not found.covers(0.0)


def test_a_diverged_twin_is_left_out_with_its_seed():
    rows = records(np.random.default_rng(0), {"a": 0.2, "b": 0.5}, 3, 2)
    broken = Records([*rows, Record("demo", "a", 0, "accuracy", math.nan, phase="twin", rule="k=7")])
    assert rounding_floor(broken, "a", "b", "accuracy").runs == rounding_floor(rows, "a", "b", "accuracy").runs - 3


def test_tables_mark_what_rounding_can_do():
    small = records(np.random.default_rng(0), {"a": 0.5, "b": 0.5}, 8, 2, effect=0.1)
    large = records(np.random.default_rng(0), {"a": 0.5, "b": 0.5}, 8, 2, effect=9.0)
    metric = Accuracy().metrics[0]
    assert "≈" in str(metric_table(small, [metric], "a").rows[1][1])
    assert "≈" not in str(metric_table(large, [metric], "a").rows[1][1])
    assert "≈" not in metric_table(small.where(phase="final"), [metric], "a").note


ARMS = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.03))))


def test_a_comparison_trains_twins_of_the_chosen_rules(tmp_path):
    given = Comparison("c", TASK, ARMS, Plan(2, 32), (Accuracy(),), (1, 2, 3), twin_seeds=(1, 2))
    found = run_experiments([given], Store(tmp_path), Inline(), Quiet())
    twins = found.records.where(phase="twin", metric="accuracy")
    chosen = given.chosen(found.records)
    assert {(r.arm, r.seed, r.rule) for r in twins} == {
        (arm, seed, repr(Rounded(rule, k))) for arm, rule in chosen.items() for seed in (1, 2) for k in TWINS}
    assert found.records.seeds("SGD") == [1, 2, 3]
    assert rounding_floor(found.records, "SGD", "Adam", "loss").runs == 2 * 2 * 3


def test_twins_need_a_run_of_their_seed():
    with pytest.raises(UserError, match=r"twin_seeds must be among the seeds; got \[9\] beside \(1, 2\)"):
        Comparison("c", TASK, ARMS, Plan(2, 32), (Accuracy(),), (1, 2), twin_seeds=(9,))


def test_a_report_speaks_of_the_floor(tmp_path):
    settings = Settings(seeds=2, twin_seeds=1, epochs=12, batch=16, examples=24)
    lab.compare(TASK, tmp_path, arms=ARMS, settings=settings, executor=Inline())
    notes = [v["note"] for v in json.loads((tmp_path / "verdicts.json").read_text())]
    assert not any("Rounding alone" in note for note in notes)  # two seeds decide nothing
    assert "are smaller than what rounding alone does" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "figures" / "rounding-floor.svg").is_file()


# At which learning rates is a training decided by rounding?

def made(distance: float, rounding_sd: float, seeds_sd: float, seeds: int = 60) -> Records:
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        base = rng.normal(80, seeds_sd)
        rows.append(Record("rounding", "SGD", seed, "distance", distance, at=0.1))
        rows += [Record("rounding", "SGD", seed, "accuracy", base + rng.normal(0, rounding_sd), at=0.1,
                        factors={"k": k})
                 for k in rounding_levels.KS]
    return Records(rows)


@pytest.mark.parametrize(("distance", "rounding_sd", "seeds_sd", "verdict"), [
    (0.1, 0.5, 0.01, "decided by rounding: results spread like over seeds"),
    (0.1, 0.05, 1.0, "twins part"),
    (1e-6, 1e-4, 1.0, "twins stay near, results move"),
    (1e-6, 0.0, 1.0, "twins stay together"),
    (math.nan, math.nan, 1.0, "180 runs diverged"),
])
def test_the_verdict_on_a_learning_rate(distance, rounding_sd, seeds_sd, verdict):
    (level,) = rounding_levels.levels(ARMS[:1], made(distance, rounding_sd, seeds_sd), "accuracy")
    assert level.verdict == verdict
    if rounding_sd == 0.5:
        assert level.rounding_floor == pytest.approx(1.96 * math.sqrt(2) * 0.5, rel=0.25)
    said = rounding_levels.sentence("SGD", [level], TASK)
    assert ("every learning rate diverged" in said) == math.isnan(distance)
    assert ("twins part at learning rate 0.1" in said) == (distance == 0.1)
    assert ("rounding alone moved the validation accuracy of no run" in said) == (rounding_sd == 0)
    assert ("moved the validation accuracy by less than three digits show" in said) == (rounding_sd == 1e-4)


def test_one_run_that_diverged_is_one_run():
    rows = [Record("rounding", "SGD", seed, "accuracy", math.nan if (seed, k) == (1, 3) else 80.0 + seed, at=0.1,
                   factors={"k": k}) for seed in range(3) for k in rounding_levels.KS]
    rows += [Record("rounding", "SGD", 0, "distance", 0.1, at=0.1)]
    (level,) = rounding_levels.levels(ARMS[:1], Records(rows), "accuracy")
    assert level.verdict == "1 run diverged"


def test_the_floor_that_is_drawn_is_the_widest_of_those_that_are_known():
    rows = [Record("c", arm, seed, "accuracy", 80.0 + seed) for arm in ("SGD", "Adam", "Lion") for seed in (1, 2)]
    rows += [Record("c", arm, 1, "accuracy", 81.0 + shift, phase="twin", rule=f"k = {k}")
             for arm in ("SGD", "Lion") for k, shift in ((3, 1.0), (5, -1.0))]
    place = Place(Metric("accuracy", "%", "higher"), None)
    for others in (("Adam", "Lion"), ("Lion", "Adam")):
        picture = floor_picture(Records(rows), [place], ["SGD", *others])
        assert picture.panels[0].series[-1].high == [rounding_floor(Records(rows), "Lion", "SGD", "accuracy").value]


def test_the_door_finds_rates_and_leaves_a_report(tmp_path):
    settings = Settings(seeds=2, epochs=2, batch=32)
    result = lab.rounding(TASK, tmp_path, arms=ARMS, settings=settings, executor=Inline())
    assert result.failures == ()
    lines = result.summary.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["SGD", "Adam"]
    assert "rounding alone moved the validation accuracy of no run" in lines[0]
    text = (tmp_path / "report.md").read_text()
    assert "Does rounding decide the training of blobs?" in text
    assert len(result.records.where(metric="accuracy", arm="SGD", k=3)) == 2 * 2
    again = lab.rounding(TASK, tmp_path, arms=ARMS, settings=settings, executor=Inline())
    assert again.summary == result.summary


def test_a_game_has_no_floor():
    game = gan("ring", Perceptron((8, 8, 2)), Perceptron((2, 8, 1)), Ring(points=256), bounds=None)
    with pytest.raises(UserError, match="is a game; rounding twins need one model and one rule"):
        rounding_twins.calls(game, Settings(), ARMS)
