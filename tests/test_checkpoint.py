"""Probes of saved models: the folder of a run, and files with a state dict."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from optscope import load_snapshot
from optscope.engine.run import Run
from optscope.engine.store import RunFolder
from optscope.engine.train import Plan, train
from optscope.errors import UserError
from optscope.optim import Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.attack import PGD
from optscope.probes.geometry import Geometry
from optscope.probes.robust import RobustAccuracy
from tiny import TASK, Net

PLAN = Plan(2, 16)
PROBES = (Accuracy(), Geometry(), RobustAccuracy("l2", (0.1, 0.3), PGD(5), checked=0))


@pytest.fixture
def trained():
    return train(TASK, Adam(lr=0.03), PLAN, seed=3).snapshot


def test_a_runs_folder_reads_as_the_model_that_training_left(trained, tmp_path):
    Run(TASK, Adam(lr=0.03), PLAN, 3).perform(RunFolder(tmp_path / "run"))
    loaded = load_snapshot(TASK, tmp_path / "run")
    assert (loaded.seed, loaded.step) == (3, trained.step)
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
    ("nowhere.pt", None, "no weights at .*nowhere.pt: give a run's folder"),
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
    torch.save({"epoch": 3, "model": trained.model.state_dict()}, tmp_path / "training.pt")
    with pytest.raises(UserError, match=r"are not those of the model of 'blobs': .*size mismatch for 0.weight"):
        load_snapshot(replace(TASK, model=Net(5)), tmp_path / "model.pt")
    with pytest.raises(UserError, match="must hold a state dict, tensors by name; got dict"):
        load_snapshot(TASK, tmp_path / "training.pt")
