"""A player in action: its network, its optimiser, and what it has left behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optscope.engine.formats import fast_format, in_format
from optscope.engine.gradient import Gradient
from optscope.engine.place import Place
from optscope.engine.plan import Plan
from optscope.engine.stepping import Stepper
from optscope.engine.traces import Trace
from optscope.optim.rule import Rule
from optscope.tasks.objective import Objective
from optscope.tasks.tree import Batch


class Side:
    """A player of a training of `total` rounds; `seed` starts its optimiser's own random numbers."""

    def __init__(self, objective: Objective, model: nn.Module, rule: Rule, seed: int, first: Batch,
                 total: int, plan: Plan, place: Place) -> None:
        network = objective.network(model)
        self.objective = objective
        self.format = fast_format(network, first.inputs, rule)
        network.to(memory_format=self.format)  # type: ignore[call-overload]
        self.params = [p for p in network.parameters() if p.requires_grad]
        # Alone, it is left to autograd where gradients go: checkpointed activations want it so.
        self._gradient = Gradient(objective, plan, place, self.params if objective.player else None)
        self.stepper = Stepper(rule, network, seed, self._gradient.scaler)
        self._longest = plan.clip
        self.losses = torch.full((total,), torch.nan, device=self.params[0].device if self.params else None)
        self.trace: Trace | None = None

    def differentiate(self, model: nn.Module, batch: Batch, latent: Tensor | None, round_: int, j: int = 0) -> None:
        """Take the gradient of the player's loss by its own weights; None by those it does not use."""
        for p in self.params:
            p.grad = None
        value = self._gradient.take(model, in_format(batch, self.format), latent)
        if self.objective.steps > 1:  # the mean of the round's
            value = value / self.objective.steps + (self.losses[round_] if j else 0)
        self.losses[round_] = value
        if self.stepper.scaler is not None:
            self.stepper.scaler.unscale_(self.stepper.optimizer)

    def try_gradient(self, model: nn.Module, batch: Batch, latent: Tensor | None) -> None:
        """Take a gradient as training does, and note nothing."""
        self._gradient.take(model, in_format(batch, self.format), latent)

    def move(self, round_: int, factor: float, j: int = 0) -> None:
        """Make one step at `factor` times the rate."""
        if self.trace is not None:
            self.trace.before()
        if self._longest is not None:
            nn.utils.clip_grad_norm_(self.params, self._longest)
        self.stepper.step(factor)
        if self.trace is not None:
            self.trace.after(round_, first=j == 0)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return the optimiser's state, the losses so far, and the trace."""
        return {"stepper": self.stepper.state_dict(), "losses": self.losses[:step],
                "trace": self.trace.state_dict() if self.trace else None}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what another side saved."""
        self.stepper.load_state_dict(saved["stepper"])
        self.losses[:len(saved["losses"])] = saved["losses"]
        if self.trace:
            self.trace.load_state_dict(saved["trace"])
