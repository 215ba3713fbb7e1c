"""Inputs that models write into, that have a graph attached, or no finite slope: the data stay as they are."""

import pytest
import torch
from torch import nn

from optscope.errors import UserError
from optscope.probes.accuracy import Accuracy, Checkpoint
from optscope.probes.apgd import APGD, TargetedAPGD
from optscope.probes.attack import BIM, FGSM, PGD
from optscope.probes.black_box import RandomSearch
from optscope.probes.chance import Chance
from optscope.probes.curvature import TopEigenvalues
from optscope.probes.frequency import SensitivityMap
from optscope.probes.geometry import Margin
from optscope.probes.gradient_noise import GradientNoise
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


class Rooted(nn.Module):
    """A linear classifier of x / (|x| + 1), its norm written out: at x = 0 the gradient is nan."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.head.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
        self.head.bias.data = torch.tensor([0.3, 0.2, 0.1])

    def forward(self, x):
        return self.head(x / (x.square().sum(1, keepdim=True).sqrt() + 1))


def with_blank(n=12):
    """Images of which the first is blank; all are of the class that the model names but every fourth."""
    x = rand(n, 4)
    x[0] = 0
    y = Rooted()(x).argmax(1).detach()
    y[3::4] = (y[3::4] + 1) % 3
    return x, y


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)], ids=str)
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_on_an_image_without_a_gradient_finds_images_or_nothing(norm, attack, bounds):
    x, y = with_blank()
    found = attack.run(Rooted(), x, y, 0.02, norm, bounds)
    assert found.isfinite().all()
    ball = (found - x).abs().amax(1) if norm == "linf" else (found - x).norm(dim=1)
    assert ball.max() <= 0.02 * (1 + 1e-5)
    reading = RobustAccuracy(norm, 0.02, attack, checked=0)(snapshot(Rooted(), x, y, bounds))
    # The blank image leads by 0.1: within 0.02 no logit moves by more than 0.04, so that nothing fools.
    assert reading.arrays[f"correct under {norm} attack"][0, 0]


def test_an_image_without_a_gradient_has_no_boundary_distance_and_the_others_keep_theirs():
    x, y = with_blank()
    whole, rest = Margin()(snapshot(Rooted(), x, y)), Margin()(snapshot(Rooted(), x[1:], y[1:]))
    assert whole.arrays["boundary distances"][1:] == pytest.approx(rest.arrays["boundary distances"])
    assert torch.tensor(whole.arrays["boundary distances"][0]).isnan()
    assert whole.arrays["margins"][0] == pytest.approx(0.1)
    assert whole.values["boundary distance"] == rest.values["boundary distance"]
    assert whole.silence.startswith("1 of 12 examples have no boundary distance")
    assert not rest.silence


@pytest.mark.parametrize("climb", [0, 5])
def test_an_image_without_a_gradient_does_not_make_a_model_constant(climb):
    """The Jacobian of x/(|x| + 1) is I at 0, its norm is below 1 elsewhere, and the head's is 1."""
    x, y = with_blank()
    alone = Lipschitz(climb=climb)(snapshot(Rooted(), x[:1], y[:1])).values["Lipschitz lower bound"]
    assert -0.5 < alone <= 0  # a direction drawn at random
    both = Lipschitz(climb=climb)(snapshot(Rooted(), x, y)).values["Lipschitz lower bound"]
    rest = Lipschitz(climb=0)(snapshot(Rooted(), x[1:], y[1:])).values["Lipschitz lower bound"]
    assert rest - 0.05 <= both <= 0


