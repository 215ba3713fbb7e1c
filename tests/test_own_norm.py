"""Sharpness in a rule's own norm, against every vertex of its ball, and thresholds where a loss is quadratic."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from optscope import Plan, train
from optscope.errors import UserError
from optscope.optim import SGD, Adam, AdamW, ByKind, Decayed, Momentum, Muon, NormalizedSGD, Rounded, SignSGD
from optscope.optim.kinds import layout_of
from optscope.optim.norm import Ball, Steepest
from optscope.probes.batch_sharpness import BatchSharpness
from optscope.probes.edge import STARTS, EdgeOfStability
from optscope.probes.hessian import Hessian, SymmetricOperator
from optscope.probes.own_norm import reach
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.vector import Layout


class Dense(SymmetricOperator):
    """A matrix that is there."""

    def __init__(self, matrix, layout):
        super().__init__(layout, matrix)
        self.matrix = matrix

    def _product(self, vector):
        return self.matrix @ vector


def brute(matrix):
    """The largest dᵀAd over all 2^n signs."""
    n = len(matrix)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n - 1)), dtype=matrix.dtype)
    signs = torch.cat([signs, torch.ones(len(signs), 1, dtype=matrix.dtype)], dim=1)  # −d is as good as d
    return float(((signs @ matrix) * signs).sum(1).max())


def small_net(seed):
    """The Hessian of a net of 13 weights, and its gradient."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(40, 2, dtype=torch.double)
    hessian = Hessian(model, functional.mse_loss, x, x.prod(1, keepdim=True))
    return hessian, hessian.gradient()


def test_the_lower_bound_is_near_the_best_of_all_signs_of_small_nets():
    shares = []
    for seed in range(10):
        hessian, gradient = small_net(seed)
        matrix = torch.stack([hessian(e) for e in torch.eye(hessian.size, dtype=torch.double)])
        ball = SignSGD(lr=1.0).ball(hessian.layout)
        top = torch.linalg.eigh(matrix)
        drawn = torch.randn(STARTS, hessian.size, generator=torch.Generator().manual_seed(0)).double()
        found = reach(hessian, ball, [gradient, top.eigenvectors[:, -1], *drawn])
        best = brute(matrix)
        assert found.value <= best * (1 + 1e-12) <= float(top.eigenvalues[-1]) * ball.square(hessian.layout)
        assert float(found.vector @ matrix @ found.vector) == pytest.approx(found.value)
        shares.append(found.value / best)
    assert min(shares) > 0.85
    assert np.quantile(shares, 0.1) > 0.94
    assert np.median(shares) == pytest.approx(1)


LAYOUT = Layout(("w", "v"), (torch.Size([3, 2]), torch.Size([2, 2])))
BALLS = {"linf": SignSGD(1.0).ball(LAYOUT), "layers": NormalizedSGD(1.0).ball(LAYOUT),
         "model": NormalizedSGD(1.0, per="model").ball(LAYOUT), "rms": NormalizedSGD(1.0, rms=True).ball(LAYOUT),
         "spectral": Muon(1.0).ball(LAYOUT), "kernels": Muon(1.0, length="match_rms_adamw").ball(LAYOUT)}


def norm_of(ball, vector):
    """The norm, written out once more."""
    parts = LAYOUT.views(vector)
    if ball.norm == "l2":
        blocks = {b: sum(float(p.square().sum()) for p, own in zip(parts, ball.blocks, strict=True)
                         if own == b) ** 0.5 for b in ball.blocks}
        return max(blocks[b] / r for b, r in zip(ball.blocks, ball.radii, strict=True))
    size = {"linf": lambda p: p.abs().max(), "spectral": lambda p: torch.linalg.svdvals(p).max()}[ball.norm]
    return max(float(size(p)) / r for p, r in zip(parts, ball.radii, strict=True))


@pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
def test_the_furthest_of_a_ball_lies_on_its_edge_and_no_other_is_further(ball):
    torch.manual_seed(0)
    vector = torch.randn(10, dtype=torch.double)
    far = ball.furthest(vector, LAYOUT)
    assert norm_of(ball, far) == pytest.approx(1)
    assert float(far.square().sum()) <= ball.square(LAYOUT) * (1 + 1e-12)
    for other in torch.randn(200, 10, dtype=torch.double):
        assert float(vector @ other) / norm_of(ball, other) <= float(ball.dual(vector, LAYOUT)) + 1e-12


@pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
def test_reach_climbs_and_stays_under_the_eigenvalue_times_the_squared_radius(ball):
    torch.manual_seed(1)
    a = torch.randn(10, 10, dtype=torch.double)
    matrix = a @ a.T
    found = reach(Dense(matrix, LAYOUT), ball, torch.randn(4, 10, dtype=torch.double), most=50)
    assert found.value <= float(torch.linalg.eigvalsh(matrix)[-1]) * ball.square(LAYOUT)
    tried = torch.stack([d / norm_of(ball, d) for d in torch.randn(3000, 10, dtype=torch.double)])
    assert found.value >= float(((tried @ matrix) * tried).sum(1).max())
    if len(set(ball.blocks)) == 1:  # the l2 norm of all: the eigenvalue itself
        assert found.value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-2)


def quadratic(rule, weights):
    """A linear map of mean squared error to 0: its loss is a quadratic of 6 weights."""
    torch.manual_seed(3)
    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weights)
    x = torch.randn(16, 3, dtype=torch.double) * torch.tensor([1.0, 2.0, 0.5])
    y = torch.zeros(16, 2, dtype=torch.double)
    made = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), name="bowl", kind="regression",
                             bounds=None)
    return Snapshot(model, made, optimizer=rule.optimizer(model.parameters())), x


@pytest.mark.parametrize(("rule", "slack"), [
    (SignSGD(1.0), 1e-3), (NormalizedSGD(1.0), 1e-2), (NormalizedSGD(1.0, rms=True), 1e-2),
    (Rounded(SignSGD(1.0), k=8), 1e-3), (Muon(1.0, momentum=0.0, nesterov=False, iterations=30), None)], ids=repr)
def test_the_loss_of_a_quadratic_falls_below_the_threshold_and_rises_above(rule, slack):
    """In the direction d that has dᵀHd = S both are exact."""
    snapshot, x = quadratic(rule, torch.ones(2, 3))
    hessian = Hessian(snapshot.model, functional.mse_loss, x, torch.zeros(16, 2, dtype=torch.double))
    inner = rule.rule if isinstance(rule, Rounded) else rule
    d = reach(hessian, inner.ball(hessian.layout), torch.eye(6, dtype=torch.double), rel=1e-9, most=200).vector
    ratios = {}
    for factor in (0.8, 1.25):
        lr = 2 * 0.5 * factor  # at w = d/2, ‖g‖_* = S/2, so that 2‖g‖_*/lr = S at lr = 1
        snapshot, x = quadratic(rule.with_(lr=lr), d.view(2, 3) / 2)
        y = torch.zeros(16, 2, dtype=torch.double)
        ratios[factor] = EdgeOfStability(rel=1e-4)(snapshot).values
        before = functional.mse_loss(snapshot.model(x), y)
        before.backward()
        snapshot.optimizer.step()
        after = functional.mse_loss(snapshot.model(x), y)
        if slack is not None:  # Newton-Schulz is only nearly orthogonal
            assert (after < before) == (factor < 1)
        assert ratios[factor]["sharpness met"] <= ratios[factor]["sharpness met limit"]
    for factor, values in ratios.items():
        assert values["sharpness / threshold"] == pytest.approx(factor, rel=slack or 1e-2)


@pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
def test_steepest_descent_in_any_norm_crosses_at_two_over_the_rate(ball):
    """With the dual norm in its step, w ← w − η ‖g‖_* d, every threshold is 2/S (arXiv 2603.05002)."""
    torch.manual_seed(4)
    a = torch.randn(10, 10, dtype=torch.double)
    matrix = a @ a.T + torch.eye(10, dtype=torch.double)
    found = reach(Dense(matrix, LAYOUT), ball, torch.randn(6, 10, dtype=torch.double), rel=0.0, most=300)
    for factor in (0.99, 1.01):
        w, eta = found.vector, factor * 2 / found.value
        for _ in range(5):
            g = matrix @ w
            w = w - eta * ball.dual(g, LAYOUT) * ball.furthest(g, LAYOUT)
        grown = float(w @ matrix @ w) / found.value
        assert grown == pytest.approx((2 * factor - 1) ** 10, rel=1e-3)


