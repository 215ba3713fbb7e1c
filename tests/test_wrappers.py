"""What is known of a rule is known of it inside schedules, decay and rounding, in every nesting."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import pytest
import torch

from optscope.errors import UserError
from optscope.optim import (
    SGD,
    SVAG,
    Adam,
    Cosine,
    Decayed,
    Foreign,
    Graft,
    Momentum,
    Players,
    RMSProp,
    Rounded,
    Rule,
    Schedule,
    Scheduled,
    SignSGD,
    matched,
)
from optscope.optim.combinator import bare
from optscope.optim.momentum import momentum_of
from optscope.probes.gradient_noise import effective_rate
from optscope.probes.live import adaptive, preconditioner
from optscope.probes.rule_in_use import rule_in_use, threshold
from optscope.tasks.snapshot import Snapshot
from optscope.vector import Layout

DECAY = 0.3


@dataclass(frozen=True)
class Half(Schedule):
    """Half the rate throughout, so that every step is one after which a simulation may ask."""

    def __call__(self, done: float) -> float:
        return 0.5


WRAP = {"scheduled": lambda rule: Scheduled(rule, Half(), 10), "rounded": lambda rule: Rounded(rule, 3),
        "decayed": lambda rule: Decayed(rule, DECAY)}
NESTINGS = [names for n in range(4) for names in permutations(WRAP, n)]
INNER = [SGD(lr=0.1), SGD(lr=0.1, momentum=0.8), SGD(lr=0.1, momentum=0.8, nesterov=True),
         Momentum(lr=0.4, beta=0.8)]


def nested(rule: Rule, names) -> Rule:
    for name in names:
        rule = WRAP[name](rule)
    return rule


def final(rule: Rule, gradient, steps: int, start: float = 1.0) -> list[float]:
    """The path of one weight."""
    w = torch.tensor([start], dtype=torch.float64)
    layout, path = Layout.of([w]), [start]
    state = rule.init(w, layout)
    for _ in range(steps):
        step, state = rule.update(gradient(w), state, w, layout)
        w = w + step
        path.append(float(w))
    return path


@pytest.mark.parametrize("names", NESTINGS, ids="+".join)
@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_every_nesting_agrees_with_what_its_steps_do(inner, names):
    rule = nested(inner, names)
    edge = threshold(rule)
    below, above = (final(rule, lambda w, h=h: h * w, 600) for h in (0.98 * edge, 1.02 * edge))
    assert abs(below[-1]) < 0.1
    assert abs(above[-1]) > 10
    free = nested(inner, [name for name in names if name != "decayed"])
    path = final(free, torch.ones_like, 400)
    assert effective_rate(rule) == pytest.approx(path[-2] - path[-1])
    assert momentum_of(rule) == momentum_of(inner)
    assert adaptive(rule) is None
    plain = matched(rule)
    assert momentum_of(plain) == 0
    assert effective_rate(plain) == pytest.approx(effective_rate(rule))
    assert [type(each) for each in plain.walk()][:-1] == [type(each) for each in rule.walk()][:-1]


@pytest.mark.parametrize("names", NESTINGS, ids="+".join)
@pytest.mark.parametrize("inner", [Adam(lr=0.1), RMSProp(lr=0.1)], ids=repr)
def test_adaptive_rules_are_found_inside(inner, names):
    rule = nested(inner, names)
    assert adaptive(rule) is inner
    assert effective_rate(rule) is None
    if "decayed" in names:
        with pytest.raises(UserError, match="no stability threshold"):
            threshold(rule)
    else:
        assert threshold(rule) == pytest.approx(threshold(inner) * (2 if "scheduled" in names else 1))


@pytest.mark.parametrize("rule", [Graft(SGD(lr=0.1), Adam(lr=0.1), per="model"), SVAG(SGD(lr=0.1), 2),
                                  Players(one=SGD(lr=0.1), other=SGD(lr=0.1))], ids=repr)
@pytest.mark.parametrize("names", NESTINGS[:4], ids="+".join)
def test_rules_of_several_parts_are_refused_alike(rule, names):
    rule = nested(rule, names)
    assert adaptive(rule) is effective_rate(rule) is None
    for ask in (threshold, momentum_of):
        with pytest.raises(UserError):
            ask(rule)


def test_matched_svag_keeps_its_level_and_two_schedules_are_one_too_many():
    assert matched(SVAG(Rounded(SGD(lr=0.1, momentum=0.5), 3), 2)) == SVAG(Rounded(SGD(lr=0.2), 3), 2)
    twice = Scheduled(Rounded(Scheduled(Momentum(lr=0.1), Half(), 4), 3), Half(), 4)
    assert effective_rate(twice) == pytest.approx(0.025)
    with pytest.raises(UserError, match="write one schedule"):
        matched(twice)
    assert matched(Scheduled(Scheduled(SGD(lr=0.1), Half(), 4), Half(), 4)) == Scheduled(
        Scheduled(SGD(lr=0.1), Half(), 4), Half(), 4)


def test_no_rate_no_threshold():
    rule = Rounded(Scheduled(Decayed(SGD(lr=0.1), 0.5), Cosine(warmup=0.5), 10), 3)
    assert threshold(rule, 0) == float("inf")
    assert effective_rate(rule, 0) == 0
    model = torch.nn.Linear(2, 1)
    optimizer = SGD(lr=0.1).optimizer(model.parameters())
    optimizer.param_groups[0]["lr"] = 0.0
    assert rule_in_use(Snapshot(model, None, optimizer=optimizer)) is None


def test_several_decays_are_not_one():
    with pytest.raises(UserError, match="make one rule for each member"):
        bare(Decayed(SGD(lr=0.1), (0.1, 0.2)))
    assert effective_rate(Decayed(SGD(lr=0.1), (0.1, 0.2))) is None


def test_a_rule_is_walked_depth_first():
    inner = Foreign("torch.optim:SGD", lr=0.1), SignSGD(lr=0.1), Adam(lr=0.1)
    graft = Graft(Decayed(inner[0], 0.1), inner[1])
    players = Players(a=graft, b=inner[2])
    assert list(players.walk()) == [players, graft, graft.magnitude, *inner]
    assert [rule.foreign for rule in players.walk()] == [True, True, True, True, False, False]


@pytest.mark.parametrize("rule", [Rounded(Adam(lr=0.1), 1), Adam(lr=0.1)], ids=repr)
def test_a_parameter_that_no_step_has_moved_has_an_infinite_preconditioner(rule):
    model = torch.nn.Linear(2, 1)
    optimizer = rule.optimizer(model.parameters())
    model.weight.grad, model.bias.grad = torch.ones_like(model.weight), None
    optimizer.step()
    snapshot = Snapshot(model, None, optimizer=optimizer)
    both, bias = Layout.of(dict(model.named_parameters())), Layout.of({"bias": model.bias})
    found = preconditioner(snapshot, both, torch.ones(3))
    assert (found.root(torch.ones(3)) == 0).tolist() == [False, False, True]
    assert preconditioner(snapshot, bias, torch.ones(1)) is None
    model.bias.grad = torch.zeros(1)  # as flat as it is here, the next gradient moves it
    optimizer.step()
    assert preconditioner(snapshot, bias, torch.ones(1)).root(torch.ones(1)).item() > 1e3
    state = optimizer.state[model.bias]
    state.get("rule", state)["v"].fill_(float("nan"))
    with pytest.raises(UserError, match="positive numbers; got nan"):
        preconditioner(snapshot, both, torch.ones(3))
