"""A player in action: its network, its optimiser, and what it has left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from optscope.engine.formats import fast_format, in_format
from optscope.engine.gradient import Gradient
from optscope.engine.place import Place
from optscope.engine.plan import Plan
from optscope.engine.seat import ALONE, Seat
from optscope.engine.stepping import Stepper
from optscope.engine.traces import Trace
from optscope.optim.rule import Rule
from optscope.tasks.fresh import Numbers
from optscope.tasks.objective import Objective
from optscope.tasks.tree import Batch


class Side:
    """A player of a training of `total` rounds; `seed` starts its optimiser's own random numbers.

    `evaluations` counts the gradients that it has taken; `slowed` tells whether its optimiser, and not the model,
    keeps convolutions from channels-last.
    """

    def __init__(self, objective: Objective, model: nn.Module, rule: Rule, seed: int, first: Batch,
                 total: int, plan: Plan, place: Place, seat: Seat = ALONE) -> None:
        network = objective.network(model)
        self.objective = objective
        self.format = fast_format(network, first.inputs, rule)
        allowed = fast_format(network, first.inputs, None) if rule.foreign else self.format
        self.slowed = allowed is not self.format
        network.to(memory_format=self.format)  # type: ignore[call-overload]
        self.params = [p for p in network.parameters() if p.requires_grad]
        # Alone, it is left to autograd where gradients go: checkpointed activations want it so.
        self._gradient = Gradient(objective, plan, place, self.params if objective.player else None)
        self.stepper = Stepper(rule, network, seed, self._gradient.scaler, total * objective.steps)
        self._gradient.keeps_graph = self.stepper.keeps_graph
        self._longest = plan.clip
        self.losses = torch.full((total,), torch.nan, device=self.params[0].device if self.params else None)
        self.trace: Trace | None = None
        self.evaluations = 0
        self._seat = seat
        self._asks, self._foreign, self._device = rule.asks, rule.foreign, torch.device(place.device)
        self._again: Callable[[], Tensor]

    def differentiate(self, model: nn.Module, batch: Batch, latent: Tensor | None, round_: int, j: int = 0) -> None:
        """Take the gradient of the player's loss by its own weights; None by those it does not use."""
        drawn = Numbers(self._device) if self._asks else None
        value = self._take(model, batch, latent)
        self._again = partial(self._retake, model, batch, latent, drawn, value, self._versions())
        if self.objective.steps > 1:  # the mean of the round's
            value = value / self.objective.steps + (self.losses[round_] if j else 0)
        self.losses[round_] = value
        if self.stepper.scaler is not None:
            self.stepper.scaler.unscale_(self.stepper.optimizer)

    def _take(self, model: nn.Module, batch: Batch, latent: Tensor | None) -> Tensor:
        for p in self.params:
            p.grad = None
        self.evaluations += 1
        value = self._gradient.take(model, in_format(batch, self.format), latent) if len(batch) else (
            self.losses.new_zeros(()))  # a rank gets none of so few examples
        return self._seat.mean(self.params, value)

    def _retake(self, model: nn.Module, batch: Batch, latent: Tensor | None, drawn: Numbers | None, value: Tensor,
                versions: list[int]) -> Tensor:
        """Return the loss of the same batch where the weights are now, and leave its gradient.

        Dropout draws what it drew at first, and buffers, such as running statistics, stay as that left them.
        """
        if self._versions() == versions and not self._foreign:  # others may write through .data, which is not seen
            return value
        assert drawn is not None
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with drawn.again():
            found = self._take(model, batch, latent)
        self._clip()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        return found

    def _versions(self) -> list[int]:
        """Return how often each weight has been written to."""
        return [p._version for p in self.params] if self._asks else []

    def _clip(self) -> None:
        if self._longest is not None:
            nn.utils.clip_grad_norm_(self.params, self._longest)

    def try_gradient(self, model: nn.Module, batch: Batch, latent: Tensor | None) -> None:
        """Take a gradient as training does, and note nothing."""
        self._gradient.take(model, in_format(batch, self.format), latent)

    def move(self, round_: int, factor: float, j: int = 0) -> None:
        """Make one step at `factor` times the rate."""
        if self.trace is not None:
            self.trace.before()
        self._clip()
        self.stepper.step(factor, self._again)
        if self.trace is not None:
            self.trace.after(round_, first=j == 0)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return the optimiser's state, the losses so far, and the trace."""
        return {"stepper": self.stepper.state_dict(), "losses": self.losses[:step], "evaluations": self.evaluations,
                "trace": self.trace.state_dict() if self.trace else None}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what another side saved."""
        self.stepper.load_state_dict(saved["stepper"])
        self.losses[:len(saved["losses"])] = saved["losses"]
        self.evaluations = saved["evaluations"]
        if self.trace:
            self.trace.load_state_dict(saved["trace"])
