"""Executors that a user names: what is refused, workers elsewhere, and a real Dask scheduler on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor as Pool
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

import optscope
from optscope.engine import futures
from optscope.engine.data_files import DataFiles
from optscope.engine.execute import PROGRAM, Inline, Local
from optscope.engine.executor import Begun, Look, Outcome
from optscope.engine.futures import Futures, perform_afar
from optscope.engine.identity import source_digest
from optscope.engine.observed import Observed
from optscope.engine.packing import packed
from optscope.engine.place import Place
from optscope.engine.plan import Plan
from optscope.engine.run import Call, Run
from optscope.engine.run_folder import LOOKS, STATE
from optscope.engine.store import Store
from optscope.engine.training import Training
from optscope.engine.watch import Watch
from optscope.engine.wire import Answer
from optscope.errors import UserError
from optscope.evidence.records import Metric, measured
from optscope.files import names_in
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.probe import Probe
from optscope.protocol.comparison import Arm, Calls, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.pools import _resources, _scheduler, executor_at, of_client
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.tasks.task import InMemory, Task
from tiny import TASK, Blobs, Net, call, ended, kill_once, succeed

SRC = Path(optscope.__file__).parents[1]
FILE = """
import concurrent.futures, multiprocessing
from optscope.engine.execute import Inline

def pool(): return concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
def threads(): return concurrent.futures.ThreadPoolExecutor(1)
def ours(): return Inline()
def none(): return 3
def broken(): return 1 / 0
"""


# What a place names

@pytest.fixture
def file(tmp_path, monkeypatch):
    """The name of a user's file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("my_cluster.py").write_text(FILE)
    yield "my_cluster.py"
    sys.modules.pop("my_cluster")


def test_without_a_place_it_is_processes_here():
    with executor_at(None, 3, ("cpu",)) as found:
        assert found == Local(3, ("cpu",))


def test_a_function_gives_a_pool_which_is_shut_down_or_one_of_ours(file, tmp_path):
    works = [Call(succeed, {"value": float(i)}) for i in range(2)]
    with executor_at(f"{file}:pool", 0, ()) as found:
        assert [each.status for each in ended(found, works, tmp_path / "runs")] == ["ok", "ok"]
    with pytest.raises(UserError, match=r"takes no work .*after shutdown"):
        ended(found, [Call(succeed, {"value": 3.0})], tmp_path / "runs")
    with executor_at(f"{file}:ours", 0, ()) as found:
        assert type(found).__name__ == "Inline"


@pytest.mark.parametrize(("name", "sentence"), [
    ("none", "must be a function that returns a concurrent.futures.Executor.* got int"),
    ("broken", "my_cluster.py:broken stopped with ZeroDivisionError: division by zero"),
    ("threads", "got threads"), ("pol", 'my_cluster.py has no "pol"; did you mean "pool"')])
def test_what_is_no_executor_is_one_sentence(name, sentence, file):
    with pytest.raises(UserError, match=sentence), executor_at(f"{file}:{name}", 0, ()):
        pass


@pytest.mark.parametrize(("place", "slots", "devices", "sentence"), [
    ("local", 0, (), 'an executor is "dask://HOST:PORT" or "my_cluster.py:NAME"; got "local"'),
    ("dask://h:1", 2, (), "--slots and several devices are for processes on this machine"),
    ("dask://h:1", 0, ("cuda:0", "cuda:1"), "--slots and several devices are for processes on this machine"),
    ("dask://h:1", 0, (), r'dask://h:1 needs Dask .*: pip install "optscope\[cluster\]"')])
