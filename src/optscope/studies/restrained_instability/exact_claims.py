"""Tests of what the paper says of equations: K4 to K8; every margin is fixed here, before any run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.claims import Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import wilson
from optscope.evidence.verdicts import all_of, close, within
from optscope.studies.restrained_instability.exact import CHAOTIC, PARTED, RATES, WINDOW_DECAYS

Array = NDArray[np.float64]

RATE_TOLERANCE = 0.3
"""Relative difference between growth rate and Lyapunov exponent (K7)."""
SETTLED, MOVING = 1e-9, 1e-2
"""Ranges of the last hundred losses of a run that has converged, and of one that goes on oscillating (K6)."""


# K4, K5

def _one(records: Records, experiment: str, arm: str, metric: str, at: float | None = None, seed: int = 0) -> float:
    return records.where(experiment=experiment).by_seed(arm, metric, at).get(seed, math.nan)


def heat_limit(records: Records) -> Verdict:
    """Judge the step limit and the growth beyond it."""
    def pair(metric: str, tolerance: float) -> Verdict:
        return close(_one(records, "heat", "heat", f"measured {metric}"),
                     _one(records, "heat", "heat", f"predicted {metric}"), tolerance, metric)
    return all_of([pair("step limit", 1e-6), pair("factor a step", 1e-6)])


def feedback_finds_the_edge(records: Records) -> Verdict:
    """Judge the diffusivity that the equation with feedback settles at."""
    return all_of([close(_one(records, "heat", "feedback", "diffusivity at the end", dt),
                         _one(records, "heat", "feedback", "2/(dt λ)", dt), 1e-3, f"diffusivity at dt {dt:g}")
                   for dt in (0.51, 0.6, 0.8)])


def window_of_the_paper(records: Records) -> Verdict:
    """Judge seven growth factors and both ends of the window on the paper's checkerboard."""
    factors = [close(_one(records, "window", "checkerboard", "measured factor a step", decay),
                     _one(records, "window", "checkerboard", "predicted factor a step", decay), 1e-6,
                     f"factor at decay {decay:.2g}") for decay in WINDOW_DECAYS]
    ends = [close(_one(records, "window", "checkerboard", f"measured {end} end") / value, 1.0, 0.01,
                  f"{end} end over {value:.4g}") for end, value in (("lower", 1.296e7), ("upper", 2.0e8))]
    return all_of(factors + ends)


def window_of_images(records: Records) -> Verdict:
    """Judge both ends of the window on other images against the patch Gram matrix."""
    arms = [arm for arm in records.where(experiment="window").arms() if arm not in ("", "checkerboard")]
    return all_of([close(_one(records, "window", arm, f"measured {end} end")
                         / _one(records, "window", arm, f"predicted {end} end"), 1.0, 0.01, f"{arm}, {end} end")
                   for arm in arms for end in ("lower", "upper")])


def fourier_is_no_bound(records: Records) -> Verdict:
    """Judge the lower end as computed from the Fourier transform of the whole image."""
    return close(_one(records, "window", "checkerboard", "lower end by the Fourier transform of the image")
                 / _one(records, "window", "checkerboard", "measured lower end"), 1.0, 0.01,
                 "Fourier bound / measured lower end")


# K6, K7, K8

def _layer(records: Records, metric: str, lr: float) -> Array:
    return records.where(experiment="one layer", metric=metric).values("checkerboard", metric, lr)


def _others(records: Records, place: str) -> list[tuple[str, Records]]:
    """Return the other images with what was found on one side of their limits, or between them."""
    growth = "log10 of final |K| / initial"
    found = [row.arm for row in records.where(experiment="one layer", metric=growth) if row.arm != "checkerboard"]
    return [(arm, records.where(experiment="one layer", arm=arm, place=place)) for arm in dict.fromkeys(found)]


def _extremes(values: Array, what: str, low: float = -math.inf, high: float = math.inf) -> Verdict:
    """Judge whether all of the values lie within bounds, from the worst of them."""
    if not len(values) or np.isnan(values).any():
        return within(math.nan, low, high, what)
    worst = float(values.max() if high < math.inf else values.min())
    return replace(within(worst, low, high, f"{what}, worst of {len(values)}"), n=len(values))


def reductions_agree(records: Records) -> Verdict:
    """Judge the full convolution against the reduced network and the scalar map."""
    found = {lr: _one(records, "one layer", "map", "largest difference of full and reduced", lr) for lr in RATES}
    return all_of([close(found[lr], 0.0, 1e-12, f"largest difference at lr {lr:g}") for lr in (0.03, 0.07)])


def three_regimes(records: Records) -> Verdict:
    """Judge losses at the paper's seven learning rates: converged, restrained, diverged."""
    parts = [_extremes(_layer(records, "range of the late loss", lr), f"range of the late loss at lr {lr:g}",
                       high=SETTLED) for lr in RATES[:2]]
    parts += [_extremes(_layer(records, "range of the late loss", lr), f"range of the late loss at lr {lr:g}",
                        low=MOVING) for lr in RATES[2:5]]
    parts += [_extremes(_layer(records, "log10 of final |K| / initial", lr), f"log10 of growth at lr {lr:g}",
                        high=0.0) for lr in RATES[2:5]]
    parts += [_extremes(_layer(records, "log10 of final |K| / initial", lr), f"log10 of growth at lr {lr:g}",
                        low=10.0) for lr in RATES[5:]]
    return all_of(parts)


