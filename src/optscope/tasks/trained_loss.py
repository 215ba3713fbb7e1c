"""A loss with parameters of its own: they lie in the model, so that all that trains or keeps a model knows them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Factory = Callable[[], nn.Module]
"""What makes a new, untrained model each time."""


class ModelAndLoss(nn.Module):
    """A model, called as it was, which also holds a run's own copy of the loss."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the model does."""
        return self.model(*inputs, **named)


@dataclass(frozen=True)
class WithLoss:
    """A factory of models that hold a copy of a loss as it is now."""

    model: Factory
    loss: nn.Module

    def __call__(self) -> nn.Module:
        """Return a new model with a new copy of the loss."""
        return ModelAndLoss(self.model(), copy.deepcopy(self.loss))


def with_loss(model: Factory, loss: object) -> Factory:
    """Return the factory whose models hold the loss, if that has parameters to train; else the factory itself."""
    trained = isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters())
    return WithLoss(alone(model), loss) if isinstance(loss, nn.Module) and trained else alone(model)


def alone(model: Factory) -> Factory:
    """Return the factory of a model without the loss."""
    return model.model if isinstance(model, WithLoss) else model


def loss_in(model: nn.Module, loss: Any) -> Any:
    """Return the copy of a loss that a model holds, or the loss itself where it holds none."""
    return model.loss if isinstance(model, ModelAndLoss) else loss
