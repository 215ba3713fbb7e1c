"""What a step is made of, where it is known: all gradient, all signs, all whitening, all memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from optscope.engine.plan import Plan
from optscope.engine.training import Training
from optscope.optim import (
    SAM,
    SGD,
    AdamW,
    ByKind,
    Foreign,
    ImplicitSGD,
    Momentum,
    Muon,
    Rule,
    ScheduleFree,
    SignSGD,
)
from optscope.probes.anatomy import StepAnatomy, whitened
from optscope.probes.geometry import FirstStep
from optscope.tasks.task import Task

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
TASK = Task.from_tensors(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
                         (X, torch.arange(64) % 3), (X, torch.arange(64) % 3), bounds=None)


def read(rule: Rule, steps: int) -> tuple[dict[str, float], bool]:
    training = Training(TASK, rule, Plan(4, 16), seed=1)
    training.advance(steps)
    before = {name: w.clone() for name, w in training.model.state_dict().items()}
    with training.looked_at() as snapshot:
        values = StepAnatomy()(snapshot).values
    kept = all(torch.equal(before[name], w) for name, w in training.model.state_dict().items())
    return values, kept


@pytest.mark.parametrize(("rule", "part"), [
    (SGD(lr=0.1), "gradient"), (SignSGD(lr=0.1), "sign"), (Foreign("torch.optim:SGD", lr=0.1), "gradient")])
def test_a_rule_without_memory_is_its_own_direction(rule, part):
    values, kept = read(rule, 5)
    assert values[f"explained by {part}"] == pytest.approx(100, abs=1e-3)
    assert values["explained by all four"] == pytest.approx(100, abs=1e-3)
    assert values["explained by memory"] == 0
    assert kept


def test_muons_matrices_are_whitened_as_nearly_as_its_polynomial_is():
    values, _ = read(ByKind(matrices=Muon(lr=0.5, momentum=0.0), rest=SGD(lr=1e-9)), 3)
    assert values["explained by whitening"] > 95
    assert values["explained by gradient"] < values["explained by whitening"]
    exact, _ = read(SGD(lr=0.1), 3)
    assert exact["step stable rank"] < values["step stable rank"]


def test_momentum_is_gradient_and_memory_together():
    values, kept = read(SGD(lr=0.1, momentum=0.9), 8)
    assert values["explained by all four"] == pytest.approx(100, abs=1e-3)
    assert values["explained by memory"] > values["explained by gradient"]
    assert kept
    frozen, _ = read(Momentum(lr=0.1, beta=0.999), 12)
    assert frozen["explained by memory"] > 90


@pytest.mark.parametrize("rule", [SAM(SGD(lr=0.1)), ScheduleFree(AdamW(lr=0.01, beta1=0.0)), AdamW(lr=0.01)],
                         ids=repr)
def test_any_rule_is_taken_apart_and_left_as_it_was(rule):
    values, kept = read(rule, 6)
    assert 0 < values["explained by all four"] <= 100 + 1e-6
    assert all(value <= values["explained by all four"] + 1e-6
               for name, value in values.items() if name.startswith("explained"))
    assert ("explained by memory" in values) != rule.asks
    assert kept


def test_a_first_step_is_that_of_a_rule_that_asks_too():
    training = Training(TASK, SGD(lr=0.1), Plan(1, 16), seed=1)
    with training.looked_at() as snapshot:
        lengths = [FirstStep()(replace(snapshot, rule=rule, optimizer=None)).values["step length"]
                   for rule in (SGD(lr=0.1), SAM(SGD(lr=0.1), rho=1e-7), ImplicitSGD(lr=0.1))]
    assert lengths[1] == pytest.approx(lengths[0], rel=1e-4)
    assert 0.5 * lengths[0] < lengths[2] < lengths[0]


def test_without_an_optimiser_it_says_when_to_take_it():
    training = Training(TASK, SGD(lr=0.1), Plan(1, 16), seed=1)
    with training.looked_at() as snapshot:
        bare = type(snapshot)(snapshot.model, snapshot.task, snapshot.seed)
        assert "Watch(StepAnatomy())" in StepAnatomy()(bare).silence


def test_whitening_has_unit_singular_values_and_leaves_vectors():
    kernel = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    assert torch.linalg.svdvals(whitened(kernel).flatten(1)) == pytest.approx(torch.ones(4).double())
    low = torch.outer(torch.ones(4), torch.tensor([1.0, 2.0, 0.0])).double()
    torch.testing.assert_close(torch.linalg.svdvals(whitened(low)), torch.tensor([1.0, 0.0, 0.0]).double())
    assert torch.equal(whitened(kernel[0, 0, 0]), kernel[0, 0, 0])
