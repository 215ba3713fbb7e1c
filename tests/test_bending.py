"""How parts bend the loss along each other's gradients, against products of each part's Hessian in float64."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hvp
from torch.func import functional_call, grad
from torch.nn import functional

from optscope.probes import bending
from optscope.probes.at_weights import AtWeights
from optscope.probes.gradient_noise import DescentSplit
from optscope.probes.layer_gradients import NoRuleError
from optscope.tasks.models import MLP, ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.tasks.tree import Batch

PARTS, EACH, CLASSES = 4, 3, 3
FLAT, LINE, IMAGE, WORDS = (6,), (4, 8), (2, 7, 6), None


class Twice(nn.Module):
    """A layer that an example meets twice, with a function between."""

    def __init__(self, between):
        super().__init__()
        self.layer, self.head, self.between = nn.Linear(6, 6), nn.Linear(6, CLASSES), between

    def forward(self, x):
        """Return logits."""
        return self.head(self.between(self.layer(self.between(self.layer(x)))))


class Kept(torch.autograd.Function):
    """max(x, 0), with no forward mode."""

    @staticmethod
    def forward(ctx, x):
        """Return max(x, 0)."""
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx, slope):
        """Return the slope in x."""
        return slope * (ctx.saved_tensors[0] > 0)


KNOWN = {
    "MLP": (FLAT, MLP((6, 8, 8, CLASSES))),
    "many places": (LINE, lambda: nn.Sequential(nn.Linear(8, 2), nn.LeakyReLU(), nn.Linear(2, 3), nn.Flatten(),
                                                nn.Linear(12, CLASSES, bias=False))),
    "lines": (LINE, lambda: nn.Sequential(
        nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(),
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="circular"), nn.ReLU(),
        nn.AvgPool1d(2), nn.Flatten(), nn.LazyLinear(CLASSES))),
    "images": (IMAGE, lambda: nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2)), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False), nn.BatchNorm2d(6), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, (2, 3), padding_mode="reflect", padding=1), nn.ReLU(), nn.Flatten(),
        nn.LazyBatchNorm1d(), nn.LazyLinear(CLASSES))),
    "volumes": (IMAGE, lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Unflatten(1, (2, 2)), nn.BatchNorm3d(2), nn.Flatten(), nn.LazyLinear(CLASSES))),
    "words": (WORDS, lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.ReLU(), nn.Flatten(),
                                           nn.LazyLinear(CLASSES))),
    "a layer met twice": (FLAT, lambda: Twice(functional.relu)),
    "ResNet": ((1, 8, 8), ResNet(depth=8, channels=1, classes=CLASSES, width=2)),
}
OTHER = {
    "a curved function": (FLAT, lambda: Twice(functional.softplus)),
    "a curved layer": (FLAT, lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))),
    "a layer that is curved in what it sees": (FLAT, lambda: nn.Sequential(
        nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, CLASSES))),
    "a function without a forward mode": (FLAT, lambda: Twice(Kept.apply)),
}


def example(shape, make):
    """Return a model in float64, whose shifts are not those it begins with, and parts."""
    torch.manual_seed(0)
    n = PARTS * EACH
    x = torch.randint(5, (n, 6)) if shape is None else torch.randn(n, *shape, dtype=torch.float64)
    model = make().double().eval()
    with torch.no_grad():
        model(x)  # lazy layers get their shapes
        for module in model.modules():
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                if tensor.dim() == 1:
                    tensor.copy_(0.5 + torch.rand(tensor.shape))
    return model, list(Batch(x, torch.arange(n) % CLASSES).split(EACH))


def twice(model, parts, loss):
    """Return the parts' gradients, and g_iᵀ H_m g_j by differentiating twice, at [m, i, j]."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    w = torch.cat([p.detach().flatten() for p in model.parameters()])

    def value(w, part):
        pieces = w.split([shape.numel() for shape in shapes.values()])
        named = {name: piece.view(shapes[name]) for name, piece in zip(shapes, pieces, strict=True)}
        return loss(functional_call(model, named, (part.inputs,)), part.targets)

    g = torch.stack([grad(value)(w, part) for part in parts])
    bent = [torch.stack([hvp(lambda w, part=part: value(w, part), w, v)[1] for v in g]) for part in parts]
    return g, torch.stack([each @ g.T for each in bent])


def squared(outputs, targets):
    return (outputs - functional.one_hot(targets, CLASSES)).square().sum(1).mean()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_products_are_those_of_hessians(name, together, monkeypatch):
    if not together:
        monkeypatch.setattr(bending, "CACHED", 1)
    model, parts = example(*KNOWN[name])
    for loss in (functional.cross_entropy, squared):
        seen = []
        g, products = bending.by_layers(AtWeights(model), loss, parts, seen.append)
        exact = twice(model, parts, loss)
        torch.testing.assert_close(g, exact[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(products, exact[1], rtol=1e-9, atol=1e-9 * float(exact[1].abs().max()))
        assert torch.equal(seen[0], torch.cat([model(part.inputs) for part in parts]))


def test_every_rule_is_tried():
    assert set(bending.TILTS) <= {type(module) for name in KNOWN for module in example(*KNOWN[name])[0].modules()}


@pytest.mark.parametrize("name", OTHER)
def test_what_bends_otherwise_is_read_from_hessians(name):
    model, parts = example(*OTHER[name])
    with pytest.raises(NoRuleError):
        bending.by_layers(AtWeights(model), functional.cross_entropy, parts, lambda outputs: None)


@pytest.mark.parametrize("model", [OTHER["a curved layer"], KNOWN["MLP"]], ids=["tanh", "relu"])
def test_the_split_is_the_same_both_ways(model, monkeypatch):
    model, parts = example(*model)
    x, y = (torch.cat(leaves) for leaves in zip(*((part.inputs, part.targets) for part in parts), strict=True))
    task = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), bounds=None)
    found = DescentSplit(parts=PARTS)(Snapshot(model, task))
    calls = []

    def refused(*given):
        calls.append(given)
        raise NoRuleError("no")

    monkeypatch.setattr(bending, "by_layers", refused)
    other = DescentSplit(parts=PARTS)(Snapshot(model, task))
    assert calls
    assert found.values == pytest.approx(other.values, rel=1e-9)
    for name, interval in other.arrays.items():
        assert found.arrays[name] == pytest.approx(interval, rel=1e-9)
