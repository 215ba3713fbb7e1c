"""Sessions: what they tell and whom, stage by stage; folders that are read once; executors of others."""

from __future__ import annotations

import io
import json
import os
import shutil
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from optscope.engine import ledger as ledger_module
from optscope.engine.execute import Inline, Local
from optscope.engine.executor import Look, Outcome
from optscope.engine.futures import Futures
from optscope.engine.ledger import LEDGER, Ledger
from optscope.engine.looks import Tail
from optscope.engine.plan import Plan
from optscope.engine.rows import Use
from optscope.engine.run import Call, Run
from optscope.engine.run_folder import LOOKS, RunFolder
from optscope.engine.store import Store
from optscope.engine.watch import Watch
from optscope.errors import UserError
from optscope.evidence.records import Records
from optscope.files import Lines
from optscope.notebook import Line
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.geometry import Geometry
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Ended, EventFile, Moment, Named, Quiet, Said, Started
from optscope.protocol.search import Grid
from optscope.protocol.session import Session, run_experiments
from tiny import TASK, ended, fail, kill_always, succeed

ARMS = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.03))))
GIVEN = Comparison("c", TASK, ARMS, Plan(1, 32), (Accuracy(), Geometry()), (1, 2), moments=2)
USE = Use("demo", "SGD", "final", 3, "SGD(lr=0.1)", "0123456789abcdef", ("p",), {"keep": 30})


def told(records):
    """Everything that a table of records says, but for the time that trainings took."""
    return [repr(row) for row in records if "seconds" not in row.metric]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that a session has finished, and its records."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return folder, run_experiments([GIVEN], Store(folder), Inline(), Quiet()).records


# Stages

def test_a_session_is_stepped_stage_by_stage_and_knows_at_once_what_has_ended(tmp_path, whole):
    with Session([GIVEN], Store(tmp_path), Inline()) as session:
        first = list(session.step())
        assert first[0] == Named("tuning", 4, 0)
        assert [type(event) for event in first[1:]] == [Started, Ended] * 4
        assert [event.use.arm for event in first if isinstance(event, Ended)] == ["SGD", "SGD", "Adam", "Adam"]
        assert set(session.records.where(phase="tune").metrics()) >= {"loss", "training loss"}
        known = len(session.records)
        for event in (second := session.step()):
            if isinstance(event, Ended):
                assert len(session.records.where(run=event.use.run)) > 0
        assert len(session.records) > known
        assert list(second) == list(session.step()) == []
        assert told(session.results().records) == told(whole[1])


def test_what_is_seen_in_training_is_told_while_it_goes_on(tmp_path):
    with Session([GIVEN], Store(tmp_path), Local(1)) as session:
        events = list(session)
    moments = [event for event in events if isinstance(event, Moment)]
    assert [event.step for event in moments] == [2, 3] * 4
    assert all(event.values.keys() == {"accuracy", "loss", "calibration error"} for event in moments)
    for event in moments:
        rows = session.records.where(run=event.use.run, step=event.step)
        assert event.values == {row.metric: row.value for row in rows}
        ends = [e for e in events if isinstance(e, Ended) and e.use == event.use]
        assert events.index(event) < events.index(ends[0])
    assert not list(tmp_path.glob(f"runs/*/{LOOKS}"))


def test_looks_are_given_once_and_a_line_that_is_being_written_waits(tmp_path):
    folder, tail = RunFolder(tmp_path / "r"), Tail(tmp_path, "r")
    assert list(tail.new()) == []
    folder.tell(1, {"loss": 0.5, "by radius": {0.1: 2.0}})
    folder.tell(2, {"loss": float("inf")})
    assert list(tail.new()) == [Look("r", 1, {"loss": 0.5}), Look("r", 2, {"loss": float("inf")})]
    with (folder.path / LOOKS).open("ab") as file:
        file.write(b"[3,{")
    assert list(tail.new()) == []
    with (folder.path / LOOKS).open("ab") as file:
        file.write(b'"loss":1}]\n')
    assert list(tail.new()) == [Look("r", 3, {"loss": 1.0})]
    tail.close()
    assert not (folder.path / LOOKS).exists()
    folder.tell(1, {"loss": 0.25})  # its worker died: from the start
    assert list(tail.new()) == [Look("r", 1, {"loss": 0.25})]


