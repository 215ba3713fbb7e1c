"""Curvature of real networks: products, eigenvalues and probes against dense float64 Hessians."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from optscope.errors import UserError
from optscope.optim import SGD, Adam, AdamW, Constant, NormalizedSGD, RMSProp, Scheduled
from optscope.optim.rule import Rule
from optscope.probes import hessian
from optscope.probes.curvature import (
    HessianTrace,
    LayerSharpness,
    PreconditionedSharpness,
    SpectralDensity,
    TopEigenvalues,
)
from optscope.probes.edge import EdgeOfStability
from optscope.probes.hessian import GaussNewton, Hessian
from optscope.probes.lanczos import largest
from optscope.probes.live import preconditioner
from optscope.probes.probe import trained_names
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.vector import Layout


class Attention(nn.Module):
    """One pre-norm block: layer norm, self-attention, residual, and a linear head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        return self.head((x + self.attention(z, z, z, need_weights=False)[0]).mean(1))


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.branch(x))


@dataclass(frozen=True)
class Case:
    """A network, its inputs and targets, and its loss."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy

    def __call__(self, dtype: torch.dtype = torch.float64, n: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        model = self.make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics and scales that are not the trivial ones
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 2.0)
        x = torch.randn(n, *self.shape)
        y = torch.randint(0, 3, (n,)) if self.loss is functional.cross_entropy else torch.randn(n, 3).to(dtype)
        return model.to(dtype).eval(), x.to(dtype), y


def conv() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2))
    return nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.Tanh(), Residual(block),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


CASES = {
    "mlp": Case(mlp, (4,)),
    "mlp-mse": Case(mlp, (4,), functional.mse_loss),
    "conv-bn-residual": Case(conv, (1, 7, 7)),
    "layernorm-attention": Case(Attention, (3, 4)),
    "transformer-layer": Case(lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True),
                                                    nn.Flatten(), nn.Linear(12, 3)), (3, 4)),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def dense(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The full Hessian by torch.func's forward-over-reverse: another route through autograd than ours."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    layout = Layout.of(params)

    def value(flat: Tensor) -> Tensor:
        weights = dict(zip(layout.names, layout.views(flat), strict=True))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return loss(functional_call(model, weights, (x,)), y)

    return torch.autograd.functional.hessian(value, layout.flatten(list(params.values())))


def whole(operator: Hessian | GaussNewton) -> Tensor:
    return torch.stack([operator(e) for e in torch.eye(operator.size, dtype=operator.dtype)])


@cases
def test_products_are_those_of_the_dense_hessian(case):
    model, x, y = case()
    before = copy.deepcopy(model.state_dict())
    operator = Hessian(model, case.loss, x, y)
    torch.testing.assert_close(whole(operator), dense(model, case.loss, x, y), rtol=1e-9, atol=1e-12)
    assert operator.products == operator.size
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@cases
def test_gauss_newton_is_the_jacobian_form(case):
    model, x, y = case()
    params = {name: p.detach() for name, p in model.named_parameters()}
    layout = Layout.of(params)

    def outputs(flat: Tensor) -> Tensor:
        weights = dict(zip(layout.names, layout.views(flat), strict=True))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return functional_call(model, weights, (x,)).reshape(-1)

    flat = layout.flatten(list(params.values()))
    jacobian = torch.autograd.functional.jacobian(outputs, flat)
    shape = model(x).shape
    bend = torch.autograd.functional.hessian(lambda z: case.loss(z.view(shape), y), outputs(flat))
    torch.testing.assert_close(whole(GaussNewton(model, case.loss, x, y)), jacobian.T @ bend @ jacobian,
                               rtol=1e-9, atol=1e-12)


def test_gauss_newton_is_the_hessian_of_a_linear_model():
    case = Case(lambda: nn.Linear(4, 3), (4,), functional.mse_loss)
    model, x, y = case()
    torch.testing.assert_close(whole(GaussNewton(model, case.loss, x, y)), whole(Hessian(model, case.loss, x, y)))
    closed = torch.kron(torch.eye(3, dtype=x.dtype), 2 * x.T @ x / (3 * len(x)))
    torch.testing.assert_close(whole(Hessian(model, case.loss, x, y))[:12, :12], closed)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_chunks_and_rebuilt_graphs_change_nothing(kind, monkeypatch):
    case = CASES["conv-bn-residual"]
    model, x, y = case(n=13)
    one = kind(model, case.loss, x, y)
    monkeypatch.setattr(hessian, "CACHED", 1)
    many, rebuilt = kind(model, case.loss, x, y), kind(model, case.loss, x, y, memory=0)
    v = torch.randn(one.size, dtype=one.dtype)
    assert (len(one._chunks), len(many._chunks)) == (1, 13)
    assert many._kept is not None
    assert rebuilt._kept is None
    for other in (many, rebuilt):
        torch.testing.assert_close(other(v), one(v), rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(other.gradient(), one.gradient(), rtol=1e-10, atol=1e-13)


def test_a_loss_that_is_no_mean_is_refused():
    model, x, _ = CASES["mlp"]()
    y = torch.randint(0, 3, (len(x),))
    for kind in (Hessian, GaussNewton):
        with pytest.raises(UserError, match="the loss must be a mean over the examples"):
            kind(model, nn.CrossEntropyLoss(reduction="sum"), x, y)


@pytest.mark.parametrize("silent", [False, True])
def test_a_mean_of_another_kind_is_taken_in_one_chunk(silent, monkeypatch):
    monkeypatch.setattr(hessian, "CACHED", 1)
    model, x, _ = CASES["mlp"]()
    if silent:  # it says the same of every example, so that means of every kind have one value
        for p in list(model.parameters())[-2:]:
            nn.init.zeros_(p)
    y = torch.arange(len(x)) % 3
    for loss in (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1], dtype=x.dtype)),
                 nn.CrossEntropyLoss(ignore_index=2)):
        operator = Hessian(model, loss, x, y)
        assert len(operator._chunks) == 1
        torch.testing.assert_close(whole(operator), dense(model, loss, x, y), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_only_trained_parameters_have_rows(kind):
    """Frozen ones are constants: the block of the others, whether flags or names say which."""
    case = CASES["conv-bn-residual"]
    model, x, y = case()
    full = kind(model, case.loss, x, y)
    trained = [name for name in full.layout.names if not name.startswith(("0.", "3."))]
    rows = full.layout.spread(torch.tensor([name in trained for name in full.layout.names]))
    named = kind(model, case.loss, x, y, parameters=trained)
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    flagged = kind(model, case.loss, x, y)
    for part in (named, flagged):
        assert part.layout.names == tuple(trained)
        torch.testing.assert_close(whole(part), whole(full)[rows][:, rows], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(part.gradient(), full.gradient()[rows], rtol=1e-9, atol=1e-12)


@cases
def test_gradient_and_blocks(case):
    model, x, y = case()
    operator = Hessian(model, case.loss, x, y)
    gradient = torch.autograd.grad(case.loss(model(x), y), list(model.parameters()))
    torch.testing.assert_close(operator.gradient(), operator.layout.flatten(list(gradient)), rtol=1e-9, atol=1e-12)
    full, names = whole(operator), operator.layout.names
    starts = np.cumsum([0, *operator.layout.sizes])
    for i, name in enumerate(names):
        rows = slice(starts[i], starts[i + 1])
        torch.testing.assert_close(whole(operator.block(name)), full[rows, rows], rtol=1e-9, atol=1e-12)
    pair = operator.block(names[-1], names[0])  # in the model's order, whatever the order asked for
    rows = torch.cat([torch.arange(starts[0], starts[1]), torch.arange(starts[-2], starts[-1])])
    torch.testing.assert_close(whole(pair), full[rows][:, rows], rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match="no trained layer 'nothing'"):
        operator.block("nothing")


def test_batch_norm_is_in_eval_mode_unless_asked_and_never_moved():
    case = CASES["conv-bn-residual"]
    model, x, y = case()
    model.train()
    before = copy.deepcopy(model.state_dict())
    by_default, asked = Hessian(model, case.loss, x, y), Hessian(model, case.loss, x, y, training=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    batch = dense(copy.deepcopy(model), case.loss, x, y)
    fixed = dense(model.eval(), case.loss, x, y)
    torch.testing.assert_close(whole(by_default), fixed, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole(asked), batch, rtol=1e-8, atol=1e-11)
    assert not torch.allclose(fixed, batch, rtol=1e-2)


def test_weights_that_the_loss_ignores_have_no_curvature():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    for kind in (Hessian, GaussNewton):
        operator = kind(model, functional.mse_loss, torch.randn(5, 2), torch.randn(5, 1))
        full = whole(operator)
        assert not full[3:].any()
        assert not full[:, 3:].any()
    flat = Hessian(nn.Linear(2, 1), lambda z, _: z.mean(), torch.randn(5, 2), torch.randn(5, 1))
    assert not flat(torch.ones(3)).any()
    found = largest(flat)
    assert found.values.tolist() == [0.0]
    assert found.limit == pytest.approx(0.0, abs=1e-300)


def test_graphs_are_built_where_gradients_are_off():
    case = CASES["mlp"]
    model, x, y = case()
    with torch.no_grad():
        quiet = Hessian(model, case.loss, x, y)
        products = whole(quiet)
    torch.testing.assert_close(products, whole(Hessian(model, case.loss, x, y)))


def test_a_model_without_parameters_is_refused():
    for model in (nn.Flatten(), nn.Linear(3, 3).requires_grad_(False)):
        with pytest.raises(UserError, match="has none: set requires_grad, or name them"):
            Hessian(model, functional.mse_loss, torch.ones(2, 3), torch.ones(2, 3))


@dataclass(frozen=True)
class Given:
    """A task's model, as it stands."""

    model: nn.Module

    def __call__(self) -> nn.Module:
        return self.model


