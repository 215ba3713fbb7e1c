"""Kill a comparison at many moments, cut its power, start it again, and count what that cost.

    python -m scripts.kills                       400 cuts of the power, 100 kills of processes
    python -m scripts.kills --power 0 --real 12 --program "optscope compare"

A cut of the power is simulated: a comparison runs in this process while `power_cut.Disk` looks on, and at a moment
before one of its file operations the folder is made as the next boot may find it; there the same comparison runs
again, while the disk looks on, for the next cut may come then. Kills are real: `optscope compare`, with workers,
as a process that gets SIGKILL, or one of its workers does, or all of them at once.

After every cut and every kill: are the numbers those of an undisturbed run, to the bit? Was anything that was
finished done again? How much of a training was lost? Is a process left over?
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scripts.power_cut import FATES, Disk, Moment, put
from torch import nn

from optscope.engine import observed
from optscope.engine.execute import Inline
from optscope.engine.once import looked_at_once
from optscope.engine.plan import Plan
from optscope.engine.run import Run
from optscope.engine.store import Store
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.evidence.columns import write_csv
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.geometry import Geometry
from optscope.protocol import comparison
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.tasks.task import Task

FIGURES = Path(__file__).parent.parent / "docs" / "reliability.json"
CHECKPOINT = 0.3
"""Seconds between two states of a training, where real processes are killed."""
SPARED = 6
"""Steps of a training that a cut may cost, where its state is written after every one: one that was not written
yet, and those for which the state is tried before it is trusted."""


# What is compared

def model() -> nn.Module:
    """Return a small network."""
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))


def small() -> Comparison:
    """Return a comparison of a second: eight trainings of a few steps, each watched, saved and measured."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(96, 2, generator=generator), torch.arange(96) % 3
    arms = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.03))))
    return Comparison("c", Task.from_tensors(model, (x, y), (x, y)), arms, Plan(1, 24), (Accuracy(), Geometry()),
                      (1, 2), moments=1)


@contextmanager
def often(seconds: float, share: float) -> Iterator[None]:
    """Have trainings write their states so often, whatever it costs."""
    before = comparison.Run, observed.SHARE
    comparison.Run, observed.SHARE = partial(Run, checkpoint=seconds), share
    try:
        yield
    finally:
        comparison.Run, observed.SHARE = before


def numbers(folder: Path) -> list[list[str]]:
    """Return all trained weights, as digests, and the summary's lines but for those that say how long it took."""
    weights = [[path.parent.name, hashlib.sha256(path.read_bytes()).hexdigest()]
               for path in sorted(folder.glob("runs/*/weights.safetensors"))]
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return weights + [line for line in csv.reader(file) if not any("seconds" in cell for cell in line)]


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return when each result and each reading was written, and as which file."""
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in folder.glob("runs/*/*.json") if path.name.startswith(("result", "probe"))}


@dataclass
class Tally:
    """What was counted, and every promise that was broken."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)

    def at_most(self, what: str, value: float, limit: float, where: str) -> None:
        """Note a value, of which the largest is kept; one beyond the limit is a broken promise."""
        self.worst[what] = max(self.worst.get(what, 0.0), value)
        if value > limit:
            self.broken.append(f"{where}: {what} is {value:g}, more than {limit:g}")


# Cuts of the power

@dataclass(frozen=True)
class Recording:
    """A comparison that was looked at: every moment of it, and how many steps it made."""

    moments: list[Moment]
    steps: int


