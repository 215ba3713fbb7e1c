"""Optimisers that want more than parameters and a gradient get it, are saved, and are refused where it is not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from optscope.engine.plan import Plan
from optscope.engine.rehearsal import rehearse
from optscope.engine.state_file import equal, from_bytes, to_bytes
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.optim import SAM, SGD, AdamW, ByKind, Foreign, Graft, Rounded
from optscope.optim.by_kind import Where
from optscope.optim.kinds import layout_of
from optscope.optim.making import Way
from optscope.tasks.task import Task
from tiny import TASK

PLAN = Plan(3, 32)
FOUND = {
    "torch.optim:Adam": Way(), "torch.optim:Muon": Way(matrices=True), "torch.optim:LBFGS": Way(calls=5),
    "pytorch_optimizer:Muon": Way("groups"), "pytorch_optimizer:AdamMini": Way("model"),
    "pytorch_optimizer:Ranger21": Way(steps="num_iterations"), "pytorch_optimizer:AdaHessian": Way(graph=True),
}


def named(named_parameters, lr=0.1):
    """Take pairs of names and parameters, and decay weights alone."""
    return torch.optim.SGD([{"params": [p], "weight_decay": 0.1 * name.endswith("weight")}
                            for name, p in named_parameters], lr=lr)


class Ascent(torch.optim.SGD):
    """SAM's two gradients, written through .data, which leaves versions as they are."""

    @torch.no_grad()
    def step(self, closure=None):
        params = self.param_groups[0]["params"]
        kept = [p.data.clone() for p in params]
        length = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            p.data.add_(p.grad * (0.05 / length))
        closure()
        for p, old in zip(params, kept, strict=True):
            p.data.copy_(old)
        super().step()


RULES = [Foreign("torch.optim:LBFGS", lr=0.1, max_iter=3), Foreign(Ascent, lr=0.1), Foreign(named),
         ByKind(matrices=Foreign("torch.optim:Muon", lr=0.02), rest=AdamW(lr=0.01)),
         Rounded(Foreign("torch.optim:Adam", lr=0.01), 3), Rounded(Foreign(named), 3)]
OF_ZOO = ["Muon", "AdamMini", "Ranger21", "AdaHessian", "SophiaH", "ScheduleFreeAdamW"]


@pytest.mark.parametrize("path", FOUND)
def test_what_an_optimiser_wants_is_found_and_kept(path):
    if path.startswith("pytorch_optimizer"):
        pytest.importorskip("pytorch_optimizer")
    rule = Foreign(path)
    assert rule.way == FOUND[path]
    assert eval(repr(rule)) == rule
    assert rule.evaluations == 1 + rule.way.calls


@pytest.mark.parametrize("rule", [*RULES, *OF_ZOO], ids=repr)
def test_a_training_goes_on_from_its_state_to_the_bit(rule):
    if isinstance(rule, str):
        pytest.importorskip("pytorch_optimizer")
        rule = Foreign(f"pytorch_optimizer:{rule}")
    one, other = (Training(TASK, rule, PLAN, 1) for _ in range(2))
    one.advance(4)
    other.load_state_dict(from_bytes(to_bytes(one.state_dict(), "test"), "test"))
    assert one.advance(9)
    assert other.advance(9)
    assert equal(one.state_dict(), other.state_dict())
    assert float(one.losses[-1]) != float(one.losses[0])


def test_a_closure_takes_the_same_batch_with_the_same_dropout():
    ours, theirs = (Training(TASK, rule, PLAN, 1) for rule in (Foreign(Ascent, lr=0.1), SAM(SGD(lr=0.1), rho=0.05)))
    for each in (ours, theirs):
        each.advance(9)
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-5, atol=1e-6)
    assert ours.evaluations == theirs.evaluations == 18


def test_second_derivatives_are_those_of_the_batch():
    """AdaHessian differentiates the gradient: its step by hand, with the same draws, is the training's."""
    zoo = pytest.importorskip("pytorch_optimizer")
    training = Training(TASK, Foreign("pytorch_optimizer:AdaHessian", lr=0.1), Plan(1, 32), 1)
    training.model.eval()  # no dropout
    model = copy.deepcopy(training.model)
    optimizer = zoo.AdaHessian(model.parameters(), lr=0.1)
    batch = training.deal.batch(0)
    cross_entropy(model(batch.inputs), batch.targets).backward(create_graph=True)
    with training._sides[0].stepper._numbers.again():
        optimizer.step()
    training.advance(1)
    for p, q in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        assert p.grad.grad_fn is None


def test_groups_are_hidden_matrices_and_the_rest():
    zoo = pytest.importorskip("pytorch_optimizer")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 3))
    optimizer = Foreign("pytorch_optimizer:Muon").optimizer_of(model)
    assert isinstance(optimizer, zoo.Muon)
    muon, rest = optimizer.param_groups
    assert [muon["use_muon"], rest["use_muon"]] == [True, False]
    assert muon["params"] == [model[0].weight, model[3].weight]
    assert len(rest["params"]) == len(layout_of(model).names) - 2


class Rows(torch.optim.SGD):
    """Sees kernels as rows, by view."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad.view(len(p), -1)
        super().step()


def test_convolutions_run_as_fast_as_the_optimiser_lets_them_and_it_is_said():
    x, y = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    task = Task.from_tensors(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 2), nn.Flatten(),
                                                   nn.Linear(36, 8), nn.Linear(8, 3)), (x, y), (x, y))
    arms = {"rows": Foreign(Rows, lr=0.1), "sgd": Foreign("torch.optim:SGD", lr=0.1),
            "muon": ByKind((Where(kind="matrix"), Foreign("torch.optim:Muon", lr=0.02)), rest=AdamW(lr=0.01))}
    assert [Training(task, rule, PLAN, 1).slowed for rule in arms.values()] == [True, False, False]
    said = [each for each in rehearse(task, arms, PLAN).said if "channels-last" in each]
    assert len(said) == 1
    assert said[0].startswith("rows: ")


@pytest.mark.parametrize(("rule", "words"), [
    (Foreign("torch.optim:Muon"), r"steps matrices only, and 0.bias .*write ByKind\(matrices=Foreign"),
    (Graft(Foreign("torch.optim:LBFGS"), SGD(lr=0.1)), "several gradients a step, by a closure; use it by itself"),
    (Rounded(Foreign(Ascent, lr=0.1), 3), "several gradients a step"),
    ("AdaHessian", "it differentiates the gradient"), ("AdamMini", "it is made of a whole model"),
    ("Ranger21", r"asks for the number of steps \(give it num_iterations=")], ids=repr)
def test_what_is_not_there_is_refused_before_training(rule, words):
    if isinstance(rule, str):
        pytest.importorskip("pytorch_optimizer")
        rule = Rounded(Foreign(f"pytorch_optimizer:{rule}"), 3)
    with pytest.raises(UserError, match=words) as said:
        Training(TASK, rule, PLAN, 1)
    assert "\n" not in str(said.value)
