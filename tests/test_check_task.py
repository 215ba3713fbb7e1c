"""Unusual tasks before anything is trained: each is one sentence that says what to mend, or passes rightly."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from optscope.errors import UserError
from optscope.tasks.check import check_task
from optscope.tasks.task import Data, Split, Task
from optscope.tasks.tree import mapped, same

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
CALLS = itertools.count()
LOOSE = nn.Parameter(torch.ones(()))


def task(model=lambda: nn.Linear(6, 3), x=X, y=Y, loss=functional.cross_entropy, **settings):
    return Task.from_tensors(model, (x, y), (x, y), loss=loss, **settings)


def other_test(x, y=None):
    """A task whose test part alone is another one."""
    split = Split(x, Y[:len(x)] if y is None else y)
    convolution = nn.Sequential
    return Task("odd test", lambda: convolution(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
                lambda: Data(Split(X[:, None], Y), Split(X[:, None], Y), split), bounds=None)


def model(forward, **layers):
    """A factory of models with a linear layer and others, whose forward is that of a function."""
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)
            for name, make in layers.items():
                setattr(self, name, make())

        def forward(self, x):
            return forward(self, x)

    return Model


IDS = torch.randint(4, (40, 5), generator=torch.Generator().manual_seed(1))


class Named(nn.Module):
    """Takes its inputs by name, returns its outputs by name."""

    def __init__(self):
        super().__init__()
        self.linear, self.embed = nn.Linear(6, 3), nn.Embedding(3, 3)

    def forward(self, ids, x):
        return SimpleNamespace(logits=self.linear(x) + self.embed(ids))


def tree(model=Named, x=None, **settings):
    """A task whose inputs are a mapping."""
    return task(model, {"ids": Y, "x": X} if x is None else x, **settings)


def tokens(x=IDS, y=IDS, kind="token-classification", **settings):
    """A task of labelling every token with itself."""
    return task(lambda: nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4)), x, y, None, kind=kind, bounds=None,
                **settings)


class Ordered(Named):
    """Takes its inputs in order."""

    def forward(self, ids, pair):
        return self.linear(pair[0] + pair[1]) + self.embed(ids)


class ByName(Named):
    """Takes whole numbers alone."""

    def forward(self, ids):
        return self.embed(ids)


def second(found):
    return found[1]


class ScaledLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs, labels):
        return functional.cross_entropy(self.scale * outputs, labels)


def unseeded():
    made = nn.Linear(6, 3)
    nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(next(CALLS)))
    return made


def numpy_unseeded():
    made = nn.Linear(6, 3)
    made.weight.data = torch.tensor(np.random.default_rng().normal(size=(3, 6)), dtype=torch.float32)
    return made


def complaining():
    raise OSError("no such checkpoint\nsecond line")


def nan_weights():
    made = nn.Linear(6, 3)
    made.bias.data[0] = math.nan
    return made


def shifted(outputs, labels):
    return functional.cross_entropy(outputs.sub_(1), labels)


def spoiled(outputs, labels):
    return functional.cross_entropy(outputs, labels.mul_(0))


def noisy(outputs, labels):
    return functional.cross_entropy(outputs + torch.randn_like(outputs), labels)


def rooted(outputs, labels):
    return functional.cross_entropy(outputs, labels) + (outputs - outputs).norm()


REFUSED = {
    "unknown kind": (lambda: task(kind="multilabel"), 'kind must be .*"multilabel"'),
    "misspelt kind": (lambda: task(kind="Classification"), 'got "Classification", did you mean "classification"'),
    "one output, entropy": (lambda: task(lambda: nn.Linear(6, 1), y=X[:, :1], kind="regression"), "cannot move"),
    "constant loss": (lambda: task(loss=lambda z, y: functional.cross_entropy(z * 0, y)), "cannot move"),
    "loss with a loose parameter": (lambda: task(loss=lambda z, y: functional.cross_entropy(z * LOOSE, y)),
                                    "no parameter of the model"),
    "layers in a list": (lambda: task(model(lambda m, x: m.linear(m.hidden[0](x)),
                                            hidden=lambda: [nn.Linear(6, 6)])), "nn.ModuleList"),
    "loss that is random": (lambda: task(loss=noisy), "must be a function of them"),
    "loss that changes outputs": (lambda: task(loss=shifted), "the loss changes the outputs"),
    "loss that changes targets": (lambda: task(loss=spoiled), "the loss changes the targets"),
    "loss that is complex": (lambda: task(loss=lambda z, y: z.mean() * 1j), "got .*complex64"),
    "loss with an infinite slope": (lambda: task(loss=lambda z, y: (z - z).square().sum().sqrt() + z.mean()),
                                    "gradient of the loss by the parameter .* is not finite"),
    "loss that is a sum": (lambda: task(loss=nn.CrossEntropyLoss(reduction="sum")), "must be a mean"),
    "a sum by 64": (lambda: task(loss=lambda z, y: functional.cross_entropy(z, y, reduction="sum") / 64), "a mean"),
    "loss of a number": (lambda: task(loss=lambda z, y: 1.0), "must be one number .*; got float"),
    "lazy": (lambda: task(lambda: nn.LazyLinear(3)), "weight of the model has no shape before a first batch"),
    "meta": (lambda: task(lambda: nn.Linear(6, 3, device="meta")), 'on the device "meta"'),
    "factory that raises": (lambda: task(complaining), r"model\(\) stopped with OSError: no such checkpoint$"),
    "squeeze": (lambda: task(model(lambda m, x: m.linear(x).unsqueeze(0).squeeze())),
                r"got \(3,\) for 1 of them: name the axis"),
    "softmax over the batch": (lambda: task(model(lambda m, x: m.linear(x).softmax(0))), "others in its batch"),
    "recurrent over the batch": (lambda: task(model(
        lambda m, x: m.linear(m.lstm(x[None])[0][0]), lstm=lambda: nn.LSTM(6, 6, batch_first=True))),
        "others in its batch"),
    "one logit for two classes": (lambda: task(lambda: nn.Linear(6, 1), y=Y % 2), "for one logit kind="),
    "a bias alone": (lambda: task(model(lambda m, x: m.linear.bias.expand(len(x), 3))), "same for all inputs"),
    "a loss that remembers": (lambda: task(loss=lambda z, y: functional.cross_entropy(z, y) * (1 + next(CALLS))),
                              "neither draws nor remembers"),
    "batch statistics": (lambda: task(lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(
        3, track_running_stats=False))), "refused a batch of inputs of shape .1, 6.|others in its batch"),
    "inputs without a say": (lambda: task(model(lambda m, x: m.linear(torch.ones_like(x)))), "same for all inputs"),
    "weights without the seed": (lambda: task(unseeded), "other weights, such as weight"),
    "weights of NumPy's own generator": (lambda: task(numpy_unseeded), "other weights, such as weight"),
    "weights not finite": (lambda: task(nan_weights), "parameter bias of a fresh model is not finite"),
    "other sizes each time": (lambda: task(lambda: nn.Sequential(nn.Linear(6, n := 3 + next(CALLS) % 2),
                                                                 nn.Linear(n, 3))), "other parameters each time"),
    "outputs not finite": (lambda: task(model(lambda m, x: m.linear(x) / 0)), "outputs for 8 of 8 .*not finite"),
    "one output not finite": (lambda: task(model(lambda m, x: m.linear(x) / x[:, :1]),
                                           x=torch.cat([X[:39], 0 * X[:1]])), "1 of .* inputs of the .* part"),
    "outputs are labels": (lambda: task(model(lambda m, x: m.linear(x).argmax(1))), "must return floats"),
    "two outputs": (lambda: task(model(lambda m, x: (m.linear(x), x))),
                    "got tuple; it has 0, 1: write output=\"0\", or output= a function of what is returned$"),
    "a dict": (lambda: task(model(lambda m, x: {"scores": m.linear(x)})), 'it has scores: write output="scores"'),
    "a field that is not there": (lambda: task(model(lambda m, x: {"logits": m.linear(x)}), output="scores"),
                                  'dict, has no field "scores"; it has logits: write output="logits"'),
    "an output that is no tensor": (
        lambda: task(output=lambda found: [found]), "output= must give one .*; got list"),
    "the model's own loss": (
        lambda: task(loss="loss"), "loss must be a function .*; got 'loss': .* leave loss out"),
    "targets as a tree": (
        lambda: task(y={"a": Y, "b": Y}), 'targets of classification are one tensor; .* are a, b: '),
    "numbers as a tree": (
        lambda: task(y={"a": Y, "b": Y}, kind="regression", loss=None), "the leaves a, b, of which"),
    "perturb on a bare tensor": (
        lambda: task(perturb="x"), 'perturb="x" names no leaf .* a bare tensor: leave'),
    "perturb nowhere": (lambda: tree(perturb="z"), 'perturb="z" names no leaf .* has ids, x: name one'),
    "perturb token ids": (lambda: tree(perturb="ids"), 'perturb="ids" must name .*int64: write perturb="x"'),
    "perturb a leaf without numbers": (lambda: tree(x={"x": X, "z": X[:, :0]}, perturb="z"),
                                       r'inputs "z" of the train part, of shape .*, 0\), hold no number'),
    "an output by number": (lambda: task(output=0), "output must be the name of a field, .* got 0$"),
    "bounds of two leaves": (
        lambda: tree(x={"a": X, "b": X}), 'a, b are floating point: write perturb="a", or bounds'),
    "a leaf out of its bounds": (lambda: tree(bounds=(0.0, 0.5)), 'inputs "x" must lie in the bounds'),
    "a leaf that is not finite": (lambda: tree(x={"ids": Y, "x": X / 0}), 'inputs "x" hold nan or inf'),
    "a name the model does not take": (lambda: tree(x={"ids": Y, "y": X}),
                                       'of inputs "ids" of shape .*, "y" of shape .*: TypeError.*argument .y'),
    "labels of three axes": (
        lambda: task(kind="segmentation"), "segmentation needs outputs .* of shape .3,. an ex"),
    "tokens for classes": (lambda: tokens(kind="classification"),
                           'give kind="token-classification" or kind="regression"'),
    "tokens beyond": (lambda: tokens(y=IDS + 1), r"labels must lie in 0 … 3 .*, or be -100 .* reach from 1 to 4"),
    "tokens that none counts": (lambda: tokens(y=IDS * 0 - 100), "no label of the train part counts"),
    "one token": (lambda: tokens(y=IDS * 0), "all labels of the train part are 0"),
    "one token long": (lambda: tokens(IDS[:, :1], IDS[:, :1], kind="causal-lm"), "causal-lm needs outputs"),
    "labels of 0 to 3": (lambda: task(y=X[:, :3].mul(3).round(), loss=None, kind="multi-label"),
                              "targets of multi-label must be 0 or 1"),
    "two outputs in train mode": (lambda: task(model(
        lambda m, x: (m.linear(x), x) if m.training else m.linear(x))), "in train mode the model must return one"),
    "other outputs in train mode": (lambda: task(model(
        lambda m, x: m.linear(x)[:, None] if m.training else m.linear(x))), "train mode"),
    "two arguments": (lambda: task(lambda: nn.Bilinear(6, 6, 3)), "refused a batch .*TypeError"),
    "without gradient": (lambda: task(model(lambda m, x: m.linear(x).detach())), "does not depend on the model"),
    "half precision": (lambda: task(lambda: nn.Linear(6, 3).half()), "refused a batch of .* type torch.float32"),
    "test part in float64": (lambda: other_test(X[:, None].double()), "float64, from the test part"),
    "test part of another size": (lambda: other_test(torch.rand(9, 1, 9)), r"\(1, 1, 9\).* from the test part"),
    "test labels of another kind": (lambda: other_test(X[:, None], Y.float()),
                                     r"parts must be alike; .* the test part.s \(40,\) of torch.float"),
    "token outside the table": (lambda: Task(
        "t", lambda: nn.Sequential(nn.Embedding(9, 3), nn.Flatten()),
        lambda: Data(*(Split(torch.arange(n)[:, None], Y[:n]) for n in (9, 9, 10))), bounds=None),
        "from the test part: IndexError"),
    "one class": (lambda: task(y=Y * 0 + 1), "all labels of the train part are 1"),
    "bounds the wrong way": (lambda: task(bounds=(1.0, 0.0)), r"bounds must be .*got \(1.0, 0.0\)"),
    "bounds without an end": (lambda: task(bounds=(0.0, math.inf)), "two finite numbers"),
    "one bound": (lambda: task(bounds=1.0), "bounds must be the lowest and the highest"),
    "pairs for parts": (lambda: Task("t", nn.Flatten, lambda: Data((X, Y), (X, Y), (X, Y))), "each a Split"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusual_task_is_one_sentence(name):
    make, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as said:
        check_task(make())
    assert "\n" not in str(said.value)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 1)

    def forward(self, x):
        return self.linear(x).squeeze(-1)


def zero_head():
    made = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    nn.init.zeros_(made[2].weight)
    nn.init.zeros_(made[2].bias)
    return made


def own_numpy():
    made = nn.Linear(6, 3)
    made.weight.data = torch.tensor(np.random.normal(size=(3, 6)), dtype=torch.float32)
    return made


def initialised_lazy():
    made = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    made(torch.zeros(1, 6))
    return made


def longest(outputs, batch):
    """A loss that sees the inputs."""
    return (functional.cross_entropy(outputs, batch.targets, reduction="none") * batch.inputs["x"][:, 0]).mean()


def both(outputs, targets):
    """A loss of two targets."""
    return functional.cross_entropy(outputs, targets["a"]) + functional.cross_entropy(outputs, targets["b"])


def unet(outputs=3):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, outputs, 1))


IMAGES = X[:, None].unflatten(2, (2, 3)).repeat(1, 1, 2, 2)
MASKS = (torch.arange(24).view(4, 6) + torch.arange(40)[:, None, None]) % 3
VOIDED = MASKS.where(IMAGES[:, 0] > 0.2, 255)
ACCEPTED = {
    "inputs by name": tree,
    "a leaf with bounds of its own": lambda: tree(perturb="x", bounds=(0.0, 1.0)),
    "two leaves, one perturbed": lambda: task(Ordered, (Y, (X, 9 * X)), perturb="1.0"),
    "two leaves, unbounded": lambda: task(Ordered, (Y, (X, 9 * X)), bounds=None),
    "a mapping without floating leaves": lambda: task(ByName, {"ids": Y}),
    "a loss of the batch": lambda: tree(loss=longest),
    "two targets": lambda: task(y={"a": Y, "b": (Y + 1) % 3}, kind="regression", loss=both),
    "a dict with logits": lambda: task(model(lambda m, x: {"logits": m.linear(x)})),
    "a named output": lambda: task(model(lambda m, x: {"a": x, "scores": m.linear(x)}), output="scores"),
    "the second output": lambda: task(model(lambda m, x: (x, m.linear(x))), output="1"),
    "an output that is computed": lambda: task(model(lambda m, x: (x, m.linear(x))), output=second),
    "a loss with parameters": lambda: task(loss=ScaledLoss()),
    "labels at once": lambda: task(y=(X[:, :3] > 0.5).long(), loss=None, kind="multi-label"),
    "masks": lambda: task(unet, IMAGES, MASKS, None, kind="segmentation"),
    "masks with void": lambda: task(unet, IMAGES, VOIDED.byte(), None, kind="segmentation"),
    "255 as a class": lambda: task(lambda: unet(256), IMAGES, VOIDED, None, kind="segmentation"),
    "tokens": tokens,
    "tokens that do not count": lambda: tokens(y=IDS.where(IDS > 1, -100).int()),
    "next tokens": lambda: tokens(kind="causal-lm"),
    "numbers of two axes": lambda: task(lambda: nn.Conv1d(1, 2, 1), X[:, None], torch.stack([X, X], 1), None,
                                        kind="regression"),
    "outputs (n,)": lambda: task(Flat, y=X[:, 0], kind="regression", loss=functional.mse_loss),
    "several labels": lambda: task(y=(X[:, :3] > 0.5).float(), kind="regression", loss=nn.BCEWithLogitsLoss()),
    "a head that starts at zero": lambda: task(zero_head),
    "drawn by NumPy": lambda: task(own_numpy),
    "lazy, but initialised": lambda: task(initialised_lazy),
    "a frozen half": lambda: task(lambda: nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3))),
    "writes into its input": lambda: task(model(lambda m, x: m.linear(x.mul_(2)))),
    "batch normalisation": lambda: task(lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))),
    "ignored labels": lambda: task(
        lambda: nn.Conv1d(1, 3, 1), x=X[:, None], y=(torch.arange(240).view(40, 6) % 4).where(X > 0.1, 9) % 3,
        kind="regression", loss=nn.CrossEntropyLoss(ignore_index=2)),
    "blocks of another size in the test part": lambda: replace(
        task(lambda: nn.Conv1d(1, 1, 1), kind="regression", loss=functional.mse_loss),
        data=lambda: Data(*(Split(x[:, None], x[:, None]) for x in (X, X, X[:, :4])))),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_task_that_will_do(name):
    given = ACCEPTED[name]()
    before = mapped(torch.clone, given.data().train.inputs), torch.get_rng_state(), np.random.get_state()[1].copy()
    check_task(given)
    assert same(given.data().train.inputs, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()
