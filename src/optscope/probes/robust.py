"""Accuracy under attack, at several radii for little more than the price of one.

A larger ball holds the smaller ones. So an input that fools settles its image at every radius from its own length
up, and an image that withstood a full search at one radius counts as right at the smaller ones too. One failing
search an image, at its largest surviving radius, is most of what a curve of accuracy against radius costs.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from optscope.devices import to_numpy
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.evidence.stats import wilson
from optscope.probes.accuracy import check_classifier, classes_of, nameless, percent, verdicts
from optscope.probes.attack import BIM, PGD, Attack, places
from optscope.probes.attack_checks import CHECKS, check_attack, run
from optscope.probes.needs import Need
from optscope.probes.perturbation import Norm, ball_of, per_example
from optscope.probes.probe import Probe, Reading, Subject

ROUNDING = 1e-6  # relative: how much longer than a radius a perturbation may be and still count as within it


@dataclass(frozen=True, repr=False)
class RobustAccuracy(Probe):
    """Measure accuracy (percent) under attack at each radius of `eps`, an upper bound on robust accuracy.

    An image is right at a radius when it is right as it is and no input within the radius was found that fools.
    The same images, seed and attack give verdicts that can be compared image by image between models. `checked`
    is how many images that withstood the attack its checks look at (0: no checks); a check is 1 where it holds.

    Arrays: "correct under l2 attack", bool `(radii, n)`; "interval under l2 attack", the 95 % Wilson intervals in
    percent `(radii, 2)`; "fooled by l2 radius", the smallest radius of `eps` that fools each example `(n,)`: 0 for
    examples that are wrong as they are, inf where no radius was found to fool.

    The attacks say where they are from. That one search from the largest radius down settles all of `eps` is ours.

    Raises:
        UserError: unless eps is a radius > 0 or a tuple of different ones, and attack is an attack.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "float input", "labels")
    norm: Norm = "linf"
    eps: float | tuple[float, ...] = 0.03
    attack: Attack = PGD()  # noqa: RUF009 - frozen
    checked: int = 100

    def __post_init__(self) -> None:
        ball_of(self.norm)
        radii = self.eps if isinstance(self.eps, tuple) else (self.eps,)
        real = all(isinstance(r, (int, float)) and math.isfinite(r) and r > 0 for r in radii)
        if not radii or not real or len(set(radii)) < len(radii):
            raise UserError("RobustAccuracy: eps must be a radius above 0 or a tuple of different ones, such as "
                            f"(0.1, 0.2); got {self.eps!r}")
        if not isinstance(self.attack, Attack):
            raise UserError(f"RobustAccuracy: attack must be an attack such as PGD(steps=20); got {self.attack!r}")

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii, ascending."""
        return tuple(sorted(self.eps)) if isinstance(self.eps, tuple) else (self.eps,)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The accuracy at each radius, and the attack's checks."""
        accuracy = Metric(f"accuracy under {self.norm} attack", "%", "higher",
                          f"upper bound on robust accuracy, by {self.attack!r}", axis="eps")
        checks = (Metric(f"{self.norm} attack: {name}", "check", "neither", failure)
                  for name, failure in CHECKS.items())
        return (accuracy, *checks) if self.checked else (accuracy,)

    def measure(self, subject: Subject) -> Reading:
        """Find the smallest radius that fools each example, then check the attack on some that withstood it."""
        check_classifier(subject)
        radii = subject.leaf.new_tensor(self.radii)
        rank = smallest_fooling(self.attack, subject, self.norm, radii).cpu()
        correct = torch.stack([rank > k for k in range(len(radii))])
        curve = {r: percent(row) for r, row in zip(self.radii, correct, strict=True)}
        intervals = [wilson(int(row.sum()), len(rank)) for row in correct]
        fooled_by = np.array([0.0, *self.radii, math.inf])[to_numpy(rank) + 1]
        checks = self._checks(subject, correct, float((rank >= 0).double().mean()))
        return Reading(
            {f"accuracy under {self.norm} attack": curve,
             **{f"{self.norm} attack: {name}": float(holds) for name, holds in checks.items()}},
            {f"correct under {self.norm} attack": to_numpy(correct),
             f"interval under {self.norm} attack": 100 * np.array([[i.low, i.high] for i in intervals]),
             f"fooled by {self.norm} radius": fooled_by}, nameless(classes_of(subject).cpu()))

    def complaints(self, reading: Reading) -> tuple[str, ...]:
        """Return one sentence for each check of a reading that failed; none when the attack can be trusted."""
        return tuple(f"{self.norm} attack {self.attack!r}: {failure}" for name, failure in CHECKS.items()
                     if reading.values.get(f"{self.norm} attack: {name}") == 0.0)

    def _checks(self, subject: Subject, correct: Tensor, clean: float) -> dict[str, bool]:
        """Check the attack at the radius that leaves nearest to half of the clean accuracy."""
        shares = correct.double().mean(1)
        k = len(shares) - 1 - int((shares - clean / 2).abs().flip(0).argmin())
        where = places(correct[k])[:self.checked].to(subject.device)
        if len(where) == 0:
            return dict.fromkeys(CHECKS, True) if self.checked else {}
        return check_attack(self.attack, subject.take(where), self.norm, self.radii[k], float(shares[k]))


