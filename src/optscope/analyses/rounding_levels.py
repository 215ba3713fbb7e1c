"""Where training is decided by rounding: how far twins part at every learning rate, and what that changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from optscope.evidence.picture import Figure, Panel, Picture, Series
from optscope.evidence.records import Records
from optscope.evidence.rounding_floor import shows
from optscope.evidence.stats import Interval, mean_interval
from optscope.evidence.variance import spread_ratio
from optscope.protocol.comparison import Arm
from optscope.protocol.rehearse import count_of
from optscope.protocol.rounding_twins import KS, metric_of
from optscope.protocol.session import Results
from optscope.report.section import Section
from optscope.report.tables import Table, interval
from optscope.tasks.task import Task

QUESTION = ("At which learning rates do trainings that differ in the last bit of their steps end as different "
            "models, and how much does that alone change the result?")
PARTED = 1e-3
"""A mean relative distance of weights at which twins are different networks."""
LIKE_SEEDS = 0.5
"""Rounding spreads results like seeds do if its share of a single run's standard deviation is above this."""


@dataclass(frozen=True)
class Level:
    """What rounding does at one learning rate of one arm.

    `distance` is the geometric mean over seeds of the distance of twins at the end; `mean` the metric over all
    runs; `deviation` its standard deviation among twins, `single` among single runs of different seeds, and `ratio`
    the first over the second.
    """

    arm: str
    lr: float
    distance: float
    mean: float
    deviation: float
    single: float
    ratio: Interval
    diverged: int

    @property
    def rounding_floor(self) -> float:
        """The difference that rounding alone keeps two single runs below in 95 of 100 cases."""
        runs = self.ratio.n
        return float(scipy.special.stdtrit(max(1, runs * (len(KS) - 1)), 0.975)) * math.sqrt(2) * self.deviation

    @property
    def verdict(self) -> str:
        """What is to be said of the learning rate, in a few words."""
        if self.diverged:
            return f"{count_of(self.diverged, 'run')} diverged"
        if self.ratio.low > LIKE_SEEDS:
            return "decided by rounding: results spread like over seeds"
        if self.distance > PARTED:
            return "twins part"
        return "twins stay near, results move" if self.deviation > 0 else "twins stay together"


def section(arms: Sequence[Arm], results: Results, task: Task, seeds: int) -> Section:
    """Return a line an arm, the table of every learning rate, and the figures."""
    metric, unit = metric_of(task)
    found = levels(arms, results.records, metric)
    rows = [(f.arm, f.lr, f.distance, f.mean, f.deviation,
             interval(f.ratio.estimate, f.ratio.low, f.ratio.high) if f.deviation else "0", f.verdict)
            for f in found]
    header = ("optimiser", "learning rate", "distance of twins", f"mean validation {metric}",
              f"deviation among twins [{'points' if unit == '%' else '1'}]", "over that of single runs", "verdict")
    table = Table("Rounding at every learning rate", header, rows,
                  f"{seeds} seeds, divisors 1, 3 and 5 each. In brackets 95 % F intervals.")
    return Section([sentence(arm.name, found, task) for arm in arms],
                   figures=figures(arms, found, results.records, results.arrays, task), tables=[table])


def levels(arms: Sequence[Arm], records: Records, metric: str) -> list[Level]:
    """Return what rounding does at every learning rate of every arm."""
    found = []
    for arm in arms:
        for lr in records.where(arm=arm.name).axis("distance"):
            distances = records.values(arm.name, "distance", lr)
            table = np.column_stack([records.where(k=k).values(arm.name, metric, lr) for k in KS])
            whole = table[np.isfinite(table).all(1)]
            apart = whole - whole[:, :1]  # equal results are then 0 apart, not a rounding error
            kept = distances[np.isfinite(distances)]
            found.append(Level(
                arm.name, lr, float(np.exp(np.mean(np.log(np.maximum(kept, 1e-12))))) if len(kept) else math.nan,
                float(np.mean(whole)) if len(whole) else math.nan,
                math.sqrt(float(apart.var(1, ddof=1).mean())) if len(whole) else math.nan,
                math.sqrt(float(whole.var(0, ddof=1).mean())) if len(whole) > 1 else math.nan, spread_ratio(table),
                int((~np.isfinite(table)).sum())))
    return found


