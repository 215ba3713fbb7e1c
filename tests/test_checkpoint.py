"""Probes of saved models: the folder of a run, and files with a state dict."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from optscope import load_snapshot
from optscope.engine.checkpoint import check_kept, found_at
from optscope.engine.plan import Plan
from optscope.engine.run import Run
from optscope.engine.run_folder import RunFolder
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.optim import Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.attack import PGD
from optscope.probes.geometry import Geometry
from optscope.probes.robust import RobustAccuracy
from optscope.tasks.fresh import fresh_model
from tiny import TASK, Net

PLAN = Plan(2, 16)
PROBES = (Accuracy(), Geometry(), RobustAccuracy("l2", (0.1, 0.3), PGD(5), checked=0))


@pytest.fixture
def trained():
    return train(TASK, Adam(lr=0.03), PLAN, seed=3).snapshot


def test_a_runs_folder_reads_as_the_model_that_training_left(trained, tmp_path):
    Run(TASK, Adam(lr=0.03), PLAN, 3).perform(RunFolder(tmp_path / "run"))
    loaded = load_snapshot(TASK, tmp_path / "run")
    assert (loaded.seed, loaded.step, loaded.batch) == (3, trained.step, trained.batch) == (3, trained.step, 16)
    for probe in PROBES:
        assert probe(loaded).values == probe(trained).values


def test_a_state_dict_reads_from_either_kind_of_file(trained, tmp_path):
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    save_file(trained.model.state_dict(), tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        loaded = load_snapshot(TASK, tmp_path / name, seed=3)
        assert PROBES[0](loaded).values == PROBES[0](trained).values
        assert PROBES[2](loaded).values == PROBES[2](trained).values
        assert "distance from initialisation" not in PROBES[1](loaded).values  # a file knows no start


@pytest.mark.parametrize(("name", "content", "says"), [
    ("nowhere.pt", None, "no weights at .*nowhere.pt, there is no such file or folder: give a run's folder"),
    ("text.pt", b"hello", "text.pt cannot be read as weights"),
    ("empty.pt", b"", "empty.pt cannot be read as weights"),
    ("text.safetensors", b"hello world", "text.safetensors cannot be read as weights"),
])
def test_what_is_no_checkpoint_is_refused(name, content, says, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_snapshot(TASK, tmp_path / name)


def test_another_models_weights_are_refused(trained, tmp_path):
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"are not those of the model of 'blobs': .*size mismatch for 0.weight"):
        load_snapshot(replace(TASK, model=Net(5)), tmp_path / "model.pt")


# State dicts with more than dense, real tensors

class Odd(nn.Module):
    """Everything that a state dict may hold beside an ordinary weight; all of it moves when it is trained."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.tied = nn.Linear(2, 3)
        self.tied.weight = self.head.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.strided = nn.Parameter(torch.rand(4, 2).T)
        self.register_buffer("coo", torch.eye(2).to_sparse())
        self.register_buffer("csr", torch.eye(2).to_sparse_csr())
        self.register_buffer("turn", torch.tensor([1j, 1.0], dtype=torch.complex128))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("wide", torch.zeros(1).expand(3))
        self.register_buffer("nothing", None)
        self.register_buffer("empty", torch.zeros(0, 4, dtype=torch.float16))
        self.register_buffer("count", torch.tensor(2**62 + 1))
        self.note = {"version": 3, "names": ["a", "b"]}

    def get_extra_state(self):
        return self.note

    def set_extra_state(self, state):
        self.note = state

    def forward(self, x):
        return self.scale * self.head(x) + self.tied((self.csr @ (self.coo @ x.T)).T) + self.strided.sum()


