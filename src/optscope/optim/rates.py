"""What a loop does to an optimiser beside stepping: rates under a schedule, train and eval modes, saved states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor


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


def set_mode(optimizer: torch.optim.Optimizer, mode: Literal["train", "eval"]) -> None:
    """Put an optimiser in a mode, if it has modes: schedule-free ones do."""
    if has_modes(optimizer):
        getattr(optimizer, mode)()


def has_modes(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimiser has train and eval modes; the weights it stands for are those of eval mode."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def lying_as(saved: Any, loaded: Any) -> Any:
    """Return a saved state with its tensors on the devices where an optimiser has put them when it loaded it.

    Loading also casts tensors to the type of the weights, which loses bits: so the saved ones are kept.
    """
    if isinstance(saved, Tensor) and isinstance(loaded, Tensor):
        return saved.to(loaded.device)
    if isinstance(saved, Mapping) and isinstance(loaded, Mapping):
        return {key: lying_as(value, loaded[key]) for key, value in saved.items()}
    if type(saved) in (list, tuple) and type(saved) is type(loaded):
        return type(saved)(lying_as(a, b) for a, b in zip(saved, loaded, strict=True))
    return saved
