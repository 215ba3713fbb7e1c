"""Tests of what the paper says of trained networks: K1 to K3, K9, K10; margins are fixed here, before any run."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from optscope.evidence.claims import Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import BOOTSTRAP_LEAST, Interval, bootstrap_interval, mean_interval, wilson
from optscope.evidence.variance import deviation_ratio, spread_ratio
from optscope.evidence.verdicts import all_of, close, greater, shown_by, within

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
BySeed = dict[int, float]

KS = (1, 3, 5, 7, 9, 11)
"""The paper's divisors."""
ARMS = tuple(f"k = {k}" for k in KS)
FIRST = (3, 5)
"""Divisors that are also applied to the first step only."""
COMPARABLE = 0.5
"""Rounding spreads as much as seeds if its share of a single run's standard deviation is above this (K1)."""
DEEP, MIDDLE, SHALLOW = (f"Swish with {n} convolutions" for n in (19, 9, 3))
KINKED = "ReLU with 19 convolutions"
RATES = (0.1, 0.03, 0.01, 0.003, 0.001)
"""Learning rates of the deep net (K2)."""
STEPS = "distance after 300 steps"
AMPLIFIED, QUIET = -3.0, -5.0
"""log10 of a distance after 300 steps that counts as amplified, and of one that does not (K2, K3)."""
LEARNED = 0.3
"""Runs whose final loss is above this never left the constant predictor, whose loss is 0.45 (K9)."""
EXCEPTIONS = 0.1
"""The share of exceptions in either direction that K9 allows."""


def pairs(a: BySeed, b: BySeed) -> tuple[Array, Array]:
    """Return both sides' values on every seed of either, nan where there is none."""
    seeds = sorted({*a, *b})
    first, second = (np.array([side.get(s, math.nan) for s in seeds], dtype=np.float64) for side in (a, b))
    return first, second


# K1

def table(records: Records, arms: tuple[str, ...] = ARMS) -> Array:
    """Return accuracies in percent, one row a seed and one column an arm."""
    mine = records.where(experiment="spread")
    columns = [mine.by_seed(arm, "accuracy") for arm in arms]
    return np.array([[column.get(seed, math.nan) for column in columns] for seed in mine.seeds(*arms)],
                    dtype=np.float64).reshape(-1, len(arms))


def rounding_spreads_like_seeds(records: Records) -> Verdict:
    """Judge the share of a single run's standard deviation that rounding alone has, by F and by bootstrap."""
    found = table(records)
    exact = within(spread_ratio(found), low=COMPARABLE, what="spread over k / over batch seeds, F interval")
    if np.isfinite(found).all(1).sum() < BOOTSTRAP_LEAST:
        return exact
    again = within(bootstrap_interval(found, _ratio_of_deviations), low=COMPARABLE,
                   what="the same, bootstrap over seeds")
    return shown_by(all_of([exact, again]), exact)


def _ratio_of_deviations(rows: Array) -> float:
    return math.sqrt(rows.var(1, ddof=1).mean() / rows.var(0, ddof=1).mean())


def rounding_spreads_like_starts(records: Records) -> Verdict:
    """Judge the spread over k against that over seeds which also draw the initial weights."""
    what = "spread over k / over seeds of start and batches"
    found, starts = table(records), records.where(experiment="starts").values("k = 1", "accuracy")
    if not len(found) or len(starts) < 2:
        return within(math.nan, what=what)
    ratio = deviation_ratio(math.sqrt(found.var(1, ddof=1).mean()), found.shape[0] * (found.shape[1] - 1),
                            float(starts.std(ddof=1)), len(starts) - 1)
    return within(ratio, low=COMPARABLE, what=what)


def one_step_is_enough(records: Records) -> Verdict:
    """Judge the spread of runs perturbed in their first step only against that of runs perturbed in all steps."""
    what = "spread after one perturbed step / after all"
    found = table(records, ("k = 1", *(f"k = {k}" for k in FIRST), *(f"k = {k} in the first step" for k in FIRST)))
    if np.isfinite(found).all(1).sum() < BOOTSTRAP_LEAST:
        return within(Interval(math.nan, math.nan, math.nan, len(found)), what=what)
    often = len(FIRST) + 1

    def ratio(rows: Array) -> float:
        once = np.column_stack((rows[:, :1], rows[:, often:]))
        return math.sqrt(once.var(1, ddof=1).mean() / rows[:, :often].var(1, ddof=1).mean())

    return within(bootstrap_interval(found, ratio), COMPARABLE, 1 / COMPARABLE, what)


