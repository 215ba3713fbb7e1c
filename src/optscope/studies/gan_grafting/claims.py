"""The paper's premise C0, its claims C1 to C8, and ours (K), as tests with margins fixed before any run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optscope.analyses.grafts import length_earns_more
from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.records import Factor, Records
from optscope.evidence.stats import mean_interval, median_interval, wilson
from optscope.evidence.verdicts import all_of, at_least_k, equivalent, greater, holm_corrected, shown_by, within
from optscope.protocol.grafts import graft_name
from optscope.studies.gan_grafting.fleets import grid_of
from optscope.theory.gan_modes import TwoModes

Array = NDArray[np.float64]

SGDA, ADAM, SIGN = "SGD", "Adam", "SignSGD"
ADA, ADA_GLOBAL = graft_name(ADAM, SGDA), "Adam length × SGD direction (whole model)"
DIR, DIR_GLOBAL = graft_name(SGDA, ADAM), "SGD length × Adam direction (whole model)"
UNIT, MODEL, MODULE = "normalised a tensor", "normalised", "normalised a module by √n"
ROOT = graft_name(SIGN, SGDA)
"""nSGDA a tensor with lengths in proportion to √n: that is the sign rule's length on the gradient's direction."""
GRAFTED = (SGDA, ADAM, SIGN)
HALVES: Mapping[str, Mapping[str, Factor]] = {
    **{graft_name(m, d): {"length": m, "direction": d, "per": "layer"} for m in GRAFTED for d in GRAFTED},
    ADA_GLOBAL: {"length": ADAM, "direction": SGDA, "per": "model"},
    DIR_GLOBAL: {"length": SGDA, "direction": ADAM, "per": "model"}}
"""The factors of arms by name: whose step length on whose direction, and over what lengths are taken."""
PLAIN, NORMALISED = "SGDA", "nSGDA"
VARIANTS = {"d = 1000": TwoModes(), "d = 300": TwoModes(300), "d = 3000": TwoModes(3000),
            "d = 1000000": TwoModes(10**6), "modes at cosine 0.15": TwoModes(correlation=0.15),
            "both together in 25 %": TwoModes(together=0.25), "one active latent": TwoModes(latent="one")}
"""The settings of the theory by name: the paper's size first."""

MODES_MARGIN = 1.0
"""Modes (of 8; of 25 three times as many) that a rule may fall behind Adam and still be no worse (C1, C3)."""
FRECHET_MARGIN = float(np.log(1.25))
"""The same for the logarithm of the Fréchet distance: 25 %."""
ACCURACY_MARGIN, CHANCE = 1.5, 10.0
"""Points of accuracy within which rules are equal on a classifier (C8), and the accuracy of a run that diverged."""
SPEED = 3.0
"""How many times more steps plain descent needs to find both modes (K1)."""
DIMENSIONS = (300, 1000, 3000)

Test = Callable[[Records], Verdict]


def plain(variant: str = "d = 1000") -> str:
    """Return the arm of plain descent in a variant of the theory's setting."""
    return f"{PLAIN} at {variant}"


def normalised(variant: str = "d = 1000") -> str:
    """Return the arm of normalised descent in a variant of the theory's setting."""
    return f"{NORMALISED} at {variant}"


def played(kind: str, variant: str) -> Mapping[str, Factor]:
    """Return the factors of an arm of the theory."""
    problem = VARIANTS[variant]
    return {"play": kind, "dimension": problem.dimension, "correlation": problem.correlation,
            "together": problem.together, "latent": problem.latent}


@dataclass(frozen=True)
class Better:
    """An arm is better than another, or no worse by more than a margin: in modes, or in the log of the distance."""

    experiment: str
    arm: str
    other: str
    above: float = 0.0

    def __call__(self, records: Records) -> Verdict:
        """Judge whether the paired difference over seeds, turned so that more is better, is above `above`."""
        a, b, what = gain(records, self.experiment, self.arm, self.other)
        return greater(a, b, self.above, what=what)


