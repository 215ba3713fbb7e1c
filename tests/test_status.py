"""The status of a folder from outside: during a command, after it, and of files that were spoilt."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.following import Follower, followed
from optscope.optim import SGD, Adam
from optscope.pace import LATE, rate
from optscope.probes.accuracy import Accuracy
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Ended, Moment, Named, Quiet, Started
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from tiny import TASK, call

ARMS = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 1e30, 0.3))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.03, 0.1))),
        Arm("stands", SGD(lr=0.2)))
GIVEN = Comparison("c", TASK, ARMS, Plan(1, 32), (Accuracy(),), (1, 2), tuning_seeds=(8, 9), moments=2)


class Onlooker(Quiet):
    """A listener that asks, after every event, what another process would be told."""

    def __init__(self, folder):
        self.folder, self.seen, self.follower = folder, [], None

    def hear(self, event):
        self.follower = self.follower or Follower(self.folder)
        self.seen.append((event, self.follower.status()))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A folder in which a comparison was done, its results, and every event with the status after it."""
    folder = tmp_path_factory.mktemp("status") / "out"
    onlooker = Onlooker(folder)
    results = run_experiments([GIVEN], Store(folder), Inline(), onlooker)
    return folder, results, onlooker.seen


# A comparison

def test_during_a_comparison_it_counts_what_the_command_knows(watched):
    named, ended, diverged, running = None, 0, 0, set()
    for event, status in watched[2]:
        if isinstance(event, Named):
            named, ended = event, 0
        elif isinstance(event, Started):
            running.add(event.use.run)
        elif isinstance(event, Ended):
            running.discard(event.use.run)
            ended += 1
            diverged += event.outcome.status == "diverged"
        assert (status.state, status.process) == ("running", f"{os.getpid()} on {platform.node()}")
        assert (status.stage, status.total, status.done) == (named.stage, named.total, named.done + ended)
        assert (status.diverged, status.failed) == (diverged, 0)
        assert {each.run for each in status.running} == running
        assert (status.runs_per_second > 0) == (ended > 0)
        if isinstance(event, Moment):
            (one,) = status.running
            assert (one.arm, one.seed, one.step, one.values) == (event.use.arm, event.use.seed, event.step,
                                                                 event.values)
    assert diverged == 2
    assert named.stage == "training and measuring"


def test_the_best_of_every_arm_is_what_the_comparison_chooses(watched):
    folder, results, seen = watched
    chosen = GIVEN.chosen(results.records)
    for status in (seen[-1][1], Follower(folder).status()):
        assert [each.arm for each in status.best] == ["SGD", "Adam", "stands"]
        for arm, best in zip(ARMS, status.best, strict=True):
            assert (best.metric, best.better) == ("loss", "lower")
            if arm.search:
                assert best.rule == repr(chosen[arm.name])
                score = GIVEN.score(results.records, arm, chosen[arm.name])
                assert best.value == pytest.approx(score, rel=1e-12)
                assert best.seeds == 2
            else:
                assert (best.rule, best.value, best.seeds) == (None, None, 0)
            ends = results.records.where(arm=arm.name, phase="final", metric="loss", step=3)
            assert best.compared == pytest.approx(statistics.fmean(row.value for row in ends), rel=1e-12)
            assert best.compared_seeds == len(ends) == 2


def test_while_arms_are_tuned_the_best_is_of_what_has_ended(watched):
    ends = [(event, status) for event, status in watched[2] if isinstance(event, Ended)]
    first, second = ends[0][1].best[0], ends[1][1].best[0]
    assert (first.rule, first.seeds, second.seeds) == (repr(SGD(lr=0.1)), 1, 2)
    diverged = next(status for event, status in ends if event.outcome.status == "diverged")
    assert diverged.best[0].rule == repr(SGD(lr=0.1))


def test_a_higher_criterion_is_read_upwards(watched, tmp_path):
    follower = Follower(watched[0])
    follower.status()
    follower._told.criteria = {"c": ("accuracy", "higher")}
    rows = watched[1].records.where(arm="Adam", phase="tune", metric="accuracy", step=None)
    rules = {row.rule for row in rows}
    means = [statistics.fmean(row.value for row in rows.where(rule=rule)) for rule in rules]
    assert follower.status().best[1].value == pytest.approx(max(means), rel=1e-12)


