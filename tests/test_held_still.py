"""Printed thresholds against the rules themselves: the rate from which they grow on a bowl, held still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.optim import (
    LAMB,
    LARS,
    SAM,
    SGD,
    SOAP,
    Adam,
    AdamW,
    ByKind,
    Constant,
    Decayed,
    Lion,
    Momentum,
    Muon,
    NormalizedSGD,
    RMSProp,
    Rounded,
    Scheduled,
    Shampoo,
    SignSGD,
    muon,
    trust_ratio,
)
from optscope.optim.combinator import bare
from optscope.optim.kinds import layout_of
from optscope.optim.per_layer import PerLayer
from optscope.optim.rule import Rule, State
from optscope.probes.edge import EdgeOfStability
from optscope.probes.hessian import Hessian
from optscope.probes.own_norm import reach
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.vector import Layout

Step = Callable[[Tensor], Tensor]


def radius(step: Step, size: int) -> float:
    """The spectral radius of a step, which must be linear."""
    matrix = torch.stack([step(e) for e in torch.eye(size, dtype=torch.double)], dim=1)
    z = torch.randn(size, generator=torch.Generator().manual_seed(5)).double()
    torch.testing.assert_close(step(z), matrix @ z, rtol=1e-6, atol=1e-9)
    return float(torch.linalg.eigvals(matrix).abs().max())


def critical(step_at: Callable[[float], Step], size: int, low: float, high: float) -> float:
    """The rate at which steps stop to shrink, by bisection."""
    assert radius(step_at(low), size) < 1 < radius(step_at(high), size)
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if radius(step_at(middle), size) < 1 else (low, middle)
    return low


def bowl() -> tuple[Snapshot, Hessian]:
    """A linear map of 6 weights whose mean squared error to 0 is a quadratic, and its Hessian."""
    torch.manual_seed(3)
    model = nn.Linear(3, 2, bias=False).double()
    x, y = torch.randn(16, 3).double() * torch.tensor([1.0, 2.0, 0.5]), torch.zeros(16, 2).double()
    task = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), kind="regression", bounds=None)
    return Snapshot(model, task), Hessian(model, functional.mse_loss, x, y)


STEEPEST = [SignSGD(1.0), NormalizedSGD(1.0), Lion(1.0), Lion(1.0, 0.5, 0.5), Lion(1.0, 0.95, 0.3),
            Lion(1.0, 0.9, 0.99, decay=0.3), Lion(1.0, 0.6, 0.2, decay=0.3), Muon(1.0), Muon(1.0, nesterov=False),
            Muon(1.0, 0.5, decay=0.3)]


@pytest.mark.parametrize("rule", STEEPEST, ids=repr)
def test_a_rule_in_its_own_norm_crosses_where_it_is_printed(rule, monkeypatch):
    """With η = lr/‖c‖_* held still, along the d that has dᵀHd = S, steps are linear in w and m."""
    monkeypatch.setattr(muon, "orthogonalized", polar_factor)  # Newton-Schulz is only nearly orthogonal
    snapshot, hessian = bowl()
    ball, mixture = rule.ball(hessian.layout), rule.mixture()
    d = reach(hessian, ball, torch.eye(6, dtype=torch.double), rel=1e-12, most=500).vector
    bent = hessian(d)
    start = torch.tensor([1.0, 0.4]).double()  # how much of d is in w, and of Hd in m

    def length(z: Tensor) -> float:
        return float(ball.dual(mixture.used * z[1] * bent + (1 - mixture.used) * z[0] * bent, hessian.layout))

    def step_at(lr: float) -> Step:
        def step(z: Tensor) -> Tensor:
            z = torch.cat([z, start[1:] * 0])[:2]
            rate = lr * length(z) / length(start)
            held = rule.with_(lr=rate, **({"decay": lr * mixture.decay / rate} if mixture.decay else {}))
            moved, after = held.update(z[0] * bent, {"m": z[1] * bent}, z[0] * d, hessian.layout)
            w, m = z[0] * d + moved, after.get("m", 0 * bent)
            return torch.stack([w @ d / (d @ d), m @ bent / (bent @ bent)])[:size]
        return step

    size = 2 if mixture.kept else 1
    lr = critical(step_at, size, 1e-3, 500.0)
    for kind in (rule, Rounded(rule, k=9), ByKind(heads=rule)):  # whose rates have six digits
        values = EdgeOfStability(rel=1e-6)(live(snapshot, kind.with_(lr=lr), d, start[1] * bent)).values
        assert values["sharpness met"] == pytest.approx(float(d @ bent), rel=1e-9)
        assert values["sharpness / threshold"] == pytest.approx(1, rel=5e-6)


def polar_factor(matrices: Tensor, iterations: int) -> Tensor:
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    return u @ vh


def live(snapshot: Snapshot, rule: Rule, weights: Tensor, mean: Tensor) -> Snapshot:
    """A snapshot at weights, with a live optimiser that has a mean."""
    weight = snapshot.model.weight
    with torch.no_grad():
        weight.copy_(weights.view(2, 3))
    optimizer = rule.optimizer_of(snapshot.model)
    state = {"m": mean.view(2, 3).clone()}
    optimizer.state[weight] = {"rule": state} if isinstance(rule, (Rounded, ByKind)) else state
    return replace(snapshot, rule=rule, optimizer=optimizer)


def test_a_mean_is_read_from_the_live_optimiser_and_is_0_before_it_steps():
    snapshot, _ = bowl()
    with torch.no_grad():
        snapshot.model.weight.copy_(torch.tensor([[1.0, -2, 3], [0, 1, 1]]))
    rule = Lion(0.1, decay=2.0)
    optimizer = rule.optimizer(snapshot.model.parameters())
    for step in range(3):
        g, m = gradient_at(snapshot), optimizer.state.get(snapshot.model.weight, {"m": torch.zeros(2, 3)})["m"]
        values = EdgeOfStability()(replace(snapshot, optimizer=optimizer)).values
        c = 0.9 * m + 0.1 * g
        assert values["stability threshold"] == pytest.approx(
            float(c.abs().sum()) * (2 - 0.1 * 2) * 1.99 / (1.99 - 1.8) / 0.1, rel=1e-9), step
        snapshot.model.weight.grad = g
        optimizer.step()
    saved = EdgeOfStability()(replace(snapshot, rule=rule)).values  # what a checkpoint can tell
    assert set(saved) == {"sharpness"}


def gradient_at(snapshot: Snapshot) -> Tensor:
    data = snapshot.task.data().train
    loss = functional.mse_loss(snapshot.model(data.inputs), data.targets)
    return torch.autograd.grad(loss, snapshot.model.weight)[0]


class Plane(nn.Module):
    """A map that is linear in a matrix, a kernel and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.kernel = nn.Linear(3, 2), nn.Conv1d(1, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x[:, :3]) + self.kernel(x[:, 3:].unsqueeze(1)).squeeze(2)


