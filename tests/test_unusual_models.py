"""Unusual models read as their plain twin does, or fall silent with a reason; a look leaves training alone."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional, utils
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.curvature import HessianTrace, LayerSharpness, PreconditionedSharpness, TopEigenvalues
from optscope.probes.edge import EdgeOfStability
from optscope.probes.geometry import FirstStep, Geometry, Margin
from optscope.probes.gradient_noise import DescentSplit, GradientNoise
from optscope.probes.hessian import GaussNewton, Hessian
from optscope.probes.probe import Probe
from optscope.probes.rule_in_use import rule_in_use
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

X, Y = torch.rand(48, 6, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3


class Net(nn.Module):
    """Two layers and a tanh between them, put together by a function."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.of = nn.Linear(6, 8), nn.Linear(8, 3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self, x)


def tanh(net: Net, x: Tensor) -> Tensor:
    return net.head(net.body(x).tanh())


def task_of(model: nn.Module) -> Task:
    """A task whose model is this one."""
    return Task.from_tensors(lambda: model, (X, Y), (X, Y), validation=(X, Y))


class Once(torch.autograd.Function):
    """A tanh whose backward pass says that it cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Detached(torch.autograd.Function):
    """A tanh whose backward pass loses its graph without a word."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad.detach() * (1 - ctx.x.tanh() ** 2)


class Numpy(torch.autograd.Function):
    """A tanh in NumPy."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(grad.numpy() * (1 - np.tanh(ctx.saved_tensors[0].numpy()) ** 2))


class Twice(torch.autograd.Function):
    """A tanh that can be differentiated as often as one likes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


def locked() -> Net:
    net = Net(tanh)
    net.lock = threading.Lock()
    return net


def caching(net: Net, x: Tensor) -> Tensor:
    net.seen = net.body(x).tanh()  # with its graph, so that it cannot be copied
    return net.head(net.seen)


def counting(net: Net, x: Tensor) -> Tensor:
    net.__dict__.setdefault("calls", []).append(1)
    return tanh(net, x) * (1 + 0.1 * len(net.calls) if net.training else 1)


def within(net: Net, x: Tensor) -> Tensor:
    """The slope of a layer's sum, by torch.func, and a head on its first entries."""
    slopes = torch.func.vmap(torch.func.grad(lambda z: net.body(z).tanh().sum()))(x)
    return net.head(functional.pad(slopes, (0, 2)))


def hooked() -> Net:
    net, seen = Net(lambda net, x: net.head((net.body(x), seen[-1].tanh())[1])), []
    net.body.register_forward_hook(lambda module, args, out: seen.append(out))
    return net


def saving(reentrant: bool) -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        needing = x.requires_grad_() if x.is_leaf else x  # else the reentrant kind trains nothing below it
        return net.head(checkpoint(lambda z: net.body(z).tanh(), needing, use_reentrant=reentrant))

    return Net(forward)


LIKE_PLAIN = {"a lock": locked, "a cached activation": lambda: Net(caching), "hooks over a list": hooked,
              "checkpoints": lambda: saving(False), "a custom function": lambda: Net(
                  lambda net, x: net.head(Twice.apply(net.body(x))))}
ONCE = {"once": Once, "detached": Detached, "NumPy": Numpy}
FIRST: tuple[Probe, ...] = (Accuracy(), Geometry(), FirstStep(), GradientNoise(4))
SECOND: tuple[Probe, ...] = (EdgeOfStability(), DescentSplit(8, 4), HessianTrace(6), LayerSharpness(),
                             PreconditionedSharpness())


