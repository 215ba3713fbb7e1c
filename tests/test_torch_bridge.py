"""Rules in anyone's loop, and anyone's optimiser as a rule."""

from __future__ import annotations

import pickle
import sys

import cloudpickle
import pytest
import torch
from torch import nn

from optscope.errors import UserError
from optscope.optim import SGD, Adam, Foreign, Graft, NormalizedSGD, SignSGD
from optscope.study.arms import arm_named
from optscope.vector import Layout

ZOO = ["Lion", "AdaBelief", "AdaBound", "AdamP", "AdEMAMix", "Lamb", "LARS", "NovoGrad", "RAdam", "Ranger",
       "SignSGD", "Tiger", "Yogi"]
TORCH = ["ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop",
         "Rprop", "SGD"]


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    x = torch.randn(16, 4)
    return model, lambda: (model(x) - x[:, :1].square()).square().mean()


def train(model, loss, optimizer, steps=10):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return Layout.of(dict(model.named_parameters())).flatten([p.detach() for p in model.parameters()])


class Strict(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)


class Open(torch.optim.SGD):
    def __init__(self, params, **settings):
        super().__init__(params, **{"lr": 0.02} | settings)


def test_the_learning_rate_is_the_optimisers_own():
    assert Foreign(Open).lr == 0.02
    assert Foreign(Open, lr=0.3).lr == 0.3
    assert Foreign(Strict, lr=0.1).with_(lr=0.2).lr == 0.2


OPTIMISER_FILE = """
import torch

class MyOpt(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)

number = 3
"""


def test_an_arm_is_made_around_a_file_or_a_module_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "arm_in_file.py").write_text(OPTIMISER_FILE)
    (tmp_path / "arm_in_module.py").write_text(OPTIMISER_FILE)
    for place in ("arm_in_file.py:MyOpt", "arm_in_module:MyOpt"):
        arm = arm_named(place, lr=[0.1, 0.2])
        assert arm.name == "MyOpt"
        assert [rule.lr for rule in arm.candidates()] == [0.1, 0.2]
        assert pickle.loads(cloudpickle.dumps(arm.rule)).lr == 0.1
        with pytest.raises(UserError, match="refused the options"):
            arm_named(place)
    with pytest.raises(UserError, match=r"arm_in_file\.py:number must be a torch\.optim\.Optimizer class; got int"):
        arm_named("arm_in_file.py:number")
    nadam = torch.optim.NAdam([nn.Parameter(torch.zeros(1))])
    assert arm_named("torch.optim:NAdam").rule.lr == nadam.defaults["lr"]


def test_adams_counter_lives_where_its_parameter_does():
    params = torch.zeros(3, device="meta")
    assert Adam(lr=0.1).init(params, Layout.of([params]))["step"].device == params.device


PATHS = [f"torch.optim:{name}" for name in TORCH] + [f"pytorch_optimizer:{name}" for name in ZOO]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.filterwarnings("ignore")
def test_any_optimiser_is_a_rule(path):
    if path.startswith("pytorch_optimizer"):
        pytest.importorskip("pytorch_optimizer")
    rule = Foreign(path, lr=0.01)
    assert eval(repr(rule), {"Foreign": Foreign}) == rule
    model, loss = problem()
    alone = train(model, loss, rule.optimizer(model.parameters()))
    model, loss = problem()
    as_rule = train(model, loss, Graft(rule, rule, per="model").optimizer(model.parameters()))
    torch.testing.assert_close(as_rule, alone, rtol=0, atol=2e-5)


def test_param_groups_have_their_own_numbers():
    model, loss = problem()
    twin, twin_loss = problem()

    def groups(m):
        return [{"params": m[0].parameters()}, {"params": m[2].parameters(), "lr": 0.003, "momentum": 0.5}]
    ours = train(model, loss, SGD(lr=0.05, momentum=0.9).optimizer(groups(model)))
    theirs = train(twin, twin_loss, torch.optim.SGD(groups(twin), lr=0.05, momentum=0.9))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.3),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: t / 10),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=11),
])
def test_schedulers_drive_a_rule_like_torchs_own(make):
    def run(optimizer_of):
        model, loss = problem()
        optimizer = optimizer_of(model)
        scheduler = make(optimizer)
        for _ in range(10):
            train(model, loss, optimizer, steps=1)
            scheduler.step()
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    ours = run(lambda m: SGD(lr=0.05, momentum=0.9).optimizer(m.parameters()))
    theirs = run(lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_closures_are_called_with_gradients_enabled():
    model, loss = problem()
    optimizer = Adam(lr=0.01).optimizer(model.parameters())

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value
    first = optimizer.step(closure).item()
    assert [optimizer.step(closure).item() for _ in range(20)][-1] < first


def test_parameters_without_gradient_are_left_alone():
    model, loss = problem()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, loss, Graft(Adam(lr=0.01), SGD(lr=1.0)).optimizer(model.parameters()))
    assert torch.equal(model[0].weight, before)


def test_channels_last_parameters_move_like_contiguous_ones():
    torch.manual_seed(0)
    start, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    for rule in (Adam(lr=0.01), SGD(lr=0.1, momentum=0.9), SignSGD(lr=0.01), NormalizedSGD(lr=0.1),
                 Graft(Adam(lr=0.01), SGD(lr=1.0))):
        results = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            model = nn.Conv2d(3, 4, 3)
            model.load_state_dict(start.state_dict())
            model.to(memory_format=memory_format)
            optimizer = rule.optimizer(model.parameters())
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
            results.append(model.weight.detach().contiguous())
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: SGD(lr=-1.0), r"SGD: lr must be a finite number > 0; got -1.0"),
    (lambda: SGD(lr=float("nan")), "got nan"),
    (lambda: Adam(lr=True), "got True"),
    (lambda: Adam(lr="fast"), "got 'fast'"),
    (lambda: Adam(lr=0.1, beta1=1.0), "beta1 must be a finite number >= 0 and < 1; got 1.0"),
    (lambda: SGD(lr=0.1, nesterov=True), "needs momentum > 0"),
    (lambda: NormalizedSGD(lr=0.1, per="layr"), 'did you mean "layer"'),
    (lambda: Foreign("torch.optim:Adamm"), 'did you mean "Adam"'),
    (lambda: Foreign("no_such_module:Adam"), "no module 'no_such_module'"),
    (lambda: Foreign("torch.optim:Adam", lr=-1.0), "refused the options"),
    (lambda: Foreign(lambda params: None), "at the top of a module"),
    (lambda: Foreign("torch.optim:LBFGS", lr=0.1), "LBFGS must step from a dense gradient alone"),
    (lambda: Foreign("torch.optim:SparseAdam"), "SparseAdam must step from a dense gradient alone"),
    (lambda: Foreign(Strict), "refused the options {}: .*'lr'"),
    (lambda: SGD(lr=0.1).with_(beta1=0.5), "has no hyperparameter 'beta1'; it has lr, momentum, nesterov"),
    (lambda: SGD(lr=(0.1, 0.2)).optimizer([nn.Parameter(torch.zeros(1))]), "one number a hyperparameter"),
])
def test_bad_input_gets_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SGD(lr=0.1).optimizer(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="sparse=False"):
        optimizer.step()
