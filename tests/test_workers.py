"""Workers, forked of a server or new: what they answer, how they end, and that none outlives its parent."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from optscope.cli import work
from optscope.engine.fork_server import FORKS, ForkServer, at_hand, shared_server
from optscope.engine.workers import DiedError, Worker
from optscope.errors import UserError
from optscope.evidence.records import Record

forks = pytest.mark.skipif(not FORKS, reason="processes are forked on Linux alone")


def nap() -> tuple[list[Record], dict[str, object]]:
    """Say which process this is, in a file of the working directory, and sleep."""
    Path(f"{os.getpid()} {os.getppid()}").touch()
    time.sleep(600)
    return [], {}


def refuse() -> None:
    """Raise what a user can mend."""
    raise UserError("write something else")


@pytest.fixture(scope="module")
def server():
    with contextlib.closing(ForkServer()) as found:
        yield found


@pytest.fixture(params=[pytest.param("forked", marks=forks), "new"])
def worker(request):
    found = Worker("cpu", request.getfixturevalue("server") if request.param == "forked" else None)
    yield found
    found.end()


def asked(worker: Worker, function, *arguments):
    worker.give(function, *arguments)
    return worker.answer()


def test_a_worker_answers_or_says_how_it_ended_and_is_then_another(worker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["optscope", "compare"])
    monkeypatch.syspath_prepend(str(tmp_path))
    first = asked(worker, os.getpid)
    assert first != os.getpid()
    assert asked(worker, os.getcwd) == str(tmp_path)
    assert asked(worker, eval, "[__import__('sys').argv, __import__('sys').path]") == [sys.argv, sys.path]
    assert asked(worker, torch.get_num_threads) == 1
    assert asked(worker, os.getenv, "HF_HUB_DISABLE_PROGRESS_BARS") == "1"  # transformers' own bars, one a model
    with pytest.raises(RuntimeError, match="ValueError: invalid literal"):
        asked(worker, int, "one")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        asked(worker, os.stat, "nowhere")
    with pytest.raises(RuntimeError, match=r"SystemExit\(3\)"):
        asked(worker, sys.exit, 3)
    with pytest.raises(UserError, match="write something else"):
        asked(worker, refuse)
    assert asked(worker, os.getpid) == first
    with pytest.raises(DiedError, match="ended with exit code 3"):
        asked(worker, os._exit, 3)
    with pytest.raises(DiedError, match="ended by SIGKILL: memory may be short"):
        asked(worker, signal.raise_signal, signal.SIGKILL)
    second = asked(worker, os.getpid)
    os.kill(second, signal.SIGKILL)
    time.sleep(0.2)
    third = asked(worker, os.getpid)  # it had nothing to do when it died
    assert len({first, second, third}) == 3


@forks
def test_a_server_has_one_thread_and_its_workers_draw_differently(server):
    workers = [Worker("cpu", server) for _ in range(2)]
    parents = {asked(worker, os.getppid) for worker in workers}
    assert len(list(Path(f"/proc/{parents.pop()}/task").iterdir())) == 1
    assert not parents
    for drawn in ("__import__('numpy').random.rand()", "__import__('random').random()"):
        assert len({asked(worker, eval, drawn) for worker in workers}) == 2
    for worker in workers:
        worker.end()


@forks
def test_an_idle_server_is_another_where_variables_have_changed(server, monkeypatch):
    old, new = Worker("cpu", server), Worker("cpu", server)
    before = asked(old, os.getppid)
    monkeypatch.setenv("OPTSCOPE_TEST", "1")
    assert asked(new, os.getenv, "OPTSCOPE_TEST") is None  # a worker of it may be at work
    old.end()
    new.end()
    assert asked(new, os.getenv, "OPTSCOPE_TEST") == "1"
    assert asked(new, os.getppid) != before
    new.end()


@forks
@pytest.mark.skipif(importlib.util.find_spec("psutil") is not None, reason="psutil lists them")
def test_a_worker_ends_where_nobody_lists_what_it_has_started(server, monkeypatch):
    worker = Worker("cpu", server)
    pid = asked(worker, os.getpid)
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="Failed to kill subprocesses"):
        worker.end()
    assert not is_there(pid)


@forks
def test_without_its_server_a_worker_leaves_and_the_next_comes_of_another(server):
    worker = Worker("cpu", server)
    before = asked(worker, os.getppid)
    worker.give(time.sleep, 600)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(DiedError, match="its process ended"):
        worker.answer()
    assert asked(worker, os.getppid) not in (before, os.getpid())
    worker.end()


def test_one_server_is_shared_within_and_ended_by_the_outermost():
    with shared_server() as outer:
        with shared_server() as inner, at_hand() as third:
            assert outer is inner is third
        with at_hand() as fourth:
            assert fourth is outer
    with at_hand() as fifth:
        assert fifth is not outer


@forks
@pytest.mark.parametrize(("there", "executor", "device", "begins"), [
    ((), None, None, True), (("runs",), None, "cpu", True), (("run.json",), None, None, False),
    ((), "pool.py:pool", None, False), ((), None, "cuda", False)])
def test_a_command_lets_its_server_load_beside_it_where_there_will_be_work(there, executor, device, begins,
                                                                           tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(ForkServer, "begin", lambda self, path: begun.append(path))
    for name in there:
        (tmp_path / name).touch()
    with work._loading(tmp_path, executor, device), at_hand() as inside, at_hand() as same:
        assert inside is same
    assert begun == [sys.path] * begins


NAPS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = {paths!r}
from pathlib import Path
from optscope.engine.execute import Local
from optscope.engine.run import Call
from test_workers import nap
list(Local(2, {devices}).run([Call(nap, factors={{"n": n}}) for n in range(2)], Path("runs")))
"""


def is_there(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("end", ["killed", "asked to stop, with all of its group"])
@pytest.mark.parametrize("devices", [pytest.param((), marks=forks), ("meta",)], ids=["forked", "new"])
def test_no_process_outlives_its_parent(devices, end, tmp_path):
    script = NAPS.format(paths=[str(Path(__file__).parent)], devices=devices)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    while len(found := [path.name for path in tmp_path.iterdir() if path.is_file()]) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    others = {int(pid) for each in found for pid in each.split()} - {process.pid}
    assert len(others) == (2 if devices else 3)
    if end == "killed":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)
    process.wait()
    for _ in range(50):
        if not any(map(is_there, others)):
            break
        time.sleep(0.1)
    assert not any(map(is_there, others))