def snapshot(net: nn.Module) -> Snapshot:
    """A model after two steps, in training mode."""
    optimizer = Adam(lr=0.01).optimizer(net.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(net.eval()(X.clone()), Y).backward()
        optimizer.step()
    return Snapshot(net.train(), task_of(net), rule=Adam(lr=0.01), optimizer=optimizer)


def agree(probe: Probe, found: Snapshot, plain: Snapshot) -> None:
    values, expected = probe(found).values, probe(plain).values
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("name", LIKE_PLAIN)
def test_models_that_compute_the_same_read_the_same(name: str) -> None:
    found, plain = snapshot(LIKE_PLAIN[name]()), snapshot(Net(tanh))
    assert bool(GradientNoise(4)(found).silence) == (name == "hooks over a list")
    if name == "hooks over a list":  # whose noise is read by parts
        plain.model.body.register_forward_hook(lambda *_: None)
    for probe in (*FIRST, *SECOND, Margin()):
        agree(probe, found, plain)


@pytest.mark.parametrize("name", [*ONCE, "checkpoints with use_reentrant"])
def test_without_second_derivatives_curvature_alone_is_silent(name: str) -> None:
    net = Net(lambda net, x: net.head(ONCE[name].apply(net.body(x)))) if name in ONCE else saving(True)
    found, plain = snapshot(net), snapshot(Net(tanh))
    for probe in FIRST:
        agree(probe, found, plain)
    for probe in SECOND:
        with pytest.raises(UserError, match="curvature needs second derivatives, "):
            probe(found)


@pytest.mark.parametrize("loss", [nn.MultiMarginLoss(), nn.MultiLabelMarginLoss()], ids=["hinge", "labels"])
def test_so_it_is_for_losses(loss: nn.Module) -> None:
    y = Y if isinstance(loss, nn.MultiMarginLoss) else functional.one_hot(Y, 3)
    net = Net(tanh)
    task = Task.from_tensors(lambda: net, (X, y), (X, y), validation=(X, y), loss=loss, kind="regression")
    found = Snapshot(net, task, rule=SGD(lr=0.1))
    assert FirstStep()(found).values["step cosine"] == pytest.approx(1)
    with pytest.raises(UserError, match=r"torch lacks for a layer of this model or its loss: .*not implemented"):
        EdgeOfStability()(found)


@pytest.mark.parametrize("wrap", [utils.weight_norm, parametrizations.weight_norm], ids=["hook", "parametrisation"])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_weight_normalisation_bends_as_its_formula_does(wrap, kind) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(wrap(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    x = X.double()
    operator = kind(model, functional.cross_entropy, x, Y)
    named = {name: p.detach() for name, p in model.named_parameters()}
    g, v = (next(name for name in named if named[name].shape == shape) for shape in ((4, 1), (4, 6)))

    def outputs(flat: Tensor) -> Tensor:
        w = dict(zip(named, operator.layout.views(flat), strict=True))
        hidden = x @ (w[g] * w[v] / w[v].square().sum(1, keepdim=True).sqrt()).T + w["0.bias"]
        return hidden.tanh() @ w["2.weight"].T + w["2.bias"]

    flat = operator.layout.flatten(list(named.values()))
    if kind is Hessian:
        expected = torch.autograd.functional.hessian(lambda w: functional.cross_entropy(outputs(w), Y), flat)
    else:
        jacobian = torch.autograd.functional.jacobian(lambda w: outputs(w).flatten(), flat)
        expected = jacobian.T @ torch.autograd.functional.hessian(
            lambda z: functional.cross_entropy(z.view(48, 3), Y), outputs(flat).flatten()) @ jacobian
    found = torch.stack([operator(e) for e in torch.eye(operator.size, dtype=torch.float64)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_gradient_inside_the_model_is_differentiated_again() -> None:
    model = Net(within).double()
    operator = Hessian(model, functional.cross_entropy, X.double(), Y)
    named = {name: p.detach() for name, p in model.named_parameters()}

    def value(flat: Tensor) -> Tensor:
        w = dict(zip(named, operator.layout.views(flat), strict=True))
        bend = 1 - (X.double() @ w["body.weight"].T + w["body.bias"]).tanh() ** 2
        slopes = functional.pad(bend @ w["body.weight"], (0, 2))
        return functional.cross_entropy(slopes @ w["head.weight"].T + w["head.bias"], Y)

    expected = torch.autograd.functional.hessian(value, operator.layout.flatten(list(named.values())))
    found = torch.stack([operator(e) for e in torch.eye(operator.size, dtype=torch.float64)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU], ids=["LSTM", "GRU"])
def test_recurrent_models_in_float32(kind) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = kind(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.view(-1, 3, 2))[0][:, -1])

    torch.manual_seed(0)
    model = Recurrent()
    found = TopEigenvalues(rel=1e-5, examples=None)(Snapshot(model, task_of(model))).values["sharpness"]
    twin = copy.deepcopy(model).double()
    named = dict(twin.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def value(w: Tensor) -> Tensor:
        parts = w.split([p.numel() for p in named.values()])
        return functional.cross_entropy(functional_call(twin, {n: part.view(p.shape) for (n, p), part in zip(
            named.items(), parts, strict=True)}, (X.double(),)), Y)

    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, flat))[-1]
    assert found == pytest.approx(float(exact), rel=1e-4)


def test_weights_of_few_digits_are_summed_in_more() -> None:
    net = Net(lambda net, x: tanh(net, x.bfloat16()).float()).bfloat16()
    found, plain = (Snapshot(model, task_of(model), rule=SGD(lr=0.1)) for model in (net, Net(tanh)))
    for probe, name in ((TopEigenvalues(), "sharpness"), (HessianTrace(), "Hessian trace"),
                        (FirstStep(), "step length"), (GradientNoise(4), "gradient noise")):
        assert probe(found).values[name] == pytest.approx(probe(plain).values[name], rel=0.02)


class Adapted(nn.Module):
    """A frozen matrix and a low-rank change, which eval() merges into it."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.a = nn.Parameter(torch.rand(3, 6), requires_grad=False), nn.Parameter(torch.rand(1, 6))
        self.b, self.merged = nn.Parameter(torch.rand(3, 1)), False

    def train(self, mode: bool = True) -> nn.Module:
        if mode == self.merged:
            self.w.data += (-1 if mode else 1) * self.b.data @ self.a.data
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.w if self.merged else self.w + self.b @ self.a).T


class Numbers(nn.Module):
    """Complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(3, 6, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.w.T).abs()


SILENT: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "merged adapters": (Adapted, "in eval mode the loss does not depend on the trained parameters"),
    "complex weights": (Numbers, "taken in real parameters; 'w' is of torch.complex64"),
    "compiled by jit": (lambda: torch.jit.trace(Net(tanh), X[:2]), "compiled by torch.jit does not take"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "parameter '0.weight' has no shape yet: call the model once")}


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("probe", [FirstStep(), GradientNoise(4), EdgeOfStability()], ids=repr)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:Lazy modules:UserWarning")
def test_what_has_no_slope_to_read_says_so(name: str, probe: Probe) -> None:
    model = SILENT[name][0]()
    with pytest.raises(UserError, match=SILENT[name][1]):
        probe(Snapshot(model, task_of(model), rule=SGD(lr=0.1)))


def test_margins_without_a_way_to_the_input() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x).mean(1))

    torch.manual_seed(0)
    model, ids = Words(), torch.randint(9, (48, 5))
    reading = Margin()(Snapshot(model, Task.from_tensors(lambda: model, (ids, Y), (ids, Y), bounds=None)))
    top = model(ids).detach()
    own = top[torch.arange(48), Y]
    top[torch.arange(48), Y] = -torch.inf
    assert reading.values["margin"] == pytest.approx(float((own - top.amax(1)).mean()), rel=1e-5)
    assert set(reading.values) == {"margin", "margin, lowest tenth"}
    assert "no boundary distance" in reading.silence


