"""A model that holds still while it is looked at: in eval mode, frozen, and handed copies of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from optscope.tasks.tree import mapped
from optscope.tasks.unchanged import unchanged


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