@pytest.mark.parametrize("line", [b"\x00\x00\n", b"7\n", b"[1]\n", b'[1,{"loss":[]}]\n', b"[" * 9000 + b"\n",
                                  b'[1e999,{"loss":1}]\n'], ids=range(6))
def test_a_line_that_tells_no_look_is_left_out(line, tmp_path):
    RunFolder(tmp_path / "r").tell(3, {"loss": 0.5})
    with (tmp_path / "r" / LOOKS).open("ab") as file:
        file.write(line)
    RunFolder(tmp_path / "r").tell(4, {"loss": 0.25})
    assert [look.step for look in Tail(tmp_path, "r").new()] == [3, 4]


def test_a_look_that_does_not_fit_on_the_disk_is_an_error_of_the_disk(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "r")
    folder.tell(3, {"loss": 0.5})
    monkeypatch.setattr(os, "write", lambda file, content: len(content) // 2)
    with pytest.raises(OSError, match="No space left") as error:
        folder.tell(4, {"loss": 0.5})
    assert Path(error.value.filename).is_relative_to(tmp_path)


def test_a_session_that_is_left_leaves_nothing_running_and_the_folder_free(tmp_path):
    closed = []

    class Watched(Inline):
        def run(self, works, folder):
            try:
                yield from super().run(works, folder)
            finally:
                closed.append(True)

    def stopped():
        with Session([GIVEN], Store(tmp_path), Watched()) as session:
            for event in session:
                if isinstance(event, Ended):
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert closed == [True]
    with Store(tmp_path).locked():
        pass


# Who is told

EVENTS = (Said("known before"), Named("tuning", 3, 1), Started(USE), Moment(USE, 5, {"loss": 0.5}),
          Ended(USE, Outcome(USE.run, "ok", 1.5)), Ended(USE, Outcome(USE.run, "failed", 0.5, "no luck")))


def test_events_are_whole_lines_that_say_where_and_when(tmp_path):
    for _ in range(2):
        with closing(EventFile(tmp_path)) as file:
            for event in EVENTS:
                file.hear(event)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(EVENTS)
    assert [line["event"] for line in lines[:6]] == ["said", "named", "started", "moment", "ended", "ended"]
    assert {line["schema"] for line in lines} == {1}
    assert all(line["time"].endswith("+00:00") for line in lines)
    place = {"experiment": "demo", "arm": "SGD", "phase": "final", "seed": 3, "rule": "SGD(lr=0.1)", "run": USE.run,
             "factors": {"keep": 30}}
    assert lines[3].items() >= {**place, "step": 5, "values": {"loss": 0.5}}.items()
    assert lines[5].items() >= {**place, "status": "failed", "reason": "no luck", "seconds": 0.5}.items()


@pytest.mark.parametrize("cut", [b'{"schema":1,"ev', b"x" * 200_000, b""])
def test_a_line_that_a_crash_cut_off_is_cut_away(cut, tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n" + cut)
    with closing(Lines(path)) as lines:
        lines.append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    path.write_bytes(cut)
    with closing(Lines(path)) as lines:
        lines.append(b"one\n")
    assert path.read_bytes() == b"one\n"


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(tmp_path, monkeypatch):
    path, real = tmp_path / "lines", os.write
    with closing(Lines(path)) as lines:
        lines.append(b"one\n")
        monkeypatch.setattr(os, "write", lambda file, line: real(file, line[:2]))
        with pytest.raises(OSError, match="No space") as error:
            lines.append(b"two\n")
        monkeypatch.setattr(os, "write", real)
        assert error.value.filename == str(path)
        lines.append(b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_a_folder_says_what_every_command_did_in_it(tmp_path):
    for _ in range(2):
        run_experiments([GIVEN], Store(tmp_path), Inline(), Quiet())
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    named = [(e["stage"], e["total"], e["done"]) for e in events if e["event"] == "named"]
    assert named == [("tuning", 4, 0), ("training and measuring", 8, 4), ("training and measuring", 4, 4),
                     ("training and measuring", 8, 8)]
    assert sum(e["event"] == "ended" for e in events) == 8


def test_a_notebook_is_told_in_one_line_that_is_written_anew():
    file = io.StringIO()
    with closing(Line(file)) as line:
        for event in EVENTS:
            line.hear(event)
    text = file.getvalue()
    assert "\x1b" not in text
    lines = [part.split("\r")[-1].rstrip() for part in text.strip("\n").split("\n")]
    assert [each for each in lines if each][:2] == ["known before", "failed: no luck"]
    assert lines[-1].startswith("tuning: 3/3 runs, ")
    assert lines[-1].endswith("1 diverged or failed")
    assert "tuning: 1/3 runs" in text
    assert text.endswith("\n")


# Read once

def opened(monkeypatch):
    """Return a list that grows by the name of every JSON file of a run that is read."""
    read, real = [], RunFolder.contents
    monkeypatch.setattr(ledger_module.RunFolder, "contents", lambda self: (read.append(self.path), real(self))[1])
    return read


def test_a_repeated_command_reads_no_file_of_a_run(tmp_path, whole, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "out")
    read = opened(monkeypatch)
    for expected in (8, 0):  # of a copy every run is read once more
        found = run_experiments([GIVEN], Store(tmp_path / "out"), Inline(), Quiet())
        assert len(read) == expected
        assert told(found.records) == told(whole[1])
        read.clear()
    (tmp_path / "out").rename(tmp_path / "moved")
    assert told(run_experiments([GIVEN], Store(tmp_path / "moved"), Inline(), Quiet()).records) == told(whole[1])
    assert read == []


@pytest.mark.parametrize("change", [
    lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.write_bytes(b"\x00" * 40),
    lambda path: path.unlink(), lambda path: os.utime(path, ns=(1, 1)),
    lambda path: path.with_name("other.json").write_text("{}")])
@pytest.mark.parametrize("name", ["result.json", "weights.safetensors", "probe-*.json"])
def test_a_file_that_changed_is_looked_at_again(change, name, tmp_path, whole, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    run_experiments([GIVEN], Store(out), Inline(), Quiet())
    path = sorted(out.glob(f"runs/*/{name}"))[-1]
    change(path)
    read = opened(monkeypatch)
    found = run_experiments([GIVEN], Store(out), Inline(), Quiet())
    assert {each.name for each in read} == {path.parent.name}
    assert told(found.records) == told(whole[1])


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b"{", lambda b: b'{"schema":2}\n' + b, lambda b: b[:-9],
                                   lambda b: b.replace(b'"status":"ok"', b'"status":"no"'), lambda b: b"\n" * 9])
def test_a_spoilt_ledger_is_only_a_slower_command(spoil, tmp_path, whole, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    run_experiments([GIVEN], Store(out), Inline(), Quiet())
    before = (out / LEDGER).read_bytes()
    (out / LEDGER).write_bytes(spoil(before))
    read = opened(monkeypatch)
    assert told(run_experiments([GIVEN], Store(out), Inline(), Quiet()).records) == told(whole[1])
    assert read
    assert sorted((out / LEDGER).read_bytes().splitlines()) == sorted(before.splitlines())


def test_a_ledger_that_cannot_be_written_is_said_and_runs_that_are_gone_are_forgotten(tmp_path, whole):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    (out / LEDGER).unlink()
    (out / LEDGER).mkdir()
    found = run_experiments([GIVEN], Store(out), Inline(), Quiet())
    assert [each for each in found.inapplicable if f"{LEDGER} could not be written" in each]
    (out / LEDGER).rmdir()
    ledger = Ledger(out)
    runs = [path.name for path in (out / "runs").iterdir()]
    for run in (*runs, "0" * 16):
        ledger.contents(run)
    assert ledger.write() == ""
    assert len((out / LEDGER).read_bytes().splitlines()) == 1 + len(runs)


# Executors of others

@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as found:
        yield found


def test_a_pool_of_processes_gives_the_bits_of_this_process(tmp_path, pool, whole):
    found = run_experiments([GIVEN], Store(tmp_path), Futures(pool), Quiet())
    assert told(found.records) == told(whole[1])
    run = Run(TASK, SGD(lr=0.1), Plan(2, 32), 7, (), (Watch(Accuracy(), 2),))
    bad = Call(fail)
    reports = list(Futures(pool).run([run, bad], tmp_path / "runs"))
    assert {report.id for report in reports if isinstance(report, Outcome) and report.status == "ok"} == {run.id}
    assert [report.step for report in reports if isinstance(report, Look)] == [3, 6]
    (failed,) = (report for report in reports if isinstance(report, Outcome) and report.id == bad.id)
    assert failed.reason.startswith("ZeroDivisionError: on purpose (tiny.py:")
    assert not list(tmp_path.glob(f"runs/*/{LOOKS}"))


def test_work_whose_process_dies_is_lost(tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as mortal:
        (outcome,) = ended(Futures(mortal), [Call(kill_always)], tmp_path / "runs")
        assert (outcome.status, outcome.reason.partition(":")[0]) == ("lost", "BrokenProcessPool")
        with pytest.raises(UserError, match=r"ProcessPoolExecutor takes no work .*give Futures a pool"):
            ended(Futures(mortal), [Call(succeed, {"value": 1.0})], tmp_path / "runs")


@dataclass
class Fails(Pool):
    """An executor whose second answer never comes back whole."""

    asked: int = 0

    def submit(self, function, /, *args, **kwargs):
        self.asked += 1
        future = Future()
        if self.asked == 2:
            future.set_exception(ConnectionError("the machine is gone\nfor good"))
        else:
            future.set_result(function(*args, **kwargs))
        return future


def test_an_executor_that_fails_loses_its_work_alone(tmp_path):
    works = [Call(succeed, {"value": float(i)}) for i in range(3)]
    found = {outcome.id: outcome for outcome in ended(Futures(Fails()), works, tmp_path / "runs")}
    assert [found[work.id].status for work in works] == ["ok", "lost", "ok"]
    assert found[works[1].id].reason == "ConnectionError: the machine is gone"
    with pytest.raises(UserError, match=r"1 tuning run\(s\) ended without a result"):
        run_experiments([GIVEN], Store(tmp_path / "out"), Futures(Fails()), Quiet())
    assert run_experiments([GIVEN], Store(tmp_path / "out"), Inline(), Quiet()).failures == ()


@dataclass
class Slow(Pool):
    """An executor that begins one piece of work, and never gets to the others."""

    def __init__(self):
        self.futures = []

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        if not self.futures:
            future.set_running_or_notify_cancel()
            future.set_result(function(*args, **kwargs))
        self.futures.append(future)
        return future


def test_closed_early_what_has_not_begun_is_withdrawn(tmp_path):
    slow, works = Slow(), [Call(succeed, {"value": float(i)}) for i in range(3)]
    with closing(Futures(slow).run(works, tmp_path / "runs")) as found:
        while not isinstance(next(found), Outcome):
            pass
    assert [future.cancelled() for future in slow.futures] == [False, True, True]


def test_threads_are_refused():
    with ThreadPoolExecutor(1) as threads, pytest.raises(UserError, match=r"got threads.*: give a ProcessPool"):
        Futures(threads)


def test_nothing_to_do_asks_nobody(tmp_path):
    assert list(Futures(Fails()).run([], tmp_path / "runs")) == []


def test_the_numbers_do_not_depend_on_who_listens(tmp_path, whole):
    changed = replace(GIVEN, seeds=(1, 2))
    with closing(EventFile(tmp_path)) as file, Session([changed], Store(tmp_path / "out"), Inline()) as session:
        for event in session:
            file.hear(event)
    assert told(session.records) == told(whole[1])
    assert told(Records(Store(tmp_path / "out").records())) == told(whole[1])