def task(case: Case, dtype: torch.dtype = torch.float32, n: int = 12) -> tuple[nn.Module, Task, Tensor, Tensor]:
    model, x, y = case(dtype, n)
    kind = "classification" if case.loss is functional.cross_entropy else "regression"
    return model, Task.from_tensors(Given(model), (x, y), (x, y), validation=(x, y), loss=case.loss, kind=kind,
                                    bounds=None), x, y


def trained(case: Case, rule: Rule, steps: int = 5) -> tuple[Snapshot, Tensor]:
    """A snapshot after a few steps of a live optimiser, and its dense Hessian in float64."""
    model, made, x, y = task(case)
    optimizer = rule.optimizer(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        case.loss(model(x), y).backward()
        optimizer.step()
    twin = copy.deepcopy(model).double()
    truth = dense(twin, case.loss, x.double(), y if y.dtype == torch.long else y.double())
    return Snapshot(model, made, step=steps, rule=rule, optimizer=optimizer), truth


@cases
@pytest.mark.parametrize("k", [1, 4])
def test_top_eigenvalues_cover_the_dense_ones(case, k):
    snapshot, truth = trained(case, SGD(0.05))
    state = copy.deepcopy(snapshot.model.state_dict())
    reading = TopEigenvalues(k=k)(snapshot)
    exact = torch.linalg.eigvalsh(truth).flip(0)[:k].numpy()
    found, errors = reading.arrays["eigenvalues"], reading.arrays["eigenvalue errors"]
    assert bool((np.abs(found - exact) <= errors).all())
    assert bool((errors <= 1e-3 * np.abs(found) + 1e-5 * found[0]).all())
    assert reading.values["sharpness"] == found[0]
    assert reading.values["sharpness limit"] >= exact[0]
    assert reading.values["stability threshold"] == 40
    assert reading.values["sharpness / threshold"] == pytest.approx(found[0] / 40)
    assert set(reading.values) == {metric.name for metric in TopEigenvalues().metrics}
    assert all(torch.equal(state[name], value) for name, value in snapshot.model.state_dict().items())


def test_the_printed_error_covers_the_true_one_for_every_seed():
    snapshot, truth = trained(CASES["conv-bn-residual"], SGD(0.05))
    exact = float(torch.linalg.eigvalsh(truth)[-1])
    for seed in range(40):
        fresh = replace(snapshot, seed=seed, model=copy.deepcopy(snapshot.model), optimizer=None)
        values = TopEigenvalues()(fresh).values
        assert abs(values["sharpness"] - exact) <= values["sharpness error"] <= 1e-3 * values["sharpness"]


def test_gauss_newton_instead():
    snapshot, truth = trained(CASES["mlp-mse"], SGD(0.05))
    reading = TopEigenvalues(gauss_newton=True)(snapshot)
    model = copy.deepcopy(snapshot.model).double()
    data = snapshot.task.data().train
    exact = torch.linalg.eigvalsh(whole(GaussNewton(model, functional.mse_loss, data.inputs.double(),
                                                    data.targets.double())))[-1]
    assert abs(reading.values["sharpness"] - float(exact)) <= reading.values["sharpness error"]
    assert reading.values["sharpness"] != pytest.approx(float(torch.linalg.eigvalsh(truth)[-1]), rel=1e-3)


def diagonal(snapshot: Snapshot) -> Tensor | None:
    """The diagonal of a preconditioner, from what it makes of ones."""
    named = dict(snapshot.model.named_parameters())
    layout = Layout.of({name: named[name] for name in trained_names(snapshot)})
    ones = torch.ones(layout.size)
    held = preconditioner(snapshot, layout, ones)
    return None if held is None else held.root(ones) ** -2


TORCH = {
    "Adam": lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.99)),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


