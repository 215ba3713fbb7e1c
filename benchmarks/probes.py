"""B24: what every probe costs, in steps of training, as `compare` takes it: the numbers of `optscope probe --list`.

The network is that of Fashion-MNIST after 80 steps of Adam, the game a GAN on the ring; a step is one of SGD on
128 examples of the same. There is no rival. Classes and FID need a judge of images, and are not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
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
    """Take every probe in turn with some steps of training."""
    games = gan("ring", Perceptron((8, 64, 64, 2)), Perceptron((2, 64, 64, 1)), Ring(), bounds=None)
    ratios, shown = {}, []
    for task in (task_named("fashion-mnist"), games):
        contenders, names = measured(task)
        times = interleave(contenders, rounds=3, warm_up=0)
        shown += rows(contenders, times)
        ratios |= {name: STEPS * times.ratio(name, contenders[0].who) for name in names}
    return {"bar": "B24", "work": "every probe as compare takes it, in steps of training on 128 examples",
            "rows": shown, "ratio": ratios}