def trained(rule: Rule, steps: int = 7) -> tuple[Snapshot, Tensor]:
    """A snapshot of a plane after some steps of a live optimiser, and its constant Hessian."""
    torch.manual_seed(1)
    model = Plane().double()
    x, y = torch.randn(30, 5).double() * torch.tensor([1.0, 2, 0.5, 1, 3]), torch.randn(30, 2).double()
    task = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), kind="regression", bounds=None)
    optimizer = rule.optimizer_of(model)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(model(x), y).backward()
        optimizer.step()
    hessian = Hessian(model, functional.mse_loss, x, y)
    matrix = torch.stack([hessian(e) for e in torch.eye(hessian.size, dtype=torch.double)])
    return Snapshot(model, task, step=steps, rule=rule, optimizer=optimizer), matrix


def innermost(state: State) -> State:
    return innermost(state["rule"]) if "rule" in state else state


def ratios(rule: Rule, snapshot: Snapshot, states: dict[int, State]) -> dict[torch.Size, float]:
    """The trust ratios of a rule's layers by their shapes, written out once more."""
    data, found = snapshot.task.data().train, {}
    weights = list(snapshot.model.parameters())
    grads = torch.autograd.grad(functional.mse_loss(snapshot.model(data.inputs), data.targets), weights)
    for i, state in states.items() if isinstance(rule, (LARS, LAMB)) else ():
        w = weights[i].detach()
        if isinstance(rule, LARS):
            length = grads[i].norm() + rule.decay * w.norm()
        else:
            t = float(state["step"])
            size = (state["v"] / (1 - rule.beta2**t)).sqrt() + rule.eps
            length = (state["m"] / (1 - rule.beta1**t) / size + rule.decay * w).norm()
        found[w.shape] = 1.0 if w.dim() < 2 else (w.norm() / length).item()
    return found


