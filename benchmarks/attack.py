"""B4, B5: robust accuracy by PGD at one and eight radii, and a verdict of AutoAttack's grade, image by image.

The rivals: `pip install optscope[oracle]`, and without their dependencies (they ask for old ones) `pip install
--no-deps torchattacks==3.3.0 adversarial-robustness-toolbox==1.20.1 six tqdm`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.timing import Contender, interleave, rows
from benchmarks.training import trained
from optscope.probes.attack import PGD, Attack
from optscope.probes.ensemble import Ensemble
from optscope.probes.robust import RobustAccuracy
from optscope.tasks.images import FashionMNIST
from optscope.tasks.models import MLP, ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

STEPS = 20

Verdicts = NDArray[np.bool_]
"""Whether the model is right on each image, whatever was tried."""


@dataclass(frozen=True)
class Net:
    """A net to attack: its task, how long it is trained, a radius that leaves about half of its accuracy."""

    task: Task
    training: int
    eps: float
    images: int
    rounds: int

    def ours(self, model: nn.Module, attack: Attack, eps: tuple[float, ...], checked: int = 0) -> Verdicts:
        """Return the verdicts of this package, `(radii, n)`."""
        probe = RobustAccuracy("linf", eps=eps, attack=attack, examples=self.images, checked=checked)
        return probe(Snapshot(model, self.task)).arrays["correct under linf attack"]

    def foolbox(self, model: nn.Module, eps: tuple[float, ...]) -> Verdicts:
        """Return foolbox's verdicts `(radii, n)`, with the same steps of the same length from random starts."""
        import foolbox

        part = self.task.data().test.first(self.images)
        attack = foolbox.attacks.LinfPGD(steps=STEPS, rel_stepsize=2.5 / STEPS)
        bounded = foolbox.PyTorchModel(model, (0.0, 1.0), device="cpu")
        _, _, fooled = attack(bounded, part.inputs, part.targets, epsilons=list(eps))
        return ~fooled.numpy()

    def torchattacks(self, model: nn.Module, eps: tuple[float, ...]) -> Verdicts:
        """Return the verdicts of torchattacks, `(radii, n)`."""
        import torchattacks

        part = self.task.data().test.first(self.images)
        attacks = (torchattacks.PGD(model, radius, alpha=2.5 * radius / STEPS, steps=STEPS) for radius in eps)
        return np.stack([right(model, attack(part.inputs, part.targets), part.targets) for attack in attacks])

    def art(self, model: nn.Module, eps: tuple[float, ...]) -> Verdicts:
        """Return the verdicts of the Adversarial Robustness Toolbox, `(radii, n)`."""
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        part = self.task.data().test.first(self.images)
        bounded = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(part.inputs.shape[1:]), 10,
                                    clip_values=(0.0, 1.0), device_type="cpu")
        found = []
        for radius in eps:
            attack = ProjectedGradientDescentPyTorch(bounded, np.inf, radius, 2.5 * radius / STEPS, max_iter=STEPS,
                                                     num_random_init=1, batch_size=500, verbose=False)
            there = torch.from_numpy(attack.generate(part.inputs.numpy(), part.targets.numpy()))
            found.append(right(model, there, part.targets))
        return np.stack(found)

    def autoattack(self, model: nn.Module) -> Verdicts:
        """Return AutoAttack's verdicts, `(n,)`: its standard version, as it comes."""
        from pyautoattack import AutoAttack

        part = self.task.data().test.first(self.images)
        attack = AutoAttack(model, norm="Linf", eps=self.eps, seed=0, version="standard")
        found, _ = attack.run_standard_evaluation(part.inputs, part.targets, batch_size=500)
        return right(model, found, part.targets)


def right(model: nn.Module, inputs: Tensor, targets: Tensor) -> Verdicts:
    """Return which inputs are classified rightly, `(n,)`."""
    with torch.no_grad():
        return (model(inputs).argmax(1) == targets).numpy()


NETS = {"MLP": Net(Task("fashion-mnist", MLP(), FashionMNIST()), 1500, 0.02, 1000, 5),
        "ResNet-8": Net(Task("fashion-mnist", ResNet(depth=8, channels=1), FashionMNIST()), 300, 0.012, 200, 1)}


PACKAGES = {"optscope": "optscope", "foolbox": "foolbox", "torchattacks": "torchattacks",
            "ART": "adversarial-robustness-toolbox"}
LIMITS = {"foolbox": 0.75, "torchattacks": 0.72, "ART": 0.65}


