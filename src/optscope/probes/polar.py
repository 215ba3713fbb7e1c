"""Whether polar descent follows its flow: what the flow conserves, and how far steps have moved it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from optscope.devices import to_numpy
from optscope.evidence.records import Metric
from optscope.optim.polar import stretches
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject

TOLERANCE = 0.1
"""Directions that steps have lengthened by more than this share have left the flow."""


@dataclass(frozen=True, repr=False)
class PolarDrift(Probe):
    """Measure how far the steps of a live `PolarSGD` have broken what its flow conserves, the length of each v.

    "direction stretch" is ‖v‖/‖v(0)‖ − 1, the longest of all blocks, where v is the direction before it is
    normalised; the flow keeps it at 0. With the default ratio, 1/‖v‖², a stretch of s divides the rate of the
    direction by (1 + s)². It is taken during training (`Comparison.watched`); of other optimisers, and afterwards,
    nothing is read. No examples are used. Array: "stretches", of all blocks, in the order of the parameters.
    The flow is that of arXiv 2305.05448; to watch what it conserves is ours.
    """

    needs: ClassVar[tuple[Need, ...]] = ("live optimiser",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The largest stretch, and whether it is small."""
        return (Metric("direction stretch", "%", "lower", "how far steps lengthened a direction"),
                Metric("polar descent follows its flow", "check", "higher",
                       f"its steps lengthened a direction by more than {TOLERANCE:.0%}, the flow does not: what "
                       "is known of polar flow need not hold; try a smaller learning rate or ratio"))

    def measure(self, subject: Subject) -> Reading:
        """Read the optimiser's state."""
        optimizer = subject.snapshot.optimizer
        states = optimizer.state.values() if optimizer is not None else ()
        found = [s.flatten() for s in map(stretches, states) if s is not None]
        if not found:
            return Reading({})
        every = torch.cat(found).double().cpu()
        worst = float(every.max()) - 1
        return Reading({"direction stretch": 100 * worst,
                        "polar descent follows its flow": float(worst <= TOLERANCE)},
                       {"stretches": to_numpy(every)})
