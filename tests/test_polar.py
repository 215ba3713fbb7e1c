"""Polar descent against torch's weight normalisation and against its own flow; its probe."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from optscope.analyses.caveats import failed_checks
from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.optim import SGD, Cosine, PolarSGD, Scheduled
from optscope.probes.accuracy import Accuracy
from optscope.probes.edge import EdgeOfStability
from optscope.probes.polar import PolarDrift
from optscope.protocol.compare import comparison_of
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import Settings
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.vector import Layout
from tiny import TASK

X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(64) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(),
                         nn.Linear(8, 3)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 30) -> list[torch.Tensor]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize(("per", "dim"), [("unit", 0), ("layer", None)])
def test_without_a_ratio_it_is_torchs_weight_norm_under_sgd(per, dim):
    ours, theirs = network(), network()
    for module in theirs.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            parametrizations.weight_norm(module, dim=dim)
    losses = train(ours, PolarSGD(lr=0.5, per=per).optimizer(ours.parameters()))
    expected = train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.5))
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    for a, b in zip(ours, theirs, strict=True):
        if hasattr(a, "weight"):
            torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=1e-10)
            torch.testing.assert_close(a.bias, b.bias, rtol=0, atol=1e-10)
    plain = network()
    others = train(plain, torch.optim.SGD(plain.parameters(), lr=0.5))
    assert (torch.stack(others) - torch.stack(losses)).abs().max() > 0.01  # or the test says nothing


def test_one_step_is_the_equation_written_out():
    w, g = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    layout = Layout.of([w])
    rule = PolarSGD(lr=0.1, ratio=3.0)
    step, state = rule.update(g.reshape(-1), rule.init(w.reshape(-1), layout), w.reshape(-1), layout)
    for i in range(3):
        r = w[i].norm()
        u = w[i] / r
        d = u - 0.1 * 3.0 * r * (g[i] - (u @ g[i]) * u)
        torch.testing.assert_close(w[i] + step.view(3, 4)[i], (r - 0.1 * (u @ g[i])) * d / d.norm())
        torch.testing.assert_close(state["0"]["stretch"][i, 0], d.norm())


def test_at_a_ratio_of_one_over_r_squared_small_steps_are_gradient_descent():
    w, g = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    layout, lr = Layout.of([w]), 1e-6
    rule = PolarSGD(lr=lr, per="layer")  # ratio = 1/‖w‖² at the first step
    step, _ = rule.update(g.reshape(-1), rule.init(w.reshape(-1), layout), w.reshape(-1), layout)
    torch.testing.assert_close(step / lr, -g.reshape(-1), rtol=0, atol=1e-4)


def test_stretch_falls_with_the_step_as_the_flow_asks():
    def stretch(lr: float, steps: int) -> float:
        model = network()
        optimizer = PolarSGD(lr=lr, per="layer", ratio=1.0).optimizer(model.parameters())
        train(model, optimizer, steps)
        return max(float(state["stretch"].max()) for state in optimizer.state.values() if state) - 1
    coarse, fine = stretch(0.02, 20), stretch(0.005, 80)
    assert 3 < coarse / fine < 5  # of the order of lr, over the same time


def test_blocks_without_a_direction_make_plain_steps():
    w = torch.zeros(2, 3)
    w[1] = 1.0
    g = torch.ones(2, 3)
    weight = nn.Parameter(w.clone())
    weight.grad = g
    PolarSGD(lr=0.1).optimizer([weight]).step()
    torch.testing.assert_close(weight[0].detach(), torch.full((3,), -0.1))
    assert torch.isfinite(weight).all()


def test_a_changed_learning_rate_is_that_of_the_equation():
    a, b = network(), network()
    first = PolarSGD(lr=0.4).optimizer(a.parameters())
    first.param_groups[0]["lr"] = 0.1
    second = PolarSGD(lr=0.1).optimizer(b.parameters())
    torch.testing.assert_close(train(a, first), train(b, second), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"lr": 0.0}, "lr must be a finite number > 0"),
    ({"lr": 0.1, "ratio": 0.0}, "ratio must be a finite number > 0; got 0.0"),
    ({"lr": 0.1, "ratio": -1.0}, "ratio must be a finite number > 0; got -1.0"),
    ({"lr": 0.1, "per": "units"}, 'per must be "unit" or "layer"; got \'units\', did you mean "unit"'),
])
def test_bad_hyperparameters_get_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        PolarSGD(**arguments)


def watched(rule, tmp_path):
    """Train blobs by a rule and return what `PolarDrift` and the report's warnings say."""
    comparison = Comparison("blobs", TASK, (Arm("a", rule),), Plan(epochs=2, batch=16), (Accuracy(),), (1, 2),
                            watched=(PolarDrift(),), moments=2)
    results = run_experiments([comparison], Store(tmp_path), Inline(), Quiet())
    assert not results.failures
    assert not results.inapplicable
    return results.records, failed_checks(comparison, results.records)


def test_drift_is_read_during_training_and_warned_about(tmp_path):
    records, warnings = watched(PolarSGD(lr=3.0), tmp_path)
    rows = records.where(metric="direction stretch")
    assert [row.step for row in rows.where(seed=1)] == [6, 12]
    assert rows[0].value < rows[1].value
    assert len(warnings) == 1
    assert 'the check "polar descent follows its flow" fails for 2 models of a' in warnings[0]


@pytest.mark.parametrize("rule", [PolarSGD(lr=1e-3), SGD(lr=3.0)], ids=repr)
def test_no_warning_where_the_flow_is_followed_or_there_is_none(rule, tmp_path):
    records, warnings = watched(rule, tmp_path)
    assert warnings == []
    assert len(records.where(metric="direction stretch")) == (4 if isinstance(rule, PolarSGD) else 0)


def test_drift_equals_the_stretches_of_the_optimiser_inside_combinators_too():
    model = network()
    rule = Scheduled(PolarSGD(lr=0.3), Cosine(), steps=10)
    optimizer = rule.optimizer(model.parameters())
    train(model, optimizer, 5)
    task = Task.from_tensors(network, (X, Y), (X, Y), bounds=None)
    reading = PolarDrift()(Snapshot(model, task, optimizer=optimizer))
    longest = max(float(s["rule"]["stretch"].max()) for s in optimizer.state.values() if s["rule"])
    assert reading.values["direction stretch"] == pytest.approx(100 * (longest - 1))
    assert len(reading.arrays["stretches"]) == 4 + 8 + 3
    assert PolarDrift()(Snapshot(model, task)).values == {}


def test_the_comparison_of_a_polar_arm_watches_its_drift():
    assert comparison_of(TASK, Settings(optimisers={"sgd": {}, "polar": {}})).watched == (EdgeOfStability(),
                                                                                              PolarDrift())
    assert comparison_of(TASK, Settings()).watched == (EdgeOfStability(),)
