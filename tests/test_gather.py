"""Data come in right whatever they lie in, once and in one order, or are refused before they fill the memory."""

from __future__ import annotations

import itertools
import random
import time
from collections import UserDict

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

from optscope.errors import UserError
from optscope.tasks import gather
from optscope.tasks.check_inputs import check_data, overlap, scales
from optscope.tasks.memory import check_fits, free_bytes
from optscope.tasks.task import Data, Split, Task

X, Y = torch.arange(40.0).view(20, 2) / 40, torch.arange(20) % 3
PAIRS = TensorDataset(X, Y)


class Table:
    """What pandas has: a shape, and to_numpy()."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def to_numpy(self):
        return self.values


class Stream(IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


class Long(Stream):
    def __len__(self):
        return 10


class Huge(Dataset):
    """As many 4 MB examples as fill the free memory; the second is never read."""

    read = 0

    def __len__(self):
        return free_bytes() // 4_000_000 + 1

    def __getitem__(self, i):
        type(self).read += 1
        return torch.zeros(1_000_000), 0


class Noisy(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return torch.rand(2) + np.random.rand(), i


class OneBuffer(Noisy):
    buffer = np.zeros(2, np.float32)

    def __getitem__(self, i):
        self.buffer[:] = i
        return self.buffer, i


def squared(pairs):
    inputs, targets = zip(*pairs, strict=True)
    return torch.stack(inputs) ** 2, torch.tensor(targets)


@pytest.mark.parametrize("source", [
    (X, Y), [X, Y], (X.numpy(), Y.numpy()), (X.numpy().astype(float), Y.numpy().astype(np.uint8)),
    (Table(X.numpy().astype(float)), Table(Y.numpy())), (scipy.sparse.csr_matrix(X.numpy()), Y),
    (X.tolist(), Y.tolist()), list(zip(X, Y, strict=True)),
    list(zip(X.to_sparse(), Y, strict=True)), list(zip(X.tolist(), Y.tolist(), strict=True)), PAIRS,
    ConcatDataset([Subset(PAIRS, range(7)), Subset(PAIRS, range(7, 20))]), Stream(list(PAIRS)),
    DataLoader(PAIRS, 3, shuffle=True, drop_last=True, num_workers=2),
    DataLoader(Stream(list(PAIRS)), 3, num_workers=2), DataLoader(Stream(list(PAIRS)), batch_size=None),
    DataLoader(Stream([(X[:15], Y[:15]), (X[15:], Y[15:])]), batch_size=None),
    (X.numpy()[::-1][::-1], Y.numpy().astype(">i4")), (X.to_sparse(), Y), (X.clone().requires_grad_(), Y.int()),
    (X.t().contiguous().t(), Y.bool().long() * Y), (nn.Parameter(X), Y),
], ids=itertools.count())
def test_whatever_examples_lie_in_they_are_the_same(source):
    split = Split.of(source)
    assert torch.equal(split.inputs, X)
    assert torch.equal(split.targets, Y)
    assert split.targets.dtype == torch.int64
    assert type(split.inputs) is torch.Tensor
    assert split.inputs.is_contiguous()
    assert not split.inputs.requires_grad


TWO = {"ids": Y, "x": X}


class Dictionaries(Dataset):
    """Examples as the data sets of Hugging Face give them."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return {"ids": Y[i], "x": X[i], "labels": Y[i]}


class Columns:
    """What `datasets.Dataset` has."""

    column_names = ("ids", "x", "labels")

    def __getitem__(self, which):
        return {"ids": Y[which].tolist(), "x": X[which].numpy(), "labels": Y[which].tolist()}


@pytest.mark.parametrize("source", [
    (TWO, Y), ({"ids": Y.tolist(), "x": X.numpy().astype(float)}, Y.tolist()), {**TWO, "labels": Y},
    UserDict({**TWO, "label": Y}), [({"ids": i, "x": x}, i) for i, x in zip(Y, X, strict=True)],
    [{"ids": int(i), "x": x.numpy(), "label": int(i)} for i, x in zip(Y, X, strict=True)], Dictionaries(),
    DataLoader(Dictionaries(), 3, shuffle=True), Columns(),
], ids=itertools.count())
def test_mappings_are_read_with_their_labels_inside_or_apart(source):
    split = Split.of(source)
    assert type(split.inputs) is dict
    assert list(split.inputs) == ["ids", "x"]
    assert torch.equal(split.inputs["ids"], Y)
    assert torch.equal(split.inputs["x"], X)
    assert torch.equal(split.targets, Y)