@dataclass(frozen=True)
class SomeNormalisedNoWorse:
    """C3: at least one of two state-free normalised rules is no worse than Adam."""

    experiment: str
    margin: float

    def __call__(self, records: Records) -> Verdict:
        """Judge both, with Holm's p, for one of two is asked for."""
        parts = [Better(self.experiment, arm, ADAM, -self.margin)(records) for arm in (ROOT, MODEL)]
        best = max(parts, key=lambda part: part.effect if np.isfinite(part.effect) else -np.inf)
        both = at_least_k(holm_corrected(parts), 1)
        return shown_by(both, best)


def gain(records: Records, experiment: str, arm: str, other: str) -> tuple[Array, Array, str]:
    """Return what two arms reach, paired by seed, so that more is better, and what it is.

    A run of images that diverged counts with the largest distance that any run of the experiment ended at; one on
    mixtures has no modes.
    """
    mine = records.where(experiment=experiment)
    if experiment in ("ring", "lattice"):
        return *mine.pairs(arm, other, "modes"), f"modes recovered on the {experiment}, {arm} − {other}"
    ended = [row.value for row in mine.where(metric="Fréchet distance", phase="final", step=None)]
    a, b = _with_diverged(mine, arm, other, "Fréchet distance", max(filter(np.isfinite, ended), default=np.nan))
    return -np.log(a), -np.log(b), f"− log Fréchet distance on {experiment}, {arm} − {other}"


def _with_diverged(mine: Records, arm: str, other: str, metric: str, worst: float) -> tuple[Array, Array]:
    """Return a metric's pairs in which a diverged run has the worst value: it must not count as missing."""
    seeds, pair = mine.seeds(arm, other), mine.pairs(arm, other, metric)
    for name, values in zip((arm, other), pair, strict=True):
        lost = mine.where(arm=name, phase="final", status="diverged").seeds(name)
        values[np.isin(seeds, lost)] = worst
    return pair


# The theory

def _cells(records: Records, arm: str, metric: str) -> Array:
    rows = records.where(experiment="theory", arm=arm, metric=metric)
    return np.array([row.value for row in rows if row.at is not None])


def _one(records: Records, arm: str, metric: str) -> float:
    values = [row.value for row in records.where(experiment="theory", arm=arm, metric=metric)]
    return values[0] if values else np.nan


def _fresh(records: Records, arm: str, metric: str) -> dict[int, float]:
    return {row.seed: row.value for row in records.where(experiment="theory", arm=arm, metric=metric)
            if row.at is None}


def normalised_finds_both(records: Records) -> Verdict:
    """C4: at the budget step · η_D = 100, most seeds have found both modes, in every dimension."""
    parts = []
    for d in DIMENSIONS:
        found = _fresh(records, normalised(f"d = {d}"), "cells with both modes within the budget")
        parts.append(within(mean_interval(list(found.values())), low=0.5,
                            what=f"share of the pairs of rates at which nSGDA found both modes, mean over seeds, "
                                 f"d = {d}"))
    least = min(parts, key=lambda part: part.effect if np.isfinite(part.effect) else np.inf)
    return shown_by(all_of(parts), least)


def plain_collapses_when_fitted(records: Records) -> Verdict:
    """C5: when the discriminator has fitted, plain descent has not found both modes, at any rates.

    Over all rates, and at each pair at which it fitted on half of the seeds or more.
    """
    arm = plain()
    by_seed = _fresh(records, arm, "cells collapsed once D has fitted")
    shares, fitted = _cells(records, arm, "collapsed once D has fitted"), _cells(records, arm, "fitted")
    often = shares[fitted >= 0.5]
    whole = within(mean_interval(list(by_seed.values())), low=0.9,
                   what="share of the pairs of rates at which SGDA was without both modes once D had fitted, mean "
                        "over seeds")
    worst = within(float(often.min()) if len(often) else np.nan, low=0.5,
                   what=f"share of seeds without both modes then, at the least collapsed of the {len(often)} pairs "
                        "at which D fitted on most seeds")
    return shown_by(all_of([whole, worst]), whole)


def plain_never_recovers(records: Records) -> Verdict:
    """C5: plain descent stays collapsed at any rates, for ever: so at its best rates too, on fresh seeds."""
    times = np.array(list(_fresh(records, plain(), "steps to both modes").values()))
    found = wilson(int(np.isfinite(times).sum()), len(times)) if len(times) else wilson(0, 0)
    steps = _one(records, plain(), "steps played")
    return within(found, high=0.1,
                  what=f"fresh seeds on which SGDA at its best rates found both modes in {steps:g} steps")


