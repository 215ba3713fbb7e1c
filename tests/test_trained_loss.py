"""A loss with parameters of its own is trained, kept and measured as a part of the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.engine.training import Training
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.at_weights import AtWeights
from optscope.probes.geometry import FirstStep
from optscope.tasks.check import check_task
from optscope.tasks.fresh import fresh_model
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.tasks.trained_loss import ModelAndLoss
from optscope.tasks.tree import Batch

X = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 2


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, outputs, labels):
        return functional.cross_entropy(self.scale * outputs, labels)


LOSS = Scaled()
TASK = Task.from_tensors(lambda: nn.Sequential(nn.Linear(3, 2)), (X, Y), (X, Y), loss=LOSS)


def test_every_run_trains_a_copy_of_its_own():
    check_task(TASK)
    one, two = (train(TASK, SGD(lr=0.5), Plan(epochs=3, batch=8), seed=1).snapshot.model for _ in range(2))
    assert torch.equal(one.loss.scale, two.loss.scale)
    assert one.loss.scale is not two.loss.scale
    assert float(one.loss.scale.detach()) != 2.0
    assert float(LOSS.scale.detach()) == 2.0
    assert list(one.state_dict()) == ["model.0.weight", "model.0.bias", "loss.scale"]
    other = train(TASK, SGD(lr=0.5), Plan(epochs=3, batch=8), seed=2).snapshot.model
    assert not torch.equal(one.loss.scale, other.loss.scale)


def test_training_is_that_of_a_loop_over_both():
    model, loss = fresh_model(TASK, 1).model, Scaled()
    steps = []
    training = Training(TASK, Adam(lr=0.01), Plan(epochs=1, batch=8), seed=1)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=0.01)
    while training.step < training.total:
        batch = training.deal.batch(training.step)
        training.advance(training.step + 1)
        optimizer.zero_grad()
        value = loss(model(batch.inputs), batch.targets)
        value.backward()
        optimizer.step()
        steps.append(value.detach())
    torch.testing.assert_close(training.losses, torch.stack(steps))
    torch.testing.assert_close(training.model.loss.scale, loss.scale)


def test_its_state_is_saved_and_resumed():
    plan = Plan(epochs=2, batch=8)
    whole, half, rest = (Training(TASK, Adam(lr=0.01), plan, seed=1) for _ in range(3))
    whole.advance(whole.total)
    half.advance(3)
    rest.load_state_dict(half.state_dict())
    rest.advance(rest.total)
    assert torch.equal(whole.losses, rest.losses)
    assert torch.equal(whole.model.loss.scale, rest.model.loss.scale)


def test_probes_measure_by_the_trained_copy():
    trained = train(TASK, SGD(lr=0.5), Plan(epochs=3, batch=8), seed=1).snapshot
    model = trained.model
    with torch.no_grad():
        loss = model.loss(model.model(X), Y)
        assert float(loss) != float(LOSS(model.model(X), Y))
    assert Accuracy()(trained).values["loss"] == pytest.approx(float(loss), rel=1e-6)
    at = AtWeights(model)
    gradient = at.gradient(TASK.loss_in(model), Batch(X, Y))
    (slope,) = torch.autograd.grad(model.loss(model.model(X), Y), [model.loss.scale])
    assert float(gradient[-1]) == pytest.approx(float(slope), rel=1e-5)
    assert FirstStep()(Snapshot(fresh_model(TASK, 1), TASK, 1, rule=SGD(lr=0.1))).values


def test_another_loss_takes_the_first_ones_place():
    assert isinstance(fresh_model(TASK, 1), ModelAndLoss)
    plain = replace(TASK, loss=functional.cross_entropy)
    assert type(fresh_model(plain, 1)) is nn.Sequential
    assert fresh_model(replace(TASK, loss=Scaled()), 1).loss is not LOSS
    frozen = Task("t", TASK.model, TASK.data, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])))
    assert type(fresh_model(frozen, 1)) is nn.Sequential