# Looking on the way

@dataclass(frozen=True)
class Made:
    """A factory of one of the models."""

    name: str

    def __call__(self) -> nn.Module:
        if self.name == "adapted":
            torch.manual_seed(0)
            return Adapted()
        return {**LIKE_PLAIN, "counting": lambda: Net(counting), "reentrant": lambda: saving(True),
                "compiled": lambda: torch.compile(Net(tanh), backend="eager"),
                "gradient inside": lambda: Net(within)}[self.name]()


@pytest.mark.parametrize("name", [*LIKE_PLAIN, "counting", "reentrant", "adapted", "compiled",
                                  "gradient inside"])
def test_a_training_that_was_watched_ends_at_the_same_bits(name: str) -> None:
    task = Task.from_tensors(Made(name), (X, Y), (X, Y), validation=(X, Y))
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_default_dtype())

    def look(found: Snapshot) -> None:
        for probe in (*FIRST, *SECOND):
            try:
                probe(found)
            except UserError:
                continue

    plain, watched = (train(task, Adam(lr=0.01), Plan(2, 12), 1, watch=watch, at=at)
                      for watch, at in ((look, ()), (look, (1, 2, 5))))
    assert torch.equal(plain.losses, watched.losses)
    assert all(map(torch.equal, plain.snapshot.model.state_dict().values(),
                   watched.snapshot.model.state_dict().values()))
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_default_dtype())
    assert torch.equal(states[0], after[0])
    assert states[1:] == after[1:]


