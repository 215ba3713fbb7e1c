"""Pictures that any comparison has: by arm, along an axis, over learning rates, over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from optscope.analyses.findings import CLEAN, Finding, Place, places, primary
from optscope.analyses.tuning import learning_rates
from optscope.evidence.picture import Panel, Picture, Series
from optscope.evidence.records import Metric, Records
from optscope.evidence.rounding_floor import rounding_floor
from optscope.evidence.stats import mean_interval, paired_difference
from optscope.evidence.words import listed
from optscope.protocol.compared import Compared
from optscope.protocol.comparison import Comparison
from optscope.report.section import Section

MOST_RUNS = 12
"""So many seeds of an arm are drawn one by one."""


def label(metric: Metric) -> str:
    """Return a metric's name with its unit."""
    return f"{metric.name} [{metric.unit}]" if metric.unit else metric.name


def by_arm(records: Records, places: Sequence[tuple[Metric, float | None, str]], arms: Sequence[str],
           y_label: str, title: str = "") -> Panel:
    """Return a panel with one group a (metric, coordinate, name) and one mark an arm, with 95 % intervals."""
    series = []
    for arm in arms:
        found = [mean_interval(records.values(arm, metric.name, at)) for metric, at, _ in places]
        series.append(Series.over(arm, list(range(len(places))), found, "points", seeds=records.seeds(arm)))
    return Panel("", y_label, series, title, categories=[name for _, _, name in places])


def along_axis(records: Records, metric: Metric, arms: Sequence[str], title: str = "",
               log_x: bool = False) -> Panel:
    """Return a panel of a metric over its axis, one line an arm, with 95 % intervals."""
    places = records.axis(metric.name)
    series = []
    for arm in arms:
        found = [mean_interval(records.values(arm, metric.name, at)) for at in places]
        series.append(Series.over(arm, places, found, seeds=records.seeds(arm)))
    return Panel(metric.axis, label(metric), series, title, log_x=log_x)


def training_curves(comparison: Comparison, records: Records, metrics: Sequence[Metric]) -> Picture:
    """Return validation metrics during training, mean over seeds with 95 % intervals."""
    mine = records.where(experiment=comparison.name, phase="final")
    panels = []
    for metric in metrics:
        rows = Records(r for r in mine.where(metric=metric.name) if r.step is not None)
        series = [over_time(rows.where(arm=arm.name), arm.name) for arm in comparison.arms]
        panels.append(Panel("step", f"validation {label(metric)}", series))
    return Picture("training", "Validation during training", panels,
                   "Mean over seeds of the chosen learning rate; bands are 95 % t intervals, faint lines the "
                   f"seeds{f', the first {MOST_RUNS}' if len(comparison.seeds) > MOST_RUNS else ''}.")


def edge_of_stability(comparison: Compared, records: Records) -> Picture | None:
    """Return the sharpness each rule met and the most it can bear, over time; None where neither is known."""
    mine = records.where(experiment=comparison.name, phase="final")
    panels, ends = [], []
    for arm in comparison.arms:
        drawn = {name: over_time(mine.where(arm=arm.name, metric=name), arm.name)
                 for name in ("sharpness met", "stability threshold", "sharpness / threshold")}
        met, edge, ratio = drawn.values()
        if not met.x or not edge.x:
            continue
        ends.append(f"{arm.name} {ratio.y[-1]:.2g}")
        theory = Series("stability threshold", edge.x, edge.y, mark="theory")
        panels.append(Panel("step", "sharpness met", [met, theory], arm.name, log_y=True))
    if not panels:
        return None
    return Picture("edge-of-stability", f"Sharpness over stability threshold at the end: {listed(ends)}", panels,
                   "What decides stability: the largest eigenvalue of the Hessian of the training loss for plain "
                   "rules, of the preconditioned one for adaptive rules, and for rules with steps of a length of "
                   "their own the largest dᵀHd found in the ball of their norm: heights compare within a panel "
                   "only. Above the dashed line the rule, its scales held still, is unstable on the quadratic "
                   "model of the loss; the line moves with the learning rate and, for the last, with the "
                   "gradient. Mean over seeds with 95 % t intervals; each eigenvalue to 5 %. Rules without a known "
                   "threshold are left out.")


def over_time(rows: Records, label: str) -> Series:
    """Return the mean over seeds at each step, with 95 % intervals."""
    by_run: dict[tuple[int, str], dict[int, float]] = {}
    for row in rows:
        if row.step is not None:
            by_run.setdefault((row.seed, row.run), {})[row.step] = row.value
    steps = sorted({step for run in by_run.values() for step in run})
    found = [mean_interval([run[step] for run in by_run.values() if step in run]) for step in steps]
    runs = [[run.get(step, np.nan) for step in steps] for run in list(by_run.values())[:MOST_RUNS]]
    return Series.over(label, [float(step) for step in steps], found, runs=runs if len(by_run) > 1 else (),
                       seeds=sorted({seed for seed, _ in by_run}))


