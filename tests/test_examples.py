"""Examples that do not fit in memory: a Dataset, mapped files and streams, against the same data in memory."""

from __future__ import annotations

import os
import pickle
import random
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from optscope.engine.execute import Inline, Local
from optscope.engine.naming import check_same, named_task, task_here
from optscope.engine.plan import MOST_STEPS, Plan
from optscope.engine.rehearsal import rehearse
from optscope.engine.run import Run, Watch
from optscope.engine.run_folder import RunFolder
from optscope.engine.train import train
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.optim import SGD, Adam, StepDecay
from optscope.probes.accuracy import Accuracy
from optscope.protocol.rehearse import planned
from optscope.protocol.settings import Settings, read_settings
from optscope.tasks.check import check_task
from optscope.tasks.check_inputs import overlap, scales
from optscope.tasks.datasets import FromDataset, Stream
from optscope.tasks.examples import Examples
from optscope.tasks.fresh import epoch_permutation
from optscope.tasks.mapping import Mapped
from optscope.tasks.task import Data, InMemory, Split, Task
from optscope.tasks.tree import Batch, same
from tiny import ended

N = 70
X, Y = torch.rand(N, 4, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3
SORTED = Y.sort().values
WHOLE = Split(X, Y)
PLAN = Plan(epochs=3, batch=16)


class Rows(Dataset):
    """Rows of a table, as they are or with noise of all three kinds."""

    def __init__(self, noise=0.0, scale=1.0, targets=Y):
        self.noise, self.scale, self.targets = noise, scale, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        drawn = torch.rand(()) + np.random.rand() + random.random() if self.noise else 0.0
        return self.scale * X[i] + self.noise * drawn, int(self.targets[i])


class Following(IterableDataset):
    """The same rows, one after the other, from a place that is drawn or not."""

    def __init__(self, shuffled=False, length=N):
        self.shuffled, self.length = shuffled, length

    def __iter__(self):
        for i in torch.randperm(self.length).tolist() if self.shuffled else range(self.length):
            yield X[i], Y[i]


class Failing(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return torch.zeros(3 + (i == 2)), 0


class Corrupt(Dataset):
    def __len__(self):
        return 70

    def __getitem__(self, i):
        if i == 17:
            raise OSError("corrupt image")
        return X[i], int(Y[i])


class Lost(IterableDataset):
    def __iter__(self):
        yield X[0], 1
        raise RuntimeError("connection lost")


class Empty(Dataset):
    def __len__(self):
        return 0


class Applied(Dataset):
    """Examples as a function of their index."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.function(i)


def net():
    return nn.Linear(4, 3)


def task_of(examples, **settings):
    return Task.from_tensors(net, examples, WHOLE.first(20), validation=WHOLE.first(30), name="t", **settings)


def weights(trained):
    return list(trained.snapshot.model.state_dict().values())


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.fixture
def files(tmp_path):
    """The same examples in every kind of file."""
    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "y.npy", Y.numpy().astype(np.uint8))
    np.savez(tmp_path / "odd.npz", a=np.zeros(3, np.uint8), inputs=X.numpy(), targets=Y.numpy())
    save_file({"inputs": X, "targets": Y}, tmp_path / "both.safetensors")
    return tmp_path


SOURCES = {
    "dataset": lambda files: FromDataset(Rows),
    "dataset, read ahead": lambda files: FromDataset(Rows, workers=2),
    "npy": lambda files: Mapped(files / "x.npy", files / "y.npy"),
    "npz": lambda files: Mapped(files / "odd.npz"),
    "safetensors": lambda files: Mapped(str(files / "both.safetensors")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_training_is_to_the_bit_what_it_is_in_memory(name, files):
    examples = SOURCES[name](files)
    assert isinstance(examples, Examples)
    assert examples.size == N
    for n in (3, None):
        assert same(examples.first(n).inputs, WHOLE.first(n).inputs)
        assert same(examples.first(n).targets, WHOLE.first(n).targets)
    assert examples.first(3).targets.dtype == torch.int64
    for rule, plan in ((Adam(lr=0.01), PLAN), (SGD(lr=0.1), Plan(steps=6, batch=100))):
        there, here = (train(task_of(each), rule, plan, 1) for each in (examples, WHOLE))
        assert equal(there, here)
        assert torch.equal(there.losses, here.losses)


def test_a_split_is_drawn_from_in_the_order_of_the_seed():
    for epoch, step in ((0, 0), (0, 3), (2, 1)):
        chosen = epoch_permutation(N, 5, epoch)[16 * step:16 * (step + 1)]
        batch = WHOLE.batch(epoch, step, 16, 5)
        assert torch.equal(batch.inputs, X[chosen])
        assert torch.equal(batch.targets, Y[chosen])


def test_what_a_data_set_draws_depends_on_seed_epoch_and_example_alone():
    examples, ahead = (FromDataset(partial(Rows, noise=1.0), workers) for workers in (0, 2))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    places = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (0, 1)]
    found = [examples.batch(*place, 16, 7) for place in places]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    for place, batch in zip(places, found, strict=True):
        again = ahead.batch(*place, 16, 7)
        assert same(again.inputs, batch.inputs)
        assert same(again.targets, batch.targets)
    assert torch.equal(before[0], torch.get_rng_state())
    noise = {}
    for order, epoch in ((7, 0), (7, 1), (8, 0)):
        batch = examples.batch(epoch, 0, N, order)
        where = epoch_permutation(N, order, epoch)
        noise[order, epoch] = (batch.inputs - X[where])[where.argsort(), 0]
    assert len({tuple(each.tolist()) for each in noise.values()}) == 3
    assert same(examples.batch(0, 0, 4, 7).inputs, examples.batch(0, 0, 8, 7).first(4).inputs)


def test_a_training_that_is_resumed_in_the_middle_of_an_epoch_sees_the_same_examples():
    for examples, plan in ((FromDataset(partial(Rows, noise=1.0), 2), PLAN), (Stream(partial(Following, True)),
                                                                              Plan(steps=12, batch=16))):
        whole, half, rest = (Training(task_of(replace(examples), bounds=None), Adam(lr=0.01), plan, 3)
                             for _ in range(3))
        whole.advance(12)
        half.advance(5)
        rest.load_state_dict(half.state_dict())
        rest.advance(12)
        assert equal(whole.trained(), rest.trained())
        assert torch.equal(whole.losses, rest.losses)


def test_two_trainings_side_by_side_draw_from_one_stream_as_if_each_were_alone():
    stream = Stream(partial(Following, True))
    one, other = (Training(task_of(stream), SGD(lr=0.1), Plan(steps=4, batch=8), seed) for seed in (1, 2))
    for step in range(1, 5):
        one.advance(step)
        other.advance(step)
    for training, seed in ((one, 1), (other, 2)):
        assert equal(training.trained(), train(task_of(stream), SGD(lr=0.1), Plan(steps=4, batch=8), seed))


# Identity

def same_name(*examples):
    return len({Run(task_of(each), SGD(lr=0.1), PLAN, 1).id for each in examples}) == 1


def test_names_know_content_and_settings_and_not_how_many_read_ahead(files):
    assert same_name(FromDataset(Rows), FromDataset(Rows, workers=2))
    assert same_name(*(pickle.loads(pickle.dumps(each)) for each in (FromDataset(Rows),)), FromDataset(Rows))
    assert not same_name(FromDataset(Rows), FromDataset(partial(Rows, scale=2.0)))
    assert not same_name(FromDataset(Rows), FromDataset(partial(Rows, targets=SORTED)))
    assert not same_name(FromDataset(Rows), FromDataset(partial(Rows, targets=Y[:-1])))
    assert not same_name(Stream(Following), Stream(partial(Following, shuffled=True)))
    one = Mapped(files / "x.npy", files / "y.npy")
    used = Mapped(files / "x.npy", files / "y.npy")
    used.batch(0, 0, 4, 1)
    assert same_name(one, used)
    stamp = (files / "x.npy").stat().st_mtime_ns
    moved = files / "moved"
    moved.mkdir()
    for name in ("x.npy", "y.npy"):
        (moved / name).write_bytes((files / name).read_bytes())
        os.utime(moved / name, ns=((files / name).stat().st_mtime_ns,) * 2)
    assert same_name(one, Mapped(moved / "x.npy", moved / "y.npy"))
    os.utime(moved / "x.npy", ns=(stamp + 1, stamp + 1))
    assert not same_name(one, Mapped(moved / "x.npy", moved / "y.npy"))
    np.save(files / "x.npy", X.numpy() + 1)
    os.utime(files / "x.npy", ns=(stamp, stamp))
    assert not same_name(one, Mapped(files / "x.npy", files / "y.npy"))


@dataclass(frozen=True)
class Halves(Examples):
    """A user's own: every second row."""

    offset: int

    @property
    def size(self):
        return N // 2

    @property
    def digest(self):
        return "rows"

    def batch(self, epoch, step, size, order):
        chosen = 2 * epoch_permutation(N // 2, order, epoch)[step * size:(step + 1) * size] + self.offset
        return Batch(X[chosen], Y[chosen])

    def first(self, n):
        return Batch(X[self.offset::2][:n], Y[self.offset::2][:n])


def test_users_write_examples_of_their_own():
    assert same_name(Halves(0), Halves(0))
    assert not same_name(Halves(0), Halves(1))
    in_memory = Split(X[1::2], Y[1::2])
    assert equal(*(train(task_of(each), SGD(lr=0.1), PLAN, 1) for each in (Halves(1), in_memory)))


# Whole commands

def test_functions_of_one_name_in_the_model_and_the_data_set_are_told_apart():
    task = Task.from_tensors(lambda: nn.Linear(4, 3), FromDataset(partial(Applied, lambda i: (X[i], int(Y[i])))),
                             WHOLE, validation=WHOLE)
    assert named_task(task).users["its fresh model"] == task_here(task, known=False)[0].users["its fresh model"]
    check_same("t", [task_here(task, known=False)[0]], named_task(task).users)


@dataclass(frozen=True)
class Noisy:
    """Data as a task makes them, with a training part that is read by index."""

    workers: int = 0

    def __call__(self):
        return Data(FromDataset(partial(Rows, noise=0.5), self.workers), WHOLE.first(30), WHOLE.first(20))


def loaded():
    """The rows, gathered by a loader with processes of its own, in whatever process that is."""
    return Data(*(Split.of(DataLoader(Rows(), 16, num_workers=1)) for _ in range(3)))


def test_a_worker_trains_to_the_same_bits(tmp_path, files):
    probes = Accuracy(), Accuracy(split="train", examples=50)
    tasks = [Task("made", net, Noisy(workers=1), bounds=None), Task("made", net, loaded),
             task_of(Mapped(files / "x.npy", files / "y.npy")), task_of(Stream(partial(Following, True)))]
    runs = [Run(task, Adam(lr=0.01), Plan(steps=9, batch=16), 1, probes, (Watch(Accuracy(), 2),)) for task in tasks]
    for place, executor in (("here", Inline()), ("there", Local(1))):
        assert [o.reason for o in ended(executor, runs, tmp_path / place / "runs")] == [""] * 4
    for run in runs:
        here, there = (RunFolder(tmp_path / place / "runs" / run.id) for place in ("here", "there"))
        assert all(torch.equal(v, there.weights()[n]) for n, v in here.weights().items())
        for name in run.readings:
            assert here.contents().reading(name) == there.contents().reading(name) is not None


def test_a_task_is_checked_and_rehearsed_on_examples_from_all_over():
    for examples, plan in ((FromDataset(partial(Rows, targets=SORTED)), PLAN), (Stream(Following), Plan(steps=5))):
        task = task_of(examples)
        check_task(task)
        found = rehearse(task, {"SGD": SGD(lr=0.1)}, plan, (Accuracy(), Accuracy(split="train", examples=9)))
        assert (found.silent, found.broken) == ({}, {})
        assert overlap(task.data()) == scales(task.data()) == []
    assert planned(task_of(Stream(Following)), Plan(steps=5, batch=8)) == "5 steps on 8 examples each"
    assert planned(task_of(FromDataset(Rows)), PLAN) == (
        "3 epochs of 4 steps on 16 examples each make 12 steps; 6 of 70 examples, "
        "others each time, are left out of an epoch")


def test_measuring_all_of_a_stream_is_silent_with_its_reason(tmp_path):
    probe = Accuracy(split="train")
    run = Run(task_of(Stream(Following)), SGD(lr=0.1), Plan(steps=3), 1, (probe,))
    folder = RunFolder(tmp_path / "r")
    run.perform(folder)
    assert "a stream has no last example" in folder.contents().reading(run.readings[0])["reason"]


# Streams

def test_a_stream_begins_again_when_it_ends():
    stream = Stream(partial(Following, length=5))
    targets = torch.cat([stream.batch(0, step, 3, 1).targets for step in range(5)])
    assert targets.tolist() == (3 * Y[:5].tolist())[:15]
    assert stream.batch(0, 2, 3, 1).targets.tolist() == targets[6:9].tolist()
    shuffled = Stream(partial(Following, True))
    first, second = (shuffled.batch(0, step, N, 1).inputs for step in (0, 1))
    assert not torch.equal(first, second)  # another order in every reading
    assert torch.equal(first.sort(0).values, second.sort(0).values)
    assert len(stream.first(9)) == 5


def test_plans_of_steps():
    assert Plan().epochs == 30
    assert Plan(steps=7).total(None) == Plan(steps=7).total(10**9) == 7
    assert Plan(epochs=2, batch=10).total(99) == 18
    assert len(train(task_of(WHOLE), SGD(lr=0.1), Plan(steps=7, batch=16), 1).losses) == 7
    with pytest.raises(UserError, match="give epochs or steps, not both; got 3 epochs, 4 steps"):
        Plan(epochs=3, steps=4)
    with pytest.raises(UserError, match="steps must be a whole number >= 1; got 0"):
        Plan(steps=0)
    with pytest.raises(UserError, match=f"has at most {MOST_STEPS}: give fewer steps"):
        Plan(steps=10 * MOST_STEPS)


def test_settings_say_epochs_or_steps():
    assert Settings().plan == Plan(30, 128, StepDecay())
    assert Settings(steps=9, batch=4).plan == Plan(batch=4, schedule=StepDecay(), steps=9)
    with pytest.raises(UserError, match="give epochs or steps, not both; got 2 epochs and 3 steps"):
        read_settings(None, epochs=2, steps=3)


# Trees and what users get wrong

def test_files_hold_trees(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(6, 2))
    np.save(tmp_path / "mask.npy", np.ones((6, 2)))
    np.save(tmp_path / "y.npy", np.arange(6.0))
    given = Mapped({"ids": tmp_path / "ids.npy", "mask": tmp_path / "mask.npy"}, tmp_path / "y.npy")
    save_file({"inputs.ids": torch.arange(12).view(6, 2), "inputs.mask": torch.ones(6, 2),
               "targets.1": torch.zeros(6), "targets.0": torch.arange(6.0)}, tmp_path / "all.safetensors")
    for batch in (given.batch(0, 0, 3, 1), Mapped(tmp_path / "all.safetensors").batch(0, 0, 3, 1)):
        chosen = epoch_permutation(6, 1, 0)[:3]
        assert torch.equal(batch.inputs["ids"], torch.arange(12).view(6, 2)[chosen])
        assert batch.inputs["mask"].dtype == torch.float32
        first = batch.targets[0] if isinstance(batch.targets, tuple) else batch.targets
        assert torch.equal(first, chosen.float())


def test_who_writes_into_a_batch_changes_no_file(files):
    examples = Mapped(files / "x.npy", files / "y.npy")
    before = (files / "x.npy").read_bytes()
    examples.batch(0, 0, 8, 1).inputs.zero_()
    examples.first(5).inputs.zero_()
    assert (files / "x.npy").read_bytes() == before
    assert torch.equal(examples.first(None).inputs, X)


def write(folder, **made):
    for name, value in made.items():
        np.save(folder / f"{name}.npy", value)
    return folder


BAD = {
    "no file": (lambda p: Mapped(p / "no.npy", p / "no.npy").size, "no.npy: there is no such file"),
    "no such kind": (lambda p: Mapped("a.csv", "b.csv").size, "a.csv: a mapped file must be a .npy, .npz or"),
    "compressed": (lambda p: np.savez_compressed(p / "z.npz", inputs=X) or Mapped(p / "z.npz").size,
                   "z.npz cannot be mapped .it is compressed"),
    "columns first": (lambda p: Mapped(write(p, f=np.asfortranarray(X.numpy())) / "f.npy", p / "f.npy").size,
                      "its columns come first: write np.ascontiguousarray"),
    "objects": (lambda p: Mapped(write(p, o=np.array([{}])) / "o.npy", p / "o.npy").size, "its numbers are object"),
    "a single number": (lambda p: Mapped(write(p, s=np.float32(1)) / "s.npy", p / "s.npy").size, "a first axis"),
    "cut off": (lambda p: (write(p, c=X.numpy()) / "c.npy").write_bytes((p / "c.npy").read_bytes()[:-8])
                and Mapped(p / "c.npy", p / "c.npy").size, "c.npy cannot be mapped .it is cut off: 1112 of 1120"),
    "no safetensors": (lambda p: (p / "a.safetensors").write_text("x" * 99) and Mapped(p / "a.safetensors").size,
                       "a.safetensors cannot be mapped"),
    "no zip": (lambda p: (p / "a.npz").write_text("x" * 99) and Mapped(p / "a.npz").size, "a.npz cannot be mapped"),
    "other names": (lambda p: np.savez(p / "n.npz", x=X, y=Y) or Mapped(p / "n.npz").size,
                    'must hold arrays called "inputs" and "targets"; got x, y'),
    "one array": (lambda p: Mapped(write(p, x=X) / "x.npy").size, "got one without a name"),
    "several arrays": (lambda p: np.savez(p / "n.npz", x=X, y=Y) or Mapped(p / "n.npz", p / "n.npz").size,
                       "holds several arrays"),
    "other lengths": (lambda p: Mapped(write(p, x=X, y=Y[:9]) / "x.npy", p / "y.npy").size,
                      r"one row an example; got arrays of \[9, 70\] rows"),
    "a data set itself": (lambda p: FromDataset(Rows()), "FromDataset takes a function that makes the Dataset"),
    "a stream itself": (lambda p: Stream(Following()), "Stream takes a function that makes the IterableDataset"),
    "a stream read by index": (lambda p: FromDataset(Following).size, "got Following: give Stream"),
    "examples of two shapes": (lambda p: FromDataset(Failing).first(5), "that at index 2"),
    "an example that stops": (lambda p: FromDataset(Corrupt).first(20),
                              "Corrupt stopped at the example of index 17 with OSError: corrupt image: mend it"),
    "an example that stops, gathered": (lambda p: Split.of(Corrupt()), "Corrupt stopped at the example of index"),
    "a stream that stops": (lambda p: Stream(Lost).first(5), "Lost stopped after 1 examples with RuntimeE"),
    "no examples": (lambda p: FromDataset(Empty).size, "Empty holds no example at all"),
    "an empty stream": (lambda p: Stream(partial(Following, length=0)).batch(0, 0, 2, 1), "no example at all"),
    "a stream without steps": (lambda p: train(task_of(Stream(Following)), SGD(lr=0.1), PLAN, 1),
                               r"a stream has no epochs: say how many steps .* Plan\(steps=1000, batch=16\)"),
    "nothing held out": (lambda p: Task.from_tensors(net, FromDataset(Rows), WHOLE),
                         "FromDataset is not in memory: nothing can be held out of it, give validation="),
    "test": (lambda p: Task.from_tensors(net, WHOLE, FromDataset(Rows)),
             r"test part: FromDataset is not in memory: write Split.of_batch\(examples.first\(n\)\)"),
    "validation": (lambda p: check_task(Task("t", net, InMemory(Data(WHOLE, FromDataset(Rows), WHOLE)))),
                   "the validation part is measured again and again, and must be in memory"),
}


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("name", BAD)
def test_what_will_not_do_is_one_sentence(name, tmp_path):
    make, words = BAD[name]
    with pytest.raises(UserError, match=words):
        make(tmp_path)
