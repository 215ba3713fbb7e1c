"""Accuracy under attack at several radii for little more than the price of one, with its sanity checks.

Fooling is monotone in the radius: a larger ball holds the smaller ones. So a found adversarial input settles its
image at every radius from its own length up, and a search that fails at one radius settles all smaller ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.evidence.stats import wilson
from optscope.probes.accuracy import check_classifier, percent, verdicts
from optscope.probes.attack import PGD, Attack
from optscope.probes.perturbation import Norm, ball_of, per_example
from optscope.probes.probe import Probe, Reading, Subject

ROUNDING = 1e-6  # relative: an input this little longer than a radius counts as being within it


@dataclass(frozen=True, repr=False)
class RobustAccuracy(Probe):
    """Measure accuracy (percent) under attack at each radius of `eps`."""

    norm: Norm = "linf"
    eps: float | tuple[float, ...] = (0.01, 0.03)
    attack: Attack = field(default=PGD())  # noqa: RUF009 - frozen

    @property
    def metrics(self):
        return (Metric(f"accuracy under {self.norm} attack", "%", "higher", axis="eps"),)

    def measure(self, subject: Subject) -> Reading:
        radii = tuple(sorted(self.eps if isinstance(self.eps, tuple) else (self.eps,)))
        rank = smallest_fooling(self.attack, subject, self.norm, torch.tensor(radii))
        robust = [rank > k for k in range(len(radii))]
        return Reading({self.metrics[0].name: {r: percent(v) for r, v in zip(radii, robust, strict=True)}},
                       {"rank": rank.numpy()})


def smallest_fooling(attack: Attack, subject: Subject, norm: Norm, radii: Tensor) -> Tensor:
    """Return for each example the index of the smallest of the ascending `radii` `(K,)` that fools, `(n,)`.

    -1 where the model errs without a perturbation, K where no radius was found to fool. Each image is attacked at
    the largest radius; a success is shortened along its line as far as it fools, and the attack goes on at the
    next smaller radius until it fails. The verdict at the largest surviving radius thus rests on one full search,
    and the smaller ones on that ball's holding theirs.
    """
    rank = torch.full((len(subject.inputs),), len(radii), device=subject.inputs.device)
    rank[~verdicts(subject.model, subject.inputs, subject.targets)] = -1
    left = (rank > 0).nonzero().squeeze(1)
    while len(left):
        inputs, targets = subject.inputs[left], subject.targets[left]
        found = attack.run(subject.model, inputs, targets, radii[rank[left] - 1], norm, subject.bounds,
                           subject.generator)
        shorter = shortest(subject, norm, radii, inputs, targets, found - inputs, rank[left])
        fooled = shorter < rank[left]
        rank[left] = shorter
        left = left[fooled & (shorter > 0)]
    return rank


def shortest(subject: Subject, norm: Norm, radii: Tensor, inputs: Tensor, targets: Tensor, delta: Tensor,
             rank: Tensor) -> Tensor:
    """Return the index of the smallest radius at which a shortened `delta` is seen to fool, else `rank`, `(m,)`."""
    size = ball_of(norm).size(delta)
    within = torch.searchsorted(radii * (1 + ROUNDING), size)
    fooled = ~verdicts(subject.model, inputs + delta, targets)
    high = torch.where(fooled, torch.minimum(within, rank), rank)
    low = torch.where(fooled, torch.zeros_like(high), high)
    while bool((low < high).any()):
        open_ = (low < high).nonzero().squeeze(1)
        middle = (low[open_] + high[open_]) // 2
        part = delta[open_] * per_example((radii[middle] / size[open_]).clamp_max(1), delta[open_])
        fools = ~verdicts(subject.model, inputs[open_] + part, targets[open_])
        high[open_] = torch.where(fools, middle, high[open_])
        low[open_] = torch.where(fools, low[open_], middle + 1)
    return high
