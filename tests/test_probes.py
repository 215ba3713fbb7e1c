"""Every probe on every kind of network: finite numbers or one sentence; and what it refuses to measure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.errors import UserError
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.anatomy import StepAnatomy
from optscope.probes.apgd import APGD, TargetedAPGD
from optscope.probes.batch_sharpness import BatchSharpness
from optscope.probes.black_box import RandomSearch
from optscope.probes.chance import Chance
from optscope.probes.curvature import (
    HessianTrace,
    LayerSharpness,
    PreconditionedSharpness,
    SpectralDensity,
    TopEigenvalues,
)
from optscope.probes.edge import EdgeOfStability
from optscope.probes.ensemble import Ensemble
from optscope.probes.frequency import DCT, Fourier, SensitivityMap
from optscope.probes.geometry import FirstStep, Geometry, Margin
from optscope.probes.gradient_noise import DescentSplit, GradientNoise
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.noise import BandNoise, GaussianNoise
from optscope.probes.probe import Probe, Reading
from optscope.probes.robust import RobustAccuracy
from optscope.probes.still import check_finite
from optscope.tasks.models import ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from probe_kinds import others


class Transformer(nn.Module):
    """Rows of an image as tokens, two pre-norm blocks of attention and a two-layer network, a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True), 2,
            enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.squeeze(1))).mean(1))


def dense(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), *middle, nn.Linear(12, 3))


MODELS = {
    "dropout": lambda: dense(nn.ReLU(), nn.Dropout()),
    "layer norm": lambda: dense(nn.LayerNorm(12), nn.GELU()),
    "convolution, batch norm, max pooling": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 3)),
    "residual": lambda: ResNet(depth=8, channels=1, classes=3, width=4)(),
    "transformer": Transformer,
}
QUICK = Ensemble((APGD(steps=3), TargetedAPGD(rivals=1, steps=3), RandomSearch(queries=3)))
SET: tuple[Probe, ...] = (
    Accuracy(), Chance(), GaussianNoise(), BandNoise(),
    SensitivityMap(basis=DCT()), SensitivityMap(basis=Fourier()),
    RobustAccuracy("l2", (0.1, 0.5), QUICK, checked=4), RobustAccuracy("linf", 0.1, QUICK, checked=4),
    Lipschitz(climb=3), TopEigenvalues(k=2, rel=0.1), PreconditionedSharpness(rel=0.1), EdgeOfStability(),
    BatchSharpness(8),
    TopEigenvalues(rel=0.1, gauss_newton=True), LayerSharpness(rel=0.1), HessianTrace(6), SpectralDensity(1, 5),
    Geometry(), FirstStep(), Margin(), GradientNoise(3), DescentSplit(16, 4))
ELSEWHERE = {"Classes", "Coverage", "FID", "Modes", "Rotation", "Samples",  # of games
             "PolarDrift",  # of polar rules
             "Checkpoint"}  # accuracy of two parts side by side
PROBES = (*SET, *others({type(probe).__name__ for probe in SET} | ELSEWHERE))
MAY_BE_INFINITE = {"noise scale", "boundary distance", "boundary distance, lowest tenth"}  # as they say


@dataclass
class Given:
    """A model factory that gives what it holds."""

    model: nn.Module

    def __call__(self) -> nn.Module:
        return self.model


def snapshot(model: nn.Module, x: Tensor, y: Tensor, rule=None, **settings) -> Snapshot:
    """A model after two steps of training by a rule, in training mode."""
    task = Task.from_tensors(Given(model), (x, y), (x, y), validation=(x, y), **settings)
    optimizer = rule.optimizer(model.parameters()) if rule else None
    for _ in range(2 if rule else 0):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Snapshot(model.train(), task, rule=rule, optimizer=optimizer)


@pytest.fixture(scope="module")
def trained() -> Mapping[str, Snapshot]:
    found = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.rand(24, 1, 8, 8), torch.arange(24) % 3
        for name, make in MODELS.items():
            found[name] = snapshot(make(), x, y, Adam(lr=0.01))
    return found


def finite(reading: Reading, probe: Probe) -> None:
    names = {metric.name for metric in probe.metrics}
    assert reading.values
    assert set(reading.values) <= names
    for name, value in reading.values.items():
        for number in value.values() if isinstance(value, Mapping) else [value]:
            assert math.isfinite(number) or name in MAY_BE_INFINITE, (name, value)