def limits_of_the_regimes(records: Records) -> Verdict:
    """Judge where the regimes meet on the checkerboard."""
    return all_of([close(_one(records, "one layer", "map", "classical limit"), 0.03226, 1e-5,
                         "classical limit"),
                   close(_one(records, "one layer", "map", "limit of boundedness"), 0.1, 1e-12, "2/α")])


def regimes_of_images(records: Records) -> Verdict:
    """Judge the three regimes of other images around their own two limits."""
    def all_values(place: str, metric: str) -> Array:
        return np.concatenate([mine.values(arm, metric) for arm, mine in _others(records, place)] or [np.empty(0)])

    return all_of([
        _extremes(all_values("below", "range of the late loss"), "range of the late loss below", high=SETTLED),
        _extremes(all_values("between", "range of the late loss"), "range of the late loss between", low=MOVING),
        _extremes(all_values("between", "log10 of final |K| / initial"), "log10 of growth between", high=1.0),
        _extremes(all_values("above", "log10 of final |K| / initial"), "log10 of growth above", low=10.0)])


def rounding_in_the_one_layer_net(records: Records) -> Verdict:
    """Judge distances at the paper's five learning rates: rounding level, or amplified."""
    parts = []
    for name, quiet in (("float64", 1e-11), ("float32", 1e-2)):
        mine = records.where(experiment="one layer", metric="largest distance", precision=name)
        parts += [_extremes(mine.values("checkerboard", "largest distance", lr),
                            f"{name}, largest distance at lr {lr:g}", high=quiet) for lr in RATES[:2]]
        parts += [_extremes(mine.values("checkerboard", "largest distance", lr),
                            f"{name}, largest distance at lr {lr:g}", low=PARTED) for lr in RATES[2:5]]
    return all_of(parts)


def growth_is_the_exponent(records: Records) -> Verdict:
    """Judge the median growth rate of the distance against the median Lyapunov exponent of the map."""
    parts = []
    for lr in CHAOTIC:
        rates, exponents = (_layer(records, metric, lr) for metric in ("growth rate of the distance",
                                                                       "Lyapunov exponent"))
        ratio = float(np.nanmedian(rates) / np.nanmedian(exponents)) if np.isfinite(rates).any() else math.nan
        parts.append(within(ratio, 1 - RATE_TOLERANCE, 1 + RATE_TOLERANCE, f"growth rate / exponent at lr {lr:g}"))
    return all_of(parts)


def amplified_where_chaotic(records: Records) -> Verdict:
    """Judge whether late distances are large exactly where the exponent is positive, on all images.

    Beyond the classical limit, in float64, every run counts; 1e-6 divides large from small.
    """
    late = records.where(experiment="one layer", arm="checkerboard", metric="late distance", precision="float64")
    pairs = [(_layer(records, "Lyapunov exponent", lr), late.values("checkerboard", "late distance", lr))
             for lr in (0.04, 0.05, 0.06, 0.07, 0.09, 0.099)]
    pairs += [(mine.values(arm, "Lyapunov exponent"), mine.values(arm, "late distance"))
              for arm, mine in _others(records, "between")]
    exponents, apart = (np.concatenate([pair[i] for pair in pairs]) if pairs else np.empty(0) for i in (0, 1))
    agree = int(((exponents > 0) == (apart > 1e-6)).sum())
    calm = int((exponents <= 0).sum())
    verdict = within(wilson(agree, len(exponents)), low=0.95, what="runs with a large distance exactly if their "
                     "exponent is positive")
    return replace(verdict, note=f"{verdict.note} Of {len(exponents)} runs beyond the classical limit, {calm} have "
                                 "no positive exponent: they oscillate, and rounding errors die out.")


def printed_constant(records: Records) -> Verdict:
    """Judge the constant of the activated region as printed in table 3."""
    return close(_one(records, "one layer", "activated", "constant"), 1 / 8, 1e-6, "constant of the region")


def corrected_constant(records: Records) -> Verdict:
    """Judge the constant that follows from s(u) = 1/2 + u/4."""
    return close(_one(records, "one layer", "activated", "constant"), 1 / 4, 1e-6, "constant of the region")


def thrown_back(records: Records) -> Verdict:
    """Judge how restrained runs move: unstable at small activations, and never there for long."""
    parts = []
    for lr in CHAOTIC[:3]:
        def read(metric: str, lr: float = lr) -> float:
            return _one(records, "one layer", "map", metric, lr)
        parts += [within(read("share of unstable steps"), 0.05, 0.95, f"share of unstable steps at lr {lr:g}"),
                  within(read("longest unstable stay"), high=50, what=f"longest stay at lr {lr:g}", unit="steps"),
                  within(read("median |z| where stable") - read("median |z| where unstable"), low=0.0,
                         what=f"median |z|, stable − unstable, at lr {lr:g}")]
    return all_of(parts)
