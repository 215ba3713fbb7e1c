"""The pictures of the instability study, from its records and arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.picture import Figure, Heatmap, Panel, Picture, Series
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval
from optscope.evidence.variance import spread_ratio
from optscope.protocol.study import Arrays
from optscope.studies.restrained_instability.edge_claims import ADAM, BATCHES, LATE, LATE_OF_ALL
from optscope.studies.restrained_instability.exact import PAPER, PARTED, WINDOW_DECAYS
from optscope.studies.restrained_instability.trained_claims import (
    AMPLIFIED,
    FIRST,
    KS,
    LEARNED,
    STEPS,
    crossing_distances,
    edge_runs,
    smallest_crossing_rate,
    table,
)
from optscope.theory import heat

Array = NDArray[np.float64]


def pictures(records: Records, arrays: Arrays) -> list[Figure]:
    """Return all pictures for which there are records, and arrays where they are of arrays."""
    found: list[Figure] = []
    there = {name.partition("/")[0] for name in arrays}
    if "heat" in there:
        found.append(_heat(arrays))
    if records.where(experiment="window"):
        found.append(_window(records))
    if "one layer" in there:
        found += [_bifurcation(arrays), _one_layer(records, arrays)]
    if records.where(experiment="parting"):
        found += [*([_curves(records, arrays)] if "parting" in there else []), _rates(records)]
    if records.where(experiment="edge"):
        found += [*([_edge(records, arrays)] if "edge" in there else []), _crossed(records), _gap(records),
                  _depth_and_decay(records)]
    if records.where(experiment=ADAM):
        found.append(_settled(records))
    if records.where(experiment="spread"):
        found.append(_spread(records))
    return found


def _array(arrays: Arrays, name: str) -> Array:
    return np.asarray(arrays[name], dtype=np.float64)


def _heat(arrays: Arrays) -> Picture:
    panels = []
    for dt, times in ((0.4, (0, 0.8, 2.4, 4, 100)), (0.8, (0, 0.8, 2.4, 4))):
        states = _array(arrays, f"heat/heat {dt:g}")
        series = [Series(f"t = {t:g}", list(range(states.shape[1])), states[round(t / dt)].tolist()) for t in times]
        panels.append(Panel("place", "u", series, f"dt = {dt:g}: {'stable' if dt < 0.5 else 'unstable'}"))
    steps = list(range(300))
    series = [Series(f"feedback, dt = {dt:g}", steps, _array(arrays, f"heat/feedback edge {dt:g}")[:300].tolist())
              for dt in (0.51, 0.6, 0.8)]
    panels.append(Panel("step", "dt / its limit at this diffusivity", series, "with feedback",
                        levels={"edge": 1.0}))
    return Picture("heat", f"A step beyond the limit of {heat.step_limit(31):.4f} blows up, unless a feedback "
                   "holds it at the edge", panels,
                   "Explicit steps of the heat equation on 31 nodes. In the third panel rough states diffuse "
                   "slowly: a step that is too large leaves a sawtooth, which grows until the step is just stable.")


def _window(records: Records) -> Picture:
    mine = records.where(experiment="window")
    low, high = (mine.by_seed("checkerboard", f"measured {end} end").get(0, np.nan) for end in ("lower", "upper"))
    measured = [mine.by_seed("checkerboard", "measured factor a step", decay).get(0, np.nan)
                for decay in WINDOW_DECAYS]
    rate = PAPER.squared_norm * sum(PAPER.counts) / 4
    decays = np.geomspace(8e6, 2.5e8, 300)
    along, across = np.abs(1 - 1e-8 * (decays - rate)), np.abs(1 - 1e-8 * decays)
    series = [Series("measured", WINDOW_DECAYS, measured, mark="points"),
              Series("along the checkerboard, theory", decays.tolist(), along.tolist(), mark="theory"),
              Series("across it, theory", decays.tolist(), across.tolist(), mark="theory")]
    images = [arm for arm in mine.arms() if arm not in ("", "checkerboard")]
    ends = [Series(f"{end} end", list(range(len(images))),
                   [100 * mine.by_seed(arm, f"measured {end} end").get(0, np.nan)
                    / mine.by_seed(arm, f"predicted {end} end").get(0, np.nan) - 100 for arm in images],
                   mark="points") for end in ("lower", "upper")]
    return Picture("window", f"Weight decay must lie between {low:.4g} and {high:.4g} at learning rate 1e-8", [
        Panel("weight decay α", "factor a step", series, "the paper's image", log_x=True,
              levels={"stable below": 1.0}),
        Panel("", "measured − predicted end [%]", ends, "other images", categories=images)],
        "Linear equation of the one-layer network. Below the window it grows along the image's patches, above it "
        "its explicit steps grow across them.")


def _bifurcation(arrays: Arrays) -> Picture:
    rates, orbits = _array(arrays, "one layer/bifurcation rates"), _array(arrays, "one layer/bifurcation")
    exponents = _array(arrays, "one layer/exponents")
    x = np.broadcast_to(rates, orbits.shape)
    chaotic = 100 * float((exponents[rates > PAPER.step_limit] > 0).mean())
    return Picture(
        "bifurcation", f"Between the classical limit of {PAPER.step_limit:.4f} and {PAPER.bounded_limit:g} all is "
        f"bounded, and errors grow at {chaotic:.0f} % of learning rates",
        [Panel("learning rate", "|z| = |⟨K, p⟩|, last 100 steps", [
            Series("orbit", x.ravel().tolist(), orbits.ravel().tolist(), mark="cloud")]),
         Panel("learning rate", "Lyapunov exponent", [Series("exponent", rates.tolist(), exponents.tolist())],
               levels={"errors grow above": 0.0})],
        "One-layer network on a checkerboard, reduced exactly to one number. One curve: it converges; several: it "
        "oscillates and errors die out; a cloud: it oscillates and rounding errors grow.", columns=1)


def _one_layer(records: Records, arrays: Arrays) -> Picture:
    rates, mine, panels = (0.01, 0.03, 0.05, 0.06, 0.07, 0.09), records.where(experiment="one layer"), []
    for name in ("float64", "float32"):
        curves = [_array(arrays, f"one layer/distance {name} {lr:g}")[:150] for lr in rates]
        series = [Series(f"lr {lr:g}", list(range(len(curve))), curve.tolist())
                  for lr, curve in zip(rates, curves, strict=True)]
        panels.append(Panel("step", "distance of rounding twins", series, name, log_y=True))
    losses = [(lr, _array(arrays, f"one layer/loss {lr:g}")[:120]) for lr in (*rates, 0.11)]
    panels.append(Panel("step", "loss", [Series(f"lr {lr:g}", list(range(len(loss))), loss.tolist())
                                         for lr, loss in losses], "with one rate that diverges", log_y=True))
    exact = mine.where(arm="checkerboard", precision="float64")
    parted = [f"{lr:g}" for lr in rates if (exact.values("checkerboard", "largest distance", lr) > PARTED).all()]
    return Picture("one-layer", f"Of rates {rates[0]:g} to {rates[-1]:g}, rounding is amplified at "
                   f"{', '.join(parted)}, for every initial kernel", panels,
                   "Curves of one initial kernel, divisors k = 1 and 3. A distance of exactly zero is not drawn. "
                   "At 0.06 the loss oscillates with period 4, and rounding errors die out.")


def _arms(records: Records) -> list[str]:
    return [arm for arm in records.where(experiment="parting").arms() if arm]


def _curves(records: Records, arrays: Arrays) -> Picture:
    """Return geometric means over seeds of the distance over steps, with the range of the seeds."""
    mine, panels = records.where(experiment="parting"), []
    for arm in _arms(records):
        series = []
        for lr in sorted(mine.where(arm=arm).axis("final distance"), reverse=True):
            names = [f"parting/{arm}/{lr:g}/{seed}" for seed in mine.seeds(arm)]
            names = [name for name in names if f"{name}/distance" in arrays]
            logs = np.log10(np.maximum([_array(arrays, f"{name}/distance") for name in names], 1e-12))
            steps = _array(arrays, f"{names[0]}/steps")
            series.append(Series(f"lr {lr:g}", steps.tolist(), (10 ** logs.mean(0)).tolist(),
                                 (10 ** logs.min(0)).tolist(), (10 ** logs.max(0)).tolist(),
                                 seeds=[int(name.rpartition("/")[2]) for name in names]))
        panels.append(Panel("step", "distance of rounding twins", series, arm, log_x=True, log_y=True))
    return Picture("curves", "How far twins that differ in the last bit of their steps part", panels,
                   "Mean over weights of 2|w − w'|/(|w| + |w'|), geometric mean over seeds; bands reach from the "
                   "lowest to the highest seed.")


def _rates(records: Records) -> Picture:
    mine, series = records.where(experiment="parting"), []
    for arm in _arms(records):
        rates = mine.where(arm=arm).axis(STEPS)
        found = [mean_interval(np.log10(np.maximum(mine.values(arm, STEPS, lr), 1e-12))) for lr in rates]
        series.append(Series(arm, rates, [10**f.estimate for f in found], [10**f.low for f in found],
                             [10**f.high for f in found], n=[f.n for f in found], seeds=mine.seeds(arm)))
    return Picture("rates", "Distance of twins after 300 steps over learning rate, depth and activation",
                   [Panel("learning rate", "distance of rounding twins", series, log_x=True, log_y=True,
                          levels={"amplified above": 10**AMPLIFIED})],
                   "Geometric mean over seeds with 95 % t intervals of the logarithm.")


SHOWN = tuple((f"{hidden} hidden with decay {decay}", lr) for hidden, decay, lr in (
    (3, "0", 0.3), (3, "0.003", 0.3), (3, "0", 0.15), (1, "0", 0.45), (1, "0", 0.3)))


def _edge(records: Records, arrays: Arrays) -> Picture:
    ratios, distances = [], []
    for arm, lr in SHOWN:
        name = f"edge/{arm}/{lr:g}/1"
        if f"{name}/steps" in arrays:
            steps, label = _array(arrays, f"{name}/steps").tolist(), f"{arm}, lr {lr:g}"
            ratio = _array(arrays, f"{name}/sharpness") / _array(arrays, f"{name}/threshold")
            ratios.append(Series(label, steps, ratio.tolist()))
            distances.append(Series(label, steps, _array(arrays, f"{name}/distance").tolist()))
    return Picture("edge", "Sharpness against the edge of stability, and the distance of rounding twins",
                   [Panel("step", "sharpness / threshold", ratios, levels={"edge of stability": 1.0}),
                    Panel("step", "distance of rounding twins", distances, log_y=True)],
                   "Full-batch gradient descent on 800 digits, seed 1. The threshold is 2/lr − decay; past it the "
                   "sharpness stays about it, and the distance stays bounded: the instability is restrained.",
                   columns=1)


def _crossed(records: Records) -> Heatmap:
    crossed, amplified, stuck, diverged = edge_runs(records)
    counts = np.array([[(c & a).sum() for a in (amplified, ~amplified)] for c in (crossed, ~crossed)],
                      dtype=np.float64)
    return Heatmap("crossed", f"{int(counts[0, 0] + counts[1, 1])} of {int(counts.sum())} runs amplify rounding "
                   "exactly if they cross the edge of stability",
                   ["crossed the edge", "did not cross"], ["rounding amplified", "rounding not amplified"], counts,
                   "runs", "Amplified: the distance of twins grew a hundredfold. Left out: "
                   f"{stuck} runs whose loss stayed above {LEARNED:g} (the constant predictor has 0.45) and "
                   f"{diverged} that diverged.")


def _gap(records: Records) -> Picture:
    panels = []
    for experiment, title in (("edge", "gradient descent, full batches"), (ADAM, "Adam, full batches"),
                              (BATCHES, "gradient descent, batches of 16")):
        series = [Series(name, [x for x, _ in side], [y for _, y in side], mark="points") for name, side in zip(
            ("crossed the edge", "did not cross"), crossing_distances(records, experiment), strict=True)]
        if records.where(experiment=experiment):
            panels.append(Panel("largest sharpness / threshold (1 is the edge of stability)",
                                "largest distance of rounding twins", series, title, log_y=True))
    return Picture("gap", "Largest distance of twins against the largest sharpness, one mark a training", panels,
                   "On 800 digits, over depth, learning rate, weight decay and seeds. The sharpness is that which "
                   "the rule meets: of all examples, preconditioned by Adam, and the mean over batches along their "
                   "own gradient.")


def _settled(records: Records) -> Picture:
    panels = []
    for experiment, title, metrics in (
            (ADAM, "Adam, full batches", {LATE: ""}),
            (BATCHES, "gradient descent, batches of 16", {LATE: ": of batches", LATE_OF_ALL: ": of all examples"})):
        mine, series = records.where(experiment=experiment), []
        for arm in [arm for arm in mine.arms() if arm]:
            for metric, of in metrics.items():
                rates = mine.where(arm=arm).axis(metric)
                found = [mean_interval(mine.values(arm, metric, lr)) for lr in rates]
                series.append(Series.over(f"{mine.where(arm=arm).levels('hidden')[0]} hidden layers{of}", rates,
                                          found, seeds=mine.seeds(arm)))
        panels.append(Panel("learning rate", "late sharpness / threshold", series, title, log_x=True, log_y=True,
                            levels={"edge of stability": 1.0}))
    return Picture("settled", "Where the sharpness that a rule meets is at last, over its threshold", panels,
                   "Medians over the last quarter of a training, mean over seeds with 95 % t intervals. Adam's is "
                   "the sharpness preconditioned by its second moments; that of batches is taken along each "
                   "batch's gradient.")


def _depth_and_decay(records: Records) -> Picture:
    mine = records.where(experiment="edge")
    decays, depths = mine.where(hidden=3).levels("decay"), mine.levels("hidden")
    found = [mean_interval(mine.values(f"3 hidden with decay {decay:g}", "crossing step", 0.3)) for decay in decays]
    crossing = Series.over("3 hidden layers, lr 0.3", list(range(len(decays))), found, "points",
                           seeds=mine.seeds(*(f"3 hidden with decay {decay:g}" for decay in decays)))
    rates = [np.array(list(smallest_crossing_rate(records, depth).values())) for depth in depths]
    least = Series("smallest rate that crosses", list(range(len(depths))), [float(np.median(r)) for r in rates],
                   [float(r.min()) for r in rates], [float(r.max()) for r in rates], mark="points")
    return Picture("depth-and-decay", "When the edge of stability is crossed, over weight decay and depth", [
                       Panel("weight decay", "step at which the edge is crossed", [crossing],
                             categories=[f"{decay:g}" for decay in decays]),
                       Panel("hidden layers", "smallest learning rate that crosses", [least],
                             categories=[str(depth) for depth in depths])],
                   "Left: mean over seeds with 95 % t intervals. Right: median, lowest and highest over seeds, on "
                   "the learning rates tried; 1 where none crossed.")


def _spread(records: Records) -> Picture:
    found = table(records)
    once = table(records, ("k = 1", *(f"k = {k} in the first step" for k in FIRST)))
    seeds = records.where(experiment="spread").seeds("k = 1")
    starts = records.where(experiment="starts").values("k = 1", "accuracy")
    ratio = spread_ratio(found)
    series = [Series(f"k = {k}", seeds, found[:, i].tolist(), mark="points") for i, k in enumerate(KS)]
    bars = [("rounding, every step", found.std(1, ddof=1)), ("rounding, first step only", once.std(1, ddof=1)),
            ("order of batches", found.std(0, ddof=1)), ("start and order", starts.std(ddof=1, keepdims=True))]
    spreads = [float(np.sqrt(np.mean(each**2))) if len(each) else float("nan") for _, each in bars]
    return Picture("spread", f"Rounding alone has {ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] of the "
                   "spread that seeds have", [
                       Panel("seed of the batches", "test accuracy [%]", series, "one mark a divisor k"),
                       Panel("", "standard deviation [points]",
                             [Series("spread", list(range(len(bars))), spreads, mark="bars")],
                             "what is changed", categories=[name for name, _ in bars])],
                   "One network from one start, mean test accuracy of the last epochs. Pooled standard deviations "
                   "of single runs; that over seeds holds that of rounding.")
