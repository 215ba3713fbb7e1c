"""Optimisers with habits of their own in our loops: modes, random numbers, rates, formats, parameters left out."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.optim import SGD, Adam, Decayed, Foreign, Graft, Players, Rounded, Rule, Scheduled, StepDecay
from optscope.tasks.gan import gan
from optscope.tasks.task import Task
from tiny import TASK

PLAN = Plan(3, 16, StepDecay())


def weights(trained):
    return weights_of(trained.snapshot.model)


def weights_of(model):
    return [p.detach().clone() for p in model.parameters()]


class Averaging(torch.optim.SGD):
    """Descent that stands for the mean of its weights so far, and steps in train mode only."""

    training = False

    @torch.no_grad()
    def step(self, closure=None):
        assert self.training
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["n"] = state.get("n", 0) + 1
            state["sum"] = state.get("sum", 0) + p.detach().double()

    @torch.no_grad()
    def eval(self):
        if self.training:
            for p in self.param_groups[0]["params"]:
                state = self.state[p]
                state["last"] = p.detach() * (1 + 1e-6)  # coming back is not exact
                p.copy_(state["sum"] / state["n"])  # a KeyError before the first step
        self.training = False

    @torch.no_grad()
    def train(self):
        if not self.training:
            for p in self.param_groups[0]["params"]:
                if "last" in self.state[p]:
                    p.copy_(self.state[p].pop("last"))
        self.training = True


def test_what_is_seen_and_left_are_the_weights_that_the_optimiser_stands_for():
    path, seen = [], []
    train(TASK, SGD(lr=0.1), Plan(3, 16), 1, watch=lambda s: path.append(weights_of(s.model)), at=range(1, 19))
    at = (0, 4, 9, 18)
    trained = train(TASK, Foreign(Averaging, lr=0.1), Plan(3, 16), 1, at=at,
                    watch=lambda s: seen.append(weights_of(s.model)))
    for found, step in [*zip(seen[1:], at[1:], strict=True), (weights(trained), 18)]:
        for i, p in enumerate(found):
            mean = torch.stack([moment[i].double() for moment in path[:step]]).mean(0)
            torch.testing.assert_close(p.double(), mean, rtol=1e-5, atol=1e-7)
    unseen = train(TASK, Foreign(Averaging, lr=0.1), Plan(3, 16), 1)
    assert torch.equal(trained.losses, unseen.losses)
    assert all(map(torch.equal, weights(trained), weights(unseen)))


def test_an_optimiser_with_modes_has_no_twin():
    with pytest.raises(UserError, match="has train and eval modes"):
        train(TASK, Rounded(Foreign(Averaging, lr=0.1), 3), PLAN, 1)


@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW"])
def test_schedule_free_weights_are_those_after_eval(name):
    pytest.importorskip("pytorch_optimizer")
    seen = []
    trained = train(TASK, Foreign(f"pytorch_optimizer:{name}", lr=0.5), PLAN, 1, at=(5,),
                    watch=lambda s: seen.append(s.optimizer.eval()))
    before = weights(trained)
    trained.snapshot.optimizer.eval()
    assert all(map(torch.equal, before, weights(trained)))
    assert len(seen) == 1


class Drawing(torch.optim.SGD):
    """Draws random numbers of every kind when it is made and when it steps."""

    def __init__(self, params, lr=0.1):
        torch.rand(7)
        np.random.rand(3)
        random.random()
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        self.noise = (float(torch.rand(())), float(np.random.rand()), random.random())
        super().step(closure)


MASKS: list[tuple[float, ...]] = []


class Spy(nn.Dropout):
    """Notes which units it drops, and what NumPy and Python draw beside it."""

    def forward(self, x):
        out = super().forward(x)
        if self.training:
            MASKS.append((float((out != 0).sum()), float(np.random.rand()), random.random()))
        return out


def test_random_numbers_of_an_optimiser_are_its_own():
    task = replace(TASK, model=lambda: nn.Sequential(nn.Linear(2, 8), nn.Sigmoid(), Spy(0.5), nn.Linear(8, 3)))
    found = []
    for rule in (SGD(lr=0.1), Foreign(Drawing), Foreign("torch.optim:SGD", lr=0.1), Foreign(Drawing)):
        MASKS.clear()
        states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        trained = train(task, rule, PLAN, 1)
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
        found.append((list(MASKS), getattr(trained.snapshot.optimizer, "noise", None)))
    assert all(masks == found[0][0] for masks, _ in found)
    assert found[1][1] == found[3][1]


class Halving(torch.optim.SGD):
    """Halves its own rate after every step."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.5


def test_a_rate_that_an_optimiser_keeps_itself_is_multiplied_by_the_schedule():
    plain = train(TASK, Foreign(Halving, lr=0.1), Plan(2, 32), 1)
    assert plain.snapshot.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**6
    decayed = train(TASK, Foreign(Halving, lr=0.1), Plan(2, 32, StepDecay(at=(0.5,))), 1)
    assert decayed.snapshot.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**6 * 0.1)


