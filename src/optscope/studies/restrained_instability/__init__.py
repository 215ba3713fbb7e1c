"""Restrained instabilities and the edge of stability (arXiv 2206.02001).

The paper asks why two trainings that differ in the last bit of their steps end as different networks, whose
accuracies spread as far as those of different seeds. It reads gradient descent as the explicit discretisation of
a partial differential equation. For a one-layer convolutional network it linearises that equation and finds a
window of weight decays outside which it is unstable. The non-linear equation, when its step is too large for the
linear bound, does not blow up: the non-linearity carries the iterate to a region that is stable, and back. While
that lasts, rounding errors grow. Such restrained instabilities are held to be what deep networks show at the edge
of stability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan

from optscope.engine.plan import Plan
from optscope.engine.run import Call
from optscope.evidence.claims import Scale
from optscope.evidence.records import Records
from optscope.optim import SGD, Adam, Decayed, Rule, StepDecay
from optscope.probes.rule_in_use import threshold
from optscope.protocol.comparison import Calls, Experiment
from optscope.protocol.study import Gap, Paper, Study
from optscope.protocol.twice import Twice
from optscope.studies.restrained_instability import exact
from optscope.studies.restrained_instability.claims import CLAIMS
from optscope.studies.restrained_instability.edge_claims import ADAM, BATCHES
from optscope.studies.restrained_instability.pictures import pictures
from optscope.studies.restrained_instability.trained import accuracies, edge_of_stability, part_ways
from optscope.studies.restrained_instability.trained_claims import FIRST, KS, RATES
from optscope.tasks.augment import FlipCrop
from optscope.tasks.images import CIFAR10, Digits, FashionMNIST
from optscope.tasks.models import MLP, ResNet
from optscope.tasks.smooth import Centred, Column, Conv3, SameStart, Smooth, squared_error
from optscope.tasks.task import Task

PAPER = Paper("Surprising instabilities in training deep networks and a theoretical analysis",
              "Sun, Lao, Sundaramoorthi, Yezzi", "NeurIPS 2022", "2206.02001")

BETA = 5.0
"""The paper's Swish, x · sigmoid(5 x)."""
DECAY = 5e-4
"""The paper's weight decay of deep networks."""
ADAMS, SMALL_BATCHES = (3e-4, 1e-3, 3e-3, 1e-2), (0.5, 1.0, 1.2, 1.4)
"""Rates on both sides of the edge, Adam's and that of small batches: found on a seed that is not used here."""
CLOTHES = FashionMNIST(8000, 2000, 2000)
DIGITS = Centred(Digits(), examples=800, shift=0.3)


@dataclass(frozen=True)
class Cell:
    """One network at some learning rates on some seeds: an arm of the divergence experiment, with its factors."""

    arm: str
    task: Task
    rates: tuple[float, ...]
    seeds: int
    plan: Plan
    activation: str
    convolutions: int


@dataclass(frozen=True)
class Edge:
    """Trainings of small networks against the edge of a rule, on 800 digits, over depth and learning rate.

    `met` is the sharpness that is followed; `decays` are tried at depth 3 and rate 0.3.
    """

    name: str
    rule: type[SGD | Adam]
    met: str
    depths: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    plan: Plan
    decays: tuple[float, ...] = ()

    def calls(self) -> Calls:
        """Return all of them, seed by seed."""
        grid = [(depth, lr, 0.0) for depth in self.depths for lr in self.rates]
        grid += [(3, 0.3, decay) for decay in self.decays]
        return Calls(self.name, [self._call(seed, *cell) for seed in range(1, self.seeds + 1) for cell in grid])

    def _call(self, seed: int, depth: int, lr: float, decay: float) -> Call:
        task = Task("digits", Smooth(MLP((64, *[48] * depth, 10)), 1.0), DIGITS, squared_error, bounds=None)
        rule: Rule = self.rule(lr=lr)
        rule = Decayed(rule, decay) if decay else rule
        # What is as it always was is not told, so that the calls of the full batches are those of before.
        met = {} if self.met == "sharpness" else {"met": self.met}
        return Call(edge_of_stability, {
            "arm": f"{depth} hidden with decay {decay:g}", "task": task, "rule": rule, "plan": self.plan,
            "seed": seed, "threshold": threshold(rule), **met}, {"hidden": depth, "decay": decay})


