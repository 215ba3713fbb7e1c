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

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optscope.engine.plan import Plan
from optscope.engine.run import Call
from optscope.evidence.claims import Scale
from optscope.optim import SGD, Decayed, Rule, StepDecay
from optscope.protocol.comparison import Calls, Experiment
from optscope.protocol.study import Paper, Study
from optscope.studies.restrained_instability import exact
from optscope.studies.restrained_instability.before_factors import before_factors
from optscope.studies.restrained_instability.claims import CLAIMS
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
class Size:
    """How large everything is at one scale.

    `edge` is (depths, learning rates, weight decays at depth 3 and rate 0.3, seeds, steps); `spread` is (task,
    plan, seeds, divisors in the first step only, last epochs that count).
    """

    kernels: int
    steps: int
    lines: int
    cells: tuple[Cell, ...]
    edge: tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], int, int] | None
    spread: tuple[Task, Plan, int, tuple[int, ...], int]


def _cells(depths: dict[int, tuple[float, ...]], seeds: int, steps: int) -> tuple[Cell, ...]:
    """Return smooth residual networks, and the deepest with its kinks, trained for `steps` steps of 16 images."""
    def cell(name: str, model: Column | Smooth, blocks: int, rates: tuple[float, ...]) -> Cell:
        task = Task("fashion-mnist", model, FashionMNIST(16 * steps, 400, 400))
        return Cell(f"{name}, {1 + 2 * blocks} convolutions", task, rates, seeds, Plan(1, 16), name, 1 + 2 * blocks)

    smooth = [cell("Swish", Smooth(Column(b), BETA), b, rates) for b, rates in depths.items()]
    deepest = max(depths)
    return (*smooth, cell("ReLU", Column(deepest), deepest, (depths[deepest][0], depths[deepest][-1])))


def _spread(train: int, test: int, epochs: int) -> tuple[Task, Plan]:
    task = Task("fashion-mnist", Conv3(), FashionMNIST(train, 1000, test, embedded=False))
    return task, Plan(epochs, 128, StepDecay(at=(1 / 3, 2 / 3)))


_SMOKE = Task("fashion-mnist", Conv3(), FashionMNIST(512, 100, 500))
_COLOURS = Task("cifar10", ResNet(8), CIFAR10(10_000, 1000, 10_000), augment=FlipCrop(pad=4))
_RESNET = Task("cifar10", ResNet(56), CIFAR10(49_000, 1000, 10_000), augment=FlipCrop(pad=4))
_SMOOTH_RESNET = Task("cifar10", Smooth(ResNet(56), BETA), CIFAR10(49_000, 1000, 10_000), augment=FlipCrop(pad=4))
SIZES: dict[Scale, Size] = {
    "smoke": Size(2, 200, 60, _cells({1: (0.1, 0.001)}, 2, 12), ((1, 3), (0.3,), (), 2, 80),
                  (_SMOKE, Plan(2, 128), 2, (3,), 1)),
    "desk": Size(20, 1000, 800, _cells({9: RATES, 4: RATES[::2], 1: RATES[::2]}, 5, 300),
                 ((1, 2, 3), (0.15, 0.3, 0.45), (1e-3, 3e-3), 6, 1000),
                 (*_spread(5000, 5000, 12), 20, FIRST, 3)),
    "long": Size(20, 1000, 800, (), None, (_COLOURS, Plan(20, 128, StepDecay(at=(0.4, 0.8))), 10, FIRST, 5)),
    "paper": Size(20, 1000, 800, tuple(
        Cell(f"ResNet-56 with Swish, lr 0.1/{n}", _SMOOTH_RESNET, (0.1 / n,), 1, Plan(min(n, 32), 128), "Swish", 55)
        for n in (2, 4, 8, 16, 32)), None,
        (_RESNET, Plan(200, 128, StepDecay(at=(0.2, 0.4, 0.6, 0.8))), 6, FIRST, 10)),
}
COSTS: dict[Scale, str] = {
    "smoke": "under a minute on two cores; embedded images; every claim of trained networks stays undecided",
    "desk": "about 20 minutes on two cores; needs Fashion-MNIST (optscope data fashion-mnist) and scikit-learn",
    "long": "accuracy spread of ResNet-8 on 10,000 CIFAR-10 images, ten seeds: about four hours on two cores",
    "paper": "ResNet-56 on CIFAR-10 for 200 epochs, nine twins of six seeds, and five divergence curves; no GPU "
             "support yet: months of one core",
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
        *_parting(size.cells), *_edge(size), *_accuracy_spread(size)]


def _parting(cells: Sequence[Cell]) -> list[Experiment]:
    """Return the divergence of twins over learning rates and depths, a control on the first seed of each."""
    return [Calls("parting", [
        Call(part_ways, {"arm": cell.arm, "task": cell.task, "rule": Decayed(SGD(lr=lr), DECAY),
                                "plan": cell.plan, "seed": seed, "control": seed == 1},
             {"activation": cell.activation, "convolutions": cell.convolutions})
        for seed in range(1, 1 + max(c.seeds for c in cells)) for cell in cells for lr in cell.rates
        if seed <= cell.seeds])] if cells else []


def _edge(size: Size) -> list[Experiment]:
    """Return full-batch trainings over depth and learning rate, and over weight decay at one of them."""
    if size.edge is None:
        return []
    depths, rates, decays, seeds, steps = size.edge
    grid = [(depth, lr, 0.0) for depth in depths for lr in rates]
    grid += [(3, 0.3, decay) for decay in decays]
    works = []
    for seed in range(1, seeds + 1):
        for depth, lr, decay in grid:
            task = Task("digits", Smooth(MLP((64, *[48] * depth, 10)), 1.0), DIGITS, squared_error,
                        bounds=None)
            rule: Rule = Decayed(SGD(lr=lr), decay) if decay else SGD(lr=lr)
            works.append(Call(edge_of_stability, {
                "arm": f"{depth} hidden, decay {decay:g}", "task": task, "rule": rule, "plan": Plan(steps, 800),
                "seed": seed, "threshold": 2 / lr - decay}, {"hidden": depth, "decay": decay}))
    return [Calls("edge", works)]


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
    "K9": "Rounding is amplified where training crosses the edge of stability",
    "K10": "Depth brings the edge nearer, weight decay takes it further",
}

STUDY = Study(
    name="restrained_instability", paper=PAPER,
    question="Two trainings that differ only in the last bit of their steps end as different networks. Are they as "
             "different as two seeds, where does it come from, and does it begin at the edge of stability?",
    reproduced="The heat equation, the linear and the non-linear equation of the one-layer network exactly, at the "
               "paper's size and on five other images; the divergence of rounding twins over learning rate, depth "
               "and activation, and the spread of their accuracy, for small networks on Fashion-MNIST; sharpness, "
               "threshold and rounding distance over depth, learning rate and weight decay on digits.",
    left_out="Not done here: ResNet-56 and VGG16 on CIFAR-10 (--scale paper has the first), Adam and the other "
             "rules of the journal version. The paper's accuracies are not known to us; that two spreads are "
             "comparable is. Spread of accuracy is judged after 468 steps of a small network (5,000 images, 12 "
             "epochs, the last three of which count); --scale long trains a ResNet-8 for 1,580. An earlier desk "
             "run stopped after 186 steps, when twins were still parting. The equation with feedback and the "
             "reduction to a scalar map are ours.",
    experiments=experiments, claims=CLAIMS, pictures=pictures, families=FAMILIES, costs=COSTS,
    before_factors=before_factors)
