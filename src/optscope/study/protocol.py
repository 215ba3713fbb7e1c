"""What must be known before a comparison is believed, in words: its protocol, what went wrong, what to do next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optscope.evidence.records import Records
from optscope.study.comparison import Comparison
from optscope.study.conduct import Conducted
from optscope.study.rehearse import planned


def warnings(comparisons: Sequence[Comparison], conducted: Conducted) -> list[str]:
    """Return what a reader must know first: what failed or was not measured, and what the choices left open."""
    found = [*conducted.failures, *conducted.silences]
    for comparison in comparisons:
        mine = conducted.records.where(experiment=comparison.name)
        chosen = comparison.chosen(mine)
        edges = []
        for arm in comparison.arms:
            if arm.search and not math.isfinite(comparison.score(mine, arm, chosen[arm.name])):
                found.append(f"{comparison.name}: every learning rate tried for {arm.name} diverged or failed; "
                             f"the smallest ({chosen[arm.name].lr}) stands for it: try smaller ones.")
            elif arm.search and arm.search.at_edge(chosen[arm.name]):
                edges.append(f"{arm.name} ({chosen[arm.name].lr})")
            runs = {r.run: r.status for r in mine.where(arm=arm.name, phase="final")}
            bad = sum(status != "ok" for status in runs.values())
            if bad:
                found.append(f"{comparison.name}: {bad} of {len(runs)} runs of {arm.name} diverged or failed; "
                             "they are missing from its means.")
        if edges:
            found.append(f"{comparison.name}: the best learning rate lies at the edge of those tried for "
                         f"{', '.join(edges)}: try more beyond it.")
        found += _failed_checks(comparison, mine)
        if comparison.probes and len(comparison.seeds) < 6:
            found.append(f"{comparison.name}: with fewer than 6 seeds, here {len(comparison.seeds)}, p < 0.05 can "
                         "never be shown.")
    return found


def _failed_checks(comparison: Comparison, records: Records) -> list[str]:
    """Return a sentence for every check of a probe (unit "check": 1 holds, 0 fails) that some models fail."""
    found = []
    probes = (*comparison.probes, *comparison.described, *comparison.watched)
    for metric in (m for probe in probes for m in probe.metrics if m.unit == "check"):
        for arm in comparison.arms:
            failed = len(records.where(arm=arm.name, metric=metric.name, phase="final", value=0.0).seeds(arm.name))
            if failed:
                found.append(f'{comparison.name}: the check "{metric.name}" fails for {failed} model(s) of '
                             f"{arm.name}: {metric.text}")
    return found


def next_steps(comparison: Comparison, records: Records, folder: Path) -> list[str]:
    """Return what would make a comparison surer, and where its numbers are."""
    more = len(comparison.seeds) + 4
    steps = [f"More certainty: the same command with --seeds {more} keeps all runs and adds "
             f"{4 * len(comparison.arms)}."]
    edges = [arm.name for arm in comparison.arms
             if arm.search and arm.search.at_edge(comparison.chosen(records)[arm.name])]
    if edges:
        steps.append(f"Wider search for {', '.join(edges)}: give other learning rates in a TOML file "
                     "(--config; [optimisers.NAME] lr = [...]).")
    steps.append(f"Your own analysis: every number is in {folder}/summary.csv (and index.sqlite).")
    return steps


def checklist(comparison: Comparison, records: Records) -> list[tuple[str, bool, str]]:
    """Return each rule of a fair comparison, whether it was kept, and what was done."""
    budgets = {len(arm.candidates()) for arm in comparison.arms}
    mine = records.where(experiment=comparison.name)
    finished = {arm.name: sorted(mine.by_seed(arm.name, "training loss")) for arm in comparison.arms}
    whole = all(np.isfinite(mine.values(arm.name, "training loss")).all() for arm in comparison.arms)
    name = comparison.name
    return [
        (f"{name}: every optimiser had the same budget", len(budgets) <= 1,
              f"{next(iter(budgets), 0)} learning rates × {len(comparison.tuning_seeds)} seed(s) each, "
              f"chosen by clean validation {comparison.criterion.metric}"),
        (f"{name}: seeds that choose are not the seeds that compare",
              not set(comparison.seeds) & set(comparison.tuning_seeds),
              f"tuned on {comparison.tuning_seeds}, compared on {comparison.seeds}"),
        (f"{name}: every arm finished on every seed", whole and len({str(s) for s in finished.values()}) == 1,
              "a seed fixes initialisation, data order and the noise of probes for all arms; "
              f"the plan of all was {comparison.plan!r}, {planned(comparison.task, comparison.plan)}"),
    ]
