"""Grafts stop to shrink where they are printed to, while the lengths of their steps are held in proportion."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from optscope.optim import SAM, SGD, SOAP, Adam, AdamW, Cosine, Graft, Momentum, Scheduled, Shampoo, SignSGD
from optscope.optim.kinds import layout_of
from optscope.optim.rule import Rule
from optscope.probes.edge import EdgeOfStability
from optscope.tasks.snapshot import Snapshot
from test_held_still import TINY, Step, Still, critical, innermost, trained


def moves(rule: Rule, snapshot: Snapshot, part: str = "") -> list[float]:
    """How far the next step moves each layer, of a graft or of a part of it, in a copy."""
    model, data = copy.deepcopy(snapshot.model), snapshot.task.data().train
    before, optimizer = [p.detach().clone() for p in model.parameters()], rule.optimizer(model.parameters())
    for p, old in zip(model.parameters(), snapshot.model.parameters(), strict=True):
        state = copy.deepcopy(snapshot.optimizer.state[old])
        optimizer.state[p] = innermost(state)[part] if part else state
    optimizer.zero_grad()
    functional.mse_loss(model(data.inputs), data.targets).backward()
    optimizer.step()
    return [float((p.detach() - b).norm()) for p, b in zip(model.parameters(), before, strict=True)]


GRAFTS = [Graft(Adam(0.01), Shampoo(1.0, every=3)), Graft(Adam(0.01), SGD(0.3, 0.9)),
          Graft(SignSGD(0.01), Adam(1.0)), Graft(AdamW(0.01, decay=0.2), Momentum(0.1, 0.5)),
          Graft(SGD(0.1, 0.5), SOAP(0.1)), Scheduled(Graft(Adam(0.01), Shampoo(1.0)), Cosine(), 10)]


@pytest.mark.parametrize("rule", GRAFTS, ids=repr)
def test_a_graft_crosses_where_it_is_printed(rule):
    snapshot, hessian = trained(rule)
    graft = rule.rule if isinstance(rule, Scheduled) else rule
    layout = layout_of(snapshot.model)
    states = [innermost(snapshot.optimizer.state[p])["direction"] for p in snapshot.model.parameters()]
    still = Still(graft.direction, layout, states)
    length, own = moves(rule, snapshot), moves(graft.direction, snapshot, "direction")
    ratio = layout.spread(torch.tensor([a / b for a, b in zip(length, own, strict=True)]).double())

    def step_at(factor: float) -> Step:
        def step(z: Tensor) -> Tensor:
            w, mean = (TINY * z).view(2, -1)
            there, after = still.step(graft.direction.lr, hessian @ w, w, mean)
            return torch.cat([w + factor * ratio * (there - w), after]) / TINY
        return step

    factor = critical(step_at, 2 * layout.size, 1e-4, 1e6)
    values = EdgeOfStability(rel=1e-8)(snapshot).values
    assert 1 / values["sharpness / threshold"] == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("rule", [
    Graft(Adam(0.1), SignSGD(0.1)), Graft(Adam(0.1), AdamW(0.1, decay=0.1)), Graft(SAM(SGD(0.1)), SGD(0.1)),
    Graft(Adam(0.1), SGD(0.1), per="model"), Graft(Adam(0.1), Graft(Adam(0.1), SGD(0.1)))], ids=repr)
def test_a_graft_of_which_nothing_is_known_says_so(rule):
    reading = EdgeOfStability()(replace(trained(SGD(0.1))[0], optimizer=None, rule=rule))
    assert reading.silence == "no stability threshold is known for Graft"


def test_a_reading_moves_neither_weights_nor_states():
    snapshot, _ = trained(Graft(Adam(0.01), Shampoo(1.0)))
    now = dict(snapshot.model.state_dict()), snapshot.optimizer.state_dict()["state"]
    before = copy.deepcopy(now)
    EdgeOfStability()(snapshot)
    torch.testing.assert_close(now, before, rtol=0, atol=0)


def test_a_layer_that_a_graft_leaves_in_place_is_not_met():
    snapshot, hessian = trained(Graft(SGD(0.1, 0.5), SGD(0.1)))
    model, data = snapshot.model, snapshot.task.data().train
    loss = functional.mse_loss(model(data.inputs), data.targets)
    states = [snapshot.optimizer.state[p]["magnitude"] for p in model.parameters()]
    for state, g in zip(states[1:], torch.autograd.grad(loss, list(model.parameters()))[1:], strict=True):
        state["v"] = -g / 0.5  # so that the magnitude of all but the matrix is 0
    length, own = moves(snapshot.rule, snapshot), moves(snapshot.rule.direction, snapshot, "direction")
    assert length[1:] == pytest.approx([0, 0], abs=1e-12)
    top = float(torch.linalg.eigvalsh(hessian[:6, :6])[-1]) * length[0] / own[0]
    assert EdgeOfStability(rel=1e-8)(snapshot).values["sharpness met"] == pytest.approx(top, rel=1e-6)