def powers_of_two_are_equal(records: Records) -> Verdict:
    """Judge the negative control: k = 2 gives the same bits as k = 1, in every experiment."""
    found = table(records, ("k = 1", "k = 2"))
    apart = [r.value for r in records.where(experiment="spread", arm="k = 2", metric="distance")]
    apart += [r.value for r in records.where(metric="largest distance of the control")]
    worst, gap = (float(max(values, default=math.nan)) for values in (apart, np.abs(found[:, 0] - found[:, 1])))
    return all_of([close(worst, 0.0, 0.0, f"largest distance of {len(apart)} controls"),
                   close(gap, 0.0, 0.0, "largest difference of accuracies")])


# K2, K3 and depth

def _logs(records: Records, arm: str, lr: float, metric: str = STEPS) -> BySeed:
    """Return log10 distances of an arm at a learning rate by seed; an exact 0 counts as 1e-12."""
    found = records.where(experiment="parting").by_seed(arm, metric, lr)
    return {seed: math.log10(max(value, 1e-12)) for seed, value in found.items()}


def _level(records: Records, arm: str, lr: float, low: float = -math.inf, high: float = math.inf) -> Verdict:
    found = list(_logs(records, arm, lr).values())
    return within(mean_interval(found), low, high, f"log10 distance of {arm} at lr {lr:g}")


def distance_rises_with_rate(records: Records) -> Verdict:
    """Judge the slope of log10 distance on log10 learning rate of the deep net, one slope a seed."""
    logs = [_logs(records, DEEP, lr) for lr in RATES]
    slopes = [float(np.polyfit(np.log10(RATES), [at[seed] for at in logs], 1)[0])
              for seed in sorted(set.intersection(*map(set, logs)))]
    return within(mean_interval(slopes), low=0.0, what="slope of log10 distance on log10 learning rate")


def small_rates_are_quiet(records: Records) -> Verdict:
    """Judge the distance at the learning rate 0.001, at every depth."""
    return all_of([_level(records, arm, 0.001, high=QUIET) for arm in (DEEP, MIDDLE, SHALLOW)])


def equal_travel(records: Records) -> Verdict:
    """Judge the distance at equal learning rate times steps: 30 steps at 0.1 against 300 at 0.01."""
    large = _logs(records, MIDDLE, 0.1, "distance after 30 steps")
    small = _logs(records, MIDDLE, 0.01)
    return greater(*pairs(large, small), what="log10 distance after lr · steps = 3, lr 0.1 − lr 0.01")


def smooth_nets_part(records: Records) -> Verdict:
    """Judge the distance of the deep Swish net at the usual learning rate."""
    return _level(records, DEEP, 0.1, low=AMPLIFIED)


def kinks_part_at_small_rates(records: Records) -> Verdict:
    """Judge ReLU against Swish at the learning rate 0.001, where Swish is quiet."""
    kinked, smooth = (_logs(records, arm, 0.001) for arm in (KINKED, DEEP))
    return greater(*pairs(kinked, smooth), margin=1.0, what="log10 distance at lr 0.001, ReLU − Swish")


def depth_amplifies(records: Records) -> Verdict:
    """Judge whether the distance at the usual learning rate rises from each depth to the next."""
    return all_of([greater(*pairs(_logs(records, deep, 0.1), _logs(records, flat, 0.1)),
                           what=f"log10 distance at lr 0.1, {deep} − {flat}")
                   for deep, flat in ((MIDDLE, SHALLOW), (DEEP, MIDDLE))])


# K9, K10

def edge_runs(records: Records, experiment: str = "edge") -> tuple[Flags, Flags, int, int]:
    """Return who crossed and who amplified among the runs that learned, and how many did not, or diverged."""
    runs: dict[tuple[str, int, float | None], dict[str, float]] = {}
    for r in records.where(experiment=experiment):
        if r.metric in ("final loss", "crossed", "amplified"):
            runs.setdefault((r.arm, r.seed, r.at), {})[r.metric] = r.value
    learned = [run for run in runs.values() if run["final loss"] <= LEARNED]
    diverged = sum(math.isnan(run["final loss"]) for run in runs.values())
    crossed, amplified = (np.array([run[name] for run in learned], dtype=np.bool_)
                          for name in ("crossed", "amplified"))
    return crossed, amplified, len(runs) - len(learned) - diverged, diverged