def test_where_nothing_is_known_of_a_norm_there_is_the_sharpness_alone():
    for rule in (Decayed(SignSGD(0.1), decay=0.1), SignSGD((0.1, 0.2))):
        snapshot, _ = quadratic(SignSGD(0.1), torch.ones(2, 3))
        assert set(EdgeOfStability()(replace(snapshot, optimizer=None, rule=rule)).values) == {"sharpness"}
    assert not isinstance(SGD(0.1), Steepest)
    with pytest.raises(UserError, match="steps matrices"):
        Muon(0.1).ball(Layout(("b",), (torch.Size([2]),)))


def test_batch_sharpness_is_the_mean_over_batches_with_its_error():
    rule = SGD(0.1, momentum=0.9)
    snapshot, x = quadratic(rule, torch.tensor([[1.0, -2, 3], [0, 1, 1]]))
    reading = BatchSharpness(batch=4)(snapshot)
    w = snapshot.model.weight.detach()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(snapshot.seed))
    each = []
    for part in x[order].split(4):
        gram = part.T @ part / 4  # mean over 8 outputs of squares: H = gram in each of two rows
        g = w @ gram
        each.append(float((g @ gram * g).sum() / g.square().sum()))
    assert reading.arrays["batches"] == pytest.approx(np.array(each))
    assert reading.values["batch sharpness"] == pytest.approx(np.mean(each))
    assert reading.values["batch sharpness error"] == pytest.approx(np.std(each, ddof=1) / 2)
    low, high = reading.arrays["batch sharpness interval"]
    assert low < np.mean(each) < high
    assert (reading.values["small-batch edge"], reading.values["large-batch edge"]) == pytest.approx((2, 38))
    averaged = BatchSharpness(batch=4)(replace(snapshot, optimizer=None, rule=Momentum(1.0, 0.9))).values
    assert averaged == pytest.approx(reading.values)
    for other in (Adam(0.1), SGD(0.1, 0.9, nesterov=True)):
        found = BatchSharpness(batch=4)(replace(snapshot, optimizer=None, rule=other))
        assert "small-batch edge" not in found.values


def test_batch_sharpness_without_slopes_or_batches_says_so():
    snapshot, _ = quadratic(SGD(0.1), torch.zeros(2, 3))
    assert "other than 0" in BatchSharpness(batch=4)(snapshot).silence
    with pytest.raises(UserError, match="needs two batches of 9 examples; got 16"):
        BatchSharpness(batch=9)(snapshot)
    with pytest.raises(UserError, match="whole number"):
        BatchSharpness(batch=0)
    with pytest.raises(UserError, match="not known in which batches"):
        BatchSharpness()(snapshot)


def test_batch_sharpness_takes_the_batch_of_the_plan():
    snapshot, _ = quadratic(SGD(0.1), torch.ones(2, 3))
    task = replace(snapshot.task, model=lambda: nn.Linear(3, 2, bias=False).double())
    seen, plan = [], Plan(epochs=1, batch=4)
    done = train(task, SGD(0.1), plan, seed=0, watch=lambda found: seen.append(BatchSharpness()(found)), at=[2])
    assert seen[0].arrays["batch size"] == 4
    assert seen[0].arrays["batches"].shape == (4,)
    assert BatchSharpness()(done.snapshot).values == BatchSharpness(batch=4)(done.snapshot).values


def test_a_ball_of_signs_has_no_flat_side():
    """Zeros have a sign too: it is vertices that are searched."""
    ball = Ball("linf", (2.0,), (0,))
    assert ball.furthest(torch.zeros(3), Layout(("w",), (torch.Size([3]),))).tolist() == [2, 2, 2]


def test_of_a_split_rule_the_first_part_has_the_norm_and_the_others_stand_still():
    rule = ByKind(matrices=Muon(lr=0.1), rest=AdamW(lr=0.01))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    layout = layout_of(model)
    ball, vector = rule.ball(layout), torch.randn(layout.size).double()
    found = ball.furthest(vector, layout)
    own = Muon(lr=0.1).ball(layout.take([0])).furthest(vector[:12], layout.take([0]))
    torch.testing.assert_close(found[:12], own)
    assert not found[12:].any()
    assert ball.square(layout) == pytest.approx(3 * 4 / 3)  # rank 3, of length √(4/3)
    assert ByKind(matrices=AdamW(lr=0.1), rest=SignSGD(lr=0.1)).ball(layout) is None