class Divided(nn.Module):
    """Divides by the norm: a blank image gets nan for logits."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, x):
        return self.layer(x / x.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("blank", [0, 12])
def test_logits_of_nan_name_no_class(blank):
    x = torch.eye(3).repeat(5, 1)
    x[blank] = 0
    y = torch.arange(15) % 3
    task = snapshot(Divided(), x, y, bounds=None)
    assert Accuracy()(task).values == {"accuracy": pytest.approx(100 * 14 / 15)}
    part = "1 of 15 examples have outputs of nan and count as errors"
    assert Accuracy()(task).silence == f"{part}: there is no loss and no calibration error"
    assert Chance()(task).values["better than chance"] == 1
    assert [p(task).silence for p in (Chance(), GaussianNoise((0.0,)), RobustAccuracy("l2", 0.1))] == [part] * 3
    checked = Checkpoint()(task)
    assert checked.values["test accuracy at checkpoint"] == pytest.approx(100 * 14 / 15)
    assert "test loss at checkpoint" not in checked.values
    assert "the test loss is nan" in checked.silence
    for probe in (TopEigenvalues(), GradientNoise()):
        with pytest.raises(UserError, match="not finite for 1 of 15 examples"):
            probe(task)
    assert Accuracy()(task).arrays["correct"].sum() == 14
    noisy = GaussianNoise(variances=(0.0,))(task)
    assert noisy.arrays["correct under gaussian noise"].sum() == 14
    assert PGD(3).run(Divided(), x, y, 0.1).isfinite().all()
    assert RobustAccuracy("l2", 0.1, checked=0)(task).arrays["fooled by l2 radius"][blank] == 0
    margin = Margin()(task)
    assert margin.values["margin"] == 1
    assert margin.silence.startswith("1 of 15")


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.embed(x).mean(1))


def test_token_ids_have_margins_and_no_distances():
    x = torch.randint(20, (12, 7), generator=torch.Generator().manual_seed(0))
    reading = Margin()(snapshot(Words(), x, bounds=None))
    assert set(reading.values) == {"margin", "margin, lowest tenth"}
    assert reading.silence == ("12 of 12 examples have no boundary distance, as the margin has no finite gradient "
                               "in them (torch.int64)")


@pytest.mark.parametrize("probe", [p for p in OF_INPUTS if not isinstance(p, (Accuracy, Margin))], ids=repr)
def test_probes_that_move_inputs_say_one_line_for_token_ids(probe):
    x = torch.randint(20, (12, 8, 8), generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"^\w+: inputs must be floating point to have a slope; got torch\.int64: "):
        probe(snapshot(Words(), x[:, 0], bounds=None))


@pytest.mark.parametrize("bounds", [
    (torch.zeros(3, 1, 1), torch.ones(3, 1, 1)), (torch.tensor(0.0), torch.tensor(1.0)), (1.0, 0.0),
    (0.0, torch.inf), 1.0, ([0.0], [1.0])], ids=["channels", "tensors", "upside down", "open", "one", "lists"])
def test_bounds_are_two_numbers(bounds):
    x = rand(6, 3, 4, 4)
    with pytest.raises(UserError, match="bounds must be two finite numbers"):
        PGD().run(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), x, torch.arange(6) % 3, 0.1, bounds=bounds)
    with pytest.raises(UserError, match="bounds must be two finite numbers"):
        RobustAccuracy()(snapshot(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), x, bounds=bounds))


class Stepped(nn.Module):
    """Sees each number as one of ten levels: no gradient passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.levels, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.levels((10 * x).long()).mean(1))


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_a_model_that_passes_no_gradient_is_attacked_without(attack):
    x = rand(30, 5)
    task = snapshot(Stepped(), x, Stepped()(x).argmax(1).detach())
    probe = RobustAccuracy("linf", (0.1, 0.4), attack, checked=5)
    if isinstance(attack, RandomSearch):
        found = probe(task).values
        assert found["accuracy under linf attack"][0.4] < 100
        assert found["linf attack: loss rises with steps"] == 0
    else:
        with pytest.raises(UserError, match="an attack by gradients needs a model that passes them to its inputs"):
            probe(task)
    with pytest.raises(UserError, match="the model passes no gradient to its inputs"):
        Lipschitz()(task)


@pytest.mark.parametrize("probe", [BandNoise(variance=9.0, bands=3), SensitivityMap(norm=99.0)], ids=repr)
def test_a_model_that_takes_no_inputs_outside_their_range_is_named(probe):
    model = nn.Sequential(nn.Flatten(), Stepped())
    with pytest.raises(UserError, match="the model, shown inputs that are moved and not clamped, stopped"):
        probe(snapshot(model, rand(30, 1, 8, 8)))


def test_steep_margins_do_not_overflow():
    model = nn.Linear(4, 3)
    model.weight.data *= 1e25
    x = rand(12, 4)
    far = Margin()(snapshot(model, x)).arrays["boundary distances"]
    model.weight.data /= 1e25
    assert abs(far).max() < 1e3
    model.bias.data.zero_()  # which the large weights drown
    assert far == pytest.approx(Margin()(snapshot(model, x)).arrays["boundary distances"], rel=1e-4)