def test_a_place_that_will_not_do_is_one_sentence(place, slots, devices, sentence, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    with pytest.raises(UserError, match=sentence), executor_at(place, slots, devices):
        pass


def test_the_command_says_so(monkeypatch, capsys):
    assert call(monkeypatch, "rounding digits --executor nowhere --slots 2") == 2
    assert "--slots and several devices are for processes on this machine" in capsys.readouterr().err


# Workers that others have started

MARK = ".mark.tmp"


def afar(work, folder):
    folder.mkdir(exist_ok=True)
    (folder.parent / MARK).touch()
    sent = packed(work, DataFiles(folder / "data"))
    return perform_afar(sent, work.id, folder, MARK, source_digest(*PROGRAM), [], None)


INSIDE = []


def noted():
    """Note how many are here at once."""
    INSIDE.append(sum(INSIDE) + 1)
    time.sleep(0.2)
    INSIDE.append(-1)
    return [measured("a", 0, "value", 1.0)], {}


def test_work_of_one_process_is_done_one_after_the_other(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    threads = [threading.Thread(target=afar, args=(Call(noted), folder)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert INSIDE == [1, -1] * 3


def test_a_worker_that_does_not_see_the_mark_begins_nothing(tmp_path):
    found = perform_afar(b"", "0" * 16, tmp_path / "out" / "runs", MARK, source_digest(*PROGRAM), [], None)
    assert found == Answer()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("brought", [None, ()])
def test_another_program_is_refused(brought, tmp_path):
    (tmp_path / MARK).touch()
    (tmp_path / "runs").mkdir()
    folder = tmp_path / ("runs" if brought is None else "elsewhere/runs")
    with pytest.raises(UserError, match="was edited during this command, or is another version's"):
        perform_afar(b"", "0" * 16, folder, MARK, "another", [], brought)


class Elsewhere(Pool):
    """A pool whose workers write to another disk."""

    def submit(self, function, sent, run, folder, *more):
        future = Future()
        future.set_result(Answer(Outcome(run, "ok")))
        return future


def test_results_that_are_not_seen_here_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(futures, "PATIENCE", 0.0)
    monkeypatch.setattr(futures, "PACE", 0.0)
    with pytest.raises(UserError, match=r"has done the run [0-9a-f]{16} in .*/runs, and its files are not seen"):
        ended(Futures(Elsewhere()), [Call(succeed, {"value": 1.0})], tmp_path / "runs")


RELEASED = threading.Event()


def held():
    """Wait until the test has looked."""
    RELEASED.wait()
    return [measured("a", 0, "value", 1.0)], {}


class Silent(Pool):
    """A pool that never says that its work has begun, and lets it be withdrawn at any time, as Dask's."""

    def __init__(self):
        self.futures, self.threads = [], []

    def submit(self, function, *args):
        future = Future()
        if not self.futures:
            self.threads.append(threading.Thread(target=lambda: future.set_result(function(*args))))
            self.threads[0].start()
        self.futures.append(future)
        return future


def test_what_has_begun_is_told_on_the_way_and_waited_for(tmp_path):
    silent, works = Silent(), [Call(held), Call(succeed, {"value": 1.0})]
    reports = Futures(silent).run(works, tmp_path / "runs")
    assert next(reports) == Begun(works[0].id)
    assert not silent.futures[0].done()
    threading.Timer(0.3, RELEASED.set).start()
    reports.close()
    assert (tmp_path / "runs" / works[0].id / "result.json").is_file()
    assert [future.cancelled() for future in silent.futures] == [False, True]
    assert not list(tmp_path.glob(f"runs/*/{LOOKS}"))


class Stubborn(Pool):
    """A pool whose work cannot be withdrawn, as Parsl's."""

    def __init__(self):
        self.futures = []

    def submit(self, function, *args):
        future = Future()
        future.cancel = self.refuse
        self.futures.append(future)
        if len(self.futures) == 1:
            future.set_result(function(*args))
        return future

    def refuse(self):
        for future in self.futures[1:]:
            future.set_result(Answer())
        raise NotImplementedError


def test_what_cannot_be_withdrawn_is_waited_for(tmp_path):
    stubborn = Stubborn()
    reports = Futures(stubborn).run([Call(succeed, {"value": float(i)}) for i in range(2)], tmp_path / "runs")
    while not isinstance(next(reports), Outcome):
        pass
    reports.close()
    assert [future.done() for future in stubborn.futures] == [True, True]


# Workers that do not see the output folder

class Apart(Pool):
    """A pool of this process, or of others, to whose workers the output folder is told as another."""

    def __init__(self, pool=None):
        self.pool, self.brought = pool, []

    def submit(self, function, sent, run, folder, *more, **asked):
        self.brought.append({name for name, _ in more[3] or ()})
        if self.pool:
            return self.pool.submit(function, sent, run, folder / "not there", *more, **asked)
        future = Future()
        try:
            future.set_result(function(sent, run, folder / "not there", *more))
        except Exception as error:
            future.set_exception(error)
        return future


class Late(Apart):
    """A pool that does a first run at once, and can withdraw no other, but does it when somebody waits."""

    def submit(self, function, sent, run, *more):
        answered, future = super().submit(function, sent, run, *more), Future()
        self.first = run if len(self.brought) == 1 else self.first

        def refuse():
            future.set_result(answered.result())
            return False

        future.cancel = refuse
        return answered if run == self.first or answered.result() == Answer() else future


def test_what_is_done_elsewhere_while_a_command_ends_comes_home(tmp_path):
    works = [Call(succeed, {"value": float(i)}) for i in range(3)]
    reports = Futures(Late()).run(works, tmp_path / "runs")
    while not isinstance(next(reports), Outcome):
        pass
    reports.close()
    assert {path.parent.name for path in tmp_path.glob("runs/*/result.json")} == {work.id for work in works}


@dataclass(frozen=True)
class Broken(Probe):
    """A probe that stops."""

    metrics = (Metric("nothing"),)

    def measure(self, subject):
        raise ZeroDivisionError("on purpose")


def clouds():
    """A task whose data are in memory."""
    return Task("clouds", Net(), InMemory(Blobs()()))


def left(folder):
    """What runs left: the names of their files, and what stands in them but times."""
    def told(path):
        return path.read_bytes() if path.suffix != ".json" else re.sub(r'"\w*seconds\w*": .*', "", path.read_text())
    return {path.relative_to(folder): told(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_a_run_needs_is_brought_and_what_it_leaves_comes_home(tmp_path, monkeypatch):
    run = Run(clouds(), SGD(lr=0.1), Plan(1, 32), 7, (), (Watch(Accuracy(), 2),))
    more, apart, here = replace(run, probes=(Accuracy(),)), Apart(), tmp_path / "here" / "runs"
    first = list(Futures(apart).run([run, replace(run, seed=8)], tmp_path / "afar" / "runs"))
    assert [type(each).__name__ for each in first] == ["Begun", "Outcome"] * 2
    data = {f"data/{path.name}" for path in (tmp_path / "afar" / "data").iterdir()}
    assert apart.brought == [set(), set(), data, data]  # at first nobody knows who sees what
    before = (tmp_path / "afar" / "runs" / run.id / "result.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("optscope.engine.run.Run._train", None)  # it is brought what it left, and trains no more
        assert ended(Futures(apart), [more], tmp_path / "afar" / "runs")[0].status == "ok"
    assert apart.brought[-1] > data
    assert f"runs/{run.id}/weights.safetensors" in apart.brought[-1]
    assert (tmp_path / "afar" / "runs" / run.id / "result.json").read_bytes() == before
    assert [each.status for each in ended(Inline(), [more, replace(run, seed=8)], here)] == ["ok", "ok"]
    assert left(here) == left(tmp_path / "afar" / "runs")


def test_a_state_that_was_brought_is_gone_on_from(tmp_path):
    run, runs = Run(clouds(), SGD(lr=0.1), Plan(4, 32), 7, checkpoint=0.0, keep=False), tmp_path / "runs"
    folder = Store(tmp_path).run_folder(run.id)
    observed = Observed(partial(Training, run.task, run.rule, run.plan, 7), {}, folder, run.id, 0.0)
    observed.training.advance(5)
    observed._save(6)
    kept = folder.state()
    assert kept
    apart = Apart()
    assert ended(Futures(apart), [run], runs)[0].status == "ok"
    assert f"runs/{run.id}/{STATE}" in apart.brought[-1]
    assert not {STATE, "weights.safetensors"} & names_in(runs / run.id)
    folder.write_state(kept[:-9])  # cut off
    (runs / run.id / "result.json").unlink()
    assert ended(Futures(apart), [run], runs)[0].status == "ok"
    assert names_in(runs / run.id) == {"result.json", "series.safetensors", f"{STATE}.damaged"}


def test_readings_of_a_run_that_fails_come_home(tmp_path):
    run = Run(clouds(), SGD(lr=0.1), Plan(1, 32), 7, (Accuracy(), Broken()))
    (outcome,) = ended(Futures(Apart()), [run], tmp_path / "runs")
    assert (outcome.status, "on purpose" in outcome.reason) == ("failed", True)
    assert f"probe-{run.readings[0]}.json" in names_in(tmp_path / "runs" / run.id)


class Forgetful(Apart):
    """A pool that gives up, once or always, what it was told, as one whose scheduler starts anew."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def submit(self, *args, **asked):
        if self.times:
            self.times -= 1
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future
        return super().submit(*args, **asked)


@pytest.mark.parametrize(("times", "attempts", "status"), [(0, 1, "ok"), (2, 3, "ok"), (3, 3, "lost")])
def test_what_a_pool_gives_up_it_is_told_again(times, attempts, status, tmp_path):
    begun, outcome = Futures(Forgetful(times)).run([Call(succeed, {"value": 1.0})], tmp_path / "runs")
    assert (begun.attempt, outcome.status) == (attempts, status)


def test_what_runs_ask_of_a_pool_goes_by_their_place(tmp_path):
    asked = []

    class Asking(Apart):
        def submit(self, *args, cores):
            asked.append(cores)
            return super().submit(*args)

    works = [Call(succeed, {"value": 1.0}), Call(succeed, {"value": 2.0}, place=Place(threads=2))]
    ended(Futures(Asking(), lambda place: {"cores": place.threads}), works, tmp_path / "runs")
    assert asked == [1, 2] * 2


# Dask

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="needs the extra cluster")
dask = [needs_dask, pytest.mark.filterwarnings("default")]
GIVEN = Comparison("c", TASK, (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("Adam", Adam(lr=0.01))), Plan(1, 32),
                   (Accuracy(),), (1, 2), moments=2)


class Cluster:
    """A Dask scheduler on this machine, and workers of one thread each, as processes of their own."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        told = folder / "scheduler.json"
        self._start("scheduler", SRC, "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(told))
        while not (told.is_file() and told.read_text().endswith("}")):
            assert self.processes[0].poll() is None
            time.sleep(0.1)
        self.file = str(told)

    @property
    def place(self):
        return json.loads(Path(self.file).read_text())["address"].replace("tcp://", "dask://")

    def worker(self, src=SRC, *words):
        return self._start("worker", src, "--scheduler-file", self.file, "--nthreads", "1", "--no-nanny",
                           "--local-directory", str(self.folder), *words)

    def _start(self, kind, src, *words):
        path = os.pathsep.join(map(str, (src, Path(__file__).parents[1], Path(__file__).parent)))
        with (self.folder / f"{kind}-{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard",
                                        *words], stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": path})
        self.processes.append(process)
        return process

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("dask"))
    found.workers = [found.worker() for _ in range(4)]
    yield found
    found.end()


class TestDask:
    pytestmark = dask

    def test_four_workers_one_of_which_is_killed_give_the_bits_of_this_process(self, cluster, tmp_path):
        killing = Calls("k", [Call(kill_once, {"marker": str(tmp_path / "marker")})])
        with executor_at(cluster.place, 0, ()) as executor:
            found = run_experiments([GIVEN, killing], Store(tmp_path / "afar"), executor, Quiet())
            run = Run(TASK, SGD(lr=0.1), Plan(2, 32), 7, (), (Watch(Accuracy(), 2),))
            reports = list(executor.run([run], tmp_path / "afar" / "runs"))
        assert found.failures == ()
        assert [worker.poll() for worker in cluster.workers].count(-9) == 1
        here = run_experiments([GIVEN, killing], Store(tmp_path / "here"), Inline(), Quiet())
        told = [[repr(row) for row in each.records if "seconds" not in row.metric] for each in (found, here)]
        assert told[0] == told[1]
        assert [type(report) for report in reports] == [Begun, Look, Look, Outcome]

    @pytest.mark.parametrize(("parts", "place"), [
        ("my_parts", "{}"), ("parts_of_client", "my_cluster.py:client"), ("brought", "my_cluster.py:executor")])
    def test_the_command_sends_a_users_files(self, parts, place, cluster, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path(f"{parts}.py").write_text("from torch import nn\ndef model(): return nn.Linear(4, 2)\n")
        Path("my_cluster.py").write_text(
            "from distributed import Client\nfrom test_cluster import Apart\n"
            f"def executor(): return Apart(Client(scheduler_file={cluster.file!r}).get_executor())\n"
            f"def client(): return Client(scheduler_file={cluster.file!r})\n")
        Path("my_task.py").write_text(
            f"import torch\nfrom optscope import Task\nfrom {parts} import model\ndef task():\n"
            "    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))\n"
            "    return Task.from_tensors(model, (x, (x[:, 0] > .5).long()), (x, (x[:, 0] > .5).long()))\n")
        words = "compare my_task.py:task -o sgd -o adam --seeds 1 --epochs 1 --out out --executor "
        assert call(monkeypatch, words + place.format(cluster.place)) == 0
        assert capsys.readouterr().out.endswith("report: out/report.html\n")
        for name in ("my_task", parts):
            sys.modules.pop(name)
        if sys.modules.pop("my_cluster", None) and "client" not in place:
            from distributed import default_client

            default_client().close()

    def test_without_a_shared_disk_data_are_fetched_and_the_bits_are_the_same(self, cluster, tmp_path):
        given = replace(GIVEN, task=clouds())
        with _scheduler(cluster.place) as client:
            apart = Apart(client.get_executor(pure=False))
            there = replace(of_client(client), pool=apart)
            run_experiments([given], Store(tmp_path / "afar"), there, Quiet())
        run_experiments([given], Store(tmp_path / "here"), Inline(), Quiet())
        assert any(name.startswith("data/") for name in apart.brought[-1])
        assert left(tmp_path / "here" / "runs") == left(tmp_path / "afar" / "runs")

    def test_a_run_asks_for_what_workers_have_told_of(self, cluster, tmp_path):
        with _scheduler(cluster.place) as client:
            assert _resources(client, Place(threads=2)) == {"resources": {}}
            cluster.worker(SRC, "--resources", "CPU=2 GPU=1")
            client.wait_for_workers(len(client.scheduler_info(n_workers=-1)["workers"]) + 1)
            asked = _resources(client, Place(threads=2))
            assert asked == {"resources": {"CPU": 2}}
            works = [Call(succeed, {"value": 3.0}, place=Place(threads=2))]
            done = ended(of_client(client), works, tmp_path / "runs")
            assert [each.status for each in done] == ["ok"]

    @pytest.mark.parametrize(("file", "change"), [
        ("engine/training.py", ("time.monotonic() >= deadline", "deadline <= time.monotonic()")),
        ("optim/sgd.py", ("return -lr * grad, state", "return lr * -grad, state"))])
    def test_a_worker_of_another_version_is_refused(self, file, change, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(SRC / "optscope", other / "optscope", ignore=shutil.ignore_patterns("__pycache__"))
        place = other / "optscope" / file
        text = place.read_text()
        assert change[0] in text
        place.write_text(text.replace(*change))
        cluster = Cluster(tmp_path)
        try:
            cluster.worker(other)
            with executor_at(cluster.place, 0, ()) as executor, \
                    pytest.raises(UserError, match=rf"the source of optscope in {other}.*or is another version's"):
                run_experiments([GIVEN], Store(tmp_path / "out"), executor, Quiet())
        finally:
            cluster.end()
        assert not list(tmp_path.glob("out/runs/*/result.json"))

    def test_where_no_scheduler_answers_it_is_one_sentence(self):
        import dask.config

        with dask.config.set({"distributed.comm.timeouts.connect": "500ms"}), \
                pytest.raises(UserError, match=r"no Dask scheduler answers at dask://127\.0\.0\.1:1 "), \
                executor_at("dask://127.0.0.1:1", 0, ()):
            pass