def amplified_where_crossed(records: Records, experiment: str = "edge") -> Verdict:
    """Judge the table of crossed against amplified: exceptions in each direction, and Fisher's exact test."""
    crossed, amplified, stuck, diverged = edge_runs(records, experiment)
    both, first = int((crossed & amplified).sum()), int((crossed & ~amplified).sum())
    second, neither = int((~crossed & amplified).sum()), int((~crossed & ~amplified).sum())
    p = float(stats.fisher_exact(np.array([[both, first], [second, neither]])).pvalue)
    verdict = all_of([
        within(wilson(first, both + first), high=EXCEPTIONS, what="crossed but did not amplify"),
        within(wilson(second, second + neither), high=EXCEPTIONS, what="amplified but did not cross")])
    note = (f"Crossed and amplified {both}, crossed only {first}, amplified only {second}, neither {neither}; "
            f"Fisher's exact p = {p:.2g}. {stuck} runs that never left the constant predictor and {diverged} that "
            f"diverged are left out. {verdict.note}{_gap(records, experiment)}")
    return replace(verdict, note=note, n=len(crossed), p=p)


def _gap(records: Records, experiment: str) -> str:
    """Return in a sentence how far the largest distances of runs that crossed lie from those of the others."""
    sides = crossing_distances(records, experiment)
    if not all(len(side) for side in sides):
        return ""
    crossed, others = (np.array([y for _, y in side]) for side in sides)
    return (f" Largest distance of twins: {crossed.min():.2g} to {crossed.max():.2g} in runs that crossed, "
            f"{others.min():.2g} to {others.max():.2g} in the others.")


def crossing_distances(records: Records, experiment: str = "edge",
                       ) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return (largest sharpness / threshold, largest distance) of runs that crossed, and of those that did not."""
    runs: dict[tuple[str, int, float | None], dict[str, float]] = {}
    for r in records.where(experiment=experiment):
        runs.setdefault((r.arm, r.seed, r.at), {})[r.metric] = r.value
    learned = [run for run in runs.values() if "largest distance" in run and run["final loss"] <= LEARNED]
    crossed, others = ([(run["largest sharpness / threshold"], run["largest distance"]) for run in learned
                        if run["crossed"] == side] for side in (1.0, 0.0))
    return crossed, others


def _crossing(records: Records, arm: str, lr: float) -> BySeed:
    """Return crossing steps by seed, nan where the run did not learn."""
    mine = records.where(experiment="edge")
    losses = mine.by_seed(arm, "final loss", lr)
    return {seed: step if losses[seed] <= LEARNED else math.nan
            for seed, step in mine.by_seed(arm, "crossing step", lr).items()}


def decay_delays(records: Records) -> Verdict:
    """Judge whether each larger weight decay crosses later; runs that never cross count as the end."""
    arms = [f"3 hidden with decay {decay}" for decay in ("0", "0.001", "0.003")]
    return all_of([greater(*pairs(_crossing(records, more, 0.3), _crossing(records, less, 0.3)),
                           what=f"crossing step, {more} − {less}", unit="steps")
                   for less, more in pairwise(arms)])


def depth_crosses_earlier(records: Records) -> Verdict:
    """Judge the smallest learning rate at which a run crosses, one hidden layer against three; none counts as 1."""
    flat, deep = ({seed: math.log10(lr) for seed, lr in smallest_crossing_rate(records, depth).items()}
                  for depth in (1, 3))
    return greater(*pairs(flat, deep), what="log10 of the smallest learning rate that crosses, 1 − 3 hidden layers")


def smallest_crossing_rate(records: Records, depth: int) -> BySeed:
    """Return by seed the smallest learning rate at which a net of that depth crossed, 1 where none did."""
    mine = records.where(experiment="edge", arm=f"{depth} hidden with decay 0", metric="crossed")
    return {seed: min((r.at or 1.0 for r in mine if r.seed == seed and r.value), default=1.0)
            for seed in sorted({r.seed for r in mine})}
