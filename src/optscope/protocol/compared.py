"""What analyses ask of what is compared, whether a session trained it, others saved it or a loop recorded it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from optscope.evidence.records import Metric, Records


class Side(Protocol):
    """One side of a comparison."""

    @property
    def name(self) -> str:
        """What it is called."""


class Measuring(Protocol):
    """Whatever measured numbers, and knows what they mean."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What it measures, with units and directions."""


class Compared(Protocol):
    """Arms that share seeds, and what was measured of each."""

    @property
    def name(self) -> str:
        """What records are filed under."""

    @property
    def arms(self) -> Sequence[Side]:
        """The sides, the first of which is the baseline."""

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds that every arm has."""

    @property
    def probes(self) -> Sequence[Measuring]:
        """What the arms are compared by."""

    @property
    def metrics(self) -> Sequence[str]:
        """In which metrics differences are tested: none says in all that have a better direction."""

    @property
    def taken(self) -> Sequence[Measuring]:
        """All that was taken of the trained models."""

    def measured(self, records: Records) -> tuple[list[Metric], Records]:
        """Return every metric of the trained models, checks apart, and its final records."""


def last_measured(compared: Compared, watched: Sequence[Measuring],
                  records: Records) -> tuple[list[Metric], Records]:
    """Return every metric of the trained models, checks of probes apart, and its final records.

    Metrics of what was `watched` are of the last step: their records look like the others'.
    """
    mine = records.where(experiment=compared.name, phase="final")
    names = {metric.name for probe in watched for metric in probe.metrics}
    last = {row.run: row.step for row in sorted(mine, key=lambda row: row.step or 0)
            if row.metric in names and row.step is not None}
    rows = Records(row if row.step is None else replace(row, step=None) for row in mine
                   if row.step is None or (row.metric in names and row.step == last[row.run]))
    found = [metric for probe in compared.taken for metric in probe.metrics
             if metric.unit != "check" and rows.where(metric=metric.name)]
    return found, rows