def smallest_fooling(attack: Attack, subject: Subject, norm: Norm, radii: Tensor) -> Tensor:
    """Return for each example the index of the smallest of the ascending `radii` `(K,)` that fools, `(n,)`.

    -1 where the model is wrong as it is, K where no radius was found to fool. From the largest radius down, each
    image is attacked; what fools is shortened along its line while it fools, and the attack goes on at the next
    smaller radius, until it fails. With several radii a few steps from the image itself come first, whatever the
    attack: what they find is short.
    """
    rank = torch.full((len(subject.batch),), len(radii), device=radii.device)
    rank = rank.where(verdicts(subject), -1)
    left = places(rank > 0)
    if len(radii) > 1 and len(left):
        with suppress(UserError):  # where no gradient reaches the inputs, the attack may need none
            rank[left] = _attacked(BIM(steps=4), subject, norm, radii, rank, left)
        left = left[places(rank[left] > 0)]
    while len(left):
        now = _attacked(attack, subject, norm, radii, rank, left)
        again = (now < rank[left]) & (now > 0)
        rank[left] = now
        left = left[places(again)]
    return rank


def _attacked(attack: Attack, subject: Subject, norm: Norm, radii: Tensor, rank: Tensor, left: Tensor) -> Tensor:
    """Return the ranks of the examples `left` after an attack at the next radius below their rank, `(m,)`."""
    part = subject.take(left)
    found = run(attack, part, norm, radii[rank[left] - 1])
    return _shortened(part, norm, radii, found - part.leaf, rank[left])


def _shortened(subject: Subject, norm: Norm, radii: Tensor, delta: Tensor, rank: Tensor) -> Tensor:
    """Return the index of the smallest radius at which `delta`, cut to it, is seen to fool, else `rank`, `(m,)`.

    By bisection: between radii that are not tried nothing is assumed, as only what is seen to fool counts.
    """
    size = ball_of(norm).size(delta)
    fooled = ~verdicts(subject, subject.leaf + delta)
    high = torch.where(fooled, torch.searchsorted(radii * (1 + ROUNDING), size).minimum(rank), rank)
    low = torch.where(fooled, 0, high)
    still = places(low < high)
    for _ in range(len(radii).bit_length() if len(still) else 0):
        least, most = low[still], high[still]
        middle = ((least + most) // 2).clamp_max(len(radii) - 1)
        cut = delta[still] * per_example((radii[middle] / size[still]).clamp_max(1), delta)
        fools = ~verdicts(subject, subject.leaf[still] + cut, still)
        high[still] = torch.where(fools, torch.minimum(middle, most), most)
        low[still] = torch.where(fools | (least >= most), least, middle + 1)
    return high