def sentence(arm: str, found: Sequence[Level], task: Task) -> str:
    """Return in a line from which learning rate on twins part, and what rounding does at the best of them."""
    metric, unit = metric_of(task)
    mine = [level for level in found if level.arm == arm and not level.diverged]
    if not mine:
        return f"{arm}: every learning rate diverged on some seed."
    parted = _parted(arm, mine)
    decided = [level.lr for level in mine if level.ratio.low > LIKE_SEEDS]
    best = (max if metric == "accuracy" else min)(mine, key=lambda level: level.mean)
    unit = " points" if unit == "%" else ""
    rounding = (f"rounding alone moved the validation {metric} of no run" if not best.deviation > 0 else
                f"two runs that differ by less than {best.rounding_floor:.3g}{unit} of validation {metric} may "
                "differ by rounding alone" if shows(best.rounding_floor, best.mean) else
                f"rounding alone moved the validation {metric} by less than three digits show")
    said = [f"twins part at {_rates(parted)}" if parted else "twins part at no learning rate tried",
            f"rounding alone spreads results like seeds at {_rates(decided)}" if decided else
            "nowhere is it shown that rounding spreads results like seeds",
            f"at the best learning rate, {best.lr:g}, {rounding}"]
    return f"{arm}: {'; '.join(said)}."


def _parted(arm: str, found: Sequence[Level]) -> list[float]:
    return [level.lr for level in found if level.arm == arm and level.distance > PARTED]


def _rates(rates: Sequence[float]) -> str:
    return f"learning rate{'s' * (len(rates) > 1)} {', '.join(f'{lr:g}' for lr in rates)}"


def figures(arms: Sequence[Arm], found: Sequence[Level], records: Records, arrays: Mapping[str, NDArray[Any]],
            task: Task) -> list[Figure]:
    """Return the distance and the spread over learning rates, and the distance over steps."""
    metric, unit = metric_of(task)
    shown = f"validation {metric}" + (f" [{unit}]" if unit else "")
    apart, spread, means, curves = [], [], [], []
    for arm in arms:
        mine = [level for level in found if level.arm == arm.name]
        rates = [level.lr for level in mine]
        values = [records.values(arm.name, "distance", lr) for lr in rates]
        apart.append(Series(arm.name, rates, [level.distance for level in mine],
                            [float(v.min()) for v in values], [float(v.max()) for v in values]))
        spread += [Series(arm.name, rates, [level.deviation for level in mine]),
                   Series(f"{arm.name}, over seeds", rates, [level.single for level in mine])]
        results = [mean_interval(records.where(k=1).values(arm.name, metric, lr)) for lr in rates]
        means.append(Series(arm.name, rates, [r.estimate for r in results], [r.low for r in results],
                            [r.high for r in results]))
        series = [Series(f"lr {lr:g}", arrays[f"rounding/{arm.name}/{lr:g}/1/steps"].tolist(),
                         arrays[f"rounding/{arm.name}/{lr:g}/1/distance"].tolist()) for lr in rates
                  if f"rounding/{arm.name}/{lr:g}/1/steps" in arrays]
        curves.append(Panel("step", "distance of twins", series, arm.name, log_x=True, log_y=True,
                            levels={"parted above": PARTED}))
    parting = "; ".join(f"{arm.name} at {', '.join(f'{lr:g}' for lr in _parted(arm.name, found)) or 'none'}"
                        for arm in arms)
    return [
        Picture("rounding", f"Learning rates at which twins that differ in rounding alone part: {parting}", [
            Panel("learning rate", "distance of twins at the end", apart, log_x=True, log_y=True,
                  levels={"parted above": PARTED}),
            Panel("learning rate", f"deviation of {metric}" + (" [points]" if unit else ""), spread, log_x=True),
            Panel("learning rate", shown, means, log_x=True)],
            "Left: mean over weights of 2|w − w'|/(|w| + |w'|), geometric mean over seeds with the lowest and "
            "highest. Middle: standard deviation among twins of one seed, and among single runs of different "
            "seeds. Right: with 95 % t intervals."),
        Picture("distance", "How twins part during training", curves, "Seed 1, mean over the divisors 3 and 5.")]
