"""A stack of dense layers: outputs, and slopes in the inputs, by products alone and in memory that is taken again.

They are what autograd computes, to the bit. What it does beside the products is most of a small network's price.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.errors import UserError
from optscope.probes.layers import in_order, known

Slope = tuple[Tensor, Tensor, Tensor | None]
"""Outputs `(n, C)`, losses `(n,)`, and the slopes of their sum in the inputs, 0 where not finite (None: none)."""

IDLE = (nn.Identity, nn.Dropout)  # in eval mode


def by_graph(outputs: Callable[[Tensor], Tensor], x: Tensor, loss: Callable[[Tensor], Tensor]) -> Slope:
    """Return the outputs at inputs `x`, their losses and the slopes of these, by autograd."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        z = outputs(x)
        losses = loss(z)
        slope = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
    return z.detach(), losses.detach(), None if slope is None else slope.nan_to_num(0, 0, 0)


@dataclass(frozen=True, eq=False)
class Dense:
    """W_L σ(... σ(W₁ x + b₁) ...) + b_L of flattened inputs `(n, ...)`: linear layers, σ a ReLU or nothing."""

    layers: tuple[nn.Linear | nn.ReLU, ...]

    def outputs(self, x: Tensor) -> Tensor:
        """Return the outputs `(n, C)`."""
        return self._forward(x)[0]

    def graded(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Slope:
        """Return what `by_graph` does; the graph is that of the loss alone."""
        z, kept = self._forward(x)
        _, losses, slope = by_graph(lambda outputs: outputs, z, loss)
        return z, losses, None if slope is None else self._backward(slope, kept).nan_to_num_(0, 0, 0).view(x.shape)

    @torch.no_grad()
    def _forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z, kept = x.flatten(1), []
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                z = functional.linear(z, layer.weight, layer.bias)
            else:
                kept.append(z.relu_())  # the first layer is linear: these are not the inputs
        return z, kept

    def _backward(self, slope: Tensor, kept: list[Tensor]) -> Tensor:
        for layer in reversed(self.layers):
            if isinstance(layer, nn.Linear):
                slope = slope @ layer.weight
            else:  # autograd's own kernel, a tenth of the price of filling by a mask
                slope = torch.ops.aten.threshold_backward(slope, kept.pop(), 0)
        return slope


def dense(model: nn.Module, x: Tensor) -> Dense | None:
    """Return the stack that a frozen model is, None if it is none.

    That is a `Sequential` of torch's own `Linear`, `ReLU` and what does nothing in eval mode, on inputs that are
    flat or flattened first. It must say of `x` `(n, ...)` what the model says.
    """
    try:
        layers = [layer for path, layer in in_order(model, "") if known(layer, path, IDLE) is None]
        kinds = [known(layer, "", (nn.Flatten, nn.Linear, nn.ReLU)) for layer in layers]
    except UserError:  # hooks, that may do anything
        return None
    if kinds[:1] == [nn.Flatten] and layers[0].start_dim == 1 and layers[0].end_dim == -1:
        layers, kinds = layers[1:], kinds[1:]
    elif x.dim() != 2:
        return None
    if kinds[:1] != [nn.Linear] or not {nn.Linear, nn.ReLU} >= set(kinds):
        return None
    found = Dense(tuple(cast(list[nn.Linear | nn.ReLU], layers)))
    with torch.no_grad():
        return found if torch.equal(found.outputs(x), model(x)) else None
