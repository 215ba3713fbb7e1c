"""Trainings that others have recorded, as something to compare: on the seeds on which every arm has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optscope.evidence.recorded import LOSS, USES, Meant, Recorded, recorded_in
from optscope.evidence.records import Metric, Records
from optscope.evidence.words import listed
from optscope.protocol.compared import last_measured

HOLDS = "recordings of {}"
"""What a folder of recordings is said to hold, of a task."""


@dataclass(frozen=True)
class Recordings:
    """What is recorded of trainings of one task, by arms and seeds.

    `probes` and what is `described` were taken in the end, and differences in the former are tested on the `seeds`
    that every arm has; what was `watched` has a last value too. `curves` are metrics over steps, by what they are
    called: the loss, and what is also measured in the end.
    """

    name: str
    arms: Sequence[Arm]
    seeds: Sequence[int]
    probes: Sequence[Meant]
    described: Sequence[Meant]
    watched: Sequence[Meant]
    curves: Mapping[str, Metric]
    records: Records
    known: Sequence[str]
    metrics: Sequence[str] = ()

    @property
    def taken(self) -> Sequence[Meant]:
        """All that was taken."""
        return (*self.probes, *self.described, *self.watched)

    def measured(self, records: Records) -> tuple[list[Metric], Records]:
        """Return every metric of the trained models, checks apart, and the records."""
        return last_measured(self, self.watched, records)


@dataclass(frozen=True)
class Arm:
    """An optimiser, as whoever recorded it has called it."""

    name: str


def recordings_in(folder: Path) -> Recordings | None:
    """Return what recorders have left in a folder; None where they have left nothing.

    Raises:
        UserError: when a file is not what a recorder writes.
    """
    found = [each for each in recorded_in(folder) if each.task]
    if not found:
        return None
    arms = list(dict.fromkeys(each.arm for each in found))
    ended = {arm: {each.seed for each in found if each.arm == arm and each.ended is not None} for arm in arms}
    seeds = sorted(set.intersection(*ended.values()))
    watched, compared, described = (list(dict.fromkeys(probe for each in found for probe in each.probes[use]))
                                    for use in USES)
    final = {metric.name for probe in (*compared, *described) for metric in probe.metrics}
    curves = {f"{probe.part} {metric.name}": metric for probe in watched for metric in probe.metrics
              if metric.name in final}
    return Recordings(found[0].task, [Arm(arm) for arm in arms], seeds, compared, described,
                      [probe for probe in watched if final.isdisjoint(metric.name for metric in probe.metrics)],
                      {LOSS.name: LOSS} | curves, Records(row for each in found for row in each.records()),
                      _known(found, seeds))


def _known(found: Sequence[Recorded], seeds: Sequence[int]) -> list[str]:
    """Return what is to be said of recordings: those that have not ended, lengths that differ, silent probes."""
    going = [f"{each.arm} with seed {each.seed} (after step {each.last})" for each in found if each.ended is None]
    ended = [each for each in found if each.ended is not None]
    left = [f"{each.arm} with seed {each.seed}" for each in ended if each.seed not in seeds]
    steps = [str(step) for step in sorted({each.ended or 0 for each in ended})]
    said = [f"not closed yet, or killed: {listed(going)}; what was recorded is shown, and no difference of it "
            "tested."] if going else []
    said += [f"differences are of the seeds that every arm has: without {listed(left)}."] if left else []
    said += [f"trainings ended after different numbers of steps, {listed(steps)}."] if len(steps) > 1 else []
    return [*said, *dict.fromkeys(reason for each in found for reason in each.reasons)]