@pytest.mark.parametrize("source", [
    ((Y, (X, X)), Y), [((i, (x, x)), i) for i, x in zip(Y, X, strict=True)],
    DataLoader([((i, (x, x)), i) for i, x in zip(Y, X, strict=True)], 3),
    [((i, (x.numpy(), x.numpy())), int(i)) for i, x in zip(Y, X, strict=True)],
], ids=itertools.count())
def test_tuples_stay_tuples_at_any_depth(source):
    split = Split.of(source)
    (ids, (one, two)), targets = split.inputs, split.targets
    assert torch.equal(ids, Y)
    assert torch.equal(one, X)
    assert torch.equal(two, X)
    assert torch.equal(targets, Y)


def test_two_tuples_of_tensors_are_two_examples():
    split = Split.of(((X[0], Y[0]), (X[1], Y[1])))
    assert torch.equal(split.inputs, X[:2])
    targets = Split.of((TWO, {"one": Y, "two": X})).targets  # a tree of targets
    assert targets.keys() == {"one", "two"}


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
def test_other_types_keep_theirs():
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.uint8):
        assert Split(X.to(dtype), Y).inputs.dtype == dtype
    assert Split.of((X, np.ones(20))).targets.dtype == torch.float32
    assert Split(X, Y[:, None].byte()).targets.dtype == torch.uint8  # no labels (n,): as they are
    assert torch.equal(Split(X, Y == 1).targets, (Y == 1).long())
    assert torch.equal(Split(torch.ones(()).expand(20, 2), Y).inputs, torch.ones(20, 2))
    assert torch.equal(Split(X, Y.to(torch.uint16)).targets, Y)
    with torch.inference_mode():
        inputs = X.clone()
    assert not Split(inputs, Y).inputs.is_inference()
    assert torch.equal(Split(torch.quantize_per_tensor(Y + 0.0, 1.0, 0, torch.quint8), Y).inputs, Y + 0.0)


def test_a_loaders_collate_function_and_a_read_only_file_are_honoured(tmp_path):
    assert torch.equal(Split.of(DataLoader(PAIRS, 4, collate_fn=squared, num_workers=2)).inputs, X ** 2)
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    split = Split.of((mapped, Y))
    split.inputs.mul_(2)  # would kill the process if it were the file
    assert np.array_equal(mapped, X.numpy())


def test_what_examples_draw_is_the_same_in_every_process():
    torch.manual_seed(1)
    first, state = Split.of(Noisy()).inputs, torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(Split.of(Noisy()).inputs, first)
    assert torch.equal(Split.of(OneBuffer()).inputs[:, 0], torch.arange(5.0))


class Drawn(Dataset):
    """Pairs with noise of a generator of its own."""

    def __init__(self, rng):
        self.rng = rng

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return X[i] + self.rng.random(), int(Y[i])


def first_batch(loader):
    return next(iter(loader))[0]


@pytest.mark.parametrize("make", [
    lambda: DataLoader(PAIRS, 4, shuffle=True, generator=torch.Generator().manual_seed(1)),
    lambda: DataLoader(PAIRS, 4, sampler=RandomSampler(range(20), generator=torch.Generator().manual_seed(1))),
    lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(
        RandomSampler(range(20), generator=torch.Generator().manual_seed(1)), 4, False)),
    lambda: DataLoader(Drawn(np.random.default_rng(1)), 4),
    lambda: DataLoader(Drawn(random.Random(1)), 4)], ids=itertools.count())
def test_a_loader_gives_its_loop_what_it_would_have_given_before_it_was_read(make):
    loader = make()
    Split.of(loader)
    assert torch.equal(first_batch(loader), first_batch(make()))


