"""Saved models that are measured: the page about them, what pairs them, and that no reading is taken twice."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import optscope
from optscope.engine.execute import Inline
from optscope.engine.run import Run
from optscope.engine.run_folder import RunFolder
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.optim import SGD
from optscope.probes import catalog
from optscope.probes.accuracy import Accuracy
from optscope.probes.geometry import Geometry
from optscope.probes.probe import Probe, Reading
from optscope.protocol.events import Quiet
from optscope.tasks.fresh import fresh_model
from optscope.tasks.snapshot import Snapshot
from probe_kinds import concrete, others
from tiny import TASK, call

ARMS = "adam", "sgd"


def probed(paths, out, **more):
    return optscope.probe(paths, TASK, out=out, executor=Inline(), listener=Quiet(), **more)


def models(folder, seeds=7):
    """Save models of two arms from shared seeds; sgd's last layer is adam's, shrunk."""
    for seed in range(1, seeds + 1):
        model = fresh_model(TASK, seed)
        for arm in ARMS:
            torch.save(model.state_dict(), folder / f"{arm}-{seed}.pt")
            with torch.no_grad():
                model[2].weight *= 0.5
    return sorted(folder.glob("*.pt"))


def test_one_model_is_measured_by_all_that_fits(tmp_path):
    paths = models(tmp_path, 1)
    result = probed(paths[0], tmp_path / "out", examples=8)
    found = {row.metric: row.value for row in result.records if row.at is None}
    snapshot = optscope.load_snapshot(TASK, paths[0])
    expected = {**Accuracy()(snapshot).values, **Geometry()(snapshot).values}
    assert {name: found[name] for name in expected} == expected
    assert {"sharpness", "Hessian trace", "accuracy under l2 attack", "noise scale", "margin"} <= {
        row.metric for row in result.records}
    assert result.summary.startswith(f"adam-1.pt: accuracy {found['accuracy']:.3g} %, loss ")
    assert not result.verdicts
    page = json.loads((tmp_path / "out" / "report.json").read_text())
    assert page["question"] == "what are these models like, beyond their loss?"


def test_several_models_stand_side_by_side_and_are_not_tested(tmp_path):
    paths = models(tmp_path, 1)
    result = probed(paths, tmp_path / "out", probes=["Accuracy", "Geometry"])
    assert result.records.arms() == ["adam-1.pt", "sgd-1.pt"]
    assert not result.verdicts
    assert "between single trainings no difference is tested" in result.summary
    for kind in (".pt", ".bin", ""):
        paths = [path.rename(path.with_suffix(kind)) for path in paths]
        said = probed(paths, tmp_path / f"out{kind}", probes=["Accuracy"]).summary
        assert f'such as --group "{{arm}}-{{seed}}{kind}", and' in said
    (card,) = result.document.openers
    (table,) = result.document.summaries
    assert card.arms == ["adam-1.pt", "sgd-1.pt"]
    assert [row[0] for row in table.rows] == ["adam-1.pt", "sgd-1.pt"]
    assert len(result.document.runs_table.rows) == 2


def test_models_that_share_seeds_have_paired_differences(tmp_path):
    paths = models(tmp_path)
    result = probed(paths, tmp_path / "out", probes=["Accuracy"], group="{arm}-{seed}.pt")
    ours, theirs = result.records.pairs("adam", "sgd", "loss")
    each = {arm: [float(Accuracy()(optscope.load_snapshot(TASK, tmp_path / f"{arm}-{s}.pt", seed=s)).values["loss"])
                  for s in range(1, 8)] for arm in ARMS}
    assert (ours.tolist(), theirs.tolist()) == (each["adam"], each["sgd"])
    effect = next(verdict.effect for claim, verdict in result.verdicts if "loss" in claim.text)
    assert abs(effect) == pytest.approx(abs(sum(each["adam"]) - sum(each["sgd"])) / 7)
    assert any("chosen with equal effort is not known here" in each for each in result.document.warnings)


@dataclass(frozen=True, repr=False)
class Counting(Probe):
    """Counts how often it is taken, in a file; fails while another is there."""

    folder: str = ""
    name: str = "counted"
    fails: bool = field(default=False)

    @property
    def metrics(self):
        return (Metric(self.name, "", "lower"),)

    def measure(self, subject):
        with (Path(self.folder) / self.name).open("a") as file:
            file.write("x")
        if (Path(self.folder) / "broken").exists() and self.fails:
            raise ZeroDivisionError("on purpose")
        return Reading({self.name: 1.0})


def test_no_reading_is_taken_twice_whatever_happens_to_the_others(tmp_path):
    first, *_ = models(tmp_path, 1)
    probes = [Counting(str(tmp_path)), Counting(str(tmp_path), "failing", True)]

    def taken():
        return [len((tmp_path / probe.name).read_text()) for probe in probes]
    (tmp_path / "broken").touch()
    result = probed(first, tmp_path / "out", probes=probes)
    assert "on purpose" in result.failures[0]
    assert taken() == [1, 1]
    (tmp_path / "broken").unlink()
    assert not probed(first, tmp_path / "out", probes=probes).failures
    assert taken() == [1, 2]
    moved = tmp_path / "elsewhere.safetensors"
    save_file(torch.load(first), moved)  # the same weights, in another file
    probed([moved, tmp_path / "sgd-1.pt"], tmp_path / "out", probes=probes)
    assert taken() == [2, 3]
    other = replace(TASK, data=replace(TASK.data, examples=60))
    optscope.probe(first, other, out=tmp_path / "out", probes=probes, executor=Inline(), listener=Quiet())
    assert taken() == [3, 4]


@dataclass(frozen=True, repr=False)
class Killing(Counting):
    """Kills its process the first time."""

    def measure(self, subject):
        reading = super().measure(subject)
        if (Path(self.folder) / self.name).read_text() == "x":
            os.kill(os.getpid(), signal.SIGKILL)
        return reading


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_command_repeats_no_finished_reading(tmp_path):
    first, *_ = models(tmp_path, 1)
    probes = [Counting(str(tmp_path)), Killing(str(tmp_path), "killing")]
    child = os.fork()
    if not child:
        probed(first, tmp_path / "out", probes=probes)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    result = probed(first, tmp_path / "out", probes=probes)
    assert [row.metric for row in result.records] == ["counted", "killing"]
    assert [(tmp_path / probe.name).read_text() for probe in probes] == ["x", "xx"]


def test_a_runs_folder_knows_its_start(tmp_path):
    Run(TASK, SGD(lr=0.1), optscope.Plan(1, 16), 3).perform(RunFolder(tmp_path / "run"))
    result = probed(tmp_path / "run", tmp_path / "out", probes=["Geometry"])
    end, start = (nn.utils.parameters_to_vector(model.parameters()).detach() for model in (
        optscope.load_snapshot(TASK, tmp_path / "run").model, fresh_model(TASK, 3)))
    (row,) = result.records.where(metric="distance from initialisation")
    assert row.value == pytest.approx(float((end - start).norm()), rel=1e-6)


class WithHead(nn.Module):
    """The network of the task as others hold it, beside what is no part of it."""

    def __init__(self):
        super().__init__()
        self.net, self.scale = TASK.model(), nn.Parameter(torch.ones(1))


def test_what_lies_beside_the_model_is_told(tmp_path):
    torch.save({"state_dict": WithHead().state_dict()}, tmp_path / "last.ckpt")
    result = probed(tmp_path / "last.ckpt", tmp_path / "out", probes=["Accuracy"])
    assert any("beside those of the model, which are left out: scale" in said for said in result.document.warnings)


@pytest.mark.parametrize(("paths", "more", "says"), [
    ([], {}, "a saved model is expected; got none"),
    (["adam-1.pt", "./adam-1.pt"], {}, "each checkpoint stands once; got adam-1.pt twice"),
    (["adam-1.pt"], {"probes": ["Acuracy"]}, 'no probe "Acuracy"; did you mean "Accuracy"?'),
    (["adam-1.pt"], {"probes": ["BandNoise"]}, "BandNoise does not fit blobs: frequencies need images"),
    (["adam-1.pt"], {"probes": ["Coverage"]}, 'Coverage does not fit blobs: only a game with a player "generator"'),
    (["adam-1.pt"], {"probes": ["StepAnatomy"]}, "StepAnatomy does not fit blobs: it looks at the optimiser"),
    (["adam-1.pt"], {"probes": ["Modes"]}, "Modes does not fit blobs: only a game"),
    (["adam-1.pt"], {"group": "{arm}.pt"}, r"has the arm and the seed, such as .*; got '\{arm\}\.pt'"),
    (["adam-1.pt"], {"group": "{arm}/{seed}.pt"}, r"adam-1\.pt does not end as the group \{arm\}/\{seed\}\.pt"),
    (["adam-1.pt", "sgd-1.pt", "sgd-2.pt"], {"group": "{arm}-{seed}.pt"}, "no checkpoint of adam with seed 2"),
    (["adam-1.pt", "b/adam-1.pt"], {"group": "{arm}-{seed}.pt"}, "more than one checkpoint of adam with seed 1"),
    (["other.pt"], {}, r"the weights in other\.pt are not those of the model of 'blobs': missing 2\.bias")])
def test_what_cannot_be_measured_is_said_before_anything_is(paths, more, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models(tmp_path, 2)
    Path("b").mkdir()
    models(Path("b"), 1)
    torch.save(dict(list(fresh_model(TASK, 1).state_dict().items())[:2]), "other.pt")
    with pytest.raises(UserError, match=says):
        probed(paths, "out", **more)
    assert not Path("out").exists()


def test_every_probe_is_in_the_list(monkeypatch, capsys):
    others({"Modes"})  # imports all that there are; this one has no default
    assert {kind.__name__ for kind in concrete(Probe)} == set(catalog.PROBES)
    for name in catalog.PROBES:
        kind = catalog.kind_named(name)
        assert kind.__name__ == name
        assert catalog.measures(kind).endswith(".")
    found = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "B24.json").read_text())
    peaks = {row["who"]: row["counts"]["MB"] for row in found["rows"] if row["counts"]}
    assert peaks.keys() == {name for name, known in catalog.PROBES.items() if known.cost and known.memory}
    for name, peak in peaks.items():  # what is said is off by no more than the bar allows
        for said, measured in ((catalog.PROBES[name].cost, found["ratio"][name]),
                               (catalog.PROBES[name].memory, peak)):
            assert 2 / 3 <= measured / said <= 3 / 2, name
    assert call(monkeypatch, "probe --list") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in catalog.PROBES)


def test_the_command_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(nn.Linear(4, 2).state_dict(), "model.pt")
    Path("probed_task.py").write_text(
        "import torch\nfrom optscope import Task\n"
        "X, Y = torch.arange(160.).view(40, 4) / 160, torch.arange(40) % 2\n"
        "def task():\n    return Task.from_tensors(lambda: torch.nn.Linear(4, 2), (X, Y), (X, Y))\n")
    assert call(monkeypatch, "probe model.pt --task probed_task.py:task --probes Accuracy --slots 1") == 0
    shown = capsys.readouterr()
    assert re.match(r"model.pt: accuracy \S+ %, loss ", shown.out)
    assert "measuring: 1/1 runs" in shown.err
    assert "training" not in shown.err
    assert "report: runs/probe-probed-task/report.html" in shown.out
    assert call(monkeypatch, "probe model.pt") == 2
    assert call(monkeypatch, "probe nowhere.pt --task probed_task.py:task") == 2
    assert "no weights at nowhere.pt, there is no such file or folder" in capsys.readouterr().err


def test_a_probe_of_a_saved_model_is_that_of_the_model(tmp_path):
    model = fresh_model(TASK, 5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    result = probed(tmp_path / "model.pt", tmp_path / "out", probes=["TopEigenvalues"])
    (row,) = result.records.where(metric="sharpness")
    expected = catalog.kind_named("TopEigenvalues")()(Snapshot(model, TASK, 0)).values["sharpness"]
    assert row.value == pytest.approx(expected, rel=1e-5)
