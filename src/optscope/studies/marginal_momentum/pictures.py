"""The pictures of the momentum study, from its records and arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optscope.evidence.picture import Figure, Heatmap, Panel, Picture, Series
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval, paired_difference
from optscope.protocol.study import Arrays
from optscope.studies.marginal_momentum.claims import LEVELS, MARGINS
from optscope.studies.marginal_momentum.finetuning import FINE_TUNING, best_checkpoint
from optscope.studies.marginal_momentum.readings import (
    BETAS,
    Cell,
    batches,
    cell_arm,
    cells,
    experiment,
    gap,
    method,
    on_the_way,
    rates,
    scores,
    svag_experiment,
    tuned_gap,
)
from optscope.studies.marginal_momentum.theory_claims import ALPHAS, RATES, VALLEY, fitted_order
from optscope.theory.momentum import stationary_variance

SGD, MOMENTUM = (method(beta) for beta in BETAS)
DRIFTERS = (SGD, MOMENTUM, "momentum 0.97", "momentum 1 − η")
GAIN = "momentum 0.9 − SGD"
NEAR = 5.0
"""A rate is borne when its accuracy is within so many points of the method's best."""
SEEDS = "Mean over seeds with 95 % t intervals; a diverged run counts with chance accuracy."


def pictures(records: Records, arrays: Arrays) -> list[Figure]:
    """Return all pictures for which there are records."""
    found: list[Figure] = []
    data = [name for name in MARGINS if batches(records, name)]
    found += _gaps(records, data)
    found += [_learning_rates(records, name) for name in data]
    found += _svag(records, data)
    found += _terms(records, data)
    if judged := cells(records, MARGINS):
        found.append(_cells(judged))
    found += _valley(arrays)
    if records.where(experiment="two wells"):
        found.append(_orders(records))
    if records.where(experiment="quadratic"):
        found.append(_quadratic(records))
    return found + _fine_tuning(records)


def _points(label: str, x: Sequence[float], values: Sequence[np.ndarray]) -> Series:
    """Return the means of groups of values, one a place, with their intervals."""
    return Series.over(label, x, [mean_interval(v) for v in values])


def _minus(text: str) -> str:
    """Return a text whose numbers have true minus signs."""
    return text.replace(" -", " −")


def _gaps(records: Records, data: Sequence[str]) -> list[Figure]:
    panels, said = [], []
    for name in data:
        all_sizes = batches(records, name)
        measured = {size: paired_difference(*tuned_gap(records, name, size)) for size in all_sizes}
        sizes = [size for size, each in measured.items() if np.isfinite(each.estimate)]
        if not sizes:
            continue
        found, margin = [measured[size] for size in sizes], MARGINS[name]
        panels.append(Panel("batch size", "gained by momentum 0.9 [points]", [
            Series.over(GAIN, sizes, found)], name, log_x=True,
            levels={"0": 0.0, f"±{margin:g}, counts as equal": margin, "": -margin}))
        said.append(f"{name} {found[0].estimate:+.1f} → {found[-1].estimate:+.1f}")
    title = f"What tuned momentum gains over tuned SGD, in points, small batch → large: {_minus('; '.join(said))}"
    return [Picture("gap-against-batch", title, panels,
                    "Test accuracy, momentum 0.9 minus SGD, each at the rate that validation data chose from one "
                    "grid of effective rates, each twice the one before. Mean paired difference over seeds with "
                    "95 % t intervals.")] if panels else []


def _learning_rates(records: Records, data: str) -> Picture:
    panels, said = [], []
    for size in batches(records, data):
        both = records.where(experiment={experiment(data, size), experiment(data, size, "other momenta")})
        series = []
        for beta in (0.0, 0.5, 0.9, 0.99):
            tried = rates(both, beta)
            if tried:
                series.append(_points(method(beta), tried, [scores(both, cell_arm(beta, rate)) for rate in tried]))
        panels.append(Panel("effective rate η = γ/(1 − β)", "test accuracy [%]", series, f"batch {size}",
                            log_x=True))
        bears = [(max((rate for rate, mean in zip(s.x, s.y, strict=True) if mean > np.nanmax(s.y) - NEAR),
                      default=np.nan), max(s.x)) for s in series if s.label in (SGD, MOMENTUM)]
        borne = " and ".join(f"{'≥ ' if rate == most else ''}{rate:g}" for rate, most in bears)
        said.append(f"batch {size}: {borne}")
    title = f"{data}: the largest η that SGD and momentum 0.9 bear, {'; '.join(said)}"
    return Picture(f"learning-rates-{data}", title, panels,
                   "All methods on one axis, in the effective rate. Borne are rates whose accuracy is within "
                   f"{NEAR:g} points of the method's best; ≥ marks the largest that was tried. Momenta 0.5 and "
                   f"0.99 have fewer seeds. {SEEDS}")