@pytest.mark.parametrize(("source", "words"), [
    (DataLoader([(X[0], object())] * 3, 2), "DataLoader of list stopped after 0 batches with TypeError: def"),
    (DataLoader(Stream([(X[0], 1), (X[:, 0], 1)]), 2), "DataLoader of Stream stopped after 0 batches with Runtime"),
    (Stream(itertools.repeat((X[0], 1))), r"a stream without a length goes on after 100000 examples"),
    (Long(itertools.repeat((X[0], 1))), "a stream of that length goes on after 10 examples"),
    (DataLoader(Stream(itertools.repeat((X[0], 1))), 512, num_workers=2), "without a length goes on"),
    (DataLoader(PAIRS, sampler=itertools.count()), "which has no end"),
    (Stream([]), "no example at all"),
    ([(X[0], 1), (X[:, 0], 1)], r"the first is torch.float32 of shape \(2,\), that at index 1"),
    ([(X[0], 1), (X[1], 0.5), (X[1], 1)], "the target of the first is torch.int64"),
    ((X, ["a", "b"] * 10), r"targets must be numbers; got <U1 \(first: .*'a'.*number classes"),
    ((Table(np.array([[1.0, "x"]], object)), Y[:1]), "inputs must be numbers; got object"),
    ((X, np.ma.masked_equal(Y.numpy(), 1)), "targets are masked in places"),
    (([[1.0], [1.0, 2.0]], [0, 1]), "lists of different lengths"),
    ([(X[0], 1, 2)] * 3, "pair .* got tuple of 3"),
    ([({"ids": X[0]}, 1), ({"ids": X[0], "m": X[0]}, 1)] * 2, "first has the fields ids, that at index 1 ids, m"),
    ([({"ids": X[0]}, 1), ({"ids": X[0, :1]}, 1)] * 2, r'input "ids" of the first is .* \(2,\), that at index 1 '),
    ([{"ids": X[0], "target": 1}] * 3, "a field \"labels\" or \"label\" beside the inputs; got 'ids', 'target'"),
    ({"x": X, "y": Y}, "\"labels\" or \"label\" .*; got 'x', 'y': rename"),
    (({"ids": X, "mask": X[:7]}, Y), 'leaves of one length; got 20 inputs "ids" and 7 inputs "mask"'),
    (({"ids": X, "mask": None}, Y), r'inputs "mask" must be numbers; got object \(first: None\)'),
    ((X, None), r"targets must be numbers; got object \(first: None\)"),
    ([(X[0], 1), None], "pair .* got NoneType"),
    (((X, X[:7]), Y), 'got 20 inputs "0" and 7 inputs "1"'),
    (({"ids": [[1], [1, 2]]}, [0, 1]), 'inputs "ids" are lists of different lengths: pad'),
    ({"text": ["a", "b"], "label": [0, 1]}, 'inputs "text" must be numbers'),
    (({}, Y), "hold a tensor; got an empty dict"),
    (X, "data must be a pair .*; got Tensor: give the inputs and the targets apart"),
    ((X, Y[:3]), "20 inputs and 3 targets"),
    ((X[0, 0], Y[0]), "a first axis that counts the examples"),
    ((X.to("meta"), Y), "holds no values"),
    ((torch.nested.nested_tensor([X[0], X[0, :1]], layout=torch.jagged), Y[:2]), "nested tensor.*pad them"),
    ((X[:0], Y[:0]), "at least one example"),
], ids=itertools.count())
def test_what_cannot_be_read_is_refused_in_one_sentence(source, words):
    start = time.perf_counter()
    with pytest.raises(UserError, match=words) as refused:
        Split.of(source)
    assert "\n" not in str(refused.value)
    assert time.perf_counter() - start < 30