def bits(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in model.state_dict().values()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_any_probe_measures_any_network_and_leaves_it_as_it_was(trained, name: str, probe: Probe) -> None:
    found = trained[name]
    before, needs = bits(found.model), [p.requires_grad for p in found.model.parameters()]
    finite(probe(found), probe)
    assert all(map(torch.equal, before, bits(found.model)))
    assert [p.requires_grad for p in found.model.parameters()] == needs
    assert all(module.training for module in found.model.modules())


# What is refused: the probes that meet it, what is wrong, and words of the sentence

class Sampling(nn.Module):
    """Drops inputs whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(functional.dropout(x.flatten(1)))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def spoilt(value: float, name: str = "weight") -> nn.Module:
    """A network with one bad number, in a weight or in the statistics of its batch norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))
    bad = {"weight": model[1].weight, "statistics": model[2].running_mean}[name]
    with torch.no_grad():
        bad.view(-1)[0] = value
    return model


X, Y = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
LABELS = "the labels must be from 0 to 2, the model's classes; "
LOOKING = tuple(p for p in PROBES if not isinstance(p, (Geometry, PreconditionedSharpness, StepAnatomy)))
LEARNING = tuple(p for p in LOOKING if not isinstance(p, Lipschitz))  # the bounds of a network ask for no loss
IMAGES = (BandNoise(), SensitivityMap())


@dataclass(frozen=True)
class Bad:
    """A fault, the probes that must refuse it, and what they must say."""

    name: str
    says: str
    probes: tuple[Probe, ...]
    model: object = linear
    x: Tensor = X
    y: Tensor = Y
    settings: tuple[tuple[str, object], ...] = ()


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


FAULTS = [
    Bad("a loss for each example", r"the loss must be one number .*; got shape \(8,\): take its mean", LEARNING,
        settings=(("loss", summed),)),
    Bad("outside the bounds", r"the inputs must lie in the task's bounds \[0, 1\]; they reach from 0.* to 2.*: put "
        "normalisation inside the model", PROBES, x=2.5 * X),
    Bad("dropout left on", "two passes of the same inputs differ in eval mode.*self.training", LOOKING, Sampling),
    Bad("nan weights", r"the model's parameter '1.weight' is not finite: training diverged", PROBES,
        lambda: spoilt(math.nan)),
    Bad("infinite weights", r"the model's parameter '1.weight' is not finite", PROBES, lambda: spoilt(math.inf)),
    Bad("nan statistics", "the model's outputs are not finite for 24 of 24 examples, though its parameters are: "
        ".*running statistics", LOOKING, lambda: spoilt(math.nan, "statistics")),
    Bad("a label too large", LABELS + ".* from 1 to 3", LEARNING, y=Y + 1),
    Bad("a negative label", LABELS + ".* from -1 to 1", LEARNING, y=Y - 1),
    Bad("too small for ten bands", "a 3x3 image cannot be cut into 10 radial bands", (BandNoise(),),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), x=X[..., :3, :3].contiguous()),
    Bad("no images", r"frequencies need images .*; got inputs \(24, 64\)", IMAGES, x=X.flatten(1)),
]


@pytest.mark.parametrize(("fault", "probe"), [(f, p) for f in FAULTS for p in f.probes],
                         ids=[f"{f.name}: {p!r}" for f in FAULTS for p in f.probes])
def test_what_cannot_be_measured_is_refused_in_one_sentence(fault: Bad, probe: Probe) -> None:
    found = snapshot(fault.model(), fault.x, fault.y, **dict(fault.settings))
    with pytest.raises(UserError, match=fault.says) as caught:
        probe(dataclasses.replace(found, rule=SGD(lr=0.1)))
    assert "\n" not in str(caught.value)


def test_no_examples_are_refused_where_data_are_made() -> None:
    with pytest.raises(UserError, match="a split needs at least one example; got none"):
        snapshot(linear(), X[:0], Y[:0])


@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_no_probe_looks_at_no_examples(probe: Probe) -> None:
    with pytest.raises(UserError, match="examples must be at least 1, or None for all; got 0"):
        dataclasses.replace(probe, examples=0)(snapshot(linear(), X, Y))


def test_weights_that_are_finite_may_have_a_sum_that_is_not():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.full((1, 2), 60000.0, dtype=torch.float16)
    check_finite(layer)
    layer.weight.data = torch.tensor([[math.inf, -math.inf]])
    with pytest.raises(UserError, match="'weight' is not finite"):
        check_finite(layer)
