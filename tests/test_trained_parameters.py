"""Only trained parameters count: a frozen part before a head is but another way to give it its inputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.engine.plan import Plan
from optscope.engine.weight_paths import weight_paths
from optscope.errors import UserError
from optscope.optim import SGD, Adam, RMSProp, Rule, Schedule
from optscope.probes.curvature import (
    HessianTrace,
    LayerSharpness,
    PreconditionedSharpness,
    SpectralDensity,
    TopEigenvalues,
)
from optscope.probes.edge import EdgeOfStability
from optscope.probes.game_field import Rotation
from optscope.probes.geometry import FirstStep
from optscope.probes.gradient_noise import DescentSplit, GradientNoise
from optscope.probes.probe import Probe
from optscope.protocol.advice import advise
from optscope.tasks.game import Game, Player
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

PROBES = (TopEigenvalues(k=2), TopEigenvalues(gauss_newton=True), EdgeOfStability(), LayerSharpness(),
          HessianTrace(), SpectralDensity(2, 6), FirstStep(), GradientNoise(4), DescentSplit(8, 4))
ADAPTIVE = (PreconditionedSharpness(), EdgeOfStability())


def body() -> nn.Module:
    """The frozen part: fixed weights, large enough to matter."""
    layer = nn.Linear(10, 32, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(32, 10, generator=torch.Generator().manual_seed(5)))
    return nn.Sequential(layer, nn.Tanh()).requires_grad_(False)


@dataclass(frozen=True)
class Head:
    """The trained head, with the frozen part before it or without."""

    whole: bool

    def __call__(self) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        head = nn.Sequential(nn.Linear(32, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        with torch.no_grad():
            for p in head.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))
        return nn.Sequential(body(), head) if self.whole else head


def task(whole: bool) -> Task:
    x = torch.randn(48, 10, generator=torch.Generator().manual_seed(0)).double()
    seen = x if whole else body()(x)
    y = torch.arange(48) % 3
    return Task.from_tensors(Head(whole), (seen, y), (seen, y), validation=(seen, y), bounds=None)


def snapshot(whole: bool, rule: Rule) -> Snapshot:
    made = task(whole)
    model, data = made.model(), made.data().train
    optimizer = rule.optimizer(model.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(model(data.inputs), data.targets).backward()
        optimizer.step()
    return Snapshot(model, made, rule=rule, optimizer=optimizer)


@pytest.mark.parametrize("rule", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.01), RMSProp(lr=0.01)], ids=repr)
def test_a_frozen_part_is_no_more_than_its_outputs(rule: Rule) -> None:
    whole, alone = snapshot(True, rule), snapshot(False, rule)
    for probe in (*PROBES, *(() if isinstance(rule, SGD) else ADAPTIVE)):
        found, expected = probe(whole), probe(alone)
        assert set(found.values) == set(expected.values)
        for name, value in expected.values.items():
            assert found.values[name] == pytest.approx(value, rel=1e-8, abs=1e-12), (probe, name)
        for name, array in expected.arrays.items():
            if name == "layers":
                assert found.arrays[name].tolist() == [f"1.{layer}" for layer in array]
            else:
                np.testing.assert_allclose(found.arrays[name], array, rtol=1e-6, atol=1e-10, err_msg=name)
    assert [p.requires_grad for p in whole.model.parameters()] == [False, True, True, True, True]


def test_advice_and_weight_paths_see_trained_weights_alone() -> None:
    plan, rules = Plan(epochs=4, batch=16), (SGD(lr=0.1), SGD(lr=0.2))
    first, second = (advise(task(whole), SGD(lr=0.1, momentum=0.9), plan) for whole in (True, False))
    assert str(first) == str(second)
    far, near = (weight_paths(task(whole), rules, plan, 1, at=[3, 9]) for whole in (True, False))
    np.testing.assert_allclose(far.distance, near.distance, rtol=1e-6)
    np.testing.assert_allclose(far.relative, near.relative, rtol=1e-6)


class Scaled(nn.Module):
    """One number, times a frozen one or by itself."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.tensor([0.3]))
        self.factor = nn.Parameter(torch.tensor([2.0]), requires_grad=False) if frozen else 2.0

    def forward(self) -> Tensor:
        return self.own * self.factor


