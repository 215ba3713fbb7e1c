"""B24: what every probe costs, in steps of training and in memory, against what `optscope probe --list` says.

The network is that of Fashion-MNIST after 80 steps of Adam, the game a GAN on the ring; a step is one of SGD on
128 examples of the same. Memory is what a second look adds to the process at its peak, in MB, 1 at the least; it is
read where Linux tells it. There is no rival. Classes and FID need a judge of images, and are not measured. The bar
is missed, and the command ends with status 1, where a cost is 1.5 times what is said of it, or the reverse.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import Contender, interleave, rows
from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.engine.training import Training
from optscope.engine.watch import take
from optscope.optim import SGD, Adam, Players, PolarSGD
from optscope.optim.rule import Rule
from optscope.probes.catalog import PROBES, kind_named
from optscope.probes.probe import Probe
from optscope.protocol.kits import kit_of
from optscope.protocol.settings import Settings
from optscope.tasks.catalog import task_named
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Ring
from optscope.tasks.task import Task

STEPS = 50
"""So many steps make the unit."""

OFF = 1.5
"""How far what is said of a probe may be from what it costs."""


def peak(work: Callable[[], object]) -> float:
    """Return by how many MB this process grows at most while it works, 1 at the least."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what others freed would be taken first
    process = Path("/proc/self")
    (process / "clear_refs").write_text("5", encoding="ascii")  # the highest mark falls to what there is now
    marks = []
    for name in ("VmRSS", "VmHWM"):
        marks.append(int(re.findall(rf"{name}:\s+(\d+) kB", (process / "status").read_text(encoding="ascii"))[0]))
        if name == "VmRSS":
            work()
    return max(1.0, (marks[1] - marks[0]) / 1024)


def off(measured: float, said: float) -> float:
    """Return how many times the smaller of two numbers the larger is.

    >>> off(3.0, 2.0), off(2.0, 3.0)
    (1.5, 1.5)
    """
    return max(measured / said, said / measured)


def rule(task: Task, of: Rule) -> Rule:
    """Return a rule for every player of a task."""
    many = len(task.objectives) > 1
    return Players(**{objective.player: of for objective in task.objectives}) if many else of


def steps(task: Task) -> None:
    """Make steps of training."""
    Training(task, rule(task, SGD(lr=0.01)), Plan(steps=STEPS, batch=128), 0).advance(STEPS)


def usual(task: Task) -> Iterator[Probe]:
    """Yield one probe of every name that is for such tasks, as it is usual or by default."""
    kit, examples = kit_of(task), Settings().examples
    known = (*kit.probes(task, examples), *kit.describing(task, examples), *kit.curved(task), *kit.watched(()),
             *kit.at_end())
    for name in PROBES.keys() - {"Classes", "FID"}:
        kind = kind_named(name)
        if bool({"generator", "players"} & set(kind.needs)) == (len(task.objectives) > 1):
            yield next((probe for probe in known if type(probe) is kind), None) or kind()


def measured(task: Task) -> tuple[list[Contender], list[str]]:
    """Return the unit and every probe of a task as contenders."""
    snapshots = {kind: train(task, rule(task, kind(lr=0.001)), Plan(steps=80, batch=128), 0).snapshot
                 for kind in (Adam, PolarSGD)[:2 - (len(task.objectives) > 1)]}
    found = [Contender(f"{STEPS} steps on {task.name}", version("optscope"), "", lambda: steps(task))]
    for probe in sorted(usual(task), key=repr):
        snapshot = snapshots[PolarSGD if type(probe).__name__ == "PolarDrift" else Adam]
        reading, silence, error = take(probe, snapshot)
        if error or not (reading.values or reading.arrays):
            raise AssertionError(f"{probe!r}: {error or silence}")
        found.append(Contender(type(probe).__name__, "", "", lambda p=probe, s=snapshot: take(p, s)))
    return found, [contender.who for contender in found[1:]]


def b24() -> dict[str, Any]:
    """Take every probe in turn with some steps of training, and look at the peak of each."""
    games = gan("ring", Perceptron((8, 64, 64, 2)), Perceptron((2, 64, 64, 1)), Ring(), bounds=None)
    ratios, memory, shown = {}, {}, []
    for task in (task_named("fashion-mnist"), games):
        contenders, names = measured(task)
        memory |= {contender.who: peak(contender.run) for contender in contenders[1:]}
        times = interleave(contenders, rounds=3, warm_up=0)
        shown += rows(contenders, times)
        ratios |= {name: STEPS * times.ratio(name, contenders[0].who) for name in names}
    word = {f"{name}, off its word": off(cost, PROBES[name].cost or 0.0) for name, cost in ratios.items()}
    word |= {f"{name}, memory, off its word": off(size, PROBES[name].memory or 0.0)
             for name, size in memory.items()}
    for row in shown:
        row["counts"] = {"MB": memory[row["who"]]} if row["who"] in memory else {}
    return {"bar": "B24", "work": "every probe as compare takes it: steps of training on 128 examples, and MB",
            "rows": shown, "ratio": ratios | word, "limit": dict.fromkeys(word, OFF)}