def _svag(records: Records, data: Sequence[str]) -> list[Figure]:
    panels, gaps, said = [], [], []
    for name in data:
        found = {level: records.where(experiment=svag_experiment(name, level)) for level in LEVELS}
        levels = [level for level, rows in found.items() if rows.where(phase="final")]
        if not levels:
            continue
        panels.append(Panel("SVAG level l", "test accuracy [%]", [
            _points(arm, levels, [scores(found[level], arm) for level in levels]) for arm in (SGD, MOMENTUM)], name,
            log_x=True))
        apart = [paired_difference(*gap(found[level], MOMENTUM, SGD)) for level in levels]
        margin = MARGINS[name]
        gaps.append(Panel("SVAG level l", "gained by momentum 0.9 [points]", [
            Series.over(GAIN, levels, apart)], name, log_x=True,
            levels={"0": 0.0, f"±{margin:g}, counts as equal": margin, "": -margin}))
        said.append(f"{name} {apart[0].estimate:+.1f} → {apart[-1].estimate:+.1f}")
    title = f"Momentum's gain as SVAG amplifies the noise, in points: {_minus('; '.join(said))}"
    return [Picture("svag", title, panels + gaps,
                    "At level l the noise has l times the variance and curvature 1/l of its part, in 2 l times the "
                    f"epochs. A large effective rate, the same for both. {SEEDS}")] if panels else []


def _terms(records: Records, data: Sequence[str]) -> list[Figure]:
    """Draw what noise and curvature add to the loss along watched runs, at the least and the largest rate."""
    panels, above, looked = [], 0, 0
    for name in data:
        for size in (min(batches(records, name)), max(batches(records, name))):
            watched = records.where(experiment=experiment(name, size, "watched"))
            tried = rates(watched, BETAS[1])
            ends = sorted({min(tried), max(tried)} if tried else ())
            series = []
            for rate, end in zip(ends, ("smallest η", "largest η"), strict=False):
                steps, _, curved, noisy = on_the_way(records, name, size, BETAS[1], rate)
                if len(curved) == len(steps) > 0:
                    above, looked = above + int((curved > noisy).sum()), looked + len(steps)
                    series += [Series(f"{what}, {end}", steps, np.where(values > 0, values, np.nan).tolist())
                               for what, values in (("noise", noisy), ("curvature", curved)) if (values > 0).any()]
            if series:
                panels.append(Panel("step", "added to the loss", series, f"{name}, batch {size}: η "
                                    f"{' and '.join(f'{rate:g}' for rate in ends)}", log_y=True))
    return [Picture("terms", "What noise and curvature add to the loss of a step with momentum 0.9: curvature "
                    f"adds more at {above} of {looked} moments", panels,
                    "η²/2 tr(HΣ)/B and η²/2 GᵀHG along one watched run, from 256 training images in 8 parts; "
                    "values estimated below 0 are not drawn. The smallest and the largest batch, the smallest "
                    "and the largest rate; both terms fall with η² where the rate decays.")] if panels else []


def _cells(found: Sequence[Cell]) -> Picture:
    series = [Series(name, [c.product for c in found if c.outcome == outcome],
                     [c.gap for c in found if c.outcome == outcome], mark="points")
              for outcome, name in (("equal", "shown equal"), ("helps", "momentum shown to help"),
                                    ("hurts", "momentum shown to hurt"), ("open", "undecided"))
              if any(c.outcome == outcome for c in found)]
    shown = [c.gap for c in found if np.isfinite(c.gap)]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    series += [Series(f"ηλ = {limit}: {what}", [limit, limit], [low, high], mark="theory")
               for limit, what in ((2, "SGD's stability limit"), (4, "twice that"))]
    judged = [c.agrees for c in found if c.agrees is not None]
    return Picture("advice", "Does one run foretell whether momentum pays? Right in "
                   f"{sum(judged)} of {len(judged)} cells that are decided; {len(found)} cells in all", [
                       Panel("largest ηλ along one run with momentum 0.9", "accuracy gained by momentum [points]",
                             series, log_x=True)],
                   "One point a data set, batch size and rate: the gap at equal effective rate, mean over seeds, "
                   "against the largest product of rate and sharpness along one watched run of another seed. Equal "
                   f"is within {', '.join(f'±{m:g} ({d})' for d, m in MARGINS.items())} points.")


