"""The pictures of the GAN study, from its records and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from optscope.analyses.grafts import graft_matrix
from optscope.evidence.picture import Figure, Heatmap, ImageGrid, Panel, Picture, Series
from optscope.evidence.records import Metric, Records
from optscope.evidence.stats import mean_interval, median_interval
from optscope.protocol.study import Arrays
from optscope.studies.gan_grafting.calculations import MOMENTS
from optscope.studies.gan_grafting.claims import (
    ADA,
    ADAM,
    DIR,
    GRAFTED,
    MODEL,
    NORMALISED,
    PLAIN,
    ROOT,
    SGDA,
    VARIANTS,
    normalised,
    plain,
    played,
)
from optscope.tasks.mixtures import Lattice, Mixture, Ring
from optscope.theory.gan_modes import OUTCOMES

MISSED = Metric("missed mass", "", "lower")
MODES = Metric("modes", "", "higher")
FRECHET, COVERAGE = Metric("Fréchet distance", "", "lower"), Metric("coverage", "", "higher")
MODE_WORDS = ("both", "single", "average", "noise", "other")
MIXTURES: dict[str, Mixture] = {"ring": Ring(), "lattice": Lattice()}
IMAGES = ("digits", "digits with norm", "fashion-mnist", "fashion-mnist, WGAN-GP", "cifar10, DCGAN", "cifar10",
          "stl10")
SHOWN = (SGDA, ADAM, ADA, DIR, ROOT, MODEL)
OF_FAMILY = {"C0": ("modes", "scores"), "C1": ("modes", "samples", "scores", "gallery"), "C2": ("grafts",),
             "C3": ("modes", "scores"), "C4": ("phases-nsgda", "dimensions"), "C5": ("phases-sgda", "dimensions"),
             "C6": ("race",), "K1": ("phases-sgda-at-the-end", "dimensions"), "K2": ("grafts",)}
"""How the names of the pictures begin that show a family of claims."""


def pictures(records: Records, arrays: Arrays) -> list[Figure]:
    """Return all pictures for which there are records."""
    found: list[Figure] = []
    if {f"theory/{arm()}/cells" for arm in (plain, normalised)} <= arrays.keys():
        found += [*_phases(arrays), _race(arrays)]
    if records.where(experiment="theory", arm=plain("d = 300"), metric="steps to both modes"):
        found.append(_dimensions(records))
    for name, data in MIXTURES.items():
        mine = records.where(experiment=name, metric=("modes", "high quality", "missed mass", "KL to uniform"))
        if mine:
            found += [_recovered(mine, name, len(data.means)), *_clouds(arrays, mine, name, data)]
    ring = records.where(experiment="ring")
    if ring:
        found += [graft_matrix(ring, GRAFTED, MISSED), graft_matrix(ring, GRAFTED, MODES)]
    fashion = records.where(experiment="fashion-mnist", phase="final")
    if set(GRAFTED) <= set(fashion.arms()):
        found += [replace(graft_matrix(fashion, GRAFTED, metric), name=f"grafts-fashion-{name}")
                  for name, metric in (("frechet", FRECHET), ("coverage", COVERAGE))]
    for name in IMAGES:
        mine = records.where(experiment=name, phase="final")
        if mine:
            scored = any(np.isfinite(row.value) for row in mine.where(metric="Fréchet distance", step=None))
            found += [_images(mine, name)] if scored else []
            found += _gallery(arrays, name, mine.arms())
    return found


def _phases(arrays: Arrays) -> list[Figure]:
    """Return the outcomes over both rates, when the discriminator has fitted and at the end."""
    found: list[Figure] = []
    for kind, arm, moment, title in (
            (PLAIN, plain(), 0, "SGDA when its discriminator has just fitted"),
            (PLAIN, plain(), 2, "SGDA at the end"),
            (NORMALISED, normalised(), 1, "nSGDA at step · η_D = 100")):
        cells = np.asarray(arrays[f"theory/{arm}/cells"], dtype=np.float64)
        shares = np.asarray(arrays[f"theory/{arm}/outcomes"], dtype=np.float64)[moment]
        rates, ratios = np.unique(cells[:, 0]), np.unique(np.round(cells[:, 1] / cells[:, 0], 6))
        values = np.full((len(rates), len(ratios)), np.nan)
        notes = [[""] * len(ratios) for _ in rates]
        for i, (d, g) in enumerate(cells):
            r, c = int(np.searchsorted(rates, d)), int(np.argmin(np.abs(ratios - g / d)))
            values[r, c] = 100 * shares[0, i]
            notes[r][c] = MODE_WORDS[int(shares[:, i].argmax())] if shares[:, i].sum() else "not reached"
        title += f": most seeds show both modes at {int((shares[0] > 0.5).sum())} of {len(cells)} pairs of rates"
        found.append(Heatmap(
            f"phases-{kind}-{MOMENTS[moment].replace(' ', '-')}".lower(), title,
            [f"η_D = {d:g}" for d in rates], [f"η_G/η_D = {r:g}" for r in ratios], values, "seeds with both modes "
                                                                                           "[%]",
            f"Two-mode theory, {next(iter(VARIANTS))}. The number is the share of seeds whose generator shows "
            f"both modes; the word is the commonest of {', '.join(OUTCOMES)}.", notes))
    return found


def _race(arrays: Arrays) -> Picture:
    """Return who learns when: doubt of the discriminator, way of the generator, both modes, pace."""
    names = (("doubt", "E[1 − D(X)] on real data", True), ("moved", "way of the generator, ‖V − V₀‖/‖V₀‖", True),
             ("both", "fresh seeds with both modes", False), ("pace", "log₁₀ of the pace ratio", False))
    panels = []
    for key, label, log in names:
        series = []
        for kind, arm in ((PLAIN, plain()), (NORMALISED, normalised())):
            x, y = (np.asarray(arrays[f"theory/{arm}/{what}"], dtype=np.float64) for what in ("steps", key))
            series.append(Series(kind, x.tolist(), y.tolist()))
        panels.append(Panel("step", label, series, log_x=True, log_y=log))
    return Picture("race", "Who learns first: the discriminator's doubt, the generator's way, both modes", panels,
                   "Two-mode theory, d = 1000, each rule at its best pair of rates; medians over fresh seeds.")


def _dimensions(records: Records) -> Picture:
    """Return the steps to both modes over the dimension."""
    series, said = [], []
    usual = {name: level for name, level in played(PLAIN, next(iter(VARIANTS))).items()
             if name not in ("play", "dimension")}
    mine = records.where(experiment="theory", metric="steps to both modes", **usual)
    for kind in (PLAIN, NORMALISED):
        points = []
        for dimension in mine.levels("dimension"):
            rows = mine.where(play=kind, dimension=dimension)
            times = median_interval([r.value if np.isfinite(r.value) else np.inf for r in rows])
            points.append((dimension, times))
        medians = [f"{t.estimate:.0f}" if np.isfinite(t.estimate) else "never" for _, t in points]
        said.append(f"{kind} {', '.join(medians)}")
        series.append(Series.over(kind, [x for x, _ in points], [t for _, t in points],
                                  seeds=mine.where(play=kind).levels("seed")))
    return Picture("dimensions", f"Steps to both modes as the dimension grows: {'; '.join(said)}",
                   [Panel("dimension d", "steps to both modes, median over fresh seeds", series, log_x=True,
                          log_y=True)],
                   "Each rule at its best pair of rates in that dimension; bands are order-statistic intervals; a "
                   "seed that never found both counts as later than all others. The play is exact in every "
                   "dimension.")


def _panel(records: Records, arms: Sequence[str], metric: str, label: str, level: dict[str, float] | None = None,
           log: bool = False) -> Panel:
    found = [records.values(arm, metric) for arm in arms]
    ends = [mean_interval(np.log(values) if log else values) for values in found]
    means, lows, highs = ([float(np.exp(end) if log else end) for end in each]
                          for each in zip(*((f.estimate, f.low, f.high) for f in ends), strict=True))
    return Panel("", label, [Series(metric, list(range(len(arms))), means, lows, highs, "points",
                                    [f.n for f in ends], seeds=records.seeds(*arms))],
                 categories=[arm.replace(" (whole model)", " (model)") for arm in arms], levels=level or {},
                 log_y=log)


def _recovered(records: Records, name: str, modes: int) -> Picture:
    arms = records.arms()
    best = max(arms, key=lambda arm: np.nan_to_num(mean_interval(records.values(arm, "modes")).estimate))
    most = mean_interval(records.values(best, "modes")).estimate
    return Picture(f"modes-{name}", f"The {name} of {modes} Gaussians: most modes, {most:.1f}, by {best}",
                   [_panel(records, arms, "modes", f"modes recovered, of {modes}", {"all": float(modes)}),
                    _panel(records, arms, "high quality", "share of samples of high quality")],
                   "Fresh seeds at the pair of rates that each rule was tuned to with the same number of trials; "
                   "means with 95 % t intervals.")


def _clouds(arrays: Arrays, records: Records, name: str, data: Mixture) -> list[Figure]:
    x, y = data.means.T.tolist()
    panels = []
    for arm in [arm for arm in SHOWN if f"{name}/{arm}/samples" in arrays]:
        points = np.asarray(arrays[f"{name}/{arm}/samples"], dtype=np.float64)
        points = points[np.isfinite(points).all(1)]
        counts = records.by_seed(arm, "modes")
        modes = counts[min(counts)] if counts else np.nan
        series = [Series("samples", points[:, 0].tolist(), points[:, 1].tolist(), mark="points"),
                  Series("modes of the data", x, y, mark="points")]
        panels.append(Panel("", "", series, f"{arm}: {modes:.0f} of {len(x)}"))
    return [Picture(f"samples-{name}", f"What generators make of the {name}, and how many modes they recover",
                    panels, "Samples of the first fresh seed of each rule.")] if panels else []


def _images(records: Records, name: str) -> Picture:
    arms = records.arms()
    floor = float(np.nanmedian([row.value for row in records.where(metric="Fréchet floor")]))
    distances = {arm: records.values(arm, "Fréchet distance") for arm in arms}
    medians = {arm: float(np.nanmedian(values)) for arm, values in distances.items() if np.isfinite(values).any()}
    best = min(medians, key=medians.__getitem__)
    classes = [row.value for row in records.where(metric="classes")]
    collapsed = f"; {sum(n <= 3 for n in classes)} of {len(classes)} runs collapsed on three classes or fewer"
    panels = [_panel(records, arms, "Fréchet distance", "Fréchet distance", {"floor": floor}, log=True),
              _panel(records, arms, "coverage", "coverage")]
    if classes:
        panels.append(_panel(records, arms, "classes", "classes found, of 10"))
    return Picture(f"scores-{name}", f"{name}: lowest median Fréchet distance by {best} ({medians[best]:.1f}; "
                                     f"floor {floor:.1f}){collapsed if classes else ''}", panels,
                   "Fresh seeds at tuned rates; means (of distances, geometric ones) with 95 % t intervals. "
                   "Distances near the floor mean nothing.")


def _gallery(arrays: Arrays, name: str, arms: Sequence[str]) -> list[Figure]:
    """Return samples over time, a row for a rule and a moment, always from the same latent vectors."""
    rows, images = [], []
    for arm in arms:
        prefix = f"{name}/{arm}/samples at "
        steps = sorted(int(key.removeprefix(prefix)) for key in arrays if key.startswith(prefix))
        ends = list(dict.fromkeys([*steps[:1], *steps[-1:]]))
        for step in ends:
            rows.append(arm if step == ends[0] else "")
            batch = np.asarray(arrays[f"{prefix}{step}"], dtype=np.float64)
            images.append([image[0] if len(image) == 1 else image.transpose(1, 2, 0) for image in batch])
    if not rows:
        return []
    rounds = " and, in the row below, ".join(f"after {step} rounds" for step in ends)
    return [ImageGrid(f"gallery-{name}", f"{name}: what is generated {rounds}", rows, [""] * len(images[0]), images,
                      "First seed of each rule, the same latent vectors in all rows.")]