@dataclass(frozen=True)
class Make:
    """A factory of `Scaled`."""

    frozen: bool

    def __call__(self) -> nn.Module:
        return Scaled(self.frozen)


@dataclass(frozen=True)
class Bilinear:
    """± x y + d x² / 2, in the players' outputs x and y."""

    sign: int

    def __call__(self, networks, real, latent) -> Tensor:
        x, y = networks["first"](), networks["second"]()
        return (self.sign * x * y + 0.5 * (x if self.sign > 0 else y) ** 2).sum()


def test_a_game_turns_in_its_trained_weights() -> None:
    def rotation(frozen: bool) -> dict[str, float]:
        x = torch.zeros(8, 1)
        data = Task.from_tensors(Make(frozen), (x, x), (x, x)).data
        game = Game("bilinear", data=data, bounds=None,
                    players=tuple(Player(name, Make(frozen), Bilinear(sign))
                                  for name, sign in (("first", 1), ("second", -1))))
        return dict(Rotation()(Snapshot(game.model(), game)).values)

    assert rotation(True) == pytest.approx(rotation(False))
    # in the trained numbers J = [[4, 4], [-4, 4]], with the eigenvalues 4 ± 4i
    assert rotation(True)["leading eigenvalue, imaginary"] == pytest.approx(4, rel=1e-5)
    assert rotation(True)["leading eigenvalue, modulus"] == pytest.approx(4 * 2**0.5, rel=1e-5)


@pytest.mark.parametrize("probe", [EdgeOfStability(), GradientNoise(4), FirstStep()], ids=repr)
def test_a_model_that_is_frozen_through_and_through_is_refused(probe: Probe) -> None:
    found = snapshot(True, SGD(lr=0.1))
    with pytest.raises(UserError, match="trained parameters; this Sequential has none"):
        probe(replace(found, model=found.model.requires_grad_(False)))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_copy_or_an_average_of_the_model_has_no_threshold_and_says_why(groups: int) -> None:
    made = task(False)
    model = made.model()
    halves = [[*model.parameters()]] if groups == 1 else [model[0].parameters(), model[2].parameters()]
    parts = [{"params": part, "lr": 0.01 * i} for i, part in enumerate(halves, 1)]
    optimizer = torch.optim.Adam(parts)
    functional.cross_entropy(model(made.data().train.inputs), made.data().train.targets).backward()
    optimizer.step()
    assert "stability threshold" in EdgeOfStability()(Snapshot(model, made, optimizer=optimizer)).values
    reading = EdgeOfStability()(Snapshot(copy.deepcopy(model), made, optimizer=optimizer))
    assert set(reading.values) == {"sharpness"}
    assert "of a model of which Adam holds no parameter: measure the one that it steps" in reading.silence


def test_layers_may_be_freed_on_the_way() -> None:
    """The search for the top starts from the last answer, which may have had fewer rows."""
    found = snapshot(True, SGD(lr=0.1))
    probe = TopEigenvalues()
    few = probe(found).values["sharpness"]
    freed = replace(found, optimizer=None, model=found.model.requires_grad_(True))
    assert probe(freed).values["sharpness"] >= few


def test_advice_where_a_schedule_stands_still() -> None:
    """At a rate of 0 there is no step to foretell: the other moments are counted."""
    plan = Plan(epochs=8, batch=16, schedule=Pause())
    assert advise(task(False), SGD(lr=0.1, momentum=0.9), plan).product > 0


@dataclass(frozen=True)
class Pause(Schedule):
    """The full rate, and none in the second quarter."""

    def __call__(self, progress: float) -> float:
        return 0.0 if 0.25 <= progress < 0.5 else 1.0
