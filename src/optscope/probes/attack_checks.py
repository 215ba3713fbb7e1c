"""Four checks that an attack did its work: they fail where gradients are masked or the steps are too few.

A check that fails does not say that the accuracy is wrong, only that this attack cannot vouch for it. They are
among those that arXiv 1802.00420, section 3.1, and arXiv 1902.06705 ask for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.probes.accuracy import percent, verdicts
from optscope.probes.attack import BIM, Attack
from optscope.probes.attack_losses import CrossEntropy
from optscope.probes.black_box import RandomSearch
from optscope.probes.dense import dense
from optscope.probes.perturbation import Bounds, Norm
from optscope.probes.probe import Subject, in_batches

LONGER = 4  # how many times the steps the longer attack has
QUERIES = 200
POINTS = 1.0  # of accuracy that must not be lost to a longer attack, nor left at the largest radius

CHECKS = {
    "loss rises with steps":
        "the loss does not rise with the attack's steps: the gradient is zero or misleads, as where a model "
        "saturates or quantises",
    "longer attack finds no more":
        f"an attack of {LONGER} times the steps takes {POINTS:g} point of accuracy or more: give it more steps",
    "largest radius fools":
        f"{POINTS:g} point of accuracy or more is left where every input is allowed: the gradient is masked, or "
        "the model hardly looks at its input",
    "random search finds no more":
        f"{QUERIES} random queries take {POINTS:g} point of accuracy or more: the gradient is masked",
}
"""The checks as statements, and what it means when one fails."""


def check_attack(attack: Attack, survivors: Subject, norm: Norm, eps: float, share: float) -> dict[str, bool]:
    """Return which of `CHECKS` hold, on images that `attack` could not fool at radius `eps`.

    `share` is the part of all examples that survive, of which `survivors` are a sample: it turns what is found
    among them into points of accuracy.
    """
    def left(by: Attack, radius: float) -> float:
        found = run(by, survivors, norm, radius)
        return share * percent(verdicts(survivors, found))

    least, whole = 100 * share - POINTS, largest_radius(survivors.leaf, norm, eps, survivors.bounds)
    return {
        "loss rises with steps": loss_rises(survivors, norm, eps),
        "longer attack finds no more": left(attack.longer(LONGER), eps) > least,
        "largest radius fools": left(attack, whole) < POINTS,
        "random search finds no more": left(RandomSearch(QUERIES), eps) > least,
    }


def run(attack: Attack, subject: Subject, norm: Norm, eps: float | Tensor) -> Tensor:
    """Return what an attack finds around the part of a subject's inputs that is moved."""
    plain = isinstance(subject.inputs, Tensor) and subject.task.output is None
    stack = plain and dense(subject.model, subject.leaf[:1]) is not None  # then it takes and gives tensors alone
    return attack.run(subject.model, subject.leaf, subject.targets, eps, norm, subject.bounds, subject.generator,
                      outputs=None if stack else subject.moved)


def loss_rises(subject: Subject, norm: Norm, eps: float) -> bool:
    """Return whether the mean loss after 1 step is above the clean one, and after 16 not below that after 1."""
    def mean_loss(x: Tensor) -> Tensor:
        logits = in_batches(lambda each: subject.moved(*each), (x, every))
        return CrossEntropy()(logits, subject.targets).mean()

    every = torch.arange(len(subject.leaf), device=subject.device)
    try:
        clean, first, last = to_floats(*(mean_loss(x) for x in (
            subject.leaf, run(BIM(1), subject, norm, eps), run(BIM(16), subject, norm, eps))))
    except UserError:  # no gradient reaches the inputs
        return False
    slack = 0.01 * (first - clean)  # on a linear model one step is as good as sixteen, up to rounding
    return clean < first <= last + slack


def largest_radius(inputs: Tensor, norm: Norm, eps: float, bounds: Bounds) -> float:
    """Return the radius of a ball that holds the whole box, or 100 eps when there is none."""
    if bounds is None:
        return 100 * eps
    width = bounds[1] - bounds[0]
    return width if norm == "linf" else width * math.sqrt(inputs[0].numel())
