"""Break a Dask cluster on this machine in the middle of a comparison, and count what that cost.

    python -m scripts.cluster_faults                              every fault, with a shared disk and without
    python -m scripts.cluster_faults killed frozen --workers 2    these faults

A scheduler and its workers are processes of this machine (optscope[cluster]). Without a shared disk a worker has a
name space of its own, in which an empty disk lies over the folder (Linux, as root). After every fault: are the
numbers those of an undisturbed process, to the bit? Was anything begun twice? Does the same command again find
nothing to do, also after a worker that stood still has gone on?
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import optscope
from optscope.engine.execute import Inline
from optscope.engine.executor import Executor
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Ended, Event, Started
from optscope.protocol.pools import executor_at
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.tasks.task import Task

SRC = Path(optscope.__file__).parents[1]
AFTER = 3
"""A fault strikes when so many runs have ended."""
TTL = 30.0
"""Seconds without a heartbeat after which the scheduler gives a worker up."""
RATES = Grid((0.03, 0.1, 0.3))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))


def comparison() -> Comparison:
    """Return 14 short runs, on data in memory."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(3000, 16, generator=generator), torch.arange(3000) % 3
    task = Task.from_tensors(model, (x, y), (x[:300], y[:300]), name="broken", bounds=(0.0, 1.0))
    arms = Arm("SGD", SGD(lr=0.1), RATES), Arm("Adam", Adam(lr=0.01), RATES)
    return Comparison("faults", task, arms, Plan(15, 32), (Accuracy(),), (1, 2, 3, 4), moments=4)


class Cluster:
    """A Dask scheduler on this machine and its workers, which see `hidden` as an empty folder where it is given."""

    def __init__(self, folder: Path, hidden: Path | None, count: int, src: Path) -> None:
        self.folder, self.hidden, self.count, self.src = folder, hidden, count, src
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.start()

    def start(self) -> None:
        self.scheduler = self._process("scheduler", ["--host", "127.0.0.1", "--port", str(self.port)])
        self.workers = [self.worker() for _ in range(self.count)]

    def worker(self) -> subprocess.Popen[bytes]:
        words = [f"tcp://127.0.0.1:{self.port}", "--nthreads", "1", "--no-nanny",
                 "--preload", "torch",  # while it is loaded there are no heartbeats
                 "--local-directory", str(self.folder)]
        return self._process("worker", words)

    def _process(self, kind: str, words: list[str]) -> subprocess.Popen[bytes]:
        apart = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{self.hidden}" && exec "$@"', "sh"]
        start = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *words]
        told = {"PYTHONPATH": f"{self.src}{os.pathsep}{Path(__file__).parents[1]}", "OMP_NUM_THREADS": "1",
                "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{TTL}s"}
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen([*(apart if kind == "worker" and self.hidden else []), *start], stdout=log,
                                    stderr=log, env=os.environ | told)

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def nothing(cluster: Cluster) -> None:
    """Let it be."""


def killed(cluster: Cluster) -> None:
    """Kill a worker."""
    cluster.workers[0].kill()


def frozen(cluster: Cluster) -> None:
    """Stop a worker for longer than its heartbeat may be missing, and let it go on."""
    cluster.workers[0].send_signal(signal.SIGSTOP)
    time.sleep(1.5 * TTL)
    cluster.workers[0].send_signal(signal.SIGCONT)


def restarted(cluster: Cluster) -> None:
    """Kill the scheduler, and start it and its workers anew after a while."""
    cluster.scheduler.kill()
    cluster.scheduler.wait()
    time.sleep(3)
    for worker in cluster.workers:
        worker.kill()
        worker.wait()
    cluster.start()


FAULTS: dict[str, Callable[[Cluster], None]] = {
    "nothing": nothing, "killed": killed, "frozen": frozen, "restarted": restarted}


class Striking:
    """A listener that lets a fault strike in the middle of the work, and counts what it hears."""

    def __init__(self, strike: Callable[[], None]) -> None:
        self._strike = threading.Timer(0.5, strike)
        self.begun, self.ended = 0, 0

    def hear(self, event: Event) -> None:
        self.begun += isinstance(event, Started)
        self.ended += isinstance(event, Ended)
        if isinstance(event, Ended) and self.ended == AFTER:
            self._strike.start()

    def close(self) -> None:
        if self.ended >= AFTER:
            self._strike.join()


def numbers(folder: Path, executor: Executor, listener: Striking) -> list[str]:
    """Return all that a comparison finds, times apart."""
    found = run_experiments([comparison()], Store(folder), executor, listener)
    assert found.failures == (), found.failures
    return [repr(row) for row in found.records if "seconds" not in row.metric]


@contextmanager
def cluster_of(shared: bool, count: int, src: Path = SRC) -> Iterator[tuple[Path, Cluster]]:
    with tempfile.TemporaryDirectory() as place:
        folder, own = Path(place) / "out", Path(place) / "dask"
        folder.mkdir()
        own.mkdir()
        cluster = Cluster(own, None if shared else folder, count, src)
        try:
            yield folder, cluster
        finally:
            cluster.end()


def measured(name: str, shared: bool, count: int, expected: list[str]) -> str:
    """Return a line of the table."""
    with cluster_of(shared, count) as (folder, cluster):
        listener, start = Striking(lambda: FAULTS[name](cluster)), time.monotonic()
        with executor_at(f"dask://127.0.0.1:{cluster.port}", 0, ()) as executor:
            same = numbers(folder, executor, listener) == expected
        seconds, again = time.monotonic() - start, Striking(lambda: None)
        time.sleep(3)  # whoever stood still has gone on, and may have written
        same &= numbers(folder, Inline(), again) == expected
        left = [path.name for path in folder.rglob(".*.tmp")]
        return (f"| {name} | {'shared' if shared else 'apart'} | {listener.ended} | {again.begun} | "
                f"{'yes' if same else 'NO'} | {len(left)} | {seconds:.0f} s |")


def refused(shared: bool, count: int) -> str:
    """Return a line of the table of a worker whose source trains by another program."""
    with tempfile.TemporaryDirectory() as place:
        src = Path(place)
        shutil.copytree(SRC / "optscope", src / "optscope", ignore=shutil.ignore_patterns("__pycache__"))
        changed = src / "optscope" / "optim" / "sgd.py"
        changed.write_text(changed.read_text().replace("return -lr * grad, state", "return lr * -grad, state"))
        with cluster_of(shared, count, src) as (folder, cluster):
            start = time.monotonic()
            try:
                with executor_at(f"dask://127.0.0.1:{cluster.port}", 0, ()) as executor:
                    numbers(folder, executor, Striking(lambda: None))
                said = "NOT REFUSED"
            except UserError as error:
                said = "refused" if "or is another version's" in str(error) else f"NO: {error}"
            left = len(list(folder.glob("runs/*/result.json")))
            return (f"| of another version | {'shared' if shared else 'apart'} | {left} | | {said} | | "
                    f"{time.monotonic() - start:.0f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.cluster_faults", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"one of {', '.join(FAULTS)}, refused")
    parser.add_argument("--workers", type=int, default=4)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        expected = numbers(Path(place) / "out", Inline(), Striking(lambda: None))
    print("| fault | disk | runs ended | the same command again does | numbers the same | left over | took |")
    print("|---|---|---|---|---|---|---|")
    for name in said.faults or [*FAULTS, "refused"]:
        for shared in (True, False):
            print(refused(shared, said.workers) if name == "refused" else
                  measured(name, shared, said.workers, expected), flush=True)


if __name__ == "__main__":
    main()