def follow(optimizer: torch.optim.Optimizer, model: nn.Module, case: Case, x: Tensor, y: Tensor) -> list[Tensor]:
    """Train a few steps and return the gradients on the way."""
    seen = []
    for _ in range(5):
        optimizer.zero_grad()
        case.loss(model(x), y).backward()
        seen.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double())
        optimizer.step()
    return seen


OURS = {repr(rule): rule for rule in (Adam(0.01, 0.8, 0.99), AdamW(0.01), RMSProp(0.01, 0.9),
                                      Scheduled(Adam(0.01), Constant(), 10))}


@pytest.mark.parametrize("make", [*TORCH.values(), *[rule.optimizer for rule in OURS.values()]],
                         ids=[*TORCH, *OURS])
def test_the_preconditioner_is_the_one_the_optimiser_divides_by(make):
    """From the gradients alone: v by its recurrence, the bias corrections, and the root."""
    case = CASES["mlp"]
    model, made, x, y = task(case)
    optimizer = make(model.parameters())
    snapshot = Snapshot(model, made, optimizer=optimizer)
    assert diagonal(snapshot) is None
    assert PreconditionedSharpness()(snapshot).values == {}
    gradients = follow(optimizer, model, case, x, y)
    group = optimizer.param_groups[0]
    rule = getattr(optimizer, "rule", None)
    rule = rule.rule if isinstance(rule, Scheduled) else rule
    if isinstance(optimizer, torch.optim.RMSprop) or isinstance(rule, RMSProp):
        alpha = rule.alpha if rule else group["alpha"]
        v = sum((1 - alpha) * alpha ** (4 - i) * g**2 for i, g in enumerate(gradients))
        expected = v.sqrt() + 1e-8
    else:
        beta1, beta2 = (rule.beta1, rule.beta2) if rule else group["betas"]
        moments = [sum((1 - beta2) * beta2 ** (t - i) * g**2 for i, g in enumerate(gradients[:t + 1]))
                   for t in range(5)]
        v = torch.stack(moments).amax(0) if group.get("amsgrad") else moments[-1]
        expected = (1 - beta1**5) * ((v / (1 - beta2**5)).sqrt() + 1e-8)
    found = diagonal(snapshot)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("rule", OURS.values(), ids=OURS)