def moved(model):
    """Change everything that the state dict holds."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.5)
        model.coo, model.csr = (torch.tensor([[0.0, 2], [3, 0]]).to_sparse(),
                                torch.tensor([[0.0, 2], [3, 0]]).to_sparse_csr())
        model.turn *= 2j
        model.mask = ~model.mask
        model.count += 1
        model.note = {"version": 4, "names": ["c"]}
    return model


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_whatever_a_state_dict_holds_comes_back(tmp_path):
    torch.manual_seed(0)
    model, folder = moved(Odd()), RunFolder(tmp_path / "run")
    folder.write_result({"status": "ok", "seed": 5, "steps": 7}, {}, model.state_dict())
    task = replace(TASK, model=Odd)
    found = load_snapshot(task, folder.path).model
    assert found.tied.weight is found.head.weight
    for name, value in model.state_dict().items():
        own = found.state_dict()[name]
        if isinstance(value, torch.Tensor):
            assert (own.dtype, own.layout, own.shape) == (value.dtype, value.layout, value.shape)
            assert torch.equal(own.to_dense(), value.to_dense())
        else:
            assert own == value == {"version": 4, "names": ["c"]}
    check_kept(task, model, 5, torch.rand(4, 2))
    folder.drop_weights()
    assert not list(folder.path.glob("weights*"))


class Forgetful(nn.Linear):
    """A layer that counts its calls where no state dict looks."""

    def __init__(self, place):
        super().__init__(2, 3)
        self.place, self.calls = place, 0.0
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += self.place == "buffer"
            self.calls += self.place == "attribute"
        return super().forward(x) + self.seen + self.calls


class Locked(nn.Linear):
    """A layer whose extra state is of a class that no file may name."""

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


@pytest.mark.parametrize(("place", "says"), [
    ("buffer", "blobs: seen would be lost"), ("attribute", "blobs: a saved model gives other outputs"), ("", None)])
def test_what_training_changes_outside_the_state_dict_is_refused(place, says):
    task, inputs = replace(TASK, model=lambda: Forgetful(place)), torch.rand(4, 2)
    model = fresh_model(task, 1)
    model(inputs)
    if says is None:
        check_kept(task, model, 1, inputs)
    else:
        with pytest.raises(UserError, match=says):
            check_kept(task, model, 1, inputs)


@pytest.mark.parametrize("state", [threading.Lock(), Path("x")])
def test_extra_state_that_no_file_can_give_back_is_refused(state):
    def make():
        model = Locked(2, 3)
        model.state = state
        return model
    task = replace(TASK, model=make)
    with pytest.raises(UserError, match=r"blobs: .*state.* cannot be saved"):
        check_kept(task, make(), 0)


@pytest.mark.parametrize(("own", "given", "fits"), [
    (torch.float32, torch.ones(2, dtype=torch.float64) / 3, True),
    (torch.float32, torch.ones(2, dtype=torch.bfloat16), True),
    (torch.float32, torch.tensor([1e300, 0], dtype=torch.float64), False),
    (torch.float32, torch.ones(2, dtype=torch.int8), False),
    (torch.float32, torch.ones(2, dtype=torch.bool), False),
    (torch.float32, torch.ones(2, dtype=torch.complex64), False),
    (torch.complex64, torch.ones(2), False),
    (torch.int64, torch.ones(2), False),
    (torch.int64, torch.tensor([1, 200], dtype=torch.uint8), True),
    (torch.int8, torch.tensor([1, 200]), False),
    (torch.bool, torch.tensor([0, 1]), False)])
def test_weights_of_another_kind_are_refused_and_not_cast(own, given, fits, tmp_path):
    class Holder(nn.Linear):
        def __init__(self):
            super().__init__(2, 3)
            self.register_buffer("held", torch.zeros(2, dtype=own))
    torch.save(Holder().state_dict() | {"held": given}, tmp_path / "model.pt")
    task = replace(TASK, model=Holder)
    if fits:
        assert torch.equal(load_snapshot(task, tmp_path / "model.pt").model.held, given.to(own))
    else:
        with pytest.raises(UserError, match=f"held is {given.dtype} there and {own} in the model"):
            load_snapshot(task, tmp_path / "model.pt")


def test_a_model_that_takes_its_shape_from_the_data_comes_back(tmp_path):
    def make():
        return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(3))
    model = make()
    model(torch.rand(5, 2))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    found = load_snapshot(replace(TASK, model=make), tmp_path / "model.pt").model
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


# What a model is saved as

def shard(state, folder):
    """Write a state dict as two shards with their list, as save_pretrained does of large models."""
    names = list(state)
    where = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: state[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


SAVED = {
    "under model": lambda state, path: torch.save({"epoch": 3, "model": state}, path),
    "under state_dict": lambda state, path: torch.save({"state_dict": state, "optimizer": {"state": {}}}, path),
    "under model_state_dict": lambda state, path: torch.save({"model_state_dict": state, "loss": 0.1}, path),
    "module.": lambda state, path: torch.save(prefixed("module.", state), path),
    "net.": lambda state, path: torch.save(prefixed("net.", state), path),
    "_orig_mod.": lambda state, path: torch.save(prefixed("_orig_mod.", state), path),
    "module._orig_mod.": lambda state, path: torch.save(prefixed("module._orig_mod.", state), path),
    "lightning": lambda state, path: torch.save(
        {"epoch": 1, "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1}, "callbacks": {},
         "state_dict": {**prefixed("net.", state), "loss.weight": torch.ones(3)}}, path),
    "save_pretrained": lambda state, path: path.mkdir() or save_file(state, path / "model.safetensors"),
    "a folder with .bin": lambda state, path: path.mkdir() or torch.save(state, path / "pytorch_model.bin"),
    "shards": lambda state, path: path.mkdir() or shard(state, path),
}


@pytest.mark.parametrize("name", SAVED)
def test_weights_are_found_in_whatever_they_were_saved_as(name, trained, tmp_path):
    state = trained.model.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    SAVED[name](state, tmp_path / "saved.pt")
    found, plain = (found_at(TASK, tmp_path / each) for each in ("saved.pt", "plain.pt"))
    for own, value in state.items():
        assert torch.equal(found.snapshot.model.state_dict()[own], value)
    assert found.content == plain.content
    assert found.beside == (["loss.weight"] if name == "lightning" else [])


def test_names_may_lack_the_prefix_that_the_model_has(trained, tmp_path):
    task = replace(TASK, model=lambda: nn.Sequential(OrderedDict(net=Net()())))
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    found = load_snapshot(task, tmp_path / "model.pt").model.state_dict()
    assert all(torch.equal(found[f"net.{name}"], value) for name, value in trained.model.state_dict().items())


def test_tied_weights_may_stand_once_as_hugging_face_saves_them(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
            self.head.weight = self.embed.weight
    save_file({"embed.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    model = load_snapshot(replace(TASK, model=Tied), tmp_path / "model.safetensors").model
    assert torch.equal(model.head.weight, torch.ones(2, 3))
    assert model.head.weight is model.embed.weight


class Harmful:
    """An object whose unpickling runs code."""

    def __reduce__(self):
        return _run, ()


def _run():
    raise AssertionError("the code of a file was run")


@pytest.mark.parametrize(("content", "says"), [
    ({"state_dict": {"a": torch.ones(1)}, "harmful": Harmful()}, r"holds an object of \S*_run beside tensors, and"),
    ({"ema": {"a": torch.ones(1)}}, r'there are some under ema: save one alone, .*load\(path\)\["ema"\]'),
    ({"epoch": 3}, r"tensors by name, itself or under state_dict, model_state_dict, model; got dict: write it by"),
    ({"0.weight": torch.ones(8, 2), "0.bias": torch.ones(8), "other": torch.ones(1)},
     r"the model of 'blobs': missing 2\.bias, 2\.weight; left over other"),
    ({**prefixed("a.", Net()().state_dict()), **prefixed("b.", Net()().state_dict())}, r"behind a\., b\. alike"),
    ({f"layer{i}": torch.ones(1) for i in range(6)}, r"left over layer0, layer1, layer2, layer3 and 2 more")])
def test_what_does_not_fit_is_said_by_name_and_no_code_is_run(content, says, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=says):
        load_snapshot(TASK, tmp_path / "model.pt")


def test_a_folder_without_weights_and_a_list_of_lost_or_foreign_shards_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match=r"the folder holds no model\.safetensors or pytorch_model\.bin"):
        load_snapshot(TASK, tmp_path)
    shard(trained.model.state_dict(), tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"names model-00001-of-00002\.safetensors, which the folder has not"):
        load_snapshot(TASK, tmp_path)
    for text in ('{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": 3}}', "{}", "no"):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UserError, match=r"index\.json (names a\.safetensors, which|is no list of shards)"):
            load_snapshot(TASK, tmp_path)


# What the libraries themselves write, where they are installed

def same(task, path, model):
    found = found_at(task, path)
    assert found.beside == []
    for name, value in model.state_dict().items():
        assert torch.equal(found.snapshot.model.state_dict()[name], value)


@pytest.mark.filterwarnings("ignore")  # of the library
def test_a_checkpoint_of_lightning_is_read(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.compile(Net()(), backend="eager")

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)

    module, part = Module(0.01), TASK.data().train
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(part.inputs, part.targets), 12)
    trainer = lightning.Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
                                default_root_dir=tmp_path, accelerator="cpu")
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    same(TASK, tmp_path / "last.ckpt", module.net._orig_mod)


@pytest.mark.filterwarnings("ignore")  # of the library
def test_folders_of_hugging_face_are_read_in_shards_and_with_tied_weights(tmp_path):
    transformers = pytest.importorskip("transformers")

    def make():
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=50, n_positions=6, n_embd=16, n_layer=2, n_head=2))
    task, model = replace(TASK, model=make), make()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("whole", "shards"):
        same(task, tmp_path / name, model)


@pytest.mark.filterwarnings("ignore")  # of the library
def test_folders_of_accelerate_are_read(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator, model = accelerate.Accelerator(cpu=True), Net()()
    prepared, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(tmp_path / "state")
    accelerator.save_state(tmp_path / "bin", safe_serialization=False)
    accelerator.save_model(prepared, tmp_path / "model", max_shard_size=100)
    for name in ("state", "bin", "model"):
        same(TASK, tmp_path / name, model)
