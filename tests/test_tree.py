"""Trees of tensors are taken apart, put together, cut and handed to models without a number changed."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from optscope.engine.plan import Plan
from optscope.engine.rehearsal import rehearse
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.optim import SGD
from optscope.probes.accuracy import Accuracy
from optscope.tasks.task import Data, InMemory, Split, Task
from optscope.tasks.tree import Batch, called, filled, leaves, output_of, same, sees_batch

NEXT = torch.Generator()
X, Y = torch.arange(12.0).view(6, 2), torch.arange(6)
TREES = {"tensor": X, "tuple": (X, Y), "mapping": {"x": X, "y": Y}, "deep": {"a": (X, {"b": Y}), "c": X}}
PATHS = {"tensor": [""], "tuple": ["0", "1"], "mapping": ["x", "y"], "deep": ["a.0", "a.1.b", "c"]}


@pytest.mark.parametrize("which", TREES)
def test_a_batch_is_cut_alike_in_every_leaf(which):
    tree = TREES[which]
    assert list(leaves(tree)) == PATHS[which]
    assert same(filled(tree, leaves(tree).values()), tree)
    batch = Batch(tree, Y)
    assert len(batch) == len(Split(tree, Y)) == 6
    index = torch.tensor([4, 0])
    taken = batch.take(index)
    assert all(torch.equal(leaf, leaves(tree)[path][[4, 0]]) for path, leaf in leaves(taken.inputs).items())
    assert torch.equal(taken.targets, index)
    assert [len(part) for part in batch.split(4)] == [4, 2]
    for path, leaf in leaves(tree).items():
        assert torch.equal(torch.cat([leaves(part.inputs)[path] for part in batch.split(4)]), leaf)
    assert len(batch.first(5)) == 5
    assert batch.first(None) is batch
    assert same(batch.to("cpu").inputs, tree)
    assert not same(tree, batch.mapped(lambda leaf: leaf + 1).inputs)
    copied = batch.copy()
    for leaf in leaves(copied.inputs).values():
        leaf.zero_()
    assert len(set(X.flatten().tolist())) == 12


def test_a_split_is_checked_and_its_first_examples_are_one():
    part = Split({"x": X.t().contiguous().t()}, {"y": Y.int(), "z": Y[:, None].int()}).first(3)
    assert type(part) is Split
    assert part.inputs["x"].is_contiguous()
    assert part.targets["y"].dtype == torch.int64
    assert part.targets["z"].dtype == torch.int32
    with pytest.raises(UserError, match='as many targets as inputs; got 6 inputs "x" and 2 targets "b"'):
        Split({"x": X}, {"a": Y, "b": Y[:2]})


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, y):
        return SimpleNamespace(logits=self.linear(x) + y[:, None], hidden=x)


def test_a_model_is_called_as_its_inputs_are():
    assert called(lambda x: x, X) is X
    assert called(lambda x, y: (y, x), (X, Y)) == (Y, X)
    assert called(lambda x, y: (y, x), {"x": X, "y": Y}) == (Y, X)
    assert called(lambda x, y: (y, x), {"y": Y, "x": X}) == (Y, X)


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(("found", "output"), [
    (X, None), ({"logits": X}, None), (SimpleNamespace(logits=X), None), ({"a": X}, "a"), ((Y, X), "1"),
    (Pair(X, Y), "first"), (SimpleNamespace(a=X, logits=Y), "a"),
    ({"a": X}, lambda found: found["a"])])
def test_the_outputs_are_found_in_what_a_model_returns(found, output):
    assert output_of(found, output) is X


@pytest.mark.parametrize(("found", "output", "words"), [
    ({"scores": X, "hidden": Y}, None, r'one tensor .* got dict; it has scores, hidden: write output="scores"'),
    ((X, Y), None, 'got tuple; it has 0, 1: write output="0"'),
    (Pair(X, Y), None, 'got Pair; it has first, second'),
    (SimpleNamespace(scores=X, n=1), "score", 'SimpleNamespace, has no field "score"; it has scores: write'),
    (X, "logits", 'Tensor, has no field "logits": return'), (None, None, "got NoneType: return the tensor in it")])
def test_a_field_that_is_not_there_is_refused_with_those_that_are(found, output, words):
    with pytest.raises(UserError, match=words):
        output_of(found, output)


def masked(outputs, batch):
    return (outputs.square().mean(1) * batch.inputs["y"]).sum() / len(batch)


def test_a_loss_sees_the_targets_or_the_whole_batch():
    data = InMemory(Data(*(Split({"x": X, "y": Y}, Y),) * 3))
    model, batch = TwoInputs().requires_grad_(False), data().train
    outputs = model(X, Y).logits
    task = Task("two", TwoInputs, data, masked, "regression", bounds=None)
    assert float(task.value(model, batch)) == float((outputs.square().mean(1) * Y).sum() / 6)
    assert torch.equal(task.outputs(model, batch.inputs), outputs)
    plain = Task("two", TwoInputs, data, lambda outputs, targets: (outputs[:, 0] - targets).mean(), "regression")
    assert float(plain.value(model, batch)) == float((outputs[:, 0] - Y).mean())
    assert torch.equal(Task("two", TwoInputs, data, output="hidden").outputs(model, batch.inputs), X)


class Masked(nn.Module):
    def forward(self, outputs, batch):
        return masked(outputs, batch)


@pytest.mark.parametrize(("loss", "sees"), [(Masked(), True), (nn.MSELoss(), False), (masked, True), (max, False)])
def test_a_loss_says_what_it_sees(loss, sees):
    assert sees_batch(loss) is sees


def shaken(inputs, generator):
    return {**inputs, "x": inputs["x"] + torch.rand(inputs["x"].shape, generator=generator)}


class Summed(TwoInputs):
    def forward(self, x, y):
        return {"scores": (self.linear(x) + y[:, None]) / 20}


@pytest.mark.parametrize(("augment", "words"), [
    (shaken, ""), (lambda inputs, generator: inputs["x"], "of the same fields; got .6, 2. for \"x\" of shape"),
    (lambda inputs, generator: {**inputs, "x": torch.rand(6, 2, generator=NEXT)}, "must draw from the generator")])
def test_an_augmented_tree_is_rehearsed_and_trained(augment, words):
    task = Task("two", Summed, InMemory(Data(*(Split({"x": X, "y": Y}, Y % 2),) * 3)), bounds=None, augment=augment,
                output="scores")
    if words:
        with pytest.raises(UserError, match=words):
            rehearse(task, {"SGD": SGD(lr=0.01)}, Plan(1, 6))
    else:
        assert rehearse(task, {"SGD": SGD(lr=0.01)}, Plan(1, 6), [Accuracy()]).silent == {}
        losses = [train(task, SGD(lr=0.01), Plan(2, 3), seed=1).losses for _ in range(2)]
        assert torch.equal(*losses)


def test_the_length_of_a_batch_is_that_of_its_leaves():
    assert len(Batch({"none": {}, "x": torch.zeros(3)}, ())) == 3