def test_preconditioned_sharpness_is_the_top_of_the_quotient(rule):
    snapshot, truth = trained(CASES["layernorm-attention"], rule)
    reading = PreconditionedSharpness()(snapshot)
    d = diagonal(snapshot).double()
    exact = float(torch.linalg.eigvals(truth / d[:, None]).real.max())
    value = reading.values["preconditioned sharpness"]
    # Float32 weighs the products of coordinates with a tiny D, where the dense twin has float64.
    assert abs(value - exact) <= reading.values["preconditioned sharpness error"] + 1e-4 * exact
    inner = rule.rule if isinstance(rule, Scheduled) else rule
    edge = 2 / 0.01 if isinstance(inner, RMSProp) else (2 - 0.01 * getattr(inner, "decay", 0)) * (
        1 + inner.beta1) / (1 - inner.beta1) / 0.01
    assert reading.values["preconditioned threshold"] == pytest.approx(edge)
    assert reading.values["preconditioned sharpness / threshold"] == pytest.approx(value / edge)
    plain = TopEigenvalues()(snapshot).values  # its own threshold is not that of the plain Hessian
    assert "stability threshold" not in plain


@pytest.mark.parametrize("rule", [SGD(0.1, 0.9), Adam(0.01), RMSProp(0.01)], ids=repr)
def test_the_edge_of_stability_is_that_of_the_rule_in_use(rule):
    snapshot, truth = trained(CASES["mlp"], rule)
    values = EdgeOfStability(rel=1e-6)(snapshot).values
    assert values["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(truth)[-1]), rel=1e-4)
    d = 1.0 if isinstance(rule, SGD) else diagonal(snapshot).double()[:, None]
    matrix = truth / d
    edge = {"SGD": 38.0, "Adam": 3800.0, "RMSProp": 200.0}[type(rule).__name__]
    assert values["sharpness met"] == pytest.approx(float(torch.linalg.eigvals(matrix).real.max()), rel=1e-3)
    assert values["stability threshold"] == pytest.approx(edge)
    assert values["sharpness / threshold"] == pytest.approx(values["sharpness met"] / edge)
    saved = EdgeOfStability()(replace(snapshot, optimizer=None)).values  # what a checkpoint can tell
    assert ("sharpness met" in saved) == isinstance(rule, SGD)


def test_a_learning_rate_that_was_changed_moves_the_threshold():
    snapshot, _ = trained(CASES["mlp"], SGD(0.1, 0.9))
    snapshot.optimizer.param_groups[0]["lr"] = 0.01
    assert TopEigenvalues()(snapshot).values["stability threshold"] == pytest.approx(380)
    quiet = TopEigenvalues()(replace(snapshot, optimizer=None, rule=NormalizedSGD(0.1)))
    assert "stability threshold" not in quiet.values


@pytest.mark.parametrize(("snapshot", "says"), [
    (lambda: trained(CASES["mlp"], SGD(0.1))[0], "needs the live Adam"),
    (lambda: replace(trained(CASES["mlp"], SGD(0.1))[0],
                     optimizer=torch.optim.NAdam([nn.Parameter(torch.ones(1))])),
     r"needs the live Adam, .*; got NAdam: measure"),
    (lambda: replace(trained(CASES["mlp"], Adam(0.1))[0], optimizer=None), "needs the live Adam"),
])
def test_preconditioned_sharpness_needs_an_adaptive_optimiser(snapshot, says):
    with pytest.raises(UserError, match=says):
        PreconditionedSharpness()(snapshot())


def test_an_optimiser_of_half_the_model_meets_that_half():
    model, made, x, y = task(CASES["mlp"])
    optimizer = torch.optim.Adam(model[0].parameters(), 0.01)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    snapshot = Snapshot(model, made, optimizer=optimizer)
    values = EdgeOfStability(rel=1e-6)(snapshot).values
    half = dense(copy.deepcopy(model).double(), functional.cross_entropy, x.double(), y)[:30, :30]
    d = diagonal(snapshot).double()
    assert values["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(half)[-1]), rel=1e-4)
    top = float(torch.linalg.eigvals(half / d[:, None]).real.max())
    assert values["sharpness met"] == pytest.approx(top, rel=1e-3)


def test_a_layer_that_never_had_a_gradient_does_not_move():
    """Of an adaptive rule: its D is infinite, and the sharpness met is that of the others."""
    model, made, x, y = task(CASES["mlp"])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    functional.cross_entropy(model(x), y).backward()
    model[4].weight.grad = model[4].bias.grad = None
    optimizer.step()
    met = PreconditionedSharpness(rel=1e-5)(Snapshot(model, made, optimizer=optimizer)).values
    for p in model[4].parameters():
        p.requires_grad_(False)
    others = PreconditionedSharpness(rel=1e-5)(Snapshot(model, made, optimizer=optimizer)).values
    assert met["preconditioned sharpness"] == pytest.approx(others["preconditioned sharpness"], rel=1e-4)


def test_gradient_descent_leaves_the_minimum_exactly_above_its_threshold():
    """The threshold in use, met by training itself: the sharpness of a quadratic decides its fate."""
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    made = Task.from_tensors(Given(model), (x, torch.zeros(40, 1).double()), (x, x[:, :1]), kind="regression",
                             validation=(x, x[:, :1]), loss=functional.mse_loss, bounds=None)
    sharpness = TopEigenvalues(rel=1e-9)(Snapshot(model, made)).values["sharpness"]
    assert sharpness == pytest.approx(float(torch.linalg.eigvalsh(2 * x.T @ x / 40)[-1]), rel=1e-9)
    for factor, grows in ((0.98, False), (1.02, True)):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=factor * 2 / sharpness)
        values = []
        for _ in range(300):
            optimizer.zero_grad()
            loss = functional.mse_loss(twin(x), torch.zeros(40, 1).double())
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        assert (values[-1] > values[100]) == grows
        reading = TopEigenvalues()(Snapshot(twin, made, optimizer=optimizer)).values
        assert (reading["sharpness / threshold"] > 1) == grows


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 3))


