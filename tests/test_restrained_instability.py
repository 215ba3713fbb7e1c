"""The instability study: its parts at small size, its claims without records, all of it at smoke scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.evidence.claims import Verdict
from optscope.evidence.records import Record, Records
from optscope.evidence.variance import deviation_ratio, spread_ratio
from optscope.optim import SGD, Adam, Decayed, Rounded
from optscope.probes.batch_sharpness import BatchSharpness
from optscope.probes.curvature import PreconditionedSharpness, TopEigenvalues
from optscope.probes.rule_in_use import threshold
from optscope.protocol.events import Quiet
from optscope.protocol.session import run_experiments
from optscope.protocol.study import check_scale
from optscope.studies.restrained_instability import STUDY, edge_claims, trained_claims
from optscope.studies.restrained_instability.trained import accuracies, edge_of_stability, part_ways
from optscope.tasks.images import Digits, FashionMNIST
from optscope.tasks.models import MLP, ResNet
from optscope.tasks.smooth import Centred, Column, Conv3, SameStart, Smooth, Swish, squared_error
from optscope.tasks.task import Task
from tiny import TASK

EXACT = {"K4 limit", "K4 feedback", "K5 window", "K5 images", "K6 reduction", "K6 regimes", "K6 limits",
         "K8 corrected"}
REFUTED = {"K5 Fourier", "K8 printed"}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("smoke"))
    return run_experiments(STUDY.experiments("smoke"), store, Inline(), Quiet())


def test_smoke_judges_what_is_exact_and_leaves_the_rest_open(smoke):
    assert smoke.failures == ()
    outcomes = {claim.id: verdict.outcome for claim, verdict in STUDY.judge(smoke.records, "smoke")}
    assert {name for name, outcome in outcomes.items() if outcome == "holds"} == EXACT
    assert {name for name, outcome in outcomes.items() if outcome == "fails"} == REFUTED
    assert trained_claims.powers_of_two_are_equal(smoke.records).outcome == "holds"


def test_smoke_draws_every_figure(smoke):
    names = {figure.name for figure in STUDY.pictures(smoke.records, smoke.arrays)}
    assert names == {"heat", "window", "bifurcation", "one-layer", "curves", "rates", "edge", "crossed", "gap",
                     "settled", "depth-and-decay", "spread"}


@pytest.mark.parametrize("scale", list(STUDY.costs))
def test_every_scale_can_be_made_and_is_undecided_without_records(scale):
    experiments = STUDY.experiments(check_scale(scale, STUDY))
    jobs = [job for e in experiments for job in e.jobs(Records())]
    assert len({job.work.id for job in jobs}) == len(jobs)
    verdicts = STUDY.judge(Records(), scale)
    assert {claim.id for claim, verdict in verdicts if verdict.outcome != "undecided"} == set()
    assert len({claim.id for claim, _ in verdicts}) == len(verdicts)
    assert STUDY.pictures(Records(), {}) == []


# Claims on made records

def edge_records(runs: list[tuple[float, bool, bool]]) -> Records:
    return Records(Record("edge", "3 hidden with decay 0", seed, metric, float(value), at=0.3)
                   for seed, (loss, crossed, amplified) in enumerate(runs)
                   for metric, value in (("final loss", loss), ("crossed", crossed), ("amplified", amplified)))


@pytest.mark.parametrize(("runs", "outcome"), [
    ([(0.1, True, True)] * 50 + [(0.1, False, False)] * 50, "holds"),
    ([(0.1, True, True)] * 50 + [(0.1, False, True)] * 20 + [(0.1, False, False)] * 30, "fails"),
    ([(0.1, True, False)] * 20 + [(0.1, True, True)] * 30 + [(0.1, False, False)] * 50, "fails"),
    ([(0.1, True, True)] * 5 + [(0.1, False, False)] * 5, "undecided"),
    ([(0.1, True, True)] * 50 + [(0.1, False, False)] * 50 + [(0.45, False, True)] * 90 + [(math.nan, 0, 1)],
     "holds"),
])
def test_crossed_and_amplified(runs, outcome):
    verdict = trained_claims.amplified_where_crossed(edge_records(runs))
    assert verdict.outcome == outcome
    if len(runs) > 101:
        assert "90 runs that never left the constant predictor and 1 that diverged" in verdict.note
        assert verdict.n == 100


def spread_records(rng: np.random.Generator, rounding: float, seeds: float, count: int = 20) -> Records:
    names = [*trained_claims.ARMS, "k = 2", *(f"k = {k} in the first step" for k in trained_claims.FIRST)]
    base = rng.normal(80, seeds, count)
    return Records(Record("spread", arm, seed, "accuracy", base[seed] + rng.normal(0, rounding))
                   for seed in range(count) for arm in names)


@pytest.mark.parametrize(("rounding", "seeds", "outcome"), [(0.2, 0.05, "holds"), (0.02, 0.3, "fails")])
def test_spread_claims_tell_large_from_small(rounding, seeds, outcome):
    records = spread_records(np.random.default_rng(1), rounding, seeds)
    assert trained_claims.rounding_spreads_like_seeds(records).outcome == outcome
    assert trained_claims.one_step_is_enough(records).outcome == "holds"
    starts = Records(Record("starts", "k = 1", s, "accuracy", v)
                     for s, v in enumerate(np.random.default_rng(2).normal(80, math.hypot(rounding, seeds), 20)))
    assert trained_claims.rounding_spreads_like_starts(records + starts).outcome == outcome
    assert trained_claims.powers_of_two_are_equal(records).outcome == "fails"


def test_spread_ratio_covers_what_it_promises():
    rng, sigma, tau = np.random.default_rng(0), 1.0, 1.0
    true = sigma / math.hypot(sigma, tau)
    found = [spread_ratio(rng.normal(0, tau, (10, 1)) + rng.normal(0, sigma, (10, 6))) for _ in range(1000)]
    assert 0.93 < np.mean([f.low <= true <= f.high for f in found]) < 0.97
    assert np.median([f.estimate for f in found]) == pytest.approx(true, abs=0.03)


def test_deviation_ratio_covers_what_it_promises():
    rng = np.random.default_rng(0)
    found = [deviation_ratio(rng.normal(0, 2, 12).std(ddof=1), 11, rng.normal(0, 1, 8).std(ddof=1), 7)
             for _ in range(1000)]
    assert 0.93 < np.mean([f.low <= 2 <= f.high for f in found]) < 0.97


def test_ratios_without_spread_are_nan():
    assert math.isnan(spread_ratio(np.ones((4, 3))).estimate)
    assert math.isnan(spread_ratio(np.empty((0, 3))).estimate)
    assert math.isnan(deviation_ratio(0.0, 3, 1.0, 3).estimate)
    assert spread_ratio([[1, 2], [3, 4.5], [math.nan, 1]]).missing == 1


# The trained half

SMALL_EDGE = Task("digits", Smooth(MLP((64, 16, 10)), 1.0), Centred(Digits(), 100, 0.3), squared_error, bounds=None)


def test_twins_part_with_a_control():
    rows, arrays = part_ways("net", TASK, Decayed(SGD(lr=0.5), 1e-3), Plan(20, 16), 1, control=True)
    found = {row.metric: row.value for row in rows}
    assert found["largest distance of the control"] == 0
    assert 0 < found["first distance"] < 1e-6 < 1
    assert {row.at for row in rows} == {0.5}
    assert found["distance after 100 steps"] == arrays["net/0.5/1/distance"][arrays["net/0.5/1/steps"] == 100][0]


def test_accuracies_of_every_divisor():
    rows, _ = accuracies(TASK, SGD(lr=0.5), Plan(4, 16), 1, (1, 3, 2), (3,), last=2)
    found = {(row.arm, row.metric): row.value for row in rows}
    assert {arm for arm, _ in found} == {"k = 1", "k = 3", "k = 2", "k = 3 in the first step"}
    assert found["k = 2", "accuracy"] == found["k = 1", "accuracy"]
    assert found["k = 2", "distance"] == 0 < found["k = 3", "distance"]


@pytest.mark.parametrize(("edge", "crosses"), [(40.0, False), (0.1, True)])
def test_the_edge_is_followed(edge, crosses):
    rows, arrays = edge_of_stability("a", SMALL_EDGE, SGD(lr=0.05), Plan(100, 100), 0, edge)
    found = {row.metric: row.value for row in rows}
    assert found["crossed"] == crosses
    assert (found["largest sharpness / threshold"] >= 1) == crosses
    assert arrays["a/0.05/0/steps"].tolist() == [20, 40, 60, 80, 100]
    assert (found["crossing step"] == 120) != crosses
    assert arrays["a/0.05/0/threshold"] == edge


@pytest.mark.parametrize(("rule", "met", "batch"), [
    (Adam(lr=3e-3), "preconditioned sharpness", 100), (SGD(lr=0.05), "batch sharpness", 20)], ids=repr)
def test_other_edges_are_followed_by_what_the_rule_meets(rule, met, batch):
    plan, steps = Plan(steps=80, batch=batch), (20, 40, 60, 80)
    rows, arrays = edge_of_stability("a", SMALL_EDGE, rule, plan, 0, threshold(rule), met)
    seen: list[tuple[float, float]] = []

    def look(snapshot):
        plain = TopEigenvalues(rel=1e-4, examples=None)(snapshot).values["sharpness"]
        probe = BatchSharpness(examples=320) if batch == 20 else PreconditionedSharpness(rel=1e-4, examples=None)
        seen.append((probe(snapshot).values[met], plain))

    train(SMALL_EDGE, Rounded(rule, 1), plan, 0, at=steps, watch=look)
    found = {row.metric: row.value for row in rows}
    np.testing.assert_allclose(arrays[f"a/{rule.lr:g}/0/sharpness"], [own for own, _ in seen], rtol=0.06)
    assert found["late sharpness / threshold"] == pytest.approx(seen[-1][0] / threshold(rule), rel=0.06)
    if batch == 20:
        assert found["late sharpness of all / threshold"] == pytest.approx(seen[-1][1] / threshold(rule), rel=0.06)


def late_records(experiment: str, metric: str, values: list[float], crossed: bool = True) -> Records:
    return Records(Record(experiment, "3 hidden with decay 0", seed, name, value, at=0.1)
                   for seed, late in enumerate(values)
                   for name, value in (("final loss", 0.1), ("crossed", float(crossed)), (metric, late)))


@pytest.mark.parametrize(("claim", "experiment", "metric"), [
    (edge_claims.adam_stays_at_its_edge, edge_claims.ADAM, edge_claims.LATE),
    (edge_claims.batches_stay_at_their_edge, edge_claims.BATCHES, edge_claims.LATE),
    (edge_claims.all_examples_stay_below, edge_claims.BATCHES, edge_claims.LATE_OF_ALL)])
def test_levels_at_other_edges(claim, experiment, metric):
    at, above = [0.95, 0.9, 0.97, 0.92, 0.96, 0.94], [1.5, 1.6, 1.4, 1.5, 1.55, 1.45]
    assert claim(late_records(experiment, metric, at)).outcome == "holds"
    assert claim(late_records(experiment, metric, above)).outcome == "fails"
    assert claim(late_records(experiment, metric, [0.5, 1.6, 0.7, 1.5, 0.9, 1.2])).outcome == "undecided"
    assert claim(late_records(experiment, metric, at, crossed=False)).outcome == "undecided"


@pytest.mark.parametrize("claim", [edge_claims.amplified_by_adam, edge_claims.amplified_in_batches])
def test_other_edges_are_judged_on_their_own_records(claim):
    assert claim(edge_records([(0.1, True, True)] * 50 + [(0.1, False, False)] * 50)).outcome == "undecided"


def test_a_diverged_training_is_reported_as_such():
    rows, _ = edge_of_stability("a", SMALL_EDGE, SGD(lr=1e30), Plan(40, 100), 0, 1.0)
    assert [(row.metric, math.isnan(row.value)) for row in rows] == [("final loss", True)]


def test_a_rounded_rule_has_the_threshold_of_its_inner_rule():
    assert threshold(Rounded(Decayed(SGD(lr=0.1), 0.5), 3)) == 19.5
    assert threshold(Rounded(Adam(lr=0.001), 3)) == threshold(Adam(lr=0.001))


# Its tasks

def test_swish_is_the_smooth_relu():
    x = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(Swish(1.0)(x), nn.functional.silu(x))
    torch.testing.assert_close(Swish(1e4)(x), x.relu(), atol=1e-3, rtol=0)


def test_smooth_changes_activations_and_nothing_else():
    torch.manual_seed(0)
    plain = ResNet(8)()
    torch.manual_seed(0)
    smooth = Smooth(ResNet(8), 5.0)()
    assert not any(isinstance(m, nn.ReLU) for m in smooth.modules())
    swishes, relus = ([m for m in net.modules() if isinstance(m, kind)]
                      for net, kind in ((smooth, Swish), (plain, nn.ReLU)))
    assert len(swishes) == len(relus) > 5
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), smooth.parameters(), strict=True))


@pytest.mark.parametrize("model", [Column(0), Column(2, width=4), Conv3(), Smooth(Column(1), 5.0)], ids=repr)
def test_networks_give_ten_logits(model):
    net = model()
    assert net(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    blocks = model.blocks if isinstance(model, Column) else None
    if blocks is not None:
        assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 1 + 2 * blocks


def test_the_same_start_whatever_the_seed():
    nets = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        nets.append(SameStart(MLP((4, 3)))())
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(1))
    assert torch.equal(nets[0][1].weight, nets[1][1].weight)


def test_centred_data():
    data, plain = Centred(FashionMNIST(100, 50, 50), 20, 0.25)(), FashionMNIST(100, 50, 50)()
    assert len(data.train) == 20
    torch.testing.assert_close(data.test.inputs, plain.test.inputs - 0.25)


def test_squared_error_is_the_mean_over_examples():
    out, y = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    by_hand = sum(((o - nn.functional.one_hot(t, 4)) ** 2).sum() / 2 for o, t in zip(out, y, strict=True)) / 5
    torch.testing.assert_close(squared_error(out, y), by_hand)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Smooth(MLP(), 0.0), "Smooth: beta must be a finite number > 0; got 0.0"),
    (lambda: Column(-1), "Column: blocks must be a whole number, 0 or more; got -1"),
])
def test_bad_tasks_get_a_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_verdicts_are_verdicts():
    assert all(isinstance(claim.test(Records()), Verdict) for claim in STUDY.claims)