def recorded(folder: Path, given: Comparison) -> Recording:
    """Run the comparison in a folder while a disk looks on."""
    steps = 0
    real = Training._round

    def counted(self: Training, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return real(self, *arguments)

    disk = Disk(folder, lambda: steps)
    Training._round = counted  # type: ignore[method-assign]
    try:
        with often(0.0, 1e9), disk.watched():
            results = run_experiments([given], Store(folder), Inline(), Quiet())
            write_csv(results.records, folder / "summary.csv")
    finally:
        Training._round = real  # type: ignore[method-assign]
    return Recording(disk.moments, steps)


@looked_at_once()
def power_cuts(count: int, seed: int, place: Path) -> Tally:
    """Cut the power so often: first at moments of an undisturbed run, then at those of what follows a cut."""
    tally, chance, given = Tally(), random.Random(seed), small()
    first = recorded(place / "whole", given)
    expected = numbers(place / "whole")
    last = first
    tally.counts["file operations of an undisturbed run"] = len(first.moments)
    for i in range(count):
        recording = first if i % 2 == 0 else last
        moment = chance.choice(recording.moments)
        fate = FATES[i // 2 % len(FATES)]
        where = f"cut {i}, {fate}, before {moment.before}"
        folder = place / f"{i}"
        tree = moment.left(fate, chance)
        put(tree, folder)
        tally.counts[f"cuts, {fate}"] += 1
        try:
            last = after_cut(tally, where, recording, moment, tree, given, folder, expected)
        except UserError as error:
            tally.broken.append(f"{where}: {error}")
            last = first
        shutil.rmtree(folder)
    return tally


def after_cut(tally: Tally, where: str, recording: Recording, moment: Moment, tree: Mapping[str, bytes | None],
              given: Comparison, folder: Path, expected: list[list[str]]) -> Recording:
    """Run the comparison again where the power was cut, and hold it to what is promised."""
    whole = {path for path, content in tree.items() if content is not None and content == moment.there.get(path)}
    before = {path: stamp for path, stamp in stamps(folder).items() if path in whole}
    found = recorded(folder, given)
    after = stamps(folder)
    again = [path for path, stamp in before.items() if after.get(path) != stamp]
    tally.counts["finished results and readings kept"] += len(before) - len(again)
    tally.broken += [f"{where}: {path} was made again" for path in again]
    if numbers(folder) != expected:
        tally.broken.append(f"{where}: other numbers")
    tally.at_most("steps lost by a cut", moment.count + found.steps - recording.steps, SPARED, where)
    tally.broken += [f"{where}: {path.name} is left" for path in folder.rglob(".*.tmp")]
    return found


# Kills of processes

TASK_FILE = """
import torch
from torch import nn
from optscope.tasks.task import Task
def model(): return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
def task():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2000, 64, generator=generator), torch.arange(2000) % 8
    return Task.from_tensors(model, (x[:1500], y[:1500]), (x[1500:], y[1500:]), name="small")
"""
SETTINGS = """
optimisers.sgd.lr = [0.1, 0.3]
optimisers.adam.lr = [0.003, 0.01]
seeds = 2
twin_seeds = 0
widen = 0
epochs = 30
batch = 32
examples = 50
"""
COMPARE = """
from functools import partial
from optscope.protocol import comparison
comparison.Run = partial(comparison.Run, checkpoint={checkpoint})
from optscope.cli import main
main()
"""
SWEEP = """
from functools import partial
from pathlib import Path
from optscope.endings import ended
from optscope.engine.execute import Local
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.evidence.columns import write_csv
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.protocol import comparison
from optscope.protocol.events import Quiet
from optscope.protocol.resolve import task_at
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
comparison.Run = partial(comparison.Run, checkpoint={checkpoint})

def main():
    arms = (comparison.Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))),
            comparison.Arm("Adam", Adam(lr=0.003), Grid((0.003, 0.01))))
    given = comparison.Comparison("c", task_at("task.py:task"), arms, Plan(30, 32), (Accuracy(),), (1, 2))
    results = run_experiments([given], Store(Path("out")), Local(2), Quiet())
    write_csv(results.records, Path("out/summary.csv"))

ended(main)
"""
PROGRAMS = {"optscope compare": COMPARE, "a session of two workers": SWEEP}
"""What is killed: the command, of which half the time goes into its report, and what it does with its runs."""
LATE = 20.0
"""Seconds that a state may be old at a kill: one that takes long to write, as on a busy machine, is written less
often than every `CHECKPOINT` seconds, so that writing takes a twentieth of the time."""
NOTICE = 120.0
"""Seconds that a machine leaves between SIGTERM and its end."""
CUT_SHORT = 4
"""So many commands are killed in one folder before one may end."""
LEAVING = 3.0
"""Seconds in which workers leave when their command is gone."""


@dataclass
class Command:
    """A program that works in `place`/out, in a session of its own."""

    program: str
    place: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        words = ["compare", "task.py:task", "--config", "settings.toml", "--out", "out", "--slots", "2"]
        with (self.place / "said.txt").open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAMS[self.program].format(checkpoint=CHECKPOINT), *words],
                cwd=self.place, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)

    def said(self) -> str:
        """Return what it said."""
        return (self.place / "said.txt").read_text(errors="replace")

    def others(self) -> list[int]:
        """Return the living processes of the session, but for the command itself."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state not in "ZX" and int(path.parent.name) != self.process.pid:
                found.append(int(path.parent.name))
        return found

    def left_over(self) -> list[int]:
        """Return what is still there of the session a while after its command is gone."""
        self.process.wait()
        end = time.monotonic() + LEAVING
        while self.others() and time.monotonic() < end:
            time.sleep(0.05)
        return self.others()

    def end(self) -> None:
        """Kill everything."""
        for number in (self.process.pid, *self.others()):
            kill(number)
        self.process.wait()


def kill(number: int) -> None:
    """Kill a process that may have ended by itself."""
    with suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


def undisturbed(program: str, place: Path) -> tuple[list[list[str]], float]:
    """Run a program to its end; return its numbers, and how long it took."""
    place.mkdir(parents=True)
    (place / "task.py").write_text(TASK_FILE)
    (place / "settings.toml").write_text(SETTINGS)
    start = time.monotonic()
    command = Command(program, place)
    if command.process.wait():
        raise SystemExit(f"the undisturbed command ended with {command.process.returncode}: {command.said()}")
    return numbers(place / "out"), time.monotonic() - start


def real_kills(program: str, count: int, seed: int, place: Path) -> Tally:
    """Kill so often: workers, the command, or all at once, several times in one folder, which is then finished."""
    tally, chance = Tally(), random.Random(seed)
    expected, seconds = undisturbed(program, place / "whole")
    tally.worst["seconds of an undisturbed command"] = round(seconds, 1)
    while (left := count - killed(tally)) > 0:
        here = place / f"{tally.counts['folders finished']}"
        here.mkdir()
        for name in ("task.py", "settings.toml"):
            shutil.copy(place / "whole" / name, here)
        kept: dict[str, tuple[int, int]] = {}
        for _ in range(min(CUT_SHORT, (left + 1) // 2)):
            cut_short(tally, Command(program, here), chance, seconds, kept)
        command = Command(program, here)
        if command.process.wait():
            tally.broken.append(f"{here.name}: ended with {command.process.returncode}: {command.said()}")
        over(tally, command, kept)
        if numbers(here / "out") != expected:
            tally.broken.append(f"folder {here.name}: other numbers")
        tally.counts["folders finished"] += 1
        shutil.rmtree(here)
    return tally


def killed(tally: Tally) -> int:
    """Return how many kills were counted."""
    return sum(number for what, number in tally.counts.items() if what.startswith("killed"))


def cut_short(tally: Tally, command: Command, chance: random.Random, seconds: float,
              kept: dict[str, tuple[int, int]]) -> None:
    """Kill one of a command's processes after a while, then itself, alone or with all others, or by a notice."""
    start = time.time()
    for victim in ("a worker", chance.choice(("the command", "everything", "the command, by SIGTERM"))):
        try:
            command.process.wait(chance.uniform(0, 0.6 * seconds))
        except subprocess.TimeoutExpired:
            others = command.others()
            if victim == "a worker":
                if not others:
                    continue
                kill(chance.choice(others))
            else:
                for run, age in ages_of_states(command.place / "out", start).items():
                    tally.counts["trainings under way with a state at a kill"] += 1
                    tally.at_most("age of a state at a kill [s]", age, LATE, f"{command.place.name}, {run}")
            if victim == "the command, by SIGTERM":
                command.process.terminate()
                noticed = time.monotonic()
                command.process.wait()
                tally.at_most("seconds from SIGTERM to the end", time.monotonic() - noticed, NOTICE, "a notice")
            elif victim != "a worker":
                for number in [command.process.pid, *(others if victim == "everything" else [])]:
                    kill(number)
            tally.counts[f"killed: {victim}"] += 1
    over(tally, command, kept)


