"""Numbers of this study that are found in two ways."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optscope.evidence.records import Records
from optscope.protocol.twice import Twice


@dataclass(frozen=True)
class Excess:
    """The median E/Q at depth 2, from a fifth of the threshold: of exact limits, and of descents."""

    arm: str

    def __call__(self, records: Records) -> tuple[float, float]:
        """Return both."""
        limits = records.where(experiment="cells", depth=2, sparsity=5, measurements=40)
        descents = records.where(experiment="descents", depth=2)
        return _median(limits, self.arm, "excess"), _median(descents, self.arm, "excess")


def _median(records: Records, arm: str, metric: str) -> float:
    values = records.values(arm, metric, 0.2) if records else np.array([])
    return float(np.median(values)) if values.size else float("nan")


TWICE = (
    Twice("E/Q of plain limits, depth 2, from a fifth of the threshold", "Newton's method on the dual",
          "descents of 40,000 steps", Excess("plain"), 0.01),
    Twice("E/Q of polar limits, depth 2, from a fifth of the threshold", "Newton's method on the dual",
          "descents of 40,000 steps", Excess("polar"), 0.01))
