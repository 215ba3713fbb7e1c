"""Tests at other edges, Adam's own and that of small batches; margins are fixed here, before any run."""

from __future__ import annotations

from functools import partial

import numpy as np

from optscope.evidence.claims import Verdict
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval
from optscope.evidence.verdicts import within
from optscope.studies.restrained_instability.trained_claims import LEARNED, amplified_where_crossed

ADAM, BATCHES = "Adam edge", "batch edge"
"""Experiments: Adam in full batches, gradient descent in small ones."""
AT_THE_EDGE = (0.8, 1.25)
"""A sharpness has settled at its edge if over the last quarter of a training it is so many thresholds."""
LATE, LATE_OF_ALL = "late sharpness / threshold", "late sharpness of all / threshold"

amplified_by_adam = partial(amplified_where_crossed, experiment=ADAM)
amplified_in_batches = partial(amplified_where_crossed, experiment=BATCHES)


def settled(records: Records, experiment: str, metric: str = LATE) -> list[float]:
    """Return a number a seed: the median of a metric over its trainings that learned and crossed the edge."""
    runs: dict[tuple[str, int, float | None], dict[str, float]] = {}
    for row in records.where(experiment=experiment):
        runs.setdefault((row.arm, row.seed, row.at), {})[row.metric] = row.value
    seeds: dict[int, list[float]] = {}
    for (_, seed, _), run in runs.items():
        if metric in run and run["final loss"] <= LEARNED and run["crossed"]:
            seeds.setdefault(seed, []).append(run[metric])
    return [float(np.median(values)) for _, values in sorted(seeds.items())]


def adam_stays_at_its_edge(records: Records) -> Verdict:
    """Judge where the preconditioned sharpness is at last, in the trainings by Adam that crossed."""
    return within(mean_interval(settled(records, ADAM)), *AT_THE_EDGE,
                  what="late preconditioned sharpness / Adam's threshold")


def batches_stay_at_their_edge(records: Records) -> Verdict:
    """Judge where the batch sharpness is at last, in the trainings that crossed."""
    return within(mean_interval(settled(records, BATCHES)), *AT_THE_EDGE, what="late batch sharpness / (2/lr)")


def all_examples_stay_below(records: Records) -> Verdict:
    """Judge where the sharpness of all examples is at last, in the same trainings."""
    return within(mean_interval(settled(records, BATCHES, LATE_OF_ALL)), high=1.0,
                  what="late sharpness of all examples / (2/lr)")
