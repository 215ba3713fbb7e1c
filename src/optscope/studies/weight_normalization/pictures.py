"""The pictures of the weight-normalisation study, from its records and arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optscope.analyses.charts import along_axis, by_arm
from optscope.evidence.picture import Figure, Heatmap, ImageGrid, Panel, Picture, Series
from optscope.evidence.records import Metric, Records
from optscope.evidence.stats import Interval, median_interval, paired_difference
from optscope.protocol.study import Arrays
from optscope.studies.weight_normalization.judging import DEPTHS
from optscope.studies.weight_normalization.judging_ours import ARMS

Array = NDArray[np.float64]

FLOOR = 1e-11
"""An excess below this is rounding: the limit is the linear programme's solution."""
METHODS = ("basis pursuit", "polar limit", "plain limit", "lasso", "least l2 norm")


def pictures(records: Records, arrays: Arrays) -> list[Figure]:
    """Return all pictures for which there are records."""
    found: list[Figure] = []
    if records.where(experiment="limits"):
        found += [_excess(records.where(experiment="limits")),
                  _collapse(records.where(experiment=("limits", "descents")))]
    found += [_phase(arrays, depth) for depth in (2, 3) if f"phase/L={depth}" in arrays]
    if "descents/L=2/target" in arrays:
        found += [_coefficients(arrays), _convergence(arrays)]
    if records.where(experiment="cells"):
        found += _cells(records.where(experiment="cells"))
    if records.where(experiment="table"):
        found += [_table(records.where(experiment="table"), depth) for depth in (2, 3)]
    if records.where(experiment="speed"):
        found.append(_speed(records.where(experiment="speed")))
    if records.where(experiment="network", phase="final"):
        found.append(_network(records.where(experiment="network", phase="final")))
    if "photographs/original" in arrays:
        found.append(_patches(arrays))
    if records.where(experiment="photographs"):
        found.append(_methods(records))
    return found


def _medians(records: Records, arm: str, metric: str, places: Sequence[float]) -> list[Interval]:
    return [median_interval(records.values(arm, metric, at)) for at in places]


def _excess(records: Records) -> Picture:
    panels = []
    for depth in DEPTHS:
        arms = {"plain flow": "plain", "polar, κ = 1": "κ=1", "polar, κ = 10": "κ=10", "polar, κ = 30": "κ=30",
                "polar, κ = 1/r0² (torch)": "torch"}
        series = []
        for label, arm in arms.items():
            mine = records.where(arm=arm, depth=depth)
            alphas = mine.axis("excess")
            found = _medians(mine, arm, "excess", alphas)
            series.append(Series(label, alphas, [max(f.estimate, FLOOR) for f in found],
                                 [max(f.low, FLOOR) for f in found], [max(f.high, FLOOR) for f in found],
                                 n=[f.n for f in found], seeds=mine.seeds(arm)))
        panels.append(Panel("start α", "excess (‖x‖₁ − Q)/Q", series, f"depth L = {depth}", log_x=True, log_y=True,
                            levels={"linear programme": FLOOR}))
    flat = records.where(depth=2)
    plain, polar = (float(np.median(flat.values(arm, "excess", 1e-3))) for arm in ("plain", "κ=30"))
    return Picture("excess", f"Depth 2, start 10⁻³: plain flow ends {plain:.0%} above the least l1 norm, polar "
                   f"flow with κ = 30 {100 * polar:.1g} %", panels,
                   "Exact limits, median over instances with its 95 % interval; κ is the rate of the direction "
                   "over that of the norm. The dotted line is the solution of the linear programme, to rounding. "
                   "Near the right edge the start is as large as the solution, and no ratio helps; near the left, "
                   "κ = 1 does harm.")