class Counted(nn.Module):
    """A model that counts the images it is shown, and those shown to get a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.gradients += len(x) * x.requires_grad
        out: Tensor = self.model(x)
        return out


def b4() -> dict[str, Any]:
    """Run PGD-20 at one and at eight radii: on 1,000 images of an MLP, and on 200 of a ResNet-8."""
    table: list[dict[str, Any]] = []
    ratio: dict[str, float] = {}
    for name, net in NETS.items():
        model = trained(net.task, net.training)
        radii = {"1 radius": (net.eps,), "8 radii": tuple(net.eps * k / 4 for k in range(1, 9))}
        runs: dict[str, Callable[[], Verdicts]] = {}
        for count, eps in radii.items():
            runs[f"{name}: optscope, {count}"] = partial(net.ours, model, PGD(STEPS), eps)
            runs[f"{name}: foolbox, {count}"] = partial(net.foolbox, model, eps)
        runs[f"{name}: torchattacks, 1 radius"] = partial(net.torchattacks, model, radii["1 radius"])
        runs[f"{name}: ART, 1 radius"] = partial(net.art, model, radii["1 radius"])
        runs[f"{name}: optscope, 8 radii and checks"] = partial(net.ours, model, PGD(STEPS), radii["8 radii"], 100)
        torch.manual_seed(0)
        curves = {who: 100 * run().mean(1) for who, run in runs.items()}
        rivals = [who for who in runs if "optscope" not in who]
        for who in rivals:
            # Over the radii: each attack has one random start, and at one radius chance decides an image or two.
            above = (curves[counterpart(who)] - curves[who]).mean()
            if above > 0.5:  # below is no fault: whatever lowers the accuracy was seen to fool
                raise AssertionError(f"{counterpart(who)}: {above:.2f} points above {who}: {curves}")
        contenders = [Contender(who, version(PACKAGES[library(who)]),
                                " ".join(f"{value:.1f}" for value in curves[who]) + " %", run)
                      for who, run in runs.items()]
        times = interleave(contenders, rounds=net.rounds, warm_up=0)  # the answers warmed up
        table += rows(contenders, times)
        ratio |= {f"of {who}": times.ratio(counterpart(who), who) for who in rivals}
        ratio[f"{name}: 8 radii of 1"] = times.ratio(f"{name}: optscope, 8 radii", f"{name}: optscope, 1 radius")
    return {"bar": "B4", "work": f"PGD-{STEPS}, linf, on Fashion-MNIST: 1,000 images of an MLP, 200 of a ResNet-8",
            "rows": table, "ratio": ratio,
            "limit": {name: LIMITS.get(library(name), 3.0) for name in ratio}}


def library(who: str) -> str:
    """Return the library in a contender's name, "net: library, work"."""
    return who.partition(": ")[2].partition(", ")[0]


def counterpart(who: str) -> str:
    """Return the name of this package's contender that does what a rival does."""
    net, _, work = who.partition(": ")
    return f"{net}: optscope, {work.partition(', ')[2]}"


def b5() -> dict[str, Any]:
    """Give an AutoAttack-grade verdict on 1,000 images of an MLP, in at most a third of AutoAttack's forwards."""
    net = NETS["MLP"]
    model = trained(net.task, net.training)
    found: list[Verdicts] = []
    result: list[dict[str, Any]] = []
    for who, package, run in (
            ("AutoAttack, standard", "pyautoattack", net.autoattack),
            ("optscope, Ensemble()", "optscope", lambda shown: net.ours(shown, Ensemble(), (net.eps,))[0])):
        counted = Counted(copy.deepcopy(model))
        start = time.process_time()
        found.append(run(counted))
        result.append({"who": who, "version": version(package), "answer": f"{100 * found[-1].mean():.1f} %",
                       "median_s": time.process_time() - start,
                       "counts": {"forwards an image": counted.forwards / net.images,
                                  "gradients an image": counted.gradients / net.images}})
    theirs, mine = found
    result[1]["answer"] += (f"; fooled by AutoAttack alone: images {np.flatnonzero(mine & ~theirs).tolist()}, "
                            f"by ours alone: {np.flatnonzero(theirs & ~mine).tolist()}")
    above = 100 * (mine.mean() - theirs.mean())
    if above > 0.5:
        raise AssertionError(f"the verdict is {above:.2f} points above AutoAttack's: {result}")
    forwards = [row["counts"]["forwards an image"] for row in result]
    return {"bar": "B5",
            "work": f"robust accuracy, linf {net.eps:g}, on {net.images} images of Fashion-MNIST, an MLP",
            "rows": result, "ratio": {"forwards, of AutoAttack": forwards[1] / forwards[0]},
            "limit": {"forwards, of AutoAttack": 1 / 3}}
