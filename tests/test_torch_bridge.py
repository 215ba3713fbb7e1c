"""Rules in anyone's loop, and anyone's optimiser as a rule."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass

import cloudpickle
import pytest
import torch
from torch import nn

from optscope.errors import UserError
from optscope.optim import (
    SGD,
    SVAG,
    Adam,
    AdamW,
    Constant,
    Decayed,
    Foreign,
    Graft,
    Momentum,
    NormalizedSGD,
    PolarSGD,
    RMSProp,
    Rounded,
    Rule,
    Scheduled,
    SignSGD,
)
from optscope.protocol.arms import arm_named
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
    (lambda: Foreign("torch.optim:SparseAdam"), "SparseAdam must step from dense gradients"),
    (lambda: Foreign(Strict), "refused the options {}: .*'lr'"),
    (lambda: SGD(lr=0.1).with_(beta1=0.5), "has no hyperparameter 'beta1'; it has lr, momentum, nesterov"),
    (lambda: SGD(lr=(0.1, 0.2)).optimizer([nn.Parameter(torch.zeros(1))]), "one number a hyperparameter"),
    (lambda: Foreign(Keyed), "it wants param groups of its own making; write a function"),
    (lambda: Foreign(OfParts), "a model or named parameters"),
    (lambda: Foreign("builtins:list"), "builtins:list must make a torch.optim.Optimizer of parameters; it made a"),
    (lambda: Foreign("builtins:print"), "it made a NoneType without param_groups, state, step, zero_grad"),
    (lambda: AdamW(lr=0.1).optimizer(group(betas=(0.9, 0.99))), "'betas', which AdamW would ignore; .*beta1"),
    (lambda: AdamW(lr=0.1).optimizer(group(decay=0.1, weight_decay=0.2)), "mean the same in AdamW: give it one"),
    (lambda: AdamW(lr=0.1).optimizer(group(weight_decay=-1.0)), "AdamW: decay must be a finite number >= 0"),
    (lambda: SGD(lr=0.1).optimizer(group(weight_decay=0.1)), "weight_decay=0.1, which SGD does not have: use"),
    (lambda: Rounded(AdamW(lr=0.1), 1).optimizer(group(decay=0.1)), "'decay', which Rounded would ignore"),
])
def test_bad_input_gets_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


def group(**numbers):
    return [{"params": [nn.Parameter(torch.zeros(2))], **numbers}]


class Keyed(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        self.kinds = [group["kind"] for group in params if "kind" in group]


class OfParts(torch.optim.SGD):
    def __init__(self, parts, lr=0.1):
        super().__init__([parts.encoder, parts.decoder], lr=lr)


@pytest.mark.parametrize(("rule", "torchs"), [
    (AdamW(lr=0.1, decay=0.5), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5)),
    (Decayed(SGD(lr=0.1, momentum=0.9), 0.5), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5)),
    (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1))], ids=["AdamW", "Decayed", "SGD"])
def test_no_decay_on_biases_is_said_in_torchs_words_or_in_ours(rule, torchs):
    ends = []
    for make in (rule.optimizer, torchs):
        model, loss = problem()
        sorted_ = [[p for p in model.parameters() if (p.dim() > 1) == matrix] for matrix in (True, False)]
        groups = [{"params": sorted_[0], "name": "weights"},
                  {"params": sorted_[1], "weight_decay": 0.0, "lr": 0.05}]
        kept = [dict(each) for each in groups]
        optimizer = make(groups)
        assert [each["params"] for each in groups] == [each["params"] for each in kept]
        ends.append(train(model, loss, optimizer))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_a_users_own_groups_are_not_written_to():
    groups = group(weight_decay=0.0)
    AdamW(lr=0.1).optimizer(groups)
    assert groups[0]["weight_decay"] == 0.0


class Spectral(nn.Module):
    """A complex matrix between two real layers, as in Fourier neural operators."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(4, 3, dtype=torch.cfloat))
        self.scale, self.head = nn.Parameter(torch.ones((), dtype=torch.cfloat)), nn.Linear(3, 1)

    def forward(self, x):
        return self.head((torch.fft.fft(x) @ self.weight * self.scale).abs())


T = torch.optim


