"""How players move: what each goes in every round, layer by layer, and how their paces compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BURN_IN = 0.01
"""The share of rounds, at the start, that the pace leaves out."""


class Trace:
    """How far a player goes in each round, from what slope and at what norm, `(rounds, layers)` each.

    "steps" are the lengths of its steps, summed over a round; "slopes" the norms of its gradient, their mean;
    "weights" the norms of its weights before the last step.
    """

    NAMES = ("steps", "slopes", "weights")

    def __init__(self, params: Sequence[Tensor], rounds: int, steps: int) -> None:
        self._params, self._n = params, steps
        self._start = [p.detach().clone() for p in params]
        self.steps, self.slopes, self.weights = (
            torch.full((rounds, len(params)), torch.nan, device=params[0].device) for _ in range(3))
        self._before: list[Tensor] = []

    def before(self) -> None:
        """Look at weights and gradients before a step."""
        self._before = [p.detach().clone() for p in self._params]
        self._slope = _norms([p.grad for p in self._params], self.slopes)

    def after(self, round_: int, first: bool) -> None:
        """Note a step, the `first` of its round or a further one."""
        moved = _norms([p.detach() - old for p, old in zip(self._params, self._before, strict=True)], self.steps)
        for trace, value in ((self.steps, moved), (self.slopes, self._slope / self._n)):
            trace[round_] = value if first else trace[round_] + value
        self.weights[round_] = _norms(self._before, self.weights)

    def travelled(self) -> float:
        """Return the distance from the start, ‖w − w₀‖."""
        gone = [p.detach() - old for p, old in zip(self._params, self._start, strict=True)]
        return float(_norms(gone, self.steps).norm())

    def state_dict(self) -> dict[str, Any]:
        """Return all that was noted."""
        return {name: getattr(self, name) for name in self.NAMES} | {"start": self._start}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what another trace noted."""
        for name in self.NAMES:
            getattr(self, name).copy_(saved[name])
        for mine, start in zip(self._start, saved["start"], strict=True):
            mine.copy_(start)


def _norms(tensors: Sequence[Tensor | None], like: Tensor) -> Tensor:
    return torch.stack([like.new_zeros(()) if t is None else torch.linalg.vector_norm(t) for t in tensors])


def pace(traces: Mapping[str, Trace]) -> dict[str, float]:
    """Return how fast players moved: each one's path and distance, and the first's pace by the second's.

        ρ_t = (‖ΔW‖/‖W‖) / (‖ΔV‖/‖V‖)              W: the first player's weights, V: the second's

    The band is the width of the middle half of log₁₀ ρ_t over the rounds after the first 1 %.

    Jelassi et al., arXiv 2210.04319, measure the pace of the discriminator by the generator's.
    """
    found: dict[str, float] = {}
    for name, trace in traces.items():
        found[f"path of the {name}"] = float(trace.steps.norm(dim=1).sum())
        found[f"distance of the {name}"] = trace.travelled()
    first, second = (trace.steps.norm(dim=1) / trace.weights.norm(dim=1) for trace in list(traces.values())[:2])
    logs = np.log10((first / second).cpu().numpy()[int(BURN_IN * len(first)):])
    logs = logs[np.isfinite(logs)]
    if len(logs):
        low, middle, high = np.quantile(logs, (0.25, 0.5, 0.75))
        found |= {"log pace ratio": float(middle), "band of the log pace ratio": float(high - low),
                  "range of the log pace ratio": float(logs.max() - logs.min())}
    return found
