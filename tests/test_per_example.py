"""The gradients of single examples, by their lengths and products, against torch.func's own of each, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from optscope.probes.at_weights import AtWeights
from optscope.probes.gradient_noise import GradientNoise
from optscope.probes.jackknife import example_values, pseudo_values, signal_and_noise
from optscope.probes.layer_gradients import RULES, NoRuleError
from optscope.probes.per_example import lengths
from optscope.tasks.models import C2, MLP, ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.tasks.tree import Batch

N, CLASSES = 7, 3


class Twice(nn.Module):
    """A layer that an example meets twice, with something between."""

    def __init__(self, layer, *after):
        super().__init__()
        self.layer, self.after = layer, nn.Sequential(*after)

    def forward(self, x):
        """Return logits."""
        return self.after(self.layer(self.layer(x).tanh()))


class Tied(nn.Module):
    """Two modules of one kind that share their weight, but not their shift."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.two.weight = self.one.weight

    def forward(self, x):
        """Return logits."""
        return self.head(self.two(self.one(x).relu()))


def settled(model):
    """Return a model whose scales, shifts and running statistics are not those it begins with."""
    noise = torch.Generator().manual_seed(1)
    for module in model.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=noise, dtype=tensor.dtype)
    return model


FLAT, LINE, IMAGE, WORDS = (6,), (4, 8), (2, 7, 6), None
MODELS = {
    "linear": (FLAT, lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES, bias=False))),
    "linear, many places": (LINE, lambda: nn.Sequential(nn.Linear(8, 2), nn.Tanh(), nn.Flatten(),
                                                        nn.Linear(8, CLASSES))),
    "linear, few places": ((2, 8), lambda: nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Flatten(),
                                                         nn.Linear(18, CLASSES))),
    "convolution of lines": (LINE, lambda: nn.Sequential(
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="circular"), nn.ReLU(),
        nn.Flatten(), nn.LazyLinear(CLASSES))),
    "convolution": (IMAGE, lambda: nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False), nn.ReLU(inplace=True),
        nn.Conv2d(6, 40, (2, 4), padding_mode="reflect", padding=1), nn.ReLU(), nn.Flatten(),
        nn.LazyLinear(CLASSES))),
    "batch normalisation": (IMAGE, lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyBatchNorm1d(),
        nn.LazyLinear(CLASSES))),
    "batch normalisation of volumes": (IMAGE, lambda: nn.Sequential(
        nn.Unflatten(1, (2, 1)), nn.BatchNorm3d(2), nn.Flatten(), nn.LazyLinear(CLASSES))),
    "other normalisation": (IMAGE, lambda: nn.Sequential(
        nn.LayerNorm((7, 6)), nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(4), nn.RMSNorm(4), nn.PReLU(),
        nn.Flatten(), nn.LazyLinear(CLASSES))),
    "embedding": (WORDS, lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=2), nn.LayerNorm(4, bias=False),
                                               nn.Flatten(), nn.LazyLinear(CLASSES))),
    "a layer met twice": (FLAT, lambda: Twice(nn.Linear(6, 6), nn.Linear(6, CLASSES))),
    "a convolution met twice": (IMAGE, lambda: Twice(nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(),
                                                     nn.Linear(84, CLASSES))),
    "normalisation met twice": (FLAT, lambda: Twice(nn.LayerNorm(6), nn.Linear(6, CLASSES))),
    "modules that share a weight": (FLAT, Tied),
    "MLP": (FLAT, MLP((6, 8, 8, CLASSES))),
    "C2": ((1, 28, 28), C2(classes=CLASSES)),
    "ResNet": ((1, 8, 8), ResNet(depth=8, channels=1, classes=CLASSES, width=4)),
}


def example(name):
    """Return a model in float64 and examples."""
    torch.manual_seed(0)
    shape, make = MODELS[name]
    x = torch.randint(5, (N, 6)) if shape is None else torch.randn(N, *shape, dtype=torch.float64)
    model = make().double().eval()
    with torch.no_grad():
        model(x)  # lazy layers get their shapes
    return settled(model).eval(), Batch(x, torch.arange(N) % CLASSES)


def own_gradients(model, batch):
    """Return every example's own gradient, one row each."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x, y):
        return functional.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    found = vmap(grad(loss), (None, 0, 0))(weights, batch.inputs, batch.targets)
    return torch.cat([each.flatten(1) for each in found.values()], 1)


def look(outputs, batch):
    assert len(outputs) == len(batch)


@pytest.mark.parametrize("memory", ["one pass", "kept", "made again"])
@pytest.mark.parametrize("name", MODELS)
def test_lengths_and_products_are_those_of_single_gradients(name, memory, monkeypatch):
    model, batch = example(name)
    if memory != "one pass":
        monkeypatch.setattr("optscope.probes.per_example.CACHED", 1)
        monkeypatch.setattr("optscope.probes.per_example.KEPT", 2**28 if memory == "kept" else 0)
    g = own_gradients(model, batch)
    found = lengths(AtWeights(model), functional.cross_entropy, batch, look)
    mean = g.mean(0)
    assert found.squares.numpy() == pytest.approx(g.square().sum(1).numpy(), rel=1e-9)
    assert found.along.numpy() == pytest.approx((g @ mean).numpy(), rel=1e-9, abs=1e-9 * float(mean.norm()))
    assert float(found.mean) == pytest.approx(float(mean @ mean), rel=1e-9)


def test_every_rule_is_tried():
    tried = {type(module) for name in MODELS for module in example(name)[0].modules()}
    assert set(RULES) <= tried


def test_frozen_weights_do_not_count():
    model, batch = example("convolution")
    g = own_gradients(model, batch)
    start = sum(p.numel() for p in model[0].parameters())
    found = lengths(AtWeights(model, [name for name, _ in model.named_parameters() if not name.startswith("0.")]),
                    functional.cross_entropy, batch, look)
    assert found.squares.numpy() == pytest.approx(g[:, start:].square().sum(1).numpy(), rel=1e-9)


class Aside(nn.Module):
    """A weight that is used besides its layer's call: as embeddings of words are, to tell the next one."""

    def __init__(self, share):
        super().__init__()
        self.layer, self.head, self.share = nn.Linear(6, 6), nn.Linear(6, CLASSES), share

    def forward(self, x):
        """Return logits."""
        return self.head(self.layer(x).tanh() + self.share * functional.linear(x, self.layer.weight).tanh())


