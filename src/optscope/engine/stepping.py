"""An optimiser in our loops: its rates follow the schedule, it draws from a stream of its own, and has modes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from optscope.devices import device_of
from optscope.errors import UserError
from optscope.optim.rates import Rates, has_modes, lying_as, set_mode
from optscope.optim.rule import Rule
from optscope.optim.trial import draws_elsewhere
from optscope.tasks.fresh import Numbers, seeded
from optscope.tasks.unchanged import unchanged

SOME = 100
"""How many steps an optimiser is told of that is only tried."""
_NOTHING = nullcontext()


class Stepper:
    """The optimiser that a rule makes of a model, as training uses it.

    An optimiser of other authors makes its steps inside a stream of random numbers of its own, which `seed` starts:
    dropout and augmentation are then those of every other arm. One with train and eval modes is put in eval mode
    for looks, and at the end, as its authors ask for: the weights it stands for are those.

    `scaler` is what scaled the loss, if anything did: steps whose gradient is then not finite are left out. A rule
    that asks for more gradients gets them at `step`, and no schedule where it has its own. `steps` is how many it
    will make.

    Raises:
        UserError: when a rule asks for several gradients, and losses are scaled.
    """

    def __init__(self, rule: Rule, model: nn.Module, seed: int, scaler: torch.amp.GradScaler | None = None,
                 steps: int = SOME) -> None:
        self.model, self.scaler = model, scaler
        self._numbers = _own_numbers(rule, model, seed) if rule.foreign else None
        with self._numbers or _NOTHING:
            self.optimizer = rule.optimizer_of(model, steps)
            set_mode(self.optimizer, "train")
        self._rates = Rates(self.optimizer)
        self._moved = False
        self._asks, self._own_schedule, self.keeps_graph = rule.asks, rule.own_schedule, rule.keeps_graph
        if scaler is not None and rule.asks:
            raise UserError(f"{rule!r} takes several gradients a step, of which one scale for small numbers is not "
                            "known to fit all: train with autocast bfloat16, or without")

    def step(self, factor: float, again: Callable[[], Tensor]) -> None:
        """Make one step at `factor` times the learning rate; `again` takes the loss and its gradient once more."""
        self._rates.set(1.0 if self._own_schedule else factor)
        self._moved = True
        with self._numbers or _NOTHING:
            if self._asks:
                self.optimizer.step(torch.enable_grad()(again))  # type: ignore[arg-type]
            elif self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
        for p in self.model.parameters() if self.keeps_graph else ():
            p.grad = None if p.grad is None else p.grad.detach()  # the graph holds all of a batch's activations

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Show the weights that the optimiser stands for; the training goes on from the same bits as without."""
        if not (self._moved and has_modes(self.optimizer)):  # before its first step there is nothing to show
            yield
            return
        with unchanged(self.model, self.optimizer):
            set_mode(self.optimizer, "eval")
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and rates, its own random numbers, and whether it has stepped."""
        numbers = self._numbers.state if self._numbers else None
        return {"optimizer": self.optimizer.state_dict(), "rates": self._rates.state(), "numbers": numbers,
                "moved": self._moved, "scaler": self.scaler.state_dict() if self.scaler else None}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from the state of another stepper of the same rule and model; tensors keep the types they had."""
        state, kept = saved["optimizer"], copy.deepcopy(saved["optimizer"].get("state", {}))
        self.optimizer.load_state_dict(copy.deepcopy(state))
        order = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, each in kept.items():  # loading casts them to the weights' type
            key = order[i] if isinstance(i, int) and i < len(order) else i
            self.optimizer.state[key] = lying_as(each, self.optimizer.state[key])
        self._rates = Rates(self.optimizer, **saved["rates"])
        self._moved = saved["moved"]
        if self.scaler:
            self.scaler.load_state_dict(saved["scaler"])
        if self._numbers:
            self._numbers.state = saved["numbers"]

    def finish(self) -> None:
        """Leave the weights that the optimiser stands for."""
        if self._moved:
            set_mode(self.optimizer, "eval")


def _own_numbers(rule: Rule, model: nn.Module, seed: int) -> Numbers:
    everywhere = draws_elsewhere(rule)
    with seeded(seed):
        return Numbers(device_of(model), everywhere=everywhere)