TINY = 1e-9
"""How large weights are, so that squares of gradients are nothing beside what is held still."""


class Still:
    """A rule of some layers whose state is that of live training, all but its momentum, which steps as it does."""

    def __init__(self, rule: Rule, layout: Layout, states: list[State]) -> None:
        self.rule, _, self.decay = bare(rule)
        if hasattr(rule, "every"):
            self.rule = rule.with_(every=10**6)
        self.layout, self.slot = layout, "v" if isinstance(self.rule, SGD) else "m"
        self.remembers = self.slot in states[0]
        self.states = [dict(state) for state in states]
        for state in self.states:
            if "v" in state and self.slot == "m":  # so that a step makes it what it was
                kept = self.rule.alpha if isinstance(self.rule, RMSProp) else self.rule.beta2
                state |= {"v": state["v"] / kept, **({"step": state["step"] - 1} if "step" in state else {})}

    def step(self, lr: float, grad: Tensor, w: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and the momentum after a step."""
        means = self.layout.views(mean)
        states = [{**state, **({self.slot: m} if self.remembers else {})}
                  for state, m in zip(self.states, means, strict=True)]
        each = isinstance(self.rule, PerLayer)
        state = {str(i): own for i, own in enumerate(states)} if each else {
            name: states[0][name] if name == "step" else torch.cat([own[name].flatten() for own in states])
            for name in states[0]}
        moved, after = self.rule.with_(lr=lr).update(grad + self.decay * w, state, w, self.layout)
        found = [after[str(i)] for i in range(len(means))] if each else [after]
        return w + moved, torch.cat([own[self.slot].flatten() for own in found]) if self.remembers else 0 * mean


PRECONDITIONED = [
    RMSProp(0.01), Adam(0.01), AdamW(0.01, 0.5, decay=3.0),
    Shampoo(1.0), Shampoo(1.0, every=3), SOAP(0.01, every=3), SOAP(0.01, 0.8, decay=0.3), SOAP(0.01, largest=2),
    LARS(0.1), LARS(0.1, 0.5, trust=0.1, decay=0.3), LAMB(0.01), LAMB(0.01, 0.5), LAMB(0.01, 0.8, decay=0.3),
    ByKind(matrices=SOAP(0.01, every=3), rest=AdamW(0.003, 0.8, decay=2.0)),
    ByKind(matrices=SGD(0.1, 0.9), heads=AdamW(0.01, decay=3.0), rest=RMSProp(0.01)),
    ByKind(matrices=Momentum(0.1, 0.5), heads=SGD(0.2, 0.8, nesterov=True), rest=LAMB(0.01)),
    ByKind(biases=Shampoo(0.1), heads=LARS(1.0, decay=0.3), rest=Decayed(SGD(0.1, 0.7), 0.4))]


@pytest.mark.parametrize("rule", PRECONDITIONED, ids=repr)
def test_a_preconditioned_rule_crosses_where_it_is_printed(rule, monkeypatch):
    snapshot, hessian = trained(rule)
    params, layout = list(snapshot.model.parameters()), layout_of(snapshot.model)
    states = [innermost(snapshot.optimizer.state[p]) for p in params]

    def rules(lr: float) -> list[tuple[Rule, list[int]]]:
        now = rule.with_(lr=lr)
        return ([(own, numbers) for _, own, numbers, _ in now.rules_in(layout)] if isinstance(now, ByKind)
                else [(now, [0, 1, 2])])

    still = [Still(own, layout.take(numbers), [states[i] for i in numbers]) for own, numbers in rules(1.0)]
    trusts: dict[torch.Size, float] = {}
    for own, numbers in rules(1.0):
        trusts |= ratios(own, snapshot, {i: states[i] for i in numbers})
    monkeypatch.setattr(trust_ratio, "trust", lambda params, *_: torch.tensor(trusts[params.shape]).double())

    def step_at(lr: float) -> Step:
        def step(z: Tensor) -> Tensor:
            w, mean = (TINY * z).view(2, -1)
            after = torch.zeros_like(z).view(2, -1)
            for (own, numbers), held in zip(rules(lr), still, strict=True):
                at = layout.columns(numbers)
                after[0, at], after[1, at] = held.step(own.lr, (hessian @ w)[at], w[at], mean[at])
            return after.flatten() / TINY
        return step

    lr = critical(step_at, 2 * layout.size, 1e-4, 1e5)
    monkeypatch.undo()
    snapshot.optimizer.param_groups[0]["lr"] = lr
    values = EdgeOfStability(rel=1e-8)(snapshot).values
    rounded = 2e-5 if isinstance(rule, ByKind) else 1e-6  # its rates have six digits
    assert values["sharpness / threshold"] == pytest.approx(1, rel=rounded)
    assert values["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)


@pytest.mark.parametrize("wrapped", [Rounded(SOAP(0.01), k=3), Scheduled(SOAP(0.01), Constant(), 10)], ids=repr)
def test_schedules_and_rounding_leave_a_preconditioner_what_it_is(wrapped):
    found, plain = (EdgeOfStability(rel=1e-6)(trained(rule)[0]).values for rule in (wrapped, wrapped.rule))
    assert found == pytest.approx(plain, rel=1e-3)  # rounding moves the weights a little


@pytest.mark.parametrize("rule", [Shampoo(0.1), SOAP(0.1), LARS(0.1), LAMB(0.1)], ids=repr)
def test_where_nothing_was_divided_yet_there_is_the_sharpness_alone(rule):
    for steps in (0, 1) if isinstance(rule, SOAP) else (0,):  # whose first gradient moves nothing
        assert set(EdgeOfStability()(trained(rule, steps)[0]).values) == {"sharpness"}
    assert set(EdgeOfStability()(replace(trained(rule)[0], optimizer=None)).values) == {"sharpness"}
    assert set(EdgeOfStability()(trained(Decayed(rule, 0.1))[0]).values) == {"sharpness"}


@pytest.mark.parametrize(("rule", "says"), [
    (SAM(SGD(0.1)), "no stability threshold is known for SAM"),
    (ByKind(biases=Shampoo(0.1), rest=SAM(SGD(0.1))), "no stability threshold is known for ByKind"),
    (Decayed(LARS(0.1), 0.1), "no stability threshold is known for LARS with L2 regularisation"),
    (Decayed(Lion(0.1), 0.1), "no stability threshold is known for Lion with L2 regularisation"),
    (None, "no rule is known"),
], ids=repr)
def test_a_rule_without_a_threshold_says_so(rule, says):
    snapshot, _ = trained(SGD(0.1))
    reading = EdgeOfStability()(replace(snapshot, optimizer=None, rule=rule))
    assert says in reading.silence
    assert set(reading.values) == {"sharpness"}


def test_a_rule_whose_threshold_is_its_live_optimisers_says_where_to_take_it():
    for rule in (Lion(0.1), SOAP(0.1), LAMB(0.1), ByKind(matrices=Muon(0.1), rest=SGD(0.1))):
        snapshot, _ = trained(SGD(0.1))
        silence = EdgeOfStability()(replace(snapshot, optimizer=None, rule=rule)).silence
        assert silence.endswith("of its live optimiser: take it during training, Watch(EdgeOfStability())")
    other = torch.optim.NAdam(snapshot.model.parameters())
    assert "for NAdam as it is set" in EdgeOfStability()(replace(snapshot, optimizer=other)).silence
    for rate in (0.0, torch.tensor(0.0)):  # where the Trainer of transformers ends
        ended = torch.optim.SGD(snapshot.model.parameters(), lr=rate)
        assert "at a learning rate of 0" in EdgeOfStability()(replace(snapshot, optimizer=ended)).silence
    assert not EdgeOfStability()(trained(LAMB(0.1))[0]).silence
    assert not EdgeOfStability()(trained(LAMB(0.1), steps=0)[0]).silence  # there will be one