def floor_picture(records: Records, percent: Sequence[Place], arms: Sequence[str]) -> Picture:
    """Return differences to the first arm with 95 % intervals, beside what rounding alone does to two runs."""
    first, *others = arms
    x, series, drowned = list(range(len(percent))), [], 0
    floors = [[rounding_floor(records, arm, first, p.metric.name, p.at) for p in percent] for arm in others]
    for arm, own in zip(others, floors, strict=True):
        found = [paired_difference(*records.pairs(arm, first, p.metric.name, p.at)) for p in percent]
        drowned += sum(f.covers(d.estimate) for f, d in zip(own, found, strict=True))
        series.append(Series.over(arm, x, found, "points", seeds=records.seeds(arm, first)))
    highest = [max((f.value for f in column if np.isfinite(f.value)), default=np.nan)  # an arm may have no twins
               for column in zip(*floors, strict=True)]
    series.append(Series("rounding alone, two runs", x, [0.0] * len(x), [-h for h in highest], highest,
                         mark="points"))
    return Picture("rounding-floor", f"{drowned} of {len(x) * len(others)} differences to {first} are smaller than "
                   "what rounding alone does",
                   [Panel("", f"accuracy − that of {first} [points]", series, levels={"equal": 0.0},
                          categories=[p.text.replace(" (", "\n(") for p in percent])],
                   "Mean paired differences with 95 % t intervals. Last: the range in which 95 of 100 differences "
                   "of two single runs lie that differ in rounding alone, the widest over the arms.")


def accuracies(comparison: Compared, records: Records) -> Section:
    """Return the accuracies of every arm, where there are any."""
    final, arms, percent = _final(comparison, records), _arms(comparison), _percent(comparison, records)
    named = [(p.metric, p.at, p.text.replace(" (", "\n(")) for p in percent]
    drawn = "clean and perturbed" if any(p.metric.name != CLEAN for p in percent) else "on clean inputs"
    return Section(figures=[Picture(
        "accuracies", f"Accuracy, {drawn}; higher is better", [by_arm(final, named, arms, "accuracy [%]")],
        "Mean over seeds with 95 % t intervals. Differences between arms are surer than these intervals suggest, "
        "because arms share seeds: see the table.")] if percent else [])


def rounding(comparison: Compared, records: Records) -> Section:
    """Return what rounding alone does to accuracies, where the arms have rounding twins."""
    mine, percent = records.where(experiment=comparison.name), _percent(comparison, records)
    fits = percent and mine.where(phase="twin")
    return Section(figures=[floor_picture(mine, percent, _arms(comparison))] if fits else [])


def measures(comparison: Compared, records: Records) -> Section:
    """Return a panel a metric, where neither accuracy nor loss is compared: of generators, say."""
    final, shown = _final(comparison, records), places(comparison, records.where(experiment=comparison.name))
    arms, single = _arms(comparison), [p.metric for p in shown if p.at is None]
    if primary(shown) or not single:
        return Section()
    panels = [by_arm(final, [(m, None, "")], arms, f"{m.name}, {m.better} is better") for m in single]
    return Section(figures=[Picture("measures", "What is compared, by arm", panels,
                                    "Mean over seeds with 95 % t intervals.")])


def axes(comparison: Compared, records: Records, judge: Callable[[Compared, Records], Sequence[Finding]],
         ) -> Section:
    """Return every metric that has an axis along it; `judge` finds what is shown of differences."""
    final, arms, found = _final(comparison, records), _arms(comparison), judge(comparison, records)
    return Section(figures=[
        Picture(p.metric.name.replace(" ", "-"), _shown(p, arms[0], found), [along_axis(final, p.metric, arms)],
                "Mean over seeds with 95 % t intervals."
                + (f" {p.metric.text[:1].upper()}{p.metric.text[1:]}." if p.metric.text else ""))
        for p in places(comparison, records.where(experiment=comparison.name)) if p.at is not None])


def training(comparison: Comparison, records: Records) -> Section:
    """Return what choosing the rates and training looked like, whether anything came of it or not."""
    wanted = ("loss", "accuracy", comparison.criterion.metric)
    curves = [m for m in comparison.validation.metrics if m.name in wanted]
    return Section(figures=[learning_rates(comparison, records), training_curves(comparison, records, curves)])


def edge(comparison: Compared, records: Records) -> Section:
    """Return the edge of stability, where sharpness and threshold are known."""
    picture = edge_of_stability(comparison, records)
    return Section(figures=[picture] if picture else [])


def _arms(comparison: Compared) -> list[str]:
    return [arm.name for arm in comparison.arms]


def _final(comparison: Compared, records: Records) -> Records:
    return records.where(experiment=comparison.name, phase="final")


def _percent(comparison: Compared, records: Records) -> list[Place]:
    """Return what arms are compared on that is an accuracy: percent of which more is better."""
    return [p for p in places(comparison, records.where(experiment=comparison.name))
            if p.metric.unit == "%" and p.metric.better == "higher"]


def _shown(place: Place, first: str, found: Sequence[Finding]) -> str:
    """Return a title that says which arms are shown to differ from the first at a place, and crowns nobody else."""
    title = f"{place.metric.name[:1].upper()}{place.metric.name[1:]} over {place.metric.axis}"
    said = [f"{f.arm} is {'better' if f.lead == f.arm else 'worse'}" for f in found
            if f.lead and f.place == place and f.verdict.outcome == "holds" and not f.drowned]
    if said:
        return f"{title}: at {place.at:g}, {listed(said)} than {first}"
    return f"{title}: at {place.at:g} no difference to {first} is shown"
