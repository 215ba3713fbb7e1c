"""Data in memory on their way to workers: hashed once, written once, mapped by all, never used when damaged."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optscope.engine.data_files import DataFiles
from optscope.engine.execute import Inline, Local
from optscope.engine.packing import packed
from optscope.engine.plan import Plan
from optscope.engine.run import Run
from optscope.engine.run_folder import RunFolder
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.records import Records
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.protocol.comparison import Arm, Comparison
from optscope.tasks import task as tasks
from optscope.tasks.content import mark
from optscope.tasks.task import Data, InMemory, Split, Task
from optscope.tasks.tree import leaves, same
from tiny import ended

PLAN = Plan(epochs=1, batch=16)
X, Y = torch.rand(90, 4, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
         torch.int8, torch.uint8, torch.bool)


def net():
    return nn.Linear(4, 3)


def task_of(x=X, y=Y):
    return Task.from_tensors(net, (x, y), (x, y), name="mine")


def sent(split, folder):
    """A split as another process gets it."""
    return pickle.loads(packed(split, DataFiles(folder)))


SPLITS = {
    "two tensors": (X, Y),
    "one example": (X[:1], Y[:1]),
    "no numbers in it": (torch.zeros(5, 0), torch.zeros(5)),
    "a view of a larger tensor": (X[10:20], Y[10:20]),
    "trees": ({"ids": X.long(), "both": (X, {"deep": X[:, :1].double()})}, (Y, X[:, 0])),
    "a mapping of one": ({"x": X}, Y),
    "a tuple of one": ((X,), Y),
    "every type": (tuple((10 * X[:, :3]).to(dtype) for dtype in TYPES), Y),
    "nan and -0": (torch.tensor([[float("nan")], [-0.0]]), torch.zeros(2)),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_comes_back_to_the_bit_in_its_own_shape(name, tmp_path):
    split = Split(*SPLITS[name])
    there = sent(split, tmp_path / "data")
    assert there.digest == split.digest
    for mine, other in ((split.inputs, there.inputs), (split.targets, there.targets)):
        assert type(other) is type(mine)
        assert list(leaves(other)) == list(leaves(mine))
        for a, b in zip(leaves(mine).values(), leaves(other).values(), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert a.reshape(-1).view(torch.uint8).tolist() == b.reshape(-1).view(torch.uint8).tolist()
    assert [p.name for p in (tmp_path / "data").iterdir()] == [f"{split.digest}.safetensors"]


def test_digests_tell_apart_what_is_not_the_same():
    variants = [SPLITS[name] for name in SPLITS if name != "every type"]
    variants += [(X.double(), Y), (X.view(45, 8), Y[:45]), (X, Y.flip(0)), (X, Y.float()), ({"y": X}, Y)]
    found = [Split(*each).digest for each in variants]
    assert len(set(found)) == len(found)
    assert Split(X.clone(), Y.int()).digest == Split(X, Y).digest  # labels become int64


def test_leaves_of_one_path_are_refused():
    with pytest.raises(UserError, match=r"need paths of their own; got a\.b for 2 leaves, since names have dots"):
        Split({"a.b": X, "a": {"b": X}}, Y)


def test_numbers_without_a_place_in_such_files_are_sent_in_the_message(tmp_path):
    split = Split(torch.complex(X, X), Y)
    assert same(sent(split, tmp_path / "data").inputs, split.inputs)
    assert not (tmp_path / "data").exists()


def test_who_writes_into_what_is_mapped_hurts_only_himself(tmp_path):
    split = Split(X.clone(), Y)
    message = packed(split, DataFiles(tmp_path))
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    one, other = pickle.loads(message), pickle.loads(message)
    one.inputs.mul_(0)
    one.inputs.numpy()[0] = 7.0
    assert one.inputs[0].tolist() == [7.0] * 4
    assert torch.equal(other.inputs, X)
    assert torch.equal(pickle.loads(message).inputs, X)
    assert path.read_bytes() == before


class Spoils(nn.Module):
    """A model that writes into what it is given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x.mul_(0.5))


