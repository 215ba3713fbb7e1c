"""Inputs that models write into, that have a graph attached, or no finite slope: the data stay as they are."""

import pytest
import torch
from torch import nn

from optscope.probes.accuracy import Accuracy
from optscope.probes.apgd import APGD, TargetedAPGD
from optscope.probes.attack import BIM, FGSM, PGD
from optscope.probes.black_box import RandomSearch
from optscope.probes.frequency import SensitivityMap
from optscope.probes.geometry import Margin
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.noise import BandNoise, GaussianNoise
from optscope.probes.robust import RobustAccuracy
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def snapshot(model, x, y=None, bounds=(0.0, 1.0)):
    y = torch.arange(len(x)) % 3 if y is None else y
    return Snapshot(model, Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), bounds=bounds))


class Normalised(nn.Module):
    """A head behind a normalisation that may write into the images."""

    def __init__(self, inplace):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.inplace = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), inplace

    def forward(self, x):
        return self.head(x.sub_(0.4).div_(0.3) if self.inplace else (x - 0.4) / 0.3)


ATTACKS = [FGSM(), BIM(3), PGD(3), APGD(steps=3), TargetedAPGD(steps=3), RandomSearch(5)]
OF_INPUTS = [Accuracy(), Margin(), Lipschitz(climb=2), GaussianNoise(), BandNoise(bands=3), SensitivityMap(),
             *(RobustAccuracy(norm, 0.05, attack, checked=0) for norm in ("linf", "l2") for attack in ATTACKS)]


@pytest.mark.parametrize("probe", OF_INPUTS, ids=repr)
def test_a_model_that_writes_into_its_input_is_read_as_one_that_does_not(probe):
    x = rand(12, 1, 8, 8)
    own = x.clone()
    found, plain = (probe(snapshot(Normalised(inplace), own)).values for inplace in (True, False))
    assert torch.equal(own, x)
    assert found == plain


def test_features_with_a_graph_attached_are_data():
    backbone, head = nn.Linear(5, 4), nn.Linear(4, 3)
    features = backbone(rand(12, 5))
    for probe in (Margin(), Lipschitz(climb=2), RobustAccuracy("l2", 0.1, PGD(3), checked=0)):
        assert probe(snapshot(head, features, bounds=None)).values == probe(
            snapshot(head, features.detach(), bounds=None)).values
    assert backbone.weight.grad is None