@dataclass(frozen=True)
class Size:
    """How large everything is at one scale.

    `spread` is (task, plan, seeds, divisors in the first step only, last epochs that count).
    """

    kernels: int
    steps: int
    lines: int
    cells: tuple[Cell, ...]
    edges: tuple[Edge, ...]
    spread: tuple[Task, Plan, int, tuple[int, ...], int]


def _cells(depths: dict[int, tuple[float, ...]], seeds: int, steps: int) -> tuple[Cell, ...]:
    """Return smooth residual networks, and the deepest with its kinks, trained for `steps` steps of 16 images."""
    def cell(name: str, model: Column | Smooth, blocks: int, rates: tuple[float, ...]) -> Cell:
        task, count = Task("fashion-mnist", model, FashionMNIST(16 * steps, 400, 400)), 1 + 2 * blocks
        return Cell(f"{name} with {count} convolutions", task, rates, seeds, Plan(1, 16), name, count)

    smooth = [cell("Swish", Smooth(Column(b), BETA), b, rates) for b, rates in depths.items()]
    deepest = max(depths)
    return (*smooth, cell("ReLU", Column(deepest), deepest, (depths[deepest][0], depths[deepest][-1])))


def _edges(seeds: int, steps: int, depths: tuple[int, ...], rates: tuple[float, ...], adams: tuple[float, ...],
           batches: tuple[float, ...], decays: tuple[float, ...] = ()) -> tuple[Edge, ...]:
    """Return gradient descent and Adam in full batches, and gradient descent in batches of 16, as long."""
    full, small = Plan(steps, 800), Plan(steps=steps, batch=16)
    return (Edge("edge", SGD, "sharpness", depths, rates, seeds, full, decays),
            Edge(ADAM, Adam, "preconditioned sharpness", depths, adams, seeds, full),
            Edge(BATCHES, SGD, "batch sharpness", depths, batches, seeds, small))


def _spread(train: int, test: int, epochs: int) -> tuple[Task, Plan]:
    task = Task("fashion-mnist", Conv3(), FashionMNIST(train, 1000, test, embedded=False))
    return task, Plan(epochs, 128, StepDecay(at=(1 / 3, 2 / 3)))


_SMOKE = Task("fashion-mnist", Conv3(), FashionMNIST(512, 100, 500))
_COLOURS = Task("cifar10", ResNet(8, width=8), CIFAR10(10_000, 1000, 10_000), augment=FlipCrop(pad=4))
_RESNET = Task("cifar10", ResNet(56), CIFAR10(49_000, 1000, 10_000), augment=FlipCrop(pad=4))
_SMOOTH_RESNET = Task("cifar10", Smooth(ResNet(56), BETA), CIFAR10(49_000, 1000, 10_000), augment=FlipCrop(pad=4))
SIZES: dict[Scale, Size] = {
    "smoke": Size(2, 200, 60, _cells({1: (0.1, 0.001)}, 2, 12), _edges(2, 80, (1, 3), (0.3,), (1e-3,), (0.1,)),
                  (_SMOKE, Plan(2, 128), 2, (3,), 1)),
    "desk": Size(20, 1000, 800, _cells({9: RATES, 4: RATES[::2], 1: RATES[::2]}, 8, 300),
                 _edges(8, 1000, (1, 2, 3), (0.15, 0.3, 0.45), ADAMS, SMALL_BATCHES, (1e-3, 3e-3)),
                 (*_spread(5000, 5000, 12), 20, FIRST, 3)),
    "long": Size(20, 1000, 800, (), (), (_COLOURS, Plan(20, 128, StepDecay(at=(0.4, 0.8))), 10, FIRST, 5)),
    "paper": Size(20, 1000, 800, tuple(
        Cell(f"ResNet-56 with Swish, lr 0.1/{n}", _SMOOTH_RESNET, (0.1 / n,), 1, Plan(min(n, 32), 128), "Swish", 55)
        for n in (2, 4, 8, 16, 32)), (),
        (_RESNET, Plan(200, 128, StepDecay(at=(0.2, 0.4, 0.6, 0.8))), 6, FIRST, 10)),
}
COSTS: dict[Scale, str] = {
    "smoke": "under a minute on two cores; embedded images; every claim of trained networks stays undecided",
    "desk": "about 4,400 seconds of one process; needs Fashion-MNIST (optscope data "
            "fashion-mnist) and scikit-learn",
    "long": "accuracy spread of ResNet-8 of width 8 on 10,000 CIFAR-10 images, ten seeds: about an hour and a half "
            "on two cores",
    "paper": "ResNet-56 on CIFAR-10 for 200 epochs, nine twins of six seeds, and five divergence curves; not "
             "run: months of one core",
}


