"""Data in memory is the same in every process, and a task that will not do is refused in one sentence."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from optscope.engine.plan import Plan
from optscope.errors import UserError
from optscope.evidence.records import Record, Records
from optscope.optim import SGD
from optscope.probes.accuracy import Accuracy
from optscope.probes.attack import FGSM, PGD
from optscope.probes.robust import RobustAccuracy
from optscope.protocol.comparison import Arm, Comparison
from optscope.tasks.check import check_task
from optscope.tasks.task import Data, Split, Task
from tiny import TASK

X, Y = torch.arange(20.0).view(10, 2) / 20, torch.arange(10) % 2
PAIRS = TensorDataset(X, Y)


def linear():
    return nn.Linear(2, 2)


def test_data_sorted_by_class_leave_no_class_out():
    x, y = torch.arange(200.0).view(100, 2), torch.arange(100) // 10
    first, second = (Task.from_tensors(linear, (x, y), (x, y)).data() for _ in range(2))
    assert len(first.validation) == 20
    assert len(set(first.validation.targets.tolist())) > 5
    assert set(first.train.targets.tolist()) == set(range(10))
    assert torch.equal(first.validation.inputs, second.validation.inputs)
    rows = torch.cat([first.train.inputs, first.validation.inputs])
    assert torch.equal(rows[rows[:, 0].argsort()], x)
    assert torch.equal(first.train.inputs[:, 0] // 20, first.train.targets.float())


@pytest.mark.parametrize("loader", [
    DataLoader(PAIRS, batch_size=3),
    DataLoader(PAIRS, batch_size=3, shuffle=True, drop_last=True),
    DataLoader(PAIRS, batch_sampler=BatchSampler(RandomSampler(PAIRS), 4, drop_last=True)),
    DataLoader(PAIRS, batch_sampler=[[9, 1, 2], [0, 3, 8], [4, 7, 5, 6]]),
], ids=["in order", "shuffled", "batch sampler", "batches"])
def test_a_loader_is_read_in_index_order(loader):
    split = Split.of(loader)
    assert torch.equal(split.inputs, X)
    assert torch.equal(split.targets, Y)


def test_a_loader_of_a_part_gives_that_part_through_its_collate_function():
    def doubled(pairs):
        inputs, targets = zip(*pairs, strict=True)
        return 2 * torch.stack(inputs), torch.stack(targets)

    loader = DataLoader(PAIRS, batch_size=2, sampler=SubsetRandomSampler([7, 1, 4]), collate_fn=doubled)
    assert torch.equal(Split.of(loader).inputs, 2 * X[[1, 4, 7]])


def test_a_loader_over_a_stream_is_read_once_in_its_own_order():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(X[i], Y[i]) for i in (3, 1, 2)])

    assert torch.equal(Split.of(DataLoader(Stream(), batch_size=2)).inputs, X[[3, 1, 2]])


def test_a_loader_that_draws_with_replacement_is_refused():
    torch.manual_seed(0)
    loader = DataLoader(PAIRS, sampler=RandomSampler(PAIRS, replacement=True))
    with pytest.raises(UserError, match=r"the same examples in every pass.*give the Dataset itself"):
        Split.of(loader)


def test_augmentation_is_part_of_the_task():
    def noisy(inputs, generator):
        return inputs + torch.rand(inputs.shape, generator=generator)

    assert Task.from_tensors(linear, (X, Y), (X, Y), augment=noisy).augment is noisy
    assert Task.from_tensors(linear, (X, Y), (X, Y)).augment is None


def regression(targets, model=lambda: nn.Linear(2, 1)):
    return Task.from_tensors(model, (X, targets), (X, targets), kind="regression", loss=functional.mse_loss)


SHARED, DRAWN = linear(), itertools.count()


def new_data():
    part = Split(X, torch.full((10,), next(DRAWN) % 2))
    return Data(part, part, part)


@pytest.mark.parametrize(("task", "words"), [
    (regression(X[:, 0]), r"shaped like the outputs \(8, 1\); the train part's are \(8,\)"),
    (regression(Y), r"shaped like the outputs \(8, 1\)"),
    (regression(torch.full((10, 1), torch.nan)), "train part's targets hold nan or inf"),
    (Task.from_tensors(lambda: SHARED, (X, Y), (X, Y)), r"model\(\) must return a new model each time"),
    (Task.from_tensors(lambda: nn.Sequential(SHARED), (X, Y), (X, Y)), r"model\(\) must return a new model"),
    (Task.from_tensors(linear, (Y.view(5, 2), Y[:5]), (Y.view(5, 2), Y[:5])), "inputs must be floating point"),
    (Task("new", linear, new_data), r"data\(\) must return the same tensors each time; the train part differs"),
])
def test_a_task_that_will_not_do_is_refused(task, words):
    with pytest.raises(UserError, match=words):
        check_task(task)


def test_targets_of_another_number_are_a_matter_of_the_loss():
    def several(loss, targets):
        return Task.from_tensors(lambda: nn.Linear(2, 2), (X, targets), (X, targets), kind="regression", loss=loss)

    def likelihood(outputs, targets):
        return functional.gaussian_nll_loss(outputs[:, :1], targets, outputs[:, 1:].exp())

    def quantiles(outputs, targets):
        error, at = targets - outputs, torch.tensor([0.1, 0.9])
        return torch.maximum(at * error, (at - 1) * error).mean()

    def survival(outputs, targets):
        risk, (time, died, _) = outputs[:, 0], targets.T
        later = torch.where(time[:, None] <= time, risk, -1e9)
        return ((torch.logsumexp(later, 1) - risk) * died).sum() / died.sum().clamp_min(1)

    check_task(several(likelihood, X[:, :1]))
    check_task(several(quantiles, X[:, :1]))
    check_task(several(survival, torch.cat([X, torch.ones(10, 1)], 1)))
    for loss in (None, nn.HuberLoss(), nn.MSELoss()):
        with pytest.raises(UserError, match=r"shaped like the outputs \(8, 2\); the train part's are \(8, 1\)"):
            check_task(several(loss, X[:, :1]))


def test_tasks_that_will_do():
    check_task(regression(X[:, :1]))
    tokens = Y.view(5, 2)
    check_task(Task.from_tensors(lambda: nn.Sequential(nn.Embedding(2, 3), nn.Flatten(), nn.Linear(6, 2)),
                                 (tokens, Y[:5]), (tokens, Y[:5]), bounds=None))
    pixels = torch.arange(40).view(10, 4) % 3  # labels in several places, outputs with an axis of classes
    check_task(replace(regression(pixels, lambda: nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 4)))),
                       loss=functional.cross_entropy))


@pytest.mark.parametrize("probes", [
    (Accuracy(), Accuracy(split="train")),
    (RobustAccuracy("l2", attack=PGD()), RobustAccuracy("l2", attack=FGSM())),
])
def test_probes_that_measure_the_same_are_refused(probes):
    with pytest.raises(UserError, match="two probes cannot both measure \"accuracy"):
        Comparison("c", TASK, (Arm("SGD", SGD(lr=0.1)),), Plan(1, 16), probes, (1,))


def test_a_metric_with_an_axis_needs_a_coordinate():
    rows = Records([Record("e", "a", 1, "m", value=at, at=at) for at in (0.5, 0.1)])
    with pytest.raises(UserError, match=r"say which with at=: 0\.1, 0\.5"):
        rows.by_seed("a", "m")
    assert rows.by_seed("a", "m", 0.1) == {1: 0.1}
    assert rows.where(at=0.5).by_seed("a", "m") == {1: 0.5}