def plain_is_slower(records: Records) -> Verdict:
    """K1: plain descent at its best rates needs three times the steps of normalised descent at its best."""
    slow, fast = (_fresh(records, arm(), "steps to both modes") for arm in (plain, normalised))
    horizon = _one(records, plain(), "steps played")
    ratios = [(slow[s] if np.isfinite(slow[s]) else horizon) / fast[s] if np.isfinite(fast[s]) else 0.0
              for s in sorted(slow.keys() & fast.keys())]
    never, never_fast = (sum(not np.isfinite(v) for v in times.values()) for times in (slow, fast))
    return within(median_interval(ratios), low=SPEED,
                  what=f"median over fresh seeds of the steps to both modes, SGDA / nSGDA, each at its best rates "
                       f"(SGDA had not found them on {never} seeds, which count with all {horizon:g} steps, nSGDA "
                       f"on {never_fast}, whose ratio counts as 0)")


def who_learns_first(records: Records) -> Verdict:
    """C6: under plain descent D fits long before G moves; under normalised descent G does not lag.

    What never came counts as if it had at the last step; seeds on which neither came are missing.
    """
    parts = []
    for kind, arm, low, high in ((PLAIN, plain(), 3.0, np.inf), (NORMALISED, normalised(), 0.0, 3.0)):
        moved, fitted = (_fresh(records, arm, f"steps until {who}") for who in ("G had moved", "D had fitted"))
        horizon = _one(records, arm, "steps played")
        both = [(moved[s], fitted[s]) for s in sorted(moved.keys() & fitted.keys())]
        ratios = [min(g, horizon) / max(min(d, horizon), 1.0) if np.isfinite([g, d]).any() else np.nan
                  for g, d in np.nan_to_num(both, nan=np.inf, posinf=np.inf)]
        parts.append(within(median_interval(ratios), low=low, high=high,
                            what=f"{kind}: steps until G had moved / until D had fitted, median"))
    return shown_by(all_of(parts), parts[0])


@dataclass(frozen=True)
class SteadierPace:
    """C6: log₁₀ of the pace ratio stays in a narrower band under normalised than under plain descent."""

    experiment: str
    arm: str
    other: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference of the bands."""
        mine = records.where(experiment=self.experiment)
        return greater(*mine.pairs(self.other, self.arm, "band of the log pace ratio"),
                       what=f"band of log₁₀ of the pace ratio on {self.experiment}, {self.other} − {self.arm}")


def classifier_is_different(records: Records) -> Verdict:
    """C8: on a classifier the rules that differ in a game are equally accurate."""
    mine = records.where(experiment="classifier")
    parts = [equivalent(*_with_diverged(mine, arm, ADAM, "accuracy", CHANCE), ACCURACY_MARGIN, unit="points",
                        what=f"test accuracy, {arm} − Adam") for arm in (SGDA, ADA, DIR)]
    worst = max(parts, key=lambda part: abs(part.effect) if np.isfinite(part.effect) else -1)
    return shown_by(all_of(parts), worst)


def length_earns(records: Records) -> Verdict:
    """K2: over the graft matrix the step's length explains more than its direction (the claim of AdaGraft)."""
    return length_earns_more(records.where(experiment="ring"), GRAFTED, "missed mass")


def length_earns_on_images(records: Records) -> Verdict:
    """K2: so it does in how much of the images' cloud is covered."""
    return length_earns_more(records.where(experiment="fashion-mnist"), GRAFTED, "coverage")


def wider_region(records: Records) -> Verdict:
    """K3: Adam's length on SGD's direction works at more learning rates than SGD itself."""
    mine = records.where(experiment="ring", metric="useful cells")
    return greater(*mine.pairs(grid_of(ADA), grid_of(SGDA), "useful cells"),
                   what="share of useful pairs of rates on the ring, Adam's length on SGD's direction − SGD")


def _family(title: str, source: str, falsified: str, tests: Sequence[tuple[str, str, Test]]) -> list[Claim]:
    return [Claim(f"{title} {name}".strip(), text, source, test, falsified, "long" if name in LONG else "desk")
            for name, text, test in tests]