class Averaging(torch.optim.SGD):
    """Trains at some weights and stands for others, at half of them."""

    def train(self) -> None:
        pass

    def eval(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data *= 0.5


def test_a_model_is_measured_where_its_optimiser_evaluates_it() -> None:
    net = Net(tanh)
    optimizer = Averaging(net.parameters(), lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    found = Geometry()(Snapshot(net, task_of(net), optimizer=optimizer)).values["weight norm"]
    assert found == pytest.approx(0.5 * float(torch.cat([p.flatten() for p in before]).norm()), rel=1e-5)
    assert all(map(torch.equal, before, net.parameters()))


# What a param group may hold

GROUPS = [{"betas": (0.9, 0.99, 0.999)}, {"betas": None}, {"betas": torch.tensor([0.9, 0.99])}, {"lr": 0.0},
          {"lr": None}, {"lr": torch.tensor(0.1)}, {"lr": -1.0}, {"weight_decay": None}, {"foo": torch.ones(3)},
          {"foo": {"deep": torch.ones(3)}}, {"foo": np.ones(3)}, {"foo": [torch.ones(2), "x"]}, {"eps": "small"},
          {"momentum": 1.5}, {"nesterov": "yes"}, {"dampening": (1, 2)}]


@pytest.mark.parametrize("change", GROUPS, ids=repr)
@pytest.mark.parametrize("rule", [SGD(lr=0.1), Adam(lr=0.1)], ids=repr)
@pytest.mark.parametrize("ours", [True, False])
def test_no_param_group_stops_the_sharpness(change: Mapping[str, object], rule, ours: bool) -> None:
    net = Net(tanh)
    halves = [{"params": list(net.body.parameters())}, {"params": list(net.head.parameters())}]
    kind = torch.optim.Adam if isinstance(rule, Adam) else torch.optim.SGD
    optimizer = rule.optimizer(halves) if ours else kind(halves, lr=0.1)
    for group in optimizer.param_groups:
        group.update({name: copy.deepcopy(value) for name, value in change.items()})
    found = Snapshot(net, task_of(net), optimizer=optimizer)
    rule_in_use(found)
    assert TopEigenvalues()(found).values["sharpness"] > 0
    assert EdgeOfStability()(found).values["sharpness"] > 0


def test_names_of_parameters_are_no_numbers() -> None:
    net = Net(tanh)
    optimizer = torch.optim.SGD([{"params": list(net.body.named_parameters())},
                                 {"params": list(net.head.named_parameters())}], lr=torch.tensor(0.5))
    assert rule_in_use(Snapshot(net, task_of(net), optimizer=optimizer)) == SGD(lr=0.5)
