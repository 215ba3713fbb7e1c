"""Stability thresholds: against simulated recurrences on both sides, and the recurrences' spectral radii."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from optscope.errors import UserError
from optscope.optim import SGD, Adam, AdamW, ByKind, Constant, Cosine, Decayed, NormalizedSGD, RMSProp, Scheduled
from optscope.optim.rule import Rule
from optscope.probes.rule_in_use import rule_in_use, threshold
from optscope.tasks.snapshot import Snapshot
from optscope.theory import stability
from optscope.vector import Layout

Matrix = Callable[[float], np.ndarray]


def heavy_ball(lr: float, beta: float) -> Matrix:
    """v' = beta v + h w, w' = w - lr v', on (w, v)."""
    return lambda h: np.array([[1 - lr * h, -lr * beta], [h, beta]])


def nesterov(lr: float, beta: float) -> Matrix:
    """v' = beta v + h w, w' = w - lr (h w + beta v'), on (w, v)."""
    return lambda h: np.array([[1 - lr * h - lr * beta * h, -lr * beta**2], [h, beta]])


def averaged(lr: float, beta: float, decay: float) -> Matrix:
    """m' = beta m + (1 - beta) h w, w' = (1 - lr decay) w - lr m', on (w, m)."""
    return lambda h: np.array([[1 - lr * decay - lr * (1 - beta) * h, -lr * beta], [(1 - beta) * h, beta]])


def mixed(lr: float, used: float, kept: float, decay: float) -> Matrix:
    """w' = (1 - lr decay) w - lr (used m + (1 - used) h w), m' = kept m + (1 - kept) h w, on (w, m)."""
    return lambda h: np.array([[1 - lr * decay - lr * (1 - used) * h, -lr * used], [(1 - kept) * h, kept]])


CASES = [
    pytest.param(stability.gradient_descent(lr), heavy_ball(lr, 0.0), id=f"gd-{lr}") for lr in (0.01, 3.0)
] + [
    pytest.param(form(lr, beta), matrix(lr, beta), id=f"{form.__name__}-{lr}-{beta}")
    for form, matrix in ((stability.heavy_ball, heavy_ball), (stability.nesterov, nesterov))
    for lr in (0.01, 3.0) for beta in (0.1, 0.5, 0.9, 0.99)
] + [
    pytest.param(stability.averaged(lr, beta, decay), averaged(lr, beta, decay), id=f"averaged-{lr}-{beta}-{decay}")
    for lr in (0.001, 0.5) for beta in (0.0, 0.5, 0.9, 0.99) for decay in (0.0, 0.1, 1.0)
] + [
    pytest.param(stability.mixed(lr, used, kept, decay), mixed(lr, used, kept, decay),
                 id=f"mixed-{lr}-{used}-{kept}-{decay}")
    for lr in (0.001, 0.5) for used in (0.0, 0.3, 0.9) for kept in (0.1, 0.9, 0.99) for decay in (0.0, 0.1, 3.0)
]


@pytest.mark.parametrize(("edge", "matrix"), CASES)
def test_spectral_radius_crosses_one_at_the_threshold(edge, matrix):
    low, below, at, above = (np.abs(np.linalg.eigvals(matrix(part * edge))).max()
                             for part in (1e-3, 1 - 1e-6, 1, 1 + 1e-6))
    assert max(low, below) < 1 < above
    assert at == pytest.approx(1, abs=1e-9)


PLAIN = [SGD(0.1), SGD(0.1, 0.9), SGD(0.1, 0.5, nesterov=True), SGD(0.1, 0.99, nesterov=True),
         Decayed(SGD(0.1, 0.9), 3.0), Scheduled(SGD(0.1, 0.9), Constant(), 10)]


def growth(rule: Rule, curvature: float, steps: int = 600, **frozen: torch.Tensor) -> float:
    """Let the rule itself descend f(w) = h w^2 / 2 and return how far |w| is in the end from its start."""
    start = torch.tensor([1e-12], dtype=torch.float64)
    w, layout, seen = start, Layout.of([start]), []
    state = rule.init(w, layout)
    for _ in range(steps):
        state |= {name: value for name, value in frozen.items() if name in state}
        step, state = rule.update(curvature * w, state, w, layout)
        w = w + step
        seen.append(float(w.abs() / start))
    return max(seen[-100:])


@pytest.mark.parametrize("rule", PLAIN, ids=repr)
def test_our_rules_shrink_below_their_threshold_and_blow_up_above(rule):
    edge = threshold(rule)
    assert growth(rule, 0.97 * edge) < 1e-1
    assert growth(rule, 1.03 * edge) > 1e1


