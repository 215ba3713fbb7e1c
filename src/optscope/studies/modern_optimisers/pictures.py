"""The pictures of the study of modern optimisers, from its records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optscope.analyses.charts import along_axis, by_arm
from optscope.evidence.picture import Figure, Heatmap, Panel, Picture, Series
from optscope.evidence.records import Metric, Records
from optscope.evidence.stats import mean_interval
from optscope.probes.anatomy import PARTS
from optscope.protocol.study import Arrays
from optscope.studies.modern_optimisers.claims import (
    AT_EDGE,
    ATTACK,
    EDGE,
    EPOCHS,
    LENGTH_OF_ADAMW,
    LENGTH_OF_SOAP,
    RADII,
    followed,
    rare,
    ratios,
    shares_of_steps,
)

ARMS = ("SGD", "Adam", "AdamW", "Muon", "SOAP", "Lion", "Schedule-free")
CLEAN = Metric("accuracy", "%")
L2 = Metric(ATTACK, "%", axis="l2 radius")
LINF = Metric("accuracy under linf attack", "%", axis="linf radius")
BANDS = Metric("drop under band noise", "points", axis="band, low to high frequency")
MEAN = "Mean over seeds with 95 % t intervals."


def pictures(records: Records, arrays: Arrays) -> list[Figure]:
    """Return all pictures for which there are records."""
    found: list[Figure] = []
    for data in RADII:
        mine = records.where(experiment=data)
        if mine.where(phase="final", step=None):
            found += [_robust(mine, data), _bands(mine, data)]
    if any(records.where(experiment=data, metric="stable rank") for data in (*RADII, "shakespeare")):
        found.append(_ranks(records))
    found += [_anatomy(records.where(experiment=data), data) for data in (*RADII, "shakespeare")
              if records.where(experiment=data, metric="explained by sign")]
    if records.where(experiment="cued", phase="final"):
        found.append(_cued(records.where(experiment="cued")))
    if records.where(experiment="edge", metric="sharpness / threshold"):
        found.append(_edge(records))
    text = records.where(experiment="shakespeare")
    if text.where(phase="final"):
        found += [_losses(text), _grafts(text)]
    if any(records.where(experiment=rare(epochs), phase="final") for epochs in EPOCHS):
        found.append(_rare(records))
    return found


def _arms(records: Records, wanted: Sequence[str] = ARMS) -> list[str]:
    there = records.where(phase="final").arms()
    return [arm for arm in wanted if arm in there]


def _mean(records: Records, arm: str, metric: str, at: float | None = None) -> float:
    return mean_interval(records.values(arm, metric, at)).estimate


def _robust(records: Records, data: str) -> Picture:
    arms, radius = _arms(records), RADII[data]
    ranked = sorted(arms, key=lambda arm: -_mean(records, arm, ATTACK, radius))
    said = ", ".join(f"{arm} {_mean(records, arm, ATTACK, radius):.0f}" for arm in ranked)
    clean = by_arm(records, [(CLEAN, None, "clean"), (L2, radius, f"l2 attack\nof {radius:g}")], arms,
                   "test accuracy [%]")
    return Picture(f"robust-{data}", f"{data}: under l2 attack of {radius:g} {said} %",
                   [clean, along_axis(records, L2, arms), along_axis(records, LINF, arms)],
                   f"{MEAN} What no attack of the ensemble fools may still be foolable: upper bounds.")


def _bands(records: Records, data: str) -> Picture:
    def total(arm: str) -> float:
        return sum(_mean(records, arm, BANDS.name, band) for band in range(1, 10))
    arms = _arms(records)
    said = ", ".join(f"{arm} {round(total(arm))}" for arm in sorted(arms, key=total)).replace(" -", " −")
    return Picture(f"bands-{data}", f"{data}: accuracy lost to noise in bands 1 to 9, summed: {said} points",
                   [along_axis(records, BANDS, arms)],
                   f"Each band holds a tenth of the DCT coefficients; band 0 is the lowest. {MEAN}")


def _ranks(records: Records) -> Picture:
    panels = []
    for data in (*RADII, "shakespeare"):
        mine = records.where(experiment=data)
        if mine.where(metric="stable rank"):
            places = [(Metric("stable rank", "%"), None, "stable rank"),
                      (Metric("effective rank", "%"), None, "effective rank")]
            panels.append(by_arm(mine, places, _arms(mine), "share of the full rank [%]", data))
    return Picture("ranks", "How many directions the trained weights use", panels,
                   "Σσ²/max σ², and the exponential of the entropy of σ/Σσ, means over matrices and kernels. "
                   + MEAN)


def _anatomy(records: Records, data: str) -> Heatmap:
    """Return what explains the last steps: the last reading of every run, mean over seeds."""
    arms = _arms(records, (*ARMS, LENGTH_OF_ADAMW, LENGTH_OF_SOAP))
    names = [*(f"explained by {part}" for part in PARTS), "explained by all four", "step effective rank"]

    def last(arm: str, metric: str) -> float:
        rows = [row for row in records.where(arm=arm, metric=metric, phase="final") if row.step is not None]
        end = max((row.step or 0 for row in rows), default=0)
        return float(np.nanmean([row.value for row in rows if row.step == end])) if rows else np.nan
    values = np.array([[last(arm, name) for name in names] for arm in arms])
    return Heatmap(f"anatomy-{data}", f"{data}: what the last step is made of", arms,
                   [*PARTS, "all four", "effective rank"], values, "%",
                   "Share of the step squared along the gradient, its signs, its whitening (polar factor) and a "
                   "step without gradient (momentum and decay); shares overlap. The step's effective rank is in "
                   "percent of the full one. Mean over seeds of the last reading; at the end of a cosine the rate "
                   "is next to 0, which changes the length alone.")


def _cued(records: Records) -> Picture:
    arms = _arms(records)
    ranked = sorted(arms, key=lambda arm: -_mean(records, arm, "accuracy"))
    said = ", ".join(f"{arm} {_mean(records, arm, 'accuracy'):.0f}" for arm in ranked)
    return Picture("cued", f"Where a cue misleads, models are still right about {said} % of the images",
                   [by_arm(records, [(CLEAN, None, "misleading cue")], arms, "test accuracy [%]")],
                   "A bright square tells the class in training, and another class in the test: accuracy is the "
                   f"share of images whose content is believed. {MEAN}")


def _edge(records: Records) -> Picture:
    panels, ends = [], []
    for norm, rates in EDGE.items():
        series = []
        for rate in rates:
            rows = followed(records, norm, rate)
            steps = sorted({row.step or 0 for row in rows})
            means = [mean_interval([row.value for row in rows if row.step == step]) for step in steps]
            series.append(Series.over(f"lr {rate:g}", steps, means, seeds=sorted({row.seed for row in rows})))
        panels.append(Panel("step", "sharpness / threshold", series, f"{norm} norm", log_y=True,
                            levels={"edge": 1.0}))
        found = [float(np.mean(ratios(records, norm, rate))) for rate in rates if len(ratios(records, norm, rate))]
        if found:
            ends.append(f"{norm} {min(found):.2g} to {max(found):.2g}")
    return Picture("edge", f"Sharpness over threshold at the end, in the rule's own norm: {', '.join(ends)}",
                   panels,
                   f"Steepest descent on all 800 examples; {AT_EDGE[0]:g} to {AT_EDGE[1]:g} counts as at the edge. "
                   f"In the l-infinity and the spectral norm it is a lower bound, by search. {MEAN}")


def _losses(records: Records) -> Picture:
    series = []
    for arm in _arms(records):
        rows = [row for row in records.where(arm=arm, metric="loss", phase="final") if row.step is not None]
        steps = sorted({row.step or 0 for row in rows})
        means = [mean_interval([row.value for row in rows if row.step == step]) for step in steps]
        series.append(Series.over(arm, steps, means, seeds=sorted({row.seed for row in rows})))
    shares = ", ".join(f"{arm} {100 * float(np.mean(found)):.0f} %" for arm in _arms(records)
                       if arm != "AdamW" and len(found := shares_of_steps(records, arm)) and np.max(found) <= 1)
    return Picture("losses", f"AdamW's last loss is reached after this share of the steps: {shares or 'never'}",
                   [Panel("step", "validation loss [nats a character]", series, "shakespeare")],
                   f"Arms that reach it on every seed, at the first of {len(series[0].x)} moments. {MEAN}")


def _grafts(records: Records) -> Picture:
    arms = _arms(records, ("AdamW", LENGTH_OF_ADAMW, LENGTH_OF_SOAP, "SOAP"))
    said = ", ".join(f"{arm} {_mean(records, arm, 'loss'):.3f}" for arm in arms)
    return Picture("grafts", f"Test loss on shakespeare: {said}",
                   [by_arm(records, [(Metric("loss"), None, "test loss")], arms, "loss [nats a character]")],
                   f"A graft goes where one rule would, as far in each layer as the other. {MEAN}")


def _rare(records: Records) -> Picture:
    found = [records.where(experiment=rare(epochs)) for epochs in EPOCHS]
    arms = _arms(found[0]) or _arms(found[-1])
    series = []
    for arm in arms:
        means = [mean_interval(mine.values(arm, "accuracy")) for mine in found]
        seeds = sorted({seed for mine in found for seed in mine.seeds(arm)})
        series.append(Series.over(arm, list(range(len(EPOCHS))), means, "points", seeds=seeds))
    leads = ", ".join(f"{_mean(mine, 'AdamW', 'accuracy') - _mean(mine, 'SGD', 'accuracy'):+.0f} after {epochs}"
                      for mine, epochs in zip(found, EPOCHS, strict=True)).replace("-", "−")
    return Picture("rare", f"The three rarest digits: AdamW leads SGD by {leads} epochs (points)",
                   [Panel("", "accuracy on the three rarest classes [%]", series,
                          categories=[f"{epochs} epochs" for epochs in EPOCHS])],
                   f"The rarest class has a twentieth of the commonest one's examples. {MEAN}")
