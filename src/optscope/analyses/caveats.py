"""What must be known before a comparison is believed: its protocol, what went wrong, what to do next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optscope.analyses.findings import places
from optscope.analyses.tuning import budget_said, gradients
from optscope.evidence.paired import FEWEST
from optscope.evidence.records import Records
from optscope.evidence.stats import smallest_p
from optscope.evidence.words import listed
from optscope.protocol.compared import Compared
from optscope.protocol.comparison import Comparison
from optscope.protocol.rehearse import count_of, planned
from optscope.report.section import Check, Section

TOO_LARGE = 1e6
"""A loss that is so many times what runs of the best arm have ever had is told of."""


def reservations(comparison: Comparison, records: Records) -> Section:
    """Return what a reader must know first: what failed or was not measured, and what the choices left open."""
    mine = records.where(experiment=comparison.name)
    chosen, at_edge = comparison.chosen(mine), comparison.at_edge(mine)
    found, edges = [], []
    for arm in comparison.arms:
        if arm.search and not math.isfinite(comparison.score(mine, arm, chosen[arm.name])):
            found.append(f"{comparison.name}: every learning rate tried for {arm.name} diverged or failed; "
                         f"the smallest ({chosen[arm.name].lr}) stands for it: try smaller ones.")
        elif arm.name in at_edge:
            edges.append(f"{arm.name} ({chosen[arm.name].lr})")
        runs = {r.run: r.status for r in mine.where(arm=arm.name, phase="final")}
        bad = sum(status != "ok" for status in runs.values())
        if bad:
            found.append(f"{comparison.name}: {bad} of {len(runs)} runs of {arm.name} diverged or failed; "
                         "they are missing from its means.")
    found += apart(comparison, mine)
    if edges:
        rounds = len(comparison.rounds(mine)) - 1
        widened = f", after the search was widened {'once' if rounds == 1 else f'{rounds} times'}" if rounds else ""
        found.append(f"{comparison.name}: the best learning rate lies at the edge of those tried for "
                     f"{listed(edges)}{widened}: try more beyond it.")
    found += failed_checks(comparison, mine)
    n = len(comparison.seeds)
    if comparison.probes and n < FEWEST:
        found.append(f"{comparison.name}: with fewer than {FEWEST} seeds, here {n}, no difference can be "
                     f"shown, whatever the runs give: the exact test's p is {smallest_p(n):.2g} at least.")
    return Section(warnings=found)


def apart(comparison: Comparison, records: Records) -> list[str]:
    """Return a sentence for every arm with runs whose loss is out of all proportion, though it is finite.

    That is held against the largest loss on the way, of an arm's median run, of the arm where it is least: half of
    all runs may have come apart, and beside losses that end near 0 a usual one is large.
    """
    losses = records.where(phase="final", metric="loss")
    largest: dict[str, dict[int, float]] = {}
    for row in losses:
        if math.isfinite(row.value):
            mine = largest.setdefault(row.arm, {})
            mine[row.seed] = max(mine.get(row.seed, 0.0), abs(row.value))
    most = TOO_LARGE * min((float(np.median(list(each.values()))) for each in largest.values()), default=0.0)
    bad = {arm.name: [row.value for row in losses.where(arm=arm.name, step=None) if row.value > most > 0]
           for arm in comparison.arms}
    return [f"{comparison.name}: {count_of(len(values), 'run')} of {arm} came apart, though the numbers are "
            f"finite: the loss is up to {max(values):.2g}, and means over its runs say nothing."
            for arm, values in bad.items() if values]


def together(failures: Sequence[str]) -> list[str]:
    """Return failures with those that have one reason told once.

    >>> together(["SGD seed 1: failed, no luck", "SGD seed 2: failed, no luck", "SGD seed 3: lost, no power"])
    ['SGD seed 1 and 1 more: failed, no luck', 'SGD seed 3: lost, no power']
    """
    alike: dict[str, list[str]] = {}
    for failure in failures:
        run, _, reason = failure.partition(": ")
        alike.setdefault(reason, []).append(run)
    return [f"{runs[0]}{f' and {len(runs) - 1} more' if len(runs) > 1 else ''}: {reason}"
            for reason, runs in alike.items()]


def failed_checks(comparison: Compared, records: Records) -> list[str]:
    """Return a sentence for every check of a probe (unit "check": 1 holds, 0 fails) that some models fail."""
    found = []
    for metric in (m for probe in comparison.taken for m in probe.metrics if m.unit == "check"):
        failed = {arm.name: len(records.where(arm=arm.name, metric=metric.name, phase="final", value=0.0)
                                .seeds(arm.name)) for arm in comparison.arms}
        said = listed(f"{count_of(n, 'model')} of {arm}" for arm, n in failed.items() if n)
        if said:
            found.append(f'{comparison.name}: the check "{metric.name}" fails for {said}: {metric.text}.')
    return found


def next_steps(comparison: Comparison, records: Records, folder: Path, quick: bool) -> list[str]:
    """Return what would make a comparison surer, and where its numbers are."""
    more = len(comparison.seeds) + 4
    steps = ["An answer: the same without quick goes on from these runs, and repeats none." if quick else
             f"More certainty: the same command with more --seeds, {more} or as many as the answer names, keeps "
             f"all runs and adds {len(comparison.arms)} a seed. Do that once: who goes on until something is "
             "shown is wrong in more than 5 of 100 cases."]
    edges = comparison.at_edge(records)
    if edges and not quick:  # without quick, the search is wider by itself
        steps.append(f"Wider search for {listed(edges)}: give other learning rates in a TOML file "
                     "(--config; [optimisers.NAME] lr = [...]), or a larger widen.")
    steps.append(f"Your own analysis: every number is in {folder}/summary.csv (and index.sqlite).")
    return steps


def fairness(comparison: Comparison, records: Records) -> Section:
    """Return each rule of a fair comparison, whether it was kept, and what was done."""
    mine = records.where(experiment=comparison.name)
    asked = [("training loss", None), *((place.metric.name, place.at) for place in places(comparison, mine))]
    found = [mine.by_seed(arm.name, metric, at) for arm in comparison.arms for metric, at in asked]
    whole = len(asked) > 1 and all(set(each) == set(comparison.seeds) and np.isfinite(list(each.values())).all()
                                   for each in found)
    name, budgets = comparison.name, gradients(comparison, mine)
    return Section(checks=[
        Check(f"{name}: every optimiser had the same budget", len(set(budgets.values())) <= 1,
              budget_said(comparison, mine)),
        Check(f"{name}: seeds that choose are not the seeds that compare",
              not set(comparison.seeds) & set(comparison.tuning_seeds),
              f"tuned on {_listed(comparison.tuning_seeds)}, compared on {_listed(comparison.seeds)}"),
        Check(f"{name}: every arm finished, and was measured, on every seed", whole,
              "a seed fixes initialisation, data order and the noise of probes for all arms; "
              f"the plan of all was {comparison.plan!r}, {planned(comparison.task, comparison.plan)}; "
              f"{sizes(comparison)}")])


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def sizes(comparison: Comparison) -> str:
    """Return how many examples each part has, in words."""
    data = comparison.task.data()
    return ", ".join(f"{part.size or 'a stream of'} examples for {use}" for part, use in (
        (data.train, "training"), (data.validation, "validation"), (data.test, "testing")))