def test_following_a_model_takes_fewer_products_than_starting_anew():
    case = Case(wide, (20,))
    model, made, x, y = task(case, n=100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    probe, warm, cold, memory = TopEigenvalues(rel=1e-2), [], [], {}
    for _ in range(6):
        follow(optimizer, model, case, x, y)
        reading = probe(Snapshot(model, made), memory)
        memory = reading.memory
        fresh = largest(Hessian(model, case.loss, x, y), rel=1e-2)
        warm.append(int(reading.arrays["products"]))
        cold.append(fresh.products)
        assert abs(reading.values["sharpness"] - float(fresh.values[0])) <= (
            reading.values["sharpness error"] + float(fresh.errors[0]))
    assert sum(warm[1:]) < sum(cold[1:])


def test_a_stale_answer_does_not_hide_a_new_top():
    """Two blocks of curvature swap places between two readings; the first answer is now exactly the second one."""
    scale = nn.Parameter(torch.tensor([0.0, 0.0]))
    model = nn.Module()
    model.w = scale
    model.forward = lambda x: x * model.w  # type: ignore[method-assign]
    curved = torch.tensor([[3.0, 1.0]])
    made = Task.from_tensors(Given(model), (curved, curved * 0), (curved, curved), validation=(curved, curved),
                             kind="regression", loss=lambda z, _: (z**2).sum(1).mean(), bounds=None)
    probe = TopEigenvalues()
    first = probe(Snapshot(model, made))
    assert first.values["sharpness"] == pytest.approx(18, rel=1e-5)
    curved.copy_(torch.tensor([[1.0, 3.0]]))
    assert probe(Snapshot(model, made), first.memory).values["sharpness"] == pytest.approx(18, rel=1e-5)


def test_a_reading_depends_on_the_snapshot_and_its_memory_alone():
    snapshot, _ = trained(next(iter(CASES.values())), SGD(0.05))
    probe = EdgeOfStability()
    first = probe(snapshot)
    assert probe(snapshot).values == first.values
    twice = [probe(snapshot, first.memory) for _ in range(2)]
    assert twice[0].values == twice[1].values
    assert all(map(torch.equal, *(reading.memory.values() for reading in twice)))


@cases
def test_layer_sharpness_is_the_top_of_each_block(case):
    snapshot, truth = trained(case, SGD(0.05))
    reading = LayerSharpness()(snapshot)
    layout = Layout.of(dict(snapshot.model.named_parameters()))
    starts = np.cumsum([0, *layout.sizes])
    assert tuple(reading.arrays["layers"]) == layout.names
    scale = float(torch.linalg.eigvalsh(truth)[-1])
    for i, value in reading.values["layer sharpness"].items():
        rows = slice(starts[int(i)], starts[int(i) + 1])
        exact = float(torch.linalg.eigvalsh(truth[rows, rows])[-1])
        assert abs(value - exact) <= reading.arrays["layer sharpness errors"][int(i)] + 1e-6 * scale


@cases
def test_trace_and_density_agree_with_the_dense_spectrum(case):
    snapshot, truth = trained(case, SGD(0.05))
    eigenvalues = torch.linalg.eigvalsh(truth).numpy()
    values = HessianTrace(products=30)(snapshot).values
    scale = np.abs(eigenvalues).sum()
    assert abs(values["Hessian trace"] - eigenvalues.sum()) <= 4 * values["Hessian trace error"] + 1e-5 * scale
    assert values["Hessian trace error"] < 0.2 * scale
    reading = SpectralDensity(samples=10, steps=20)(snapshot)
    assert reading.values["largest eigenvalue"] == pytest.approx(eigenvalues[-1], rel=1e-4)
    assert reading.values["smallest eigenvalue"] >= eigenvalues[0] - 1e-5 * eigenvalues[-1]
    squares = eigenvalues**2
    share = 100 * squares[eigenvalues < 0].sum() / squares.sum()
    assert reading.values["negative share"] == pytest.approx(share, abs=5 + share)
    mass = np.trapezoid(reading.arrays["density"], reading.arrays["density eigenvalues"])
    assert mass == pytest.approx(1, abs=1e-3)
    assert reading.arrays["density weights"].sum() == pytest.approx(1)


def test_readings_repeat_bit_for_bit():
    snapshot, _ = trained(CASES["conv-bn-residual"], SGD(0.05))
    for probe in (TopEigenvalues(), HessianTrace(products=6), SpectralDensity(steps=5), LayerSharpness()):
        first, second = (probe(replace(snapshot, model=copy.deepcopy(snapshot.model), optimizer=None))
                         for _ in range(2))
        assert first.values == second.values


@pytest.mark.parametrize(("make", "says"), [
    (lambda: TopEigenvalues(k=0), "k at least 1"), (lambda: TopEigenvalues(rel=1.0), "rel"),
    (lambda: PreconditionedSharpness(margin=0.0), "margin positive"), (lambda: LayerSharpness(rel=0.0), "rel"),
    (lambda: HessianTrace(products=5), "at least 6"), (lambda: SpectralDensity(steps=1), "steps at least 2"),
])
def test_wrong_settings_are_named_at_construction(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_weights_at_which_the_loss_overflows_are_named():
    model, made, _, _ = task(CASES["mlp-mse"])
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1e30)
    with pytest.raises(UserError, match="not finite"):
        TopEigenvalues()(Snapshot(model, made))
