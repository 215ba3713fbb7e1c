"""What a folder survives: kills, full disks, damage, other commands, and being moved, copied or deleted."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial, partialmethod
from pathlib import Path

import pytest

from optscope import lab
from optscope.engine.execute import Inline
from optscope.engine.executor import Outcome
from optscope.engine.plan import Plan
from optscope.engine.rows import Use
from optscope.engine.run import Call
from optscope.engine.store import Store
from optscope.errors import DISK_ERRORS, UserError
from optscope.evidence.records import Records
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.geometry import Geometry
from optscope.protocol.comparison import Arm, Calls, Comparison, Job
from optscope.protocol.events import Quiet
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import Settings, read_settings
from tiny import TASK, succeed

ARMS = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.03))))
GIVEN = Comparison("c", TASK, ARMS, Plan(1, 32), (Accuracy(), Geometry()), (1, 2), moments=1)


def done(folder, given=GIVEN, executor=None):
    return run_experiments([given], Store(folder), executor or Inline(), Quiet())


def numbers(results):
    """Everything that a report is made of, in its order, but for the time it took."""
    rows = [repr(r) for r in results.records if "seconds" not in r.metric]
    return rows, list(results.arrays), results.failures


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that nothing happened to, and what it gave."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return folder, numbers(done(folder))


def stamps(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.glob("runs/*/result.json")}


# Which runs are known

def test_a_tuning_run_that_was_never_judged_chooses_nothing(tmp_path):
    store = Store(tmp_path)
    tuning = GIVEN.jobs(Records())
    store.add_uses(job.use for job in tuning)
    for job in tuning:
        job.work.perform(store.run_folder(job.work.id))
    assert len(GIVEN.jobs(store.records())) > len(tuning)
    victim = store.run_folder(tuning[0].work.id)
    reading = next(victim.path.glob("probe-*.json"))
    words = reading.read_bytes()
    reading.unlink()  # killed between the result and its reading
    assert len(GIVEN.jobs(store.records())) == len(tuning)
    victim.write_failure("lost", "its process died")
    assert len(GIVEN.jobs(store.records())) == len(tuning)
    victim.write_failure("failed", "the probe stopped")  # it would again: the rate counts as the worst
    assert len(GIVEN.jobs(store.records())) > len(tuning)
    assert GIVEN.chosen(store.records())["SGD"].lr == 0.3
    reading.write_bytes(words)
    (victim.path / "result.json").unlink()
    victim.write_failure("lost", "its process died")
    assert len(GIVEN.jobs(store.records())) == len(tuning)


class Dies(Inline):
    """An executor whose workers die at some rates."""

    def run(self, works, folder):
        lost = {work.id for work in works if work.rule.lr == 0.1}
        for report in super().run(works, folder):
            if isinstance(report, Outcome) and report.id in lost:
                shutil.rmtree(folder / report.id)
                report = replace(report, status="lost", reason="no memory")
            yield report


def test_no_final_run_follows_a_lost_tuning_run(tmp_path, whole):
    with pytest.raises(UserError, match=r"1 tuning run\(s\) ended without a result.*SGD\(lr=0.1\).*no memory"):
        done(tmp_path / "out", executor=Dies())
    assert len(list(tmp_path.glob("out/runs/*/result.json"))) == 3
    assert numbers(done(tmp_path / "out")) == whole[1]


@dataclass(frozen=True)
class Chain:
    """An experiment of as many stages as asked for: each needs the one before."""

    stages: int
    name: str = "chain"

    def jobs(self, records):
        found = min(self.stages, 1 + len(records.where(experiment=self.name, metric="value")))
        works = [Call(succeed, {"value": float(i)}) for i in range(found)]
        return [Job(work, Use(self.name, "", "final", 0, "", work.id)) for work in works]


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_jobs_are_done_until_no_new_ones_are_named(stages, tmp_path):
    found = run_experiments([Chain(stages), Calls("other", ())], Store(tmp_path), Inline(), Quiet())
    assert [row.value for row in found.records.where(metric="value")] == list(range(stages))


# Whose folder it is

@pytest.mark.parametrize("there", [(), ("runs/",), ("runs/0123456789abcdef/",), (".optscope.json.7.tmp",),
                                   (".lock", ".owner", "runs/", ".entries.json.9.tmp"),
                                   ("runs/0123456789abcdef/", "report.html", "figures/", "index.sqlite-wal")])
def test_what_a_kill_leaves_is_ours(there, tmp_path):
    for name in there:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    with Store(tmp_path / "out").locked():
        assert not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.parametrize("there", ["thesis.tex", "runs/Nov28_events/x", "report.html", ".git/config"])
def test_what_others_wrote_is_not_ours(there, tmp_path):
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match="not optscope's"):
        Store(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [there.partition("/")[0]]


class Meanwhile(Inline):
    """An executor during whose second piece of work something happens to the folder."""

    def __init__(self, happens):
        object.__setattr__(self, "happens", happens)

    def run(self, works, folder):
        reports = super().run(works, folder)
        while not isinstance(report := next(reports), Outcome):
            yield report
        yield report
        self.happens(folder.parent)
        yield from reports


@pytest.mark.parametrize("happens", [shutil.rmtree, lambda f: f.rename(f.with_name("elsewhere")),
                                     lambda f: (f / "optscope.json").unlink()])
def test_a_folder_that_disappears_stops_the_command_and_is_not_made_again(happens, tmp_path, whole):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="out was deleted, moved or emptied while this command ran"):
        done(out, executor=Meanwhile(happens))
    assert not (out / "optscope.json").exists()
    assert out.exists() == (happens.__name__ == "<lambda>" and not (tmp_path / "elsewhere").exists())
    assert numbers(done(out)) == whole[1]  # the name is free, and what is left there is ours
    if (tmp_path / "elsewhere").exists():
        assert numbers(done(tmp_path / "elsewhere")) == whole[1]


def test_a_folder_that_is_copied_meanwhile_goes_on_in_both_places(tmp_path, whole):
    out, copy = tmp_path / "out", tmp_path / "copy"
    copied = Meanwhile(lambda folder: copy.exists() or shutil.copytree(folder, copy))  # in the first stage
    assert numbers(done(out, executor=copied)) == whole[1]
    before = stamps(copy)
    assert 0 < len(before) < len(stamps(out))
    assert numbers(done(copy)) == whole[1]
    assert stamps(copy).items() >= before.items()


def test_a_clock_that_was_set_back_repeats_nothing(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (time.time() + 86_400,) * 2)
    before = stamps(tmp_path / "out")
    assert numbers(done(tmp_path / "out")) == whole[1]
    victim = next((tmp_path / "out" / "runs").glob("*/result.json"))
    victim.unlink()  # made again, it is older than all else
    assert numbers(done(tmp_path / "out")) == whole[1]
    again = stamps(tmp_path / "out")
    assert {path for path in before if before[path] != again[path]} == {victim.relative_to(tmp_path / "out")}


def test_a_folder_can_be_copied_and_moved(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "copy")
    before = stamps(tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert numbers(done(tmp_path / "moved")) == whole[1]
    assert stamps(tmp_path / "moved") == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_only_be_read_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path)


def test_a_folder_holds_one_report(tmp_path):
    settings = Settings(seeds=2, twin_seeds=0, epochs=1, batch=32, examples=8)
    lab.rounding(TASK, tmp_path, arms=ARMS[:1], settings=settings, executor=Inline())
    page = (tmp_path / "report.html").read_bytes()
    with pytest.raises(UserError, match=r"holds the report of the rounding floor of blobs, which that of the "
                                        r"comparison on blobs would replace: give --out another"):
        lab.compare(TASK, tmp_path, arms=ARMS, settings=settings, executor=Inline())
    assert (tmp_path / "report.html").read_bytes() == page
    lab.rounding(TASK, tmp_path, arms=ARMS[:1], settings=settings, executor=Inline())


# The report does not depend on what the folder saw before

def test_other_commands_before_change_nothing(tmp_path, whole):
    done(tmp_path, replace(GIVEN, arms=ARMS[::-1], seeds=(5, 2)))
    done(tmp_path, replace(GIVEN, plan=Plan(2, 32)))
    done(tmp_path, replace(GIVEN, probes=(Geometry(),)))
    assert numbers(done(tmp_path)) == whole[1]
    assert done(tmp_path).records.arms() == ["SGD", "Adam"]


# The index only repeats

def queried(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("select run, metric, value from records").fetchall()


def garbled(path):
    path.write_bytes(b"no database" * 99)


def locked(path):
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("pragma journal_mode=wal")
    database.execute("create table records (x)")
    database.execute("begin immediate")
    return database


@pytest.mark.parametrize("spoil", [garbled, locked, lambda path: path.with_name("index.sqlite-wal").touch()])
def test_a_spoilt_index_is_written_anew(spoil, tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "out")
    path = tmp_path / "out" / "index.sqlite"
    path.unlink()
    held = spoil(path)
    results = done(tmp_path / "out")
    assert numbers(results) == whole[1]
    assert queried(path) == [(r.run, r.metric, None if math.isnan(r.value) else r.value) for r in results.records]
    if held is not None:
        held.close()


def test_an_index_that_cannot_be_written_is_said_and_fails_nothing(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "out")
    (tmp_path / "out" / "index.sqlite").unlink()
    (tmp_path / "out" / "index.sqlite").mkdir()
    results = done(tmp_path / "out")
    assert numbers(results) == whole[1]
    assert [s for s in results.inapplicable if "index.sqlite could not be written" in s]


# Damage

def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors"))


@pytest.mark.parametrize("cut", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"\x00" * len(b)])
def test_damaged_files_of_every_kind_are_set_aside_and_made_again(cut, tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "out")
    names = {"result.json", "weights.safetensors", "series.safetensors", "entries.json", "optscope.json"}
    readings = {p.suffix for p in files_of(whole[0]) if p.name.startswith("probe-")}
    assert readings == {".json", ".safetensors"}
    for path in files_of(tmp_path / "out"):
        path.write_bytes(cut(path.read_bytes()))
        names.discard(path.name)
    assert not names  # every kind was there
    assert numbers(done(tmp_path / "out")) == whole[1]
    assert len(list((tmp_path / "out").rglob("*.damaged"))) == len(files_of(whole[0]))
    for run in (whole[0] / "runs").iterdir():
        assert ((tmp_path / "out" / "runs" / run.name / "weights.safetensors").read_bytes()
                == (run / "weights.safetensors").read_bytes())


def test_a_damaged_list_of_entries_loses_no_run(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "out")
    before = stamps(tmp_path / "out")
    (tmp_path / "out" / "entries.json").write_bytes(b'{"entries": [["c", "SG')
    assert numbers(done(tmp_path / "out")) == whole[1]
    assert stamps(tmp_path / "out") == before
    assert Store(tmp_path / "out").uses() == Store(whole[0]).uses()


@pytest.mark.parametrize("content", ["[]", "{}", "7", "null", '{"entries": 3}', '{"entries": [[1]]}',
                                     '{"status": 5, "rows": [[1]], "values": [[1, 2]]}'])
@pytest.mark.parametrize("name", ["entries.json", "optscope.json", "result.json", "probe"])
def test_valid_json_of_the_wrong_content_is_one_sentence(name, content, tmp_path, whole):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    run = next(p for p in sorted((out / "runs").iterdir()) if len(list(p.glob("probe-*.json"))) > 2)
    path = next(p for p in (out / name, *run.glob(f"{name}*.json"), run / name) if p.is_file())
    path.write_text(content)
    with pytest.raises(UserError, match=r"not what optscope writes there.*: delete (that|the) f") as error:
        done(out)
    assert ("no run is lost" in str(error.value)) == (path.parent == out)
    path.unlink() if path.parent == out else shutil.rmtree(run)  # what the sentence says
    assert numbers(done(out)) == whole[1]


def test_the_report_command_says_what_to_do_with_a_damaged_list_of_verdicts(tmp_path, monkeypatch, capsys):
    from tiny import call
    Store(tmp_path)
    for content in ("{", "[1]", "7", '[{"claim": 3}]'):
        (tmp_path / "verdicts.json").write_text(content)
        assert call(monkeypatch, f"report {tmp_path}") == 2
        said = capsys.readouterr().err
        assert "verdicts.json" in said
        assert "run the command that made it again" in said
        assert "delete" not in said


# A full disk, at every moment

def test_after_a_full_disk_at_any_moment_the_same_command_continues(tmp_path, whole, monkeypatch):
    given = replace(GIVEN, arms=ARMS[:1], seeds=(1,), probes=(Geometry(),))
    expected = numbers(done(tmp_path / "whole", given))
    real, count = os.fsync, 0

    def full(descriptor):
        nonlocal count
        count -= 1
        if count == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    moments, n = 0, 1
    while True:
        count, out = n, tmp_path / str(n)
        with contextlib.suppress(OSError, UserError):
            done(out, given)
        if count > 0:
            break
        moments += 1
        assert not list(out.rglob(".*.tmp"))  # what was half written takes no space
        assert numbers(done(out, given)) == expected
        n += 3
    assert moments >= 8


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT])
def test_a_disk_that_becomes_read_only_stops_the_command_and_is_named(number, tmp_path, whole, monkeypatch):
    real, writes = Path.open, 0

    def closed(path, mode="r", *more, **others):
        nonlocal writes
        writes += mode == "wb"
        if mode == "wb" and writes > 9:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *more, **others)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed)
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            done(tmp_path / "out")
    assert error.value.errno in DISK_ERRORS  # the command ends with 74, and names the file
    assert Path(error.value.filename).is_relative_to(tmp_path / "out")
    before = stamps(tmp_path / "out")
    assert numbers(done(tmp_path / "out")) == whole[1]
    assert before
    assert stamps(tmp_path / "out").items() >= before.items()


# Kills, at many moments

def killed_at(moment, out):
    """Run the command in a process of its own that is killed just before or after its write of that number."""
    process = os.fork()
    if process == 0:
        left = moment

        def counted(real, *arguments):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        os.fsync, Path.replace = partial(counted, os.fsync), partialmethod(partial(counted, Path.replace))
        try:
            done(out)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_killed_at_many_moments_in_one_folder_the_same_command_ends_with_the_same_numbers(tmp_path, whole):
    out, kills = tmp_path / "out", 0
    while killed_at(kills + 1, out):
        kills += 1
        assert kills < 60
    assert kills >= 10
    before = stamps(out)
    assert numbers(done(out)) == whole[1]
    assert stamps(out) == before
    assert not list(out.rglob(".*.tmp"))


# Being asked to stop

TASK_FILE = """
import torch
from torch import nn
from optscope.tasks.task import Task
x, y = torch.rand(64, 2), torch.arange(64) % 2
def model(): return nn.Linear(2, 2)
task = Task.from_tensors(model, (x, y), (x, y))
"""


def command(folder, line):
    # Whoever started the tests may ignore signals, as nohup does, and processes inherit that.
    heard = "import signal; [signal.signal(s, signal.SIG_DFL) for s in (1, 15)]; "
    heard += "signal.signal(2, signal.default_int_handler); "
    return subprocess.Popen([sys.executable, "-c", f"{heard}from optscope.cli import main; main()", *line.split()],
                            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def group_of(process):
    """The living processes that the command started."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(process.pid) and " Z" not in line]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP") or shutil.which("ps") is None, reason="signals of POSIX")