def experiments(scale: Scale) -> Sequence[Experiment]:
    """Return everything that is run at a scale."""
    size = SIZES[scale]
    kernels = tuple(range(1, size.kernels + 1))
    return [
        Calls("heat", [Call(exact.heat_equation)]),
        Calls("window", [Call(exact.linear_window),
                               Call(exact.linear_window_of_images, {"data": CLOTHES})]),
        Calls("one layer", [
            Call(exact.full_computation, {"steps": 3}),
            Call(exact.regions, {"steps": 20 * size.steps}),
            Call(exact.regimes, {"seeds": kernels, "steps": size.steps, "lines": size.lines}),
            Call(exact.regimes_of_images, {"data": CLOTHES, "seeds": kernels[:max(1, len(kernels) // 4)],
                                                   "steps": size.steps})]),
        *_parting(size.cells), *(edge.calls() for edge in size.edges), *_accuracy_spread(size)]


def _parting(cells: Sequence[Cell]) -> list[Experiment]:
    """Return the divergence of twins over learning rates and depths, a control on the first seed of each."""
    return [Calls("parting", [
        Call(part_ways, {"arm": cell.arm, "task": cell.task, "rule": Decayed(SGD(lr=lr), DECAY),
                                "plan": cell.plan, "seed": seed, "control": seed == 1},
             {"activation": cell.activation, "convolutions": cell.convolutions})
        for seed in range(1, 1 + max(c.seeds for c in cells)) for cell in cells for lr in cell.rates
        if seed <= cell.seeds])] if cells else []


def _accuracy_spread(size: Size) -> list[Experiment]:
    """Return the two-way layout of divisors and batch seeds, and seeds that also draw the initial weights."""
    task, plan, seeds, first_only, last = size.spread
    fixed = replace(task, model=SameStart(task.model))
    rule = Decayed(SGD(lr=0.1, momentum=0.9, nesterov=True), DECAY)
    both = Calls("spread", [
        Call(accuracies, {"task": fixed, "rule": rule, "plan": plan, "seed": seed, "ks": (*KS, 2),
                                 "first_only": first_only, "last": last}) for seed in range(1, seeds + 1)])
    return [both, Calls("starts", [
        Call(accuracies, {"task": task, "rule": rule, "plan": plan, "seed": seed, "ks": (1, 3),
                                 "first_only": (), "last": last})
        for seed in range(1, seeds + 1)])]


FAMILIES = {
    "K1": "Rounding alone spreads accuracy as much as another seed does",
    "control": "Arithmetic that rounds nothing otherwise changes nothing",
    "K2": "Twins that differ in the last bit part at large learning rates only",
    "K3": "Kinks of the activation are not the cause",
    "K4": "A linear step beyond its limit grows; with a feedback it settles at the edge",
    "K5": "A one-layer network is stable in a window of weight decays",
    "K6": "Beyond it its loss oscillates, restrained, before it diverges",
    "K7": "Rounding is amplified where the scalar map is chaotic",
    "K8": "Activated and unstable regions throw the iterate back and forth",
    "K9": "Rounding is amplified where training crosses the edge of stability, that of its rule",
    "K10": "Depth brings the edge nearer, weight decay takes it further",
}

GAPS = (
    Gap("network", "ResNet-56 and VGG16", "three convolutions at desk, ResNet-8 of width 8 at long",
        "--scale paper has ResNet-56 on CIFAR-10: months of one core"),
    Gap("data", "CIFAR-10 and Fashion-MNIST, whole",
        "5,000 images of Fashion-MNIST at desk, 10,000 of CIFAR-10 at long", "five to ten times the time"),
    Gap("length", "200 epochs, accuracy of the last 10", "12 epochs, of the last 3 (20, of the last 5, at long)",
        "ten to seventeen times the time"),
    Gap("seeds", "6 of start and order, with k = 1, 3, 5, 7, 9, 11",
        "20 of order at desk, 10 at long, with the same k, and as many of start and order", "nothing"),
    Gap("divergence of twins", "ResNet-56, rates 0.05 to 3e-6 at equal lr · steps, up to 3.2 million of them",
        "19 convolutions, rates 0.1 to 0.001, 300 steps each", "ten thousand times the steps of ours"),
    Gap("edge of stability",
        "experiments of the journal version, Adam among them, whose settings are not known to us",
        "800 digits, one to three hidden layers: gradient descent and Adam in full batches, gradient descent in "
        "batches of 16", "the paper's text, and what it then asks for"),
)

def _heat(measured: str, predicted: str) -> Callable[[Records], tuple[float, float]]:
    """Return what reads a number of the heat equation, measured and predicted."""
    def numbers(records: Records) -> tuple[float, float]:
        heat = records.where(experiment="heat")
        found = [[row.value for row in heat.where(metric=name)] for name in (measured, predicted)]
        return found[0][0] if found[0] else nan, found[1][0] if found[1] else nan
    return numbers


TWICE = (Twice("the largest stable step of the heat equation", "bisection of simulations", "von Neumann's analysis",
               _heat("measured step limit", "predicted step limit"), 1e-6, relative=True),
         Twice("growth a step just beyond it", "simulation", "von Neumann's analysis",
               _heat("measured factor a step", "predicted factor a step"), 1e-6, relative=True))

SHOWN = {"K1": ("spread",), "K2": ("curves", "rates"), "K3": ("rates",), "K4": ("heat",), "K5": ("window",),
         "K6": ("one-layer", "bifurcation"), "K7": ("bifurcation",), "K8": ("bifurcation",),
         "K9": ("edge", "crossed", "gap"), "K10": ("depth-and-decay",)}

STUDY = Study(
    name="restrained_instability", paper=PAPER,
    question="Two trainings that differ only in the last bit of their steps end as different networks. Are they as "
             "different as two seeds, where does it come from, and does it begin at the edge of stability?",
    reproduced="The heat equation, the linear and the non-linear equation of the one-layer network exactly, at the "
               "paper's size and on five other images; the divergence of rounding twins over learning rate, depth "
               "and activation, and the spread of their accuracy, for small networks on Fashion-MNIST; sharpness, "
               "threshold and rounding distance over depth, learning rate and weight decay on digits, by gradient "
               "descent in full and in small batches and by Adam, each against its own edge.",
    left_out="Not done here: ResNet-56 and VGG16 on CIFAR-10 (--scale paper has the first), other rules of the "
             "journal version than Adam. The paper's accuracies are not known to us; that two spreads are "
             "comparable is. Spread of accuracy is judged after 468 steps of a small network (5,000 images, 12 "
             "epochs, the last three of which count); --scale long trains a ResNet-8 for 1,560. An earlier desk "
             "run stopped after 186 steps, when twins were still parting. The equation with feedback and the "
             "reduction to a scalar map are ours.\nThe rates at the edges of Adam and of small batches were "
             "chosen by the sharpness alone, of a few trainings on a seed that is not used, so that some cross "
             "and some do not.",
    experiments=experiments, claims=CLAIMS, pictures=pictures, families=FAMILIES, shown=SHOWN, costs=COSTS,
    gaps=GAPS, twice=TWICE, answers=("K1", "K2", "K9", "K3"))