class Viewing(torch.optim.SGD):
    """Sees weights as rows, as AdamP and Nero do, which channels-last ones do not allow."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.view(p.shape[0], -1)
        super().step(closure)


def test_an_optimiser_that_cannot_step_channels_last_weights_gets_contiguous_ones():
    x, y = torch.rand(32, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    task = Task.from_tensors(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)),
                             (x, y), (x, y))
    ends = {rule: train(task, rule, Plan(1, 8), 1) for rule in (SGD(lr=0.1), Foreign(Viewing, lr=0.1),
                                                                Rounded(Foreign(Viewing, lr=0.1), 1),
                                                                Foreign("torch.optim:SGD", lr=0.1))}
    last = [weights(trained)[0].is_contiguous(memory_format=torch.channels_last) for trained in ends.values()]
    assert last == [True, False, False, True]
    for trained in ends.values():
        torch.testing.assert_close(trained.losses, ends[SGD(lr=0.1)].losses, rtol=1e-5, atol=1e-6)


class Sometimes(nn.Module):
    """Two branches of which a batch uses one, a head, and a weight that nobody uses."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(2, 4), nn.Linear(2, 4)])
        self.head, self.idle = nn.Linear(4, 3), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.head(self.branches[int(x[0, 0] > x[0, 1])](x).tanh())


@pytest.mark.parametrize(("rule", "torchs"), [
    (Rounded(SGD(lr=0.2, momentum=0.9), 1), lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9)),
    (Rounded(Adam(lr=0.02), 1, steps=4), lambda p: torch.optim.Adam(p, lr=0.02)),
    (Graft(Adam(lr=0.02), Adam(lr=1.0)), lambda p: torch.optim.Adam(p, lr=0.02)),
    (Rounded(Foreign("torch.optim:NAdam", lr=0.02), 1), lambda p: torch.optim.NAdam(p, lr=0.02)),
    (Decayed(Foreign("torch.optim:Adam", lr=0.02), 0.1), lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.1)),
    (Graft(Foreign("torch.optim:Rprop"), SGD(lr=1.0)), None),
    (Foreign("torch.optim:Adam", lr=0.02), lambda p: torch.optim.Adam(p, lr=0.02))],
    ids=lambda value: repr(value) if isinstance(value, Rule) else None)
def test_parameters_unused_by_some_batches_are_left_alone_by_those(rule, torchs):
    task = replace(TASK, model=Sometimes)
    used = []
    trained = train(task, rule, Plan(4, 4), 1, at=range(1, 96), watch=lambda s: used.append(
        tuple(p.grad is not None for p in s.model.parameters())))
    assert len(set(used)) == 2
    assert torch.equal(trained.snapshot.model.idle, torch.ones(2))
    if torchs is not None:
        alone = train(task, Foreign(torch_optimiser, which=torchs), Plan(4, 4), 1)
        for mine, other in zip(weights(trained), weights(alone), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)


def torch_optimiser(params, which=None):
    """Return what `which` makes of parameters."""
    return which(params)


@pytest.mark.parametrize("rule", [Scheduled(SGD(lr=1.0), StepDecay(at=(0.5,)), 4),
                                  Scheduled(Foreign("torch.optim:SGD", lr=1.0), StepDecay(at=(0.5,)), 4)], ids=repr)
def test_a_schedule_counts_all_steps_of_parameters_that_take_turns(rule):
    a, b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = rule.optimizer([a, b])
    for t in range(4):
        a.grad, b.grad = (torch.ones(2), None) if t % 2 == 0 else (None, torch.ones(2))
        optimizer.step()
    torch.testing.assert_close(a.detach(), torch.full((2,), -1.1))  # steps 0 and 2, at factors 1 and 0.1
    torch.testing.assert_close(b.detach(), torch.full((2,), -1.1))


class Wiping(torch.optim.SGD):
    """Writes to the gradients it is given."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.grad.zero_()


def test_players_may_have_modes_and_write_to_their_gradients():
    game = gan("blobs", lambda: nn.Linear(4, 2), lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)),
               Points(), latent=lambda n, g: torch.randn(n, 4, generator=g))
    path, seen = [], []
    plain = Players(generator=SGD(lr=0.1), discriminator=SGD(lr=0.1))
    first = train(game, plain, Plan(1, 16), 1, at=range(1, 7), watch=lambda s: path.append(weights_of(s.model)))
    rule = Players(generator=Foreign(Averaging, lr=0.1), discriminator=Foreign(Wiping, lr=0.1))
    second = train(game, rule, Plan(1, 16), 1, at=(3,), watch=lambda s: seen.append(weights_of(s.model)))
    torch.testing.assert_close(first.losses, second.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.traces["slopes discriminator"], second.traces["slopes discriminator"],
                               rtol=1e-4, atol=1e-6)
    names = [name for name, _ in second.snapshot.model.named_parameters()]
    for found, step in ((seen[0], 3), (weights(second), 6)):
        for i, (name, p) in enumerate(zip(names, found, strict=True)):
            mean = torch.stack([moment[i] for moment in path[:step]]).mean(0)
            torch.testing.assert_close(p, mean if name.startswith("generator") else path[step - 1][i],
                                       rtol=1e-4, atol=1e-6)


def test_a_player_may_leave_weights_unused():
    game = gan("idle", lambda: WithIdle(4, 2), lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)),
               Points(), latent=lambda n, g: torch.randn(n, 4, generator=g))
    rule = Players(generator=Rounded(Foreign("torch.optim:Adam", lr=0.01), 1), discriminator=SGD(lr=0.1))
    played = train(game, rule, Plan(1, 16), 1)
    plain = train(game, Players(generator=Adam(lr=0.01), discriminator=SGD(lr=0.1)), Plan(1, 16), 1)
    assert torch.isfinite(played.losses).all()
    torch.testing.assert_close(played.losses, plain.losses, rtol=1e-4, atol=1e-5)


class WithIdle(nn.Linear):
    """A layer with a weight that nobody uses."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.idle = nn.Parameter(torch.ones(2))


@dataclass(frozen=True)
class Points:
    """The examples of the tiny task."""

    def __call__(self):
        return TASK.data()