def _collapse(records: Records) -> Picture:
    panels = []
    for depth in DEPTHS:
        exact, run = (records.where(experiment=name, depth=depth) for name in ("limits", "descents"))
        first = exact.seeds("plain")[0]
        plain = exact.where(arm="plain", metric="excess", seed=first)
        series = [Series("plain flow", [row.at or 0 for row in plain], [row.value for row in plain])]
        sources = [(f"polar, κ = {k}", exact, f"κ={k}", "excess") for k in (1, 10, 30)]
        for label, source, arm, metric in (*sources, ("polar descent", run, "polar", "excess")):
            mine = source.where(arm=arm, seed=first)
            excess = {row.at: row.value for row in mine.where(metric=metric)}
            start = {row.at: row.value for row in mine.where(metric="log10 effective start")}
            shown = [(10 ** start[at], value) for at, value in excess.items() if value > 1e-9 and start[at] > -12]
            series.append(Series(label, [x for x, _ in shown], [y for _, y in shown], mark="points"))
        panels.append(Panel("effective start ρα (plain: α)", "excess (‖x‖₁ − Q)/Q", series, f"depth L = {depth}",
                            log_x=True, log_y=True))
    return Picture("collapse", "Magnification explains polar flow: at its effective start ρα it ends where plain "
                   "flow does",
                   panels, "One instance. Each point is a polar flow (exact limit) or descent from some start α, "
                   "drawn at ρα with ρ = (r/r0)^L exp(−κL(r² − r0²)/2) from its own norms; the line is plain flow. "
                   "Descents that stopped before zero loss can lie off the line.")


def _phase(arrays: Arrays, depth: int) -> Heatmap:
    values, shares, strengths = (np.asarray(arrays[f"phase/{key}"], dtype=np.float64)
                                 for key in (f"L={depth}", "shares", "strengths"))
    return Heatmap(f"phase-{depth}", f"Depth {depth}: polar flow gains below the threshold when the norm is slow, "
                   "and loses when it is fast and the start small", [f"κ r∞² = {k:g}" for k in strengths],
                   [f"{s:.2g}" for s in shares], values, "log10 of polar over plain excess",
                   "Columns: r0²/r∞², the squared norm at the start over that of x* (1 is the threshold). "
                   "Negative: polar flow ends nearer the least l1 norm. Exact limits, median over ten instances; "
                   "excesses below 10⁻¹⁰ count as 10⁻¹⁰.")


def _coefficients(arrays: Arrays) -> Picture:
    target = np.asarray(arrays["descents/L=2/target"], dtype=np.float64)
    index = list(range(len(target)))
    panels = []
    for column, share in ((0, 0.02), (1, 0.2), (2, 0.6)):
        plain, polar = (np.asarray(arrays[f"descents/L=2/{name}/x"], dtype=np.float64)[:, column].tolist()
                        for name in ("plain", "polar"))
        series = [Series("x*", np.flatnonzero(target).tolist(), target[target != 0].tolist(), mark="bars"),
                  Series("plain descent", index, plain, mark="points"),
                  Series("polar descent", index, polar, mark="points")]
        panels.append(Panel("coefficient", "value", series, f"start at {share:g} of the threshold"))
    return Picture("coefficients", "From the same start, polar descent finds the five coefficients; plain descent "
                   "spreads over all", panels, "Depth 2, one instance of 40 measurements of 100 unknowns, after "
                   "the last step; polar with κ r∞² = 30.")