def test_data_larger_than_memory_are_refused_at_their_first_example():
    with pytest.raises(UserError, match=r"examples of 4e\+03 kB take .* GB are free: give at most"):
        Task.from_tensors(nn.Identity, Huge(), (X, Y))
    assert Huge.read == 1
    with pytest.raises(UserError, match="give at most"):
        Split.of(DataLoader(Huge(), 2, shuffle=True))
    with pytest.raises(UserError, match="give at most"):
        Split(torch.ones(()).expand(free_bytes() // 8, 3), Y)
    check_fits(10, 5, free=100)
    with pytest.raises(UserError, match="give at most 4,"):
        check_fits(10, 5, free=99)


def test_a_stream_that_outgrows_the_memory_is_stopped(monkeypatch):
    monkeypatch.setattr(gather, "free_bytes", lambda: 1000)  # 20 examples of 16 bytes take 320, twice
    assert len(Split.of(Stream(list(PAIRS)))) == 20
    with pytest.raises(UserError, match="32 examples"):
        Split.of(Stream(itertools.repeat((X[0], 1))))


def test_the_loss_follows_the_kind():
    data = {"train": (X, X), "test": (X, X)}
    assert Task.from_tensors(nn.Identity, kind="regression", **data).loss is functional.mse_loss
    assert Task.from_tensors(nn.Identity, **data).loss is functional.cross_entropy
    given = functional.l1_loss
    assert Task.from_tensors(nn.Identity, kind="regression", loss=given, **data).loss is given
    made = Task.from_tensors(nn.Identity, **data)
    assert Task("t", nn.Identity, made.data, kind="regression").loss is functional.mse_loss
    assert "mse_loss" in repr(Task("t", nn.Identity, made.data, kind="regression"))


def test_a_part_that_cannot_be_read_is_named_and_one_example_cannot_be_split():
    with pytest.raises(UserError, match="mine, test part: data must be"):
        Task.from_tensors(nn.Identity, (X, Y), None, name="mine")
    with pytest.raises(UserError, match="it has one example: give more, or validation="):
        Task.from_tensors(nn.Identity, (X[:1], Y[:1]), (X, Y))
    whole = Task.from_tensors(nn.Identity, PAIRS, PAIRS, validation=PAIRS).data()
    assert whole.train is whole.validation is whole.test


def refused(x=X, y=Y, test=None, **settings):
    part = (x, y)
    task = Task.from_tensors(lambda: nn.Linear(2, 3), part, test or part, validation=part, **settings)
    with pytest.raises(UserError) as error:
        check_data(task)
    return str(error.value)


def test_examples_that_are_not_finite_are_counted_and_named():
    x = X.clone()
    x[[3, 7], 1] = torch.nan
    assert "train part's inputs hold nan or inf in 2 of 20 examples, first at index 3" in refused(x)
    y = X[:, 0].clone()
    y[19] = torch.inf
    assert "targets hold nan or inf in 1 of 20 examples, first at index 19" in refused(X, y, kind="regression")


def test_classes_in_another_form_are_told_how_to_become_numbers():
    assert "they are one-hot: write .argmax(1)" in refused(y=functional.one_hot(Y))
    assert "they are one-hot: write .argmax(1)" in refused(y=functional.one_hot(Y).float())
    assert "(20, 1) of torch.int64: write .flatten()" in refused(y=Y[:, None])
    assert ".flatten().long()" in refused(y=Y[:, None].float())


def test_parts_prepared_otherwise_and_types_that_nobody_compares_are_refused():
    assert "the train part's inputs are (20, 2) of torch.float32, the test part's (20, 2, 1)" in refused(
        test=(X[:, :, None], Y))
    assert "the test part's (20, 2) of torch.int64" in refused(test=(X.long(), Y), bounds=None)
    assert "torch.view_as_real" in refused(X.to(torch.complex64), bounds=None)
    assert "write .float()" in refused(X.to(torch.float8_e4m3fn))


def test_examples_in_two_parts_are_counted():
    parts = [Split(X[i], Y[i]) for i in (slice(0, 10), slice(8, 13), slice(13, 20))]
    (said,) = overlap(Data(*parts))
    assert said.startswith("2 of the 5 validation examples are training examples too")
    assert overlap(Data(parts[0], parts[2], Split(X[:10], Y[:10] + 1))) == []
    assert len(overlap(Data(parts[0], parts[0], parts[0]))) == 2


def test_a_part_on_another_scale_is_told():
    def parts(test, train=X):
        return Data(Split(train, Y), Split(train, Y), Split(test, Y))

    assert scales(parts(X)) == scales(parts((X + 0.1).half())) == []
    (said,) = scales(parts((X - X.mean()) * 255 + X.mean()))
    assert "the test part's inputs lie 255 times as far from the training inputs' mean" in said
    (said,) = scales(parts((X - X.mean()) * 1e-3 + X.mean()))
    assert "the test part's inputs lie 0.001 times" in said
    assert scales(parts(X.long() * 255, X.long())) == []
    assert scales(parts(X, torch.ones(20, 2))) == []  # nothing to be a multiple of