def test_a_model_that_writes_into_its_inputs_spoils_no_other_run_of_its_worker(tmp_path):
    def run(seed):
        task = Task("spoils", Spoils, InMemory(Data(*(Split(X.clone(), Y) for _ in range(3)))))
        return Run(task, SGD(lr=0.1), PLAN, seed, (Accuracy(),))

    runs = [run(1), run(2)]
    assert [o.status for o in ended(Local(1), runs, tmp_path / "a" / "runs")] == ["ok"] * 2
    for each in runs:
        list(Inline().run([run(each.seed)], tmp_path / "b" / "runs"))
        folders = (RunFolder(tmp_path / place / "runs" / each.id) for place in "ab")
        found = [folder.contents().reading(each.readings[0]) for folder in folders]
        assert found[0] == found[1]


OTHER_PROCESS = """
import pickle, sys
split = pickle.loads(bytes.fromhex(sys.argv[1]))
print(float(split.inputs.sum()), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell who shares pages")
def test_two_processes_share_the_pages(tmp_path):
    split = Split(torch.rand(1000, 1024), torch.arange(1000))
    message = packed(split, DataFiles(tmp_path))
    mine = pickle.loads(message)
    with subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, message.hex()], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert float(process.stdout.readline()) == float(mine.inputs.sum())
        shared = pages(mine.inputs)
        process.communicate("\n")
    assert shared["path"] == str(next(tmp_path.iterdir()))
    assert shared["Shared_Clean"] >= 4000
    assert shared["Private_Dirty"] == shared["Anonymous"] == 0


def pages(tensor):
    """What the system says of the memory in which a tensor lies, in kB."""
    text = Path("/proc/self/smaps").read_text()
    for area in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)[1:]:
        first, last = (int(end, 16) for end in area.split(" ")[0].split("-"))
        if first <= tensor.data_ptr() < last:
            head, *lines = area.splitlines()
            numbers = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
            return {"path": head.split(maxsplit=5)[5], **numbers}
    raise AssertionError


def test_a_message_is_small_and_data_are_looked_at_once(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(tasks, "digest_of", lambda tree, real=tasks.digest_of: looks.append(1) or real(tree))
    big = torch.rand(2000, 784)
    task = Task.from_tensors(lambda: nn.Linear(784, 10), (big, torch.arange(2000) % 10), (big[:50], Y[:50]))
    arms = Arm("SGD", SGD(lr=0.1)), Arm("Adam", Adam(lr=0.1))
    comparison = Comparison("c", task, arms, PLAN, (Accuracy(),), (1, 2, 3))
    jobs = comparison.jobs(Records())
    assert [job.work.id for job in comparison.jobs(Records())] == [job.work.id for job in jobs]
    data = DataFiles(tmp_path / "data")
    assert all(len(packed(job.work, data)) < 20_000 for job in jobs)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()}
    packed(jobs, data)
    assert len(looks) == len(stamps) == 3  # the parts of the task
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()} == stamps


def test_a_run_is_the_same_wherever_its_data_lie(tmp_path):
    run = Run(task_of(), SGD(lr=0.1), PLAN, 1)
    there = InMemory(sent(run.task.data(), tmp_path))
    assert Run(Task("mine", net, there), SGD(lr=0.1), PLAN, 1).id == run.id
    assert Run(task_of(X + 1), SGD(lr=0.1), PLAN, 1).id != run.id


def test_numbers_that_change_in_place_change_the_name():
    array = np.random.default_rng(0).random((3000, 32))  # float64, and flipped within a block of memory
    split = Split.of((torch.from_numpy(array), torch.arange(3000)))
    names = [split.digest]
    for change in (lambda: array.__setitem__(slice(None), array[:, ::-1].copy()),
                   lambda: array.__setitem__(slice(None), array[::-1].copy()),
                   lambda: array.__setitem__((-1, -1), 0.0), lambda: split.targets.neg_()):
        change()
        names.append(split.digest)
    assert len(set(names)) == 5
    assert mark(torch.tensor([1.0])) != mark(torch.tensor([2.0]))


def test_workers_train_to_the_bits_of_this_process_and_a_second_command_writes_no_data(tmp_path):
    runs = [Run(task_of(), SGD(lr=0.1), PLAN, seed) for seed in (1, 2, 3)]
    list(Inline().run(runs, tmp_path / "here" / "runs"))
    assert not (tmp_path / "here" / "data").exists()
    assert [o.status for o in ended(Local(1), runs[:2], tmp_path / "there" / "runs")] == ["ok"] * 2
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "there" / "data").iterdir()}
    assert len(stamps) == 3
    again = Run(task_of(X.clone(), Y.clone()), SGD(lr=0.1), PLAN, 3)
    assert [o.status for o in ended(Local(1), [again], tmp_path / "there" / "runs")] == ["ok"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "there" / "data").iterdir()} == stamps
    for run in runs:
        a, b = (RunFolder(tmp_path / place / "runs" / run.id).weights() for place in ("here", "there"))
        assert all(torch.equal(a[name], b[name]) for name in a)


DAMAGES = {
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-100]),
    "cut in the header": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "emptied": lambda p: p.write_bytes(b""),
    "one bit": lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"0"),
    "text": lambda p: p.write_text("not a tensor" * 100),
    "without its tree": lambda p: p.write_bytes(p.read_bytes().replace(b'"tree"', b'"Tree"')),
    "another tree": lambda p: p.write_bytes(p.read_bytes().replace(b'\\"inputs\\": \\"inputs\\"',
                                                                   b'\\"inputs\\":  [[[[3]]]]')),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_set_aside_and_written_anew(name, tmp_path):
    split = Split(X, Y)
    message = packed(split, DataFiles(tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    DAMAGES[name](path)
    damaged = path.read_bytes()
    assert damaged != whole
    with pytest.raises(UserError, match=rf"{path.name} was deleted, moved or changed .* run the same command"):
        pickle.loads(message)
    assert torch.equal(sent(split, tmp_path).inputs, X)
    assert path.read_bytes() == whole
    assert path.with_name(f"{path.name}.damaged").read_bytes() == damaged


def test_a_file_that_is_gone_stops_the_command_and_one_only_touched_does_not(tmp_path):
    run = Run(task_of(), SGD(lr=0.1), PLAN, 1)
    message = packed(run.task.data(), DataFiles(tmp_path))
    for path in tmp_path.iterdir():
        os.utime(path, ns=(1, 1))
    assert same(pickle.loads(message).test.inputs, X)
    next(tmp_path.iterdir()).unlink()
    with pytest.raises(UserError, match=r"was deleted, moved or changed .* \(FileNotFoundError"):
        pickle.loads(message)


def test_a_full_disk_is_an_error_of_the_disk_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = Run(task_of(), SGD(lr=0.1), PLAN, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as raised:
            list(Local(1).run([run], tmp_path / "runs"))
    assert str(raised.value.filename).startswith(str(tmp_path / "data"))
    assert not list((tmp_path / "data").iterdir())
    assert same(sent(run.task.data(), tmp_path / "data").test.inputs, X)


def test_data_are_one_of_the_things_that_lie_in_an_output_folder(tmp_path):
    store = Store(tmp_path)
    packed(Split(X, Y), DataFiles(tmp_path / "data"))
    (tmp_path / "optscope.json").unlink()
    (tmp_path / "data" / ".half.tmp").touch()
    with Store(tmp_path).locked():
        assert not (tmp_path / "data" / ".half.tmp").exists()
    assert store.folder == tmp_path