def _valley(arrays: Arrays) -> list[Figure]:
    panels, said = [], []
    for rate in VALLEY:
        if f"valley/{rate:g}/time" not in arrays:
            continue
        seen = {name: np.asarray(arrays[f"valley/{rate:g}/{name}"], dtype=np.float64).tolist()
                for name in ("time", "limit", *DRIFTERS)}
        series = [Series(arm, seen["time"], seen[arm]) for arm in DRIFTERS]
        series.append(Series("slow equation, η → 0", seen["time"], seen["limit"], mark="theory"))
        panels.append(Panel("slow time, steps × η²", "mean of u² − v²", series, f"η = {rate:g}"))
        said.append(f"{seen[MOMENTUM][-1] - seen[SGD][-1]:+.2f}")
    return [Picture("valley", "Along a valley of minima, momentum 0.9 minus SGD at time 1 as η falls: "
                    f"{', '.join(said).replace('-', '−')}", panels,
                    "Loss (uv − 1)²/2 with label noise ±1, from (2, 0.5); mean over 10,000 paths at desk scale.")
            ] if panels else []


def _orders(records: Records) -> Picture:
    mine = records.where(experiment="two wells")
    panels = []
    for metric, text in (("coupled distance", "RMS distance of coupled paths"),
                         ("weak distance", "|E x − E z|")):
        series = []
        for alpha in ALPHAS:
            found = [(rate, mine.by_seed(f"alpha {alpha:g}", metric, rate).get(0)) for rate in RATES]
            seen = [(rate, value) for rate, value in found if value is not None]
            series.append(Series(f"1 − β ∝ η^{alpha:g}", [x for x, _ in seen], [y for _, y in seen]))
            if metric == "coupled distance" and alpha < 1 and seen:
                rate, value = seen[0]
                series.append(Series("order (1 − α)/2", [x for x, _ in seen],
                                     [value * (x / rate) ** ((1 - alpha) / 2) for x, _ in seen], mark="theory"))
        panels.append(Panel("rate η", text, series, log_x=True, log_y=True))
    fitted = _minus(", ".join(f"{fitted_order(records, a, 'coupled distance'):.2f} for η^{a:g}" for a in ALPHAS))
    return Picture("orders", f"Order at which momentum comes near SGD, by how 1 − β falls: {fitted}", panels,
                   "Two wells, noise of scale η^(−1/2), time 2; the largest distance over a run.")


def _quadratic(records: Records) -> Picture:
    series = []
    for beta in (0.0, 0.5, 0.9):
        rows = records.where(experiment="quadratic", arm=f"β {beta:g}", metric="variance")
        places = sorted((row.at, row.value) for row in rows if row.at is not None)
        series.append(Series(method(beta), [x for x, _ in places], [y * x / 0.01 for x, y in places],
                             mark="points"))
        x = np.geomspace(0.1, 1.98 if beta == 0 else 5.9 if beta == 0.5 else 20, 60)
        closed = [stationary_variance(0.1, beta, p / 0.1) * p / 0.01 for p in x]
        series.append(Series(method(beta), x.tolist(), closed, mark="theory"))
    return Picture("quadratic", "On a quadratic momentum changes nothing while ηh is small, and bears larger ηh",
                   [Panel("ηh", "stationary variance · h/(ησ²)", series, log_x=True, log_y=True)],
                   "Points are simulated, lines the closed form. Noise alone gives 1/2 for every β; SGD's variance "
                   "grows without bound as ηh goes to 2, that of momentum 0.9 at 38.")


def _fine_tuning(records: Records) -> list[Figure]:
    arms = (SGD, MOMENTUM, "AdamW")
    rows, values, notes, gaps = [], [], [], []
    for setting, text in FINE_TUNING.items():
        pairs = [best_checkpoint(records, setting, arm, SGD) for arm in arms]
        if len(pairs[1][0]):
            rows.append(text.removeprefix("MiniLM on "))
            values.append([float(np.nanmean(first)) for first, _ in pairs])
            found = [paired_difference(*pair) for pair in pairs[1:]]
            gaps.append(found[0].estimate)
            said = [f"{f.estimate:+.1f} [{f.low:+.1f}, {f.high:+.1f}]" for f in found]
            notes.append(["", *(text.replace("-", "−") for text in said)])
    if not rows:
        return []
    title = (f"Fine-tuned MiniLM: {GAIN} is {np.nanmin(gaps):+.1f} to {np.nanmax(gaps):+.1f} points over the "
             "settings")
    return [Heatmap("fine-tuning", _minus(title), rows, arms, np.array(values), "%",
                    "Test accuracy at the best dev checkpoint, mean over subsets and seeds; each method at the "
                    "rate that its dev texts chose. Below it the paired difference from SGD in points with its "
                    "95 % t interval, over subsets (all texts: over seeds).", notes)]