ADAPTIVE = [Adam(0.01), Adam(0.01, beta1=0.5), AdamW(0.01, decay=2.0), RMSProp(0.01)]


@pytest.mark.parametrize("rule", ADAPTIVE, ids=repr)
def test_adaptive_rules_with_a_preconditioner_held_still(rule):
    """The second moment is set to 1 before each step, and gradients are too small to move it: D = 1 + eps."""
    edge, held = threshold(rule), {"v": torch.ones(1, dtype=torch.float64), "step": torch.tensor(1e6)}
    assert growth(rule, 0.97 * edge, **held) < 1e-1
    assert growth(rule, 1.03 * edge, **held) > 1e1


def test_known_values():
    assert threshold(SGD(0.1)) == 20
    assert threshold(Adam(1e-3)) == pytest.approx(38e3)  # arXiv 2207.14484
    assert threshold(RMSProp(1e-3)) == pytest.approx(2e3)
    assert threshold(Decayed(SGD(0.1), 0.5)) == 19.5


def test_a_schedule_scales_the_threshold():
    rule = Scheduled(SGD(0.1, 0.9), Cosine(warmup=0.5), 100)
    assert threshold(rule, 0) == np.inf
    assert threshold(rule, 25) == pytest.approx(2 * threshold(SGD(0.1, 0.9)))
    assert threshold(rule, 10_000) == threshold(rule, 99)


@pytest.mark.parametrize("rule", [NormalizedSGD(0.1), Decayed(Adam(0.1), 0.1), SGD((0.1, 0.2))], ids=repr)
def test_rules_without_a_threshold_say_so(rule):
    with pytest.raises(UserError, match="stability threshold"):
        threshold(rule)


@pytest.mark.parametrize(("call", "says"), [
    (lambda: stability.heavy_ball(0.0, 0.5), "learning rate > 0"),
    (lambda: stability.nesterov(0.1, 1.0), r"momentum in \[0, 1\)"),
    (lambda: stability.averaged(1.0, 0.9, 2.0), "lr \\* decay < 2"),
    (lambda: stability.mixed(1.0, 0.9, 0.9, 2.0), "lr \\* decay < 2"),
    (lambda: stability.normalized(1.0, 3.0, kept=1.0), r"momentum in \[0, 1\)"),
])
def test_wrong_numbers_are_named(call, says):
    with pytest.raises(UserError, match=says):
        call()


TORCH = [
    (lambda p: torch.optim.SGD(p, 0.2, momentum=0.9, nesterov=True), SGD(0.2, 0.9, nesterov=True)),
    (lambda p: torch.optim.SGD(p, 0.2, weight_decay=0.1), Decayed(SGD(0.2, 0), 0.1)),
    (lambda p: torch.optim.Adam(p, 0.2, betas=(0.8, 0.99)), Adam(0.2, 0.8, 0.99)),
    (lambda p: torch.optim.AdamW(p, 0.2), AdamW(0.2)),
    (lambda p: torch.optim.RMSprop(p, 0.2), RMSProp(0.2)),
    (lambda p: torch.optim.SGD(p, 0.2, momentum=0.9, dampening=0.5), None),
    (lambda p: torch.optim.RMSprop(p, 0.2, centered=True), None),
    (lambda p: torch.optim.NAdam(p, 0.2), None),
    (lambda p: AdamW(0.2).optimizer(p), AdamW(0.2)),
    (lambda p: Decayed(SGD(0.2), 0.1).optimizer(p), Decayed(SGD(0.2), 0.1)),
]


@pytest.mark.parametrize(("make", "rule"), TORCH, ids=lambda x: repr(x) if isinstance(x, Rule) else "")
def test_live_optimisers_are_recognised_with_their_present_rate(make, rule):
    model = torch.nn.Linear(2, 1)
    optimizer = make(model.parameters())
    assert rule_in_use(Snapshot(model, None, optimizer=optimizer)) == rule  # type: ignore[arg-type]
    optimizer.param_groups[0]["lr"] = 0.05
    changed = rule_in_use(Snapshot(model, None, optimizer=optimizer))  # type: ignore[arg-type]
    assert changed == (rule and rule.with_(lr=0.05))


def test_param_groups_that_differ_are_a_rule_each():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias]}], lr=0.2)
    found = rule_in_use(Snapshot(model, None, optimizer=optimizer))  # type: ignore[arg-type]
    assert isinstance(found, ByKind)
    assert [rule for _, rule in found.parts] == [SGD(0.1), SGD(0.2)]
    assert rule_in_use(Snapshot(model, None, rule=SGD(0.3))) == SGD(0.3)  # type: ignore[arg-type]