class Across(nn.Module):
    """A layer that sees places first and examples second; there are as many of one as of the other."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        """Return logits."""
        return self.head(self.layer(x.transpose(0, 1)).tanh().transpose(0, 1).mean(1))


class Mixing(nn.Module):
    """A table of words that also tells the next."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(CLASSES, 6), nn.Linear(6, CLASSES, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        """Return logits."""
        return self.head(self.table(x).mean(1))


class Scale(nn.Module):
    """A layer of the user's own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        """Scale."""
        return x * self.scale


def hooked():
    """Return a network whose layer has a hook."""
    model = nn.Sequential(nn.Linear(6, CLASSES))
    model[0].register_forward_hook(lambda module, given, out: 2 * out)
    return model


NO_RULE = {
    "used aside": (lambda: Aside(1.0), FLAT, "does not follow from what its layer sees"),
    "places first": (Across, (N, 4), "does not see one row an example"),
    "rows of places": (lambda: nn.Sequential(
        nn.Flatten(0, 1), nn.Linear(6, 6), nn.Unflatten(0, (-1, 3)), nn.Flatten(), nn.Linear(18, CLASSES)),
        (3, 6), "does not see one row an example"),
    "table and matrix": (Mixing, None, "different kinds"),
    "own layer": (lambda: nn.Sequential(Scale(), nn.Linear(6, CLASSES)), FLAT, "known for the Scale at '0'"),
    "hooked": (hooked, FLAT, "hooks"),
    "recurrent": (lambda: nn.Sequential(nn.GRU(6, 4, batch_first=True), Last(), nn.Linear(4, CLASSES)), (2, 6),
                  "GRU"),
    "examples that see each other": (lambda: nn.Sequential(nn.Linear(6, 4), Centred(), nn.Linear(4, CLASSES)), FLAT,
                                     "the outputs of an example depend on the others"),
    "statistics of the batch": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False),
                                                      nn.Linear(4, CLASSES)), FLAT, "mixes the examples"),
}


class Centred(nn.Module):
    """Examples less their mean."""

    def forward(self, x):
        """Return them."""
        return x - x.mean(0)


class Last(nn.Module):
    """The last of what a recurrent layer gives."""

    def forward(self, given):
        """Return it."""
        return given[0][:, -1]


@pytest.mark.parametrize("name", NO_RULE)
def test_where_there_is_no_rule_parts_are_taken_and_it_is_said(name):
    make, shape, words = NO_RULE[name]
    torch.manual_seed(0)
    n = N if name == "places first" else 40
    x = torch.randint(CLASSES, (n, 4)) if shape is None else torch.rand(n, *shape, dtype=torch.float64)
    model, y = make().double(), torch.arange(n) % CLASSES
    with pytest.raises(NoRuleError, match=words):
        lengths(AtWeights(model), functional.cross_entropy, Batch(x, y), look)
    task = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), bounds=None)
    reading = GradientNoise(parts=3)(Snapshot(model, task))
    assert "over 3 parts" in reading.silence
    assert words in reading.silence
    low, high = reading.arrays["gradient noise interval"]
    assert low < reading.values["gradient noise"] < high


@pytest.mark.parametrize("name", ["MLP", "ResNet"])
def test_a_reading_is_the_jackknife_over_examples(name):
    model, batch = example(name)
    x = batch.inputs - batch.inputs.min()
    batch = Batch(x / x.max(), batch.targets)
    g = own_gradients(model, batch).numpy()
    task = Task.from_tensors(lambda: model, *[(batch.inputs, batch.targets)] * 2,
                             validation=(batch.inputs, batch.targets))
    reading = GradientNoise()(Snapshot(model, task))
    noise = np.trace(np.cov(g.T))
    square = (g.mean(0) ** 2).sum() - noise / N
    assert not reading.silence
    assert reading.values == pytest.approx({"gradient square": square, "gradient noise": noise,
                                            "noise scale": noise / square if square > 0 else math.inf}, rel=1e-9)
    values = pseudo_values(signal_and_noise, g @ g.T)
    assert example_values((g**2).sum(1), g @ g.mean(0), (g.mean(0) ** 2).sum()) == pytest.approx(values, rel=1e-9)
    assert reading.arrays["gradient square interval"].mean() == pytest.approx(values[:, 0].mean(), rel=1e-9)