def _convergence(arrays: Arrays) -> Picture:
    panels = []
    for column, share in ((2, 0.6), (4, 5.0)):
        for depth in DEPTHS:
            series = []
            for name in ("plain", "polar"):
                key = f"descents/L={depth}/{name}"
                steps = np.asarray(arrays[f"{key}/steps"], dtype=np.float64)
                residuals = np.asarray(arrays[f"{key}/residuals"], dtype=np.float64)[:, column]
                series.append(Series(name, steps.tolist(), residuals.tolist()))
                slope = float(np.asarray(arrays[f"{key}/rate {share:g}"])[0])
                end = int(np.flatnonzero(residuals > 1e-11)[-1])
                late = (steps >= 0.4 * steps[end]) & (steps <= steps[end])
                line = residuals[end] * np.exp(-slope * (steps[late] - steps[end]))
                series.append(Series(f"predicted rate, {name}", steps[late].tolist(), line.tolist(), mark="theory"))
            panels.append(Panel("step", "residual ‖Ax − y‖/‖y‖", series, f"L = {depth}, start at {share:g} of the "
                                "threshold", log_y=True))
    return Picture("convergence", "Descent that arrives does so exponentially, at the predicted rate; the sparser "
                   "the limit, the later", panels, "One instance, steps of 1/‖A‖². Dashed, through the last point "
                   "above rounding: L λ_min(B W D W Bᵀ) at the limit. Where the line is flatter than the curve, "
                   "the last phase has not begun.")


def _cells(records: Records) -> list[Figure]:
    flat = records.where(depth=2)
    rows, columns = flat.levels("sparsity"), flat.levels("measurements")
    ratio, found = np.full((2, len(rows), len(columns)), np.nan)
    for i, sparsity in enumerate(rows):
        for j, measurements in enumerate(columns):
            mine = flat.where(sparsity=sparsity, measurements=measurements)
            polar, plain = (mine.values(arm, "error", 0.2) for arm in ("polar", "plain"))
            ratio[i, j] = float(np.median(np.log10(polar / plain)))
            found[i, j] = 100 * float(mine.values("linear programme", "l1 minimiser is the target").mean())
    sizes, measured = [f"{row} not 0" for row in rows], [f"{column} measured" for column in columns]
    return [Heatmap("cells", "Polar flow gains where the l1 minimiser is x*", sizes, measured, ratio,
                    "log10 of polar over plain error", "Depth 2, start at a fifth of the threshold, exact limits; "
                    "median over instances of 100 unknowns. Compare with the next figure."),
            Heatmap("recovered", "Where the l1 minimiser is x*", sizes, measured, found, "instances [%]",
                    "By linear programming. Elsewhere a bias to the least l1 norm cannot find x*.")]


def _table(records: Records, depth: int) -> Heatmap:
    arms = ["plain", "κ=1", "κ=10", "κ=30"]
    mine = records.where(depth=depth)
    alphas = mine.where(arm="plain").axis("error")
    values = np.full((len(arms), len(alphas)), np.nan)
    for i, arm in enumerate(arms):
        for j, alpha in enumerate(alphas):
            errors = mine.values(arm, "error", alpha)
            if np.isfinite(errors).mean() > 0.5:
                values[i, j] = float(np.nanmedian(errors))
    return Heatmap(f"table-{depth}", f"Depth {depth}, descent at one small step: median relative error after the "
                   "same steps",
                   [arm.replace("κ=", "polar, κ = ") for arm in arms], [f"α = {a:g}" for a in alphas], values,
                   "‖x − x*‖/‖x*‖", "Step 0.25/‖A‖². Grey: on half of the instances or more the residual was still "
                   "above 1 %, so these descents are unfinished and not scored.")


def _speed(records: Records) -> Picture:
    places = [(depth, percent) for depth in (2, 3) for percent in (5, 1)]
    series = []
    for name in ("plain", "polar"):
        found = [median_interval(_times(records, depth, name, percent)) for depth, percent in places]
        series.append(Series.over(f"{name} descent, tuned", list(range(4)), found, "points"))
    factors = {depth: float(np.median(_times(records, depth, "plain", 5)))
               / float(np.median(_times(records, depth, "polar", 5))) for depth in (2, 3)}
    return Picture("speed", f"Tuned for speed, plain descent takes {factors[2]:.2g} times the iterations of polar "
                   f"at depth 2, {factors[3]:.2g} times at depth 3",
                   [Panel("", "iterations to the error", series, log_y=True,
                          categories=[f"L = {depth}, to {percent} %" for depth, percent in places])],
                   "Start, step and ratio chosen on other instances, for each error. Medians with 95 % intervals; "
                   "a descent that never arrives counts as infinite. The title speaks of 5 %.")