PLACES = {"ring": MODES_MARGIN, "lattice": 3 * MODES_MARGIN, "digits": FRECHET_MARGIN,
          "digits with norm": FRECHET_MARGIN, "fashion-mnist": FRECHET_MARGIN}
LONG = ("fashion-mnist",)
"""Places that only the long scale measures."""
GOOD = "the interval of the paired difference lies on the other side of the margin"

CLAIMS = (
    *_family("C0", "the paper's premise", GOOD, [
        (place, f"On the {place}, Adam is better than SGD (where it is not, C1 and C3 say little)",
         Better(place, ADAM, SGDA)) for place in PLACES]),
    *_family("C1", "abstract", GOOD, [
        (place, f"On the {place}, Adam's step length on SGD's direction is no worse than Adam",
         Better(place, ADA, ADAM, -margin)) for place, margin in PLACES.items()]),
    *_family("C2", "abstract, implied", GOOD, [
        (place, f"On the {place}, SGD's length on Adam's direction is worse than Adam's length on SGD's direction",
         Better(place, ADA, DIR)) for place in PLACES]),
    *_family("C2", "abstract, implied", GOOD, [
        ("ring, whole model", "On the ring the same holds with lengths over the whole model",
         Better("ring", ADA_GLOBAL, DIR_GLOBAL))]),
    *_family("C3", "abstract", GOOD, [
        (place, f"On the {place}, normalised descent without any state (over the model, or by tensor with √n) is "
                "no worse than Adam",
         SomeNormalisedNoWorse(place, margin)) for place, margin in PLACES.items()]),
    Claim("C4", "In the two-mode theory, normalised descent finds both modes at most pairs of rates, in 300, 1,000 "
          "and 3,000 dimensions", "abstract (theorem)", normalised_finds_both,
          "both modes at fewer than half of the pairs by step · η_D = 100, in one of the dimensions"),
    Claim("C5 when D has fitted", "When the discriminator has fitted, plain descent has not found both modes, at "
          "any of 45 pairs of rates", "abstract (theorem), read as a statement about that moment",
          plain_collapses_when_fitted, "a pair of rates at which most seeds have both modes by then"),
    Claim("C5 for ever", "Plain descent never finds both modes, at any pair of rates",
          "abstract (theorem), read as it stands", plain_never_recovers, "more than a tenth of fresh seeds find "
                                                                         "both modes at the best pair"),
    Claim("C6 theory", "Under plain descent the discriminator fits long before the generator moves; under "
          "normalised descent the generator does not lag", "abstract", who_learns_first,
          "a median ratio of the steps on the other side of 3"),
    *_family("C6", "abstract", "a band under normalisation that is no narrower", [
        ("digits", "On the digits, the pace ratio stays in a narrower band under normalised descent than under SGD",
         SteadierPace("digits", MODEL, SGDA))]),
    *_family("C7", "recalled from the paper", GOOD, [
        ("ring", "On the ring, normalising each tensor to unit length is no worse than normalising the whole model",
         Better("ring", UNIT, MODEL, -MODES_MARGIN)),
        ("digits", "On the digits, normalising each tensor (by √n) is no worse than normalising the whole model",
         Better("digits", ROOT, MODEL, -FRECHET_MARGIN))]),
    Claim("C8", "On a classifier, SGD and both grafts are as accurate as Adam (within 1.5 points)",
          "abstract, context", classifier_is_different, "a difference outside the margin"),
    Claim("K1", "In the two-mode theory, plain descent needs three times the steps of normalised descent to find "
          "both modes", "ours", plain_is_slower, "a median ratio below 3"),
    Claim("K2", "On the ring, step length explains more of the differences between rules than direction",
          "arXiv 2002.11803", length_earns, "direction explains more"),
    *_family("K2", "arXiv 2002.11803", "direction explains more", [
        ("fashion-mnist",
         "On fashion-mnist, step length explains more of the differences in coverage than direction",
         length_earns_on_images)]),
    Claim("K3", "On the ring, Adam's length on SGD's direction works at more pairs of rates than SGD", "ours",
          wider_region, "SGD works at more"),
)