def test_afterwards_it_is_finished_and_nothing_was_written(watched):
    folder = watched[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status = Follower(folder).status()
    assert (status.state, status.process, status.running, status.runs_per_second) == ("finished", "", [], 0.0)
    assert (status.done, status.total) == (18, 18)
    assert status.seconds_left is None
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_command_tells_it_without_torch_and_without_the_lock(watched):
    code = "import sys; from optscope import cli; cli.main(); sys.exit('torch' in sys.modules)"
    with Store(watched[0]).locked():
        done = subprocess.run([sys.executable, "-c", code, "status", str(watched[0]), "--json"],
                              capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["schema"], told["state"], told["done"], told["diverged"]) == (1, "running", 18, 2)
    assert told["best"][0]["rule"] == repr(GIVEN.chosen(watched[1].records)["SGD"])


def test_in_words(watched, monkeypatch, capsys):
    assert call(monkeypatch, f"status {watched[0]} --watch") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{watched[0]}: finished, training and measuring"
    assert lines[1] == "  18 of 18 runs done (0 failed, 2 diverged)"
    assert lines[2] == "best so far, on validation data:"
    assert lines[3].startswith("  SGD: best loss 1.0")
    assert lines[5].startswith("  stands: loss 1.")
    assert lines[5].endswith(" in the comparison (2 seeds)")


# Folders made by hand

def event(at, name, **more):
    return json.dumps({"schema": 1, "time": datetime.fromtimestamp(at, UTC).isoformat(), "event": name, **more})


def place(run, arm="a", phase="tune", seed=1):
    return {"experiment": "c", "arm": arm, "phase": phase, "seed": seed, "rule": "R(lr=1)", "run": run}


RUNS = [f"{i:016x}" for i in range(4)]
LINES = [event(1000, "named", stage="tuning", total=4, done=1, runs=RUNS, criteria={"c": ["loss", "lower"]}),
         event(1000, "started", **place(RUNS[1]), attempt=1),
         event(1001, "started", **place(RUNS[2]), attempt=1),
         event(1004, "moment", **place(RUNS[1]), step=7, values={"loss": "inf"}),
         event(1010, "ended", **place(RUNS[2]), status="failed", reason="no luck", seconds=9.0, tries=1)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose events end at the time 1010, looked at at 1020, of a process that is there."""
    monkeypatch.setattr("optscope.following.time.time", lambda: 1020.0)
    for run in RUNS:
        (tmp_path / "runs" / run).mkdir(parents=True)
    (tmp_path / "runs" / RUNS[2] / "failed.json").write_text("{}")
    (tmp_path / "optscope.json").write_text('{"schema": 1}')
    (tmp_path / ".owner").write_text(f"{os.getpid()} on {platform.node()}")
    (tmp_path / "events.jsonl").write_text("\n".join(LINES) + "\n")
    return tmp_path


def test_counts_rate_and_time_left_by_hand(folder):
    status = Follower(folder).status()
    assert (status.total, status.done, status.failed, status.diverged) == (4, 2, 1, 0)
    assert status.runs_per_second == pytest.approx(1 / 20)
    assert status.seconds_left == pytest.approx(40)
    (one,) = status.running
    assert (one.run, one.seconds, one.step) == (RUNS[1], pytest.approx(20), 7)
    assert one.values == {"loss": float("inf")}
    assert "2 of 4 runs done (1 failed, 0 diverged), 1 running; 3 runs/min, 0.7 min left" in str(status)
    assert "a, seed 1, R(lr=1): 20 s, step 7, loss inf" in str(status)


def test_a_failed_run_that_is_taken_up_again_has_not_failed(folder):
    (folder / "runs" / RUNS[2] / "failed.json").unlink()
    assert Follower(folder).status().failed == 0


@pytest.mark.parametrize("cut", range(1, len(LINES[-1]) + 1, 17))
def test_a_line_that_is_being_written_waits(cut, folder):
    text = (folder / "events.jsonl").read_bytes()
    (folder / "events.jsonl").write_bytes(text[:-cut])
    follower = Follower(folder)
    early = follower.status()
    assert (early.done, early.unread, len(early.running)) == (1, 0, 2)
    (folder / "events.jsonl").write_bytes(text)
    assert follower.status() == Follower(folder).status()


@pytest.mark.parametrize("line", [
    "\x00\x00", "[]", "{}", "3", '{"schema": 1}', event(1005, "ended", run=3),
    event(1005, "named", stage="tuning"),
    event(1005, "said", sentence="x").replace('"schema": 1', '"schema": 2'),
    event(1000, "named", stage="t", total=1, done=0, runs=RUNS, criteria={"c": "loss"}),
    '{"schema": 1, "event": "ended", "time": "yesterday"}'])
def test_a_line_that_is_not_ours_is_counted_and_left_out(line, folder):
    whole = Follower(folder).status()
    (folder / "events.jsonl").write_text("\n".join([*LINES[:2], line, *LINES[2:]]) + "\n")
    status = Follower(folder).status()
    assert (status.unread, status.done, status.running) == (1, whole.done, whole.running)
    assert "1 line(s) of events.jsonl cannot be read" in str(status)


def test_a_folder_that_was_made_anew_is_read_from_the_start(folder):
    follower = Follower(folder)
    follower.status()
    (folder / "events.jsonl").write_text(LINES[0] + "\n")
    assert (follower.status().done, follower.status().running) == (1, [])


def test_a_killed_command_is_stopped_and_one_on_another_machine_believed(folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder / ".owner").write_text(f"{gone.pid} on {platform.node()}")
    status = Follower(folder).status()
    assert (status.state, status.runs_per_second, len(status.running)) == ("stopped", 0.0, 1)
    assert str(status).endswith("the same command as before continues, and repeats no finished run")
    (folder / ".owner").write_text(f"{gone.pid} on elsewhere")
    assert Follower(folder).status().state == "running"
    (folder / ".owner").write_text("nonsense on " + platform.node())
    assert Follower(folder).status().state == "stopped"


def test_before_a_stage_is_named_it_says_so(folder):
    (folder / "events.jsonl").unlink()
    assert str(Follower(folder).status()).startswith(f"{folder}: no run has been named yet (process ")
    (folder / ".owner").unlink()
    assert Follower(folder).status().state == "empty"


def test_a_clock_that_was_set_back_gives_no_rate(folder, monkeypatch):
    monkeypatch.setattr("optscope.following.time.time", lambda: 900.0)
    status = Follower(folder).status()
    assert (status.runs_per_second, status.seconds_left, status.running[0].seconds) == (0.0, None, 0.0)
    assert "no rate yet" in str(status)


def test_following_ends_with_the_command(folder, monkeypatch):
    monkeypatch.setattr("optscope.following.TICK", 0.0)
    states = followed(folder)
    assert [next(states).state, next(states).state] == ["running", "running"]
    (folder / ".owner").unlink()
    assert [status.state for status in states] == ["stopped"]


@pytest.mark.parametrize("text", ["{", "3", '{"entries": [[1]]}', '{"entries": 3}', "{}"])
def test_spoilt_entries_are_one_sentence(text, folder):
    (folder / "entries.json").write_text(text)
    with pytest.raises(UserError, match=r"entries\.json"):
        Follower(folder).status()


def test_a_folder_of_others_is_one_sentence(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, f"status {tmp_path}") == 2
    assert capsys.readouterr().err == (f"optscope: {tmp_path} is not a folder that optscope made: "
                                       "give the --out of a run or compare\n")


def test_the_rate_is_that_of_late():
    slow = [10.0 * i for i in range(1, 101)]
    fast = [1000.0 + i for i in range(1, LATE + 1)]
    assert rate(slow, 0.0, 1000.0) == pytest.approx(0.1)
    assert rate(slow + fast, 0.0, fast[-1]) == pytest.approx(1.0)
    assert rate([], 0.0, 5.0) == rate([1.0], 5.0, 5.0) == 0.0
