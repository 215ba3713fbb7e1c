"""Learning rates under a schedule: the factor is ours, what an optimiser makes of its own rate stays its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Rates:
    """The learning rates of an optimiser's param groups, to be multiplied by a factor that changes.

    An optimiser that writes to `group["lr"]` itself is followed: its change is a change of the rate at factor 1.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, base: Sequence[float] | None = None,
                 written: Sequence[float] | None = None) -> None:
        self._optimizer = optimizer
        now = [group["lr"] for group in optimizer.param_groups]
        self.base, self.written = list(base or now), list(written or now)

    def set(self, factor: float) -> None:
        """Make every rate `factor` times what it would be without a schedule."""
        for i, group in enumerate(self._optimizer.param_groups):
            if group["lr"] != self.written[i]:  # at factor 0 nobody can tell what it was multiplied by
                self.base[i] = self.base[i] * (group["lr"] / self.written[i]) if self.written[i] else group["lr"]
            group["lr"] = self.written[i] = self.base[i] * factor

    def state(self) -> dict[str, Any]:
        """Return what a later `Rates` of the same optimiser goes on from."""
        return {"base": list(self.base), "written": list(self.written)}