def _times(records: Records, depth: int, name: str, percent: int) -> Array:
    times = records.where(depth=depth).values(name, "iterations", float(percent))
    return np.asarray(np.where(np.isnan(times), np.inf, times))


def _network(records: Records) -> Picture:
    arms = ["SGD", *ARMS]
    shown = [("accuracy", "clean accuracy [%]"), ("effective density", "effective density [%]"),
             ("sharpness", "sharpness"), ("boundary distance", "distance to the boundary")]
    panels = [by_arm(records, [(Metric(name), None, "")], arms, label) for name, label in shown]
    panels.append(along_axis(records, Metric("accuracy under l2 attack", "%", axis="l2 radius"), arms))
    stretch = []
    for arm in ARMS:
        mine = records.where(arm=arm, metric="direction stretch")
        steps = sorted({row.step for row in mine if row.step is not None})
        found = [median_interval([row.value for row in mine.where(step=step)]) for step in steps]
        stretch.append(Series.over(arm, [float(s) for s in steps], found, seeds=mine.levels("seed")))
    panels.append(Panel("step", "stretch of a direction [%]", stretch, log_y=True, levels={"off the flow": 10.0}))
    clean, attacked = (paired_difference(*records.pairs("weight norm", "SGD", name, at)).estimate
                       for name, at in (("accuracy", None), ("accuracy under l2 attack", 0.5)))
    sharper = np.mean(records.values("weight norm", "sharpness")) / np.mean(records.values("SGD", "sharpness"))
    return Picture("network", f"A small CNN by weight norm instead of SGD: {clean:+.1f} points of clean accuracy, "
                   f"{attacked:+.1f} under attack, {sharper:.1f} times the sharpness".replace("-", "−"), panels,
                   "Fashion-MNIST; learning rates chosen alike on validation accuracy; mean over seeds with 95 % t "
                   "intervals (of the stretch, the median). Weight norm is PolarSGD without a ratio, which is "
                   "torch's weight_norm under SGD; slow norm has κ = 30. A stretch above the line means that the "
                   "steps no longer follow the flow.")


def _patches(arrays: Arrays) -> ImageGrid:
    rows = ["original", *METHODS]
    images = [list(np.asarray(arrays[f"photographs/{row}"], dtype=np.float64)) for row in rows]
    return ImageGrid("patches", "Patches of photographs from 100 measurements of 256 unknowns", rows,
                     [""] * len(images[0]), images, "16 x 16 patches of china.jpg and flower.jpg, sparse in the "
                     "DCT.")


def _methods(records: Records) -> Picture:
    photos, people = records.where(experiment="photographs"), records.where(experiment="polynomials")
    panels = []
    for mine, metric, label, title in (
            (photos, "error", "relative error", "photographs"), (photos, "l1 over least", "‖x‖₁/Q", "photographs"),
            (people, "R²", "R² of people not fitted", "diabetes, noisy"),
            (people, "l1 over least", "‖x‖₁/Q", "diabetes, noisy")):
        found = [median_interval(mine.values(arm, metric)) for arm in METHODS]
        panels.append(Panel("", label, [Series.over("median with 95 % interval", list(range(len(METHODS))), found,
                                                    "points", seeds=mine.seeds(*METHODS))],
                            title, categories=METHODS))
    return Picture("methods", "On photographs the polar limit comes near basis pursuit; on noisy data only the "
                   "lasso predicts",
                   panels, "Both limits from the same start, a tenth of the threshold of the least-l2 solution, L "
                   "= 2; polar with κ ‖x₂‖₁ = 30. The lasso chooses its penalty by cross-validation.")