def ages_of_states(out: Path, since: float) -> dict[str, float]:
    """Return how old the states are of trainings that are under way, as far as they have one of this command."""
    now = time.time()
    written = {path.parent.name: path.stat().st_mtime for path in out.glob("runs/*/state.safetensors")
               if not path.with_name("result.json").is_file()}
    return {run: now - at for run, at in written.items() if at > since}


def over(tally: Tally, command: Command, kept: dict[str, tuple[int, int]]) -> None:
    """Look at what a command that is gone has left: nobody that still works, and all that was finished before."""
    left, here = command.left_over(), command.place
    tally.counts["processes left over"] += len(left)
    tally.broken += [f"{here.name}: process {number} is left over" for number in left]
    command.end()
    after = stamps(here / "out")
    again = [path for path, stamp in kept.items() if after.get(path) != stamp]
    tally.counts["finished results and readings kept"] += len(kept) - len(again)
    tally.broken += [f"{here.name}: {path} was made again" for path in again]
    kept.update(after)


# The script

def told(tally: Tally) -> dict[str, Any]:
    """Return a tally as plain values."""
    return {"counts": dict(sorted(tally.counts.items())), "worst": tally.worst, "broken promises": tally.broken}


def keep(what: str, found: Mapping[str, Any]) -> None:
    """Write what was found to the file that the page quotes."""
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    FIGURES.write_text(json.dumps(known | {what: found}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Cut and kill as often as asked, print the counts, and keep them where all were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--power", type=int, default=400, help="simulated cuts of the power (%(default)s)")
    parser.add_argument("--real", type=int, default=100, help="kills of processes (%(default)s)")
    parser.add_argument("--program", choices=PROGRAMS, default="a session of two workers", help="what is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="write the counts to docs/reliability.json")
    said = parser.parse_args()
    torch.set_num_threads(1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        if said.power:
            found["cuts of the power"] = told(power_cuts(said.power, said.seed, Path(folder) / "power"))
        if said.real:
            os.nice(19)
            found[f"kills of {said.program}"] = told(
                real_kills(said.program, said.real, said.seed, Path(folder) / "real"))
    for what, each in found.items():
        print(json.dumps({what: each}, indent=1))
        if said.keep:
            keep(f"{what}, seed {said.seed}", each)
    sys.exit(any(each["broken promises"] for each in found.values()))


if __name__ == "__main__":
    main()