@pytest.mark.parametrize(("first", "says"), [("SIGINT", "stopped;"), ("SIGTERM", "stopped by SIGTERM;"),
                                               ("SIGHUP", "stopped by SIGHUP;")])
def test_asked_to_stop_twice_it_says_one_sentence_and_leaves_no_worker(first, says, tmp_path):
    (tmp_path / "my_task.py").write_text(TASK_FILE)
    process = command(tmp_path, "compare my_task.py:task --epochs 100000 --slots 1 --out out")
    for line in process.stderr:
        if "runs to do" in line:
            break
    while '"started"' not in (tmp_path / "out" / "events.jsonl").read_text():
        time.sleep(0.1)  # until a worker has begun: of signals that wait together, Python hears the lowest first
    for name in (first, "SIGINT", "SIGHUP"):
        os.killpg(process.pid, getattr(signal, name))
        time.sleep(0.1)
    said = process.stderr.read()
    assert process.wait() == 128 + getattr(signal, first)
    assert said.splitlines()[-1] == f"optscope: {says} finished runs are kept: the same command continues"
    process.stdout.close()
    process.stderr.close()
    for _ in range(100):
        if not group_of(process):
            break
        time.sleep(0.1)
    assert group_of(process) == []


def test_a_closed_pipe_ends_in_one_sentence(tmp_path):
    process = command(tmp_path, "list")
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert said == "optscope: nobody reads the output; finished runs are kept: the same command continues\n"


@pytest.mark.skipif(shutil.which("ps") is None, reason="processes are listed by ps")
def test_a_pipe_that_is_closed_during_a_comparison_leaves_no_worker(tmp_path):
    (tmp_path / "my_task.py").write_text(TASK_FILE)
    process = command(tmp_path, "compare my_task.py:task --epochs 500 --slots 1 --out out")
    process.stdout.close()
    for line in process.stderr:
        if "runs to do" in line:
            break
    process.stderr.close()  # the next line that it would show has no reader
    assert process.wait() == 141
    for _ in range(100):
        if not group_of(process):
            break
        time.sleep(0.1)
    assert group_of(process) == []


def test_a_training_without_end_is_refused():
    with pytest.raises(UserError, match="1000000000000 epochs are at least 1000000000000 steps of training"):
        Plan(epochs=10**12)
    with pytest.raises(UserError, match=r"are at least 390600000000 steps .*: give fewer epochs or larger batches"):
        Plan(10**8, 128).total(500_000)
    with pytest.raises(UserError, match=r"epochs: input should be less than or equal to 100000000; got 10000"):
        read_settings(None, epochs=10**12)
    assert Plan(10**8, 128).total(128) == 10**8
