"""Exports, read back by the packages that they are for: the same runs, settings, curves and numbers."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.columns import read_csv, write_csv
from optscope.evidence.records import Record, Records
from optscope.exports import FORMATS, LOSS, Exported, export
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.session import run_experiments
from tiny import TASK, call

BLOCK = 32 * 1024  # of a log as LevelDB writes it
ARMS = Arm("SGD", SGD(lr=0.1), factors={"keep": 30}), Arm("Adam / γ", Adam(lr=0.01))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished comparison of two arms on two seeds, and a call whose rows differ in a factor and are nan."""
    found = tmp_path_factory.mktemp("made") / "mine"
    records = run_experiments([Comparison("c", TASK, ARMS, Plan(2, 32), (Accuracy(),), (1, 2), moments=2)],
                              Store(found), Inline(), Quiet()).records
    calls = [Record("calls", "", 0, "error", math.nan, 0.5, factors={"depth": n}) for n in (1, 2)]
    write_csv(records + calls, found / "summary.csv")
    return found


@pytest.fixture(scope="module")
def exported(folder):
    return Exported(read_csv(folder / "summary.csv"), folder / "runs")


def written(folder, to, place):
    """Export by the command, in a process of its own: packages read the environment when they are loaded."""
    if find_spec(to) is None:
        pytest.skip(f"needs the extra {to}")
    words = [sys.executable, "-m", "optscope", "export", folder, "--to", to, "--out", place]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"to look at it: {FORMATS[to].look.format(place)}\n"
    return place


def numbers(run, name=str):
    """A run's numbers as trackers hold them: by metric, then by step; what is not finite by its name."""
    found: dict[str, dict[int, str]] = {}
    for step, values in run.history.items():
        for metric, value in values.items():
            found.setdefault(name(metric), {})[step] = f"{value:.5g}"
    return found


def test_runs_are_those_of_the_records(exported, folder):
    assert [run.name.rpartition(" / ")[0] for run in exported.tracked[:2]] == [
        "c / SGD / keep=30 / final / seed 1", "c / Adam / γ / final / seed 1"]
    first = exported.tracked[0]
    assert first.settings["keep"] == 30
    losses = Store(folder).run_folder(first.settings["run"]).series()["losses"]
    assert [values[LOSS] for values in first.history.values() if LOSS in values] == losses.tolist()
    assert max(first.history) == len(losses)
    mine = exported.records.where(run=first.settings["run"])
    assert sum(len(values) for values in first.history.values()) == len(losses) + len(
        {(row.metric, row.at, row.step or len(losses)) for row in mine})
    assert len({run.name for run in exported.tracked}) == len(exported.tracked) == 6
    assert numbers(exported.tracked[-1]) == {"error at 0.5": {0: "nan"}}


def test_tensorboard_reads_them(folder, exported, tmp_path):
    place = written(folder, "tensorboard", tmp_path / "out")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for run, path in zip(exported.tracked, sorted(place.iterdir()), strict=True):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        found = {tag: {e.step: f"{e.value:.5g}" for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
        assert found == numbers(run)
        told = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
        assert told.session_start_info.hparams["run"].string_value == run.settings["run"]


def test_wandb_reads_them(folder, exported, tmp_path):
    place = written(folder, "wandb", tmp_path / "out")
    from wandb.proto.wandb_internal_pb2 import Record as Line

    files = sorted(place.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.name)
    for run, path in zip(exported.tracked, files, strict=True):
        found, settings = {}, {}
        for line in map(Line.FromString, logged(path.read_bytes())):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in line.history.item}
            for metric, value in items.items():
                if not metric.startswith("_"):
                    found.setdefault(metric, {})[items["_step"]] = f"{float(value):.5g}"
            settings |= {each.key: json.loads(each.value_json) for each in line.run.config.update}
        assert found == numbers(run)
        assert run.settings.items() <= settings.items()


def logged(content):
    """Yield the messages of a W&B file: after 7 bytes a log as LevelDB's, which only its Go program reads."""
    place, message = 7, b""
    while place + 7 <= len(content):
        length, kind = struct.unpack("<HB", content[place + 4:place + 7])  # behind a checksum
        if kind == 0 or place % BLOCK > BLOCK - 7:  # the rest of a block, too short for a header
            place += BLOCK - place % BLOCK
            continue
        message += content[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield message
            message = b""


@pytest.mark.filterwarnings("default")  # of SQLAlchemy
def test_mlflow_reads_them(folder, exported, tmp_path):
    place = written(folder, "mlflow", tmp_path / "out")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("optscope").experiment_id])
    named = {run.info.run_name: run for run in found}
    assert sorted(named) == sorted(run.name for run in exported.tracked)
    for run in exported.tracked:
        theirs = named[run.name]
        assert theirs.data.params == {name: str(value) for name, value in run.settings.items()}
        expected = numbers(run)
        assert {metric: {each.step: f"{each.value:.5g}" for each in client.get_metric_history(
            theirs.info.run_id, metric)} for metric in theirs.data.metrics} == expected


def test_trackio_reads_them(folder, exported, tmp_path, monkeypatch):
    place = written(folder, "trackio", tmp_path / "out")
    monkeypatch.setenv("TRACKIO_DIR", str(place))
    from trackio.sqlite_storage import SQLiteStorage

    assert sorted(SQLiteStorage.get_runs("optscope")) == sorted(run.name for run in exported.tracked)
    for run in exported.tracked:
        found = {}
        for line in SQLiteStorage.get_logs("optscope", run.name):
            for metric in line.keys() - {"step", "timestamp"}:
                found.setdefault(metric, {})[line["step"]] = f"{float(line[metric]):.5g}"
        assert found == numbers(run)
        assert run.settings.items() <= SQLiteStorage.get_run_config("optscope", run.name).items()


def test_parquet_reads_them(folder, exported, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(folder, "parquet", tmp_path / "out.parquet")
    assert repr(parquet.read_table(tmp_path / "out.parquet").to_pydict()) == repr(exported.records.columns())


@pytest.mark.parametrize(("words", "sentence"), [
    ("--to tensorbord --out new", 'no format "tensorbord"; did you mean "tensorboard"?'),
    ("--to parquet --out .", ". is there already, and an export begins anew: give --out a new name"),
    ("--to mlflow --out new", 'the format "mlflow" needs a package (import of mlflow halted')])
def test_what_will_not_do_is_one_sentence(words, sentence, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert call(monkeypatch, f"export {folder} {words}") == 2
    assert sentence in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_without_pyarrow_parquet_is_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'needs a package .*: pip install "optscope\[parquet\]"'):
        export(folder, "parquet", tmp_path / "out.parquet")


def test_a_folder_without_numbers_says_so(tmp_path):
    with pytest.raises(UserError, match=r"expected a summary\.csv that optscope wrote"):
        export(tmp_path, "parquet", tmp_path / "out.parquet")


def test_nothing_of_no_records(tmp_path):
    assert Exported(Records(), tmp_path).tracked == ()