@pytest.mark.parametrize(("rule", "torchs"), [
    (SGD(lr=0.1, momentum=0.9), lambda p: T.SGD(p, lr=0.1, momentum=0.9)),
    (Momentum(lr=0.5), lambda p: T.SGD(p, lr=0.05, momentum=0.9)),
    (RMSProp(lr=0.01), lambda p: T.RMSprop(p, lr=0.01)),
    (Adam(lr=0.01), lambda p: T.Adam(p, lr=0.01)),
    (AdamW(lr=0.01, decay=0.1), lambda p: T.AdamW(p, lr=0.01, weight_decay=0.1)),
    (Decayed(Adam(lr=0.01), 0.1), lambda p: T.Adam(p, lr=0.01, weight_decay=0.1)),
    (Rounded(Scheduled(Adam(lr=0.01), Constant(), 10), 3), lambda p: T.Adam(p, lr=0.01)),
    (Graft(Adam(lr=0.01), Adam(lr=1.0)), lambda p: T.Adam(p, lr=0.01)),
    (Rounded(Foreign("torch.optim:Adagrad", lr=0.05), 3), lambda p: T.Adagrad(p, lr=0.05)),
    (Foreign("torch.optim:Adagrad", lr=0.05), lambda p: T.Adagrad(p, lr=0.05)),
    (NormalizedSGD(lr=0.1, rms=True), None), (PolarSGD(lr=0.1), None),
    (SVAG(Momentum(lr=0.1), 2), None), (Graft(NormalizedSGD(lr=0.1), SGD(lr=1.0), per="model"), None),
], ids=lambda value: repr(value) if isinstance(value, Rule) else None)
def test_complex_weights_are_stepped_as_pairs_of_real_numbers(rule, torchs):
    class Pairs(Spectral):
        """The same with real parameters."""

        def __init__(self):
            super().__init__()
            self.weight, self.scale = (nn.Parameter(torch.view_as_real(p.detach()).clone())
                                       for p in (self.weight, self.scale))

        def forward(self, x):
            weight, scale = torch.view_as_complex(self.weight), torch.view_as_complex(self.scale)
            return self.head((torch.fft.fft(x) @ weight * scale).abs())

    ends = []
    for kind, make in ((Spectral, rule.optimizer), (Pairs, rule.optimizer), (Spectral, torchs)):
        torch.manual_seed(0)
        model, x = kind(), torch.randn(16, 4)
        optimizer = (make or rule.optimizer)(model.parameters())
        for _ in range(6):
            optimizer.zero_grad()
            (model(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
        ends.append(torch.cat([torch.view_as_real(p.detach()).flatten() if p.is_complex() else p.detach().flatten()
                               for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", [SignSGD(lr=0.1), Graft(SGD(lr=0.1), SignSGD(lr=1.0))], ids=repr)
def test_a_complex_number_has_no_sign(rule):
    model = Spectral()
    optimizer = rule.optimizer(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    with pytest.raises(UserError, match="takes signs, and a complex number has none"):
        optimizer.step()


def test_complex_state_comes_back_to_the_bit(tmp_path):
    weights = nn.Parameter(torch.randn(3, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0)))
    copies, grads = [], torch.randn(4, 3, dtype=torch.cfloat, generator=torch.Generator().manual_seed(1))
    optimizer = Adam(lr=0.1).optimizer([weights])
    for t, grad in enumerate(grads):
        if t == 2:
            torch.save(optimizer.state_dict(), tmp_path / "state.pt")
            copies = [nn.Parameter(weights.detach().clone())]
        weights.grad = grad
        optimizer.step()
    restored = Adam(lr=0.1).optimizer(copies)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for grad in grads[2:]:
        copies[0].grad = grad
        restored.step()
    assert torch.equal(weights, copies[0])


def test_a_rule_with_one_state_for_all_says_that_it_needs_all_gradients():
    first, second = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = Together(lr=0.1).optimizer([first, second])
    first.grad, second.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    first.grad = None
    with pytest.raises(UserError, match="keeps one state for all parameters"):
        optimizer.step()


@dataclass(frozen=True, repr=False)
class Together(Rule):
    """A rule with nothing but its equation."""

    lr: float

    def init(self, params, layout):
        return {"m": torch.zeros_like(params)}

    def update(self, grad, state, params, layout):
        m = 0.9 * state["m"] + grad
        return -self.lr * m, {"m": m}


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SGD(lr=0.1).optimizer(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="sparse=False"):
        optimizer.step()


def test_training_does_not_load_the_compiler():
    """It would cost every process of a sweep a second, for nothing: torch loads it to be left alone by it."""
    program = """if True:
        import sys
        from optscope.engine.plan import Plan
        from optscope.engine.training import Training
        from optscope.optim import SGD, Adam, ByKind
        from optscope.tasks.catalog import task_named
        for rule in (SGD(lr=0.1, momentum=0.9), ByKind(matrices=Adam(lr=1e-3), rest=SGD(lr=0.1))):
            Training(task_named("fashion-mnist"), rule, Plan(steps=2), 1).advance(2)
        print("torch._dynamo" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
