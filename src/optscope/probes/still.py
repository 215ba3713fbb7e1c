"""A model that holds still while it is looked at: as its optimiser means it, frozen, on copies of its inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from optscope.devices import device_of, to_floats
from optscope.errors import UserError
from optscope.optim.rates import has_modes, set_mode
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.trained_loss import ModelAndLoss
from optscope.tasks.tree import mapped
from optscope.tasks.unchanged import unchanged


@contextmanager
def as_meant(snapshot: Snapshot) -> Iterator[nn.Module]:
    """Put a snapshot's model where its optimiser evaluates it, and leave model, loss and optimiser as they were.

    Schedule-free rules train at other weights than those they stand for: they have train and eval modes.
    """
    task, optimizer = snapshot.task, snapshot.optimizer
    moded = [optimizer] if optimizer is not None and has_modes(optimizer) else []
    with unchanged(snapshot.model, *task.losses, task.output, *moded):
        for each in moded:
            set_mode(each, "eval")
        yield snapshot.model


def whole(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot of all that is trained: where the optimiser steps the loss beside the model, of both.

    So it is in somebody's own loop; the models of our trainings hold their loss.
    """
    losses = [loss for loss in snapshot.task.losses if isinstance(loss, nn.Module)]
    if snapshot.optimizer is None or len(losses) != 1 or isinstance(snapshot.model, ModelAndLoss):
        return snapshot
    held = {id(p) for group in snapshot.optimizer.param_groups for p in group["params"]}
    beside = {id(p) for p in losses[0].parameters()} - {id(p) for p in snapshot.model.parameters()}
    return snapshot if held.isdisjoint(beside) else replace(snapshot, model=ModelAndLoss(snapshot.model, losses[0]))


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Have a model computed as its author wrote it, whatever a loop has set around it to be faster.

    Off are autocast, compiled calls (of which there are no second derivatives), and the cache of parametrisations,
    which holds what was made of other weights.
    """
    kind, cached = device_of(model).type, parametrize._cache_enabled
    with ExitStack() as stack:
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its loading takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(setattr, parametrize, "_cache_enabled", cached)
        parametrize._cache_enabled = 0
        yield


def check_finite(model: nn.Module) -> None:
    """Raise UserError unless all parameters have shapes, and are finite."""
    named = dict(model.named_parameters())
    for name, p in named.items():
        if nn.parameter.is_lazy(p):
            raise UserError(f"the model's parameter {name!r} has no shape yet: call the model once on a batch, or "
                            "give its layers their sizes")
    if all(to_floats(*(torch.isfinite(p.detach().sum()) for p in named.values()))):
        return  # what is not finite leaves no finite sum; it is a third of the price of looking at each
    for name, finite in zip(named, to_floats(*(torch.isfinite(p).all() for p in named.values())), strict=True):
        if not finite:
            raise UserError(f"the model's parameter {name!r} is not finite: training diverged; "
                            "measure an earlier checkpoint or lower the learning rate")


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in eval mode with frozen parameters, and leave it as it was afterwards.

    Meanwhile it is handed copies of its inputs: what a layer writes into them reaches nobody's data.
    """
    if handed_copies in model._forward_pre_hooks.values():
        yield model
        return
    with unchanged(model):
        yield still(model)


def still(model: nn.Module) -> nn.Module:
    """Put a model in eval mode with frozen parameters, handed copies of its inputs from now on."""
    model.eval()
    for p in model.parameters():
        p.requires_grad_(False)
    if not isinstance(model, torch.jit.ScriptModule):  # which takes no hooks, and calls none
        model.register_forward_pre_hook(handed_copies, with_kwargs=True)
    return model


def handed_copies(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """Return copies of the tensors that a model is called with: the hook that `frozen` sets."""
    def copy(x: Any) -> Any:
        return x.clone() if isinstance(x, Tensor) else x

    return mapped(copy, inputs), mapped(copy, named)
