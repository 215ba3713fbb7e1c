"""Rules that treat every parameter tensor by itself: written once, as an equation on one tensor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from optscope.optim.rule import Fused, State
from optscope.vector import Layout


class PerLayer(Fused):
    """A rule of which each layer's step depends on that layer alone.

    Both forms of the rule come from `begin_layer` and `step_layer`, where tensors have the layer's own shape behind
    the members' axes: `(..., *shape)`, with `axes = len(shape)`.
    """

    apart: ClassVar[bool] = True

    @abstractmethod
    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return a layer's state before the first step."""

    @abstractmethod
    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return a layer's step and its next state."""

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the layers' states by number."""
        parts = zip(layout.views(params), layout.shapes, strict=True)
        return {str(i): self.begin_layer(part, len(shape)) for i, (part, shape) in enumerate(parts)}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the layers' steps side by side, and their new states."""
        steps, states = [], {}
        parts = zip(layout.views(grad), layout.views(params), layout.shapes, strict=True)
        for i, (g, w, shape) in enumerate(parts):
            step, states[str(i)] = self.step_layer(g, state[str(i)], w, len(shape))
            steps.append(step.reshape(*grad.shape[:-1], -1))
        return torch.cat(steps, dim=-1), states

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return one state a tensor."""
        return [self.begin_layer(p.detach(), p.dim()) for p in params]

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add each layer's step in place."""
        for target, grad, state, param in zip(targets, grads, states, params, strict=True):
            step, after = self.step_layer(grad, state, param, param.dim())
            state.update(after)
            target.add_(step, alpha=scale)


def per_layer(value: float | tuple[float, ...], like: Tensor, axes: int) -> float | Tensor:
    """Return a hyperparameter so that it broadcasts over the members of a layer `(..., *shape)`."""
    if not isinstance(value, tuple):
        return value
    return torch.tensor(value, dtype=like.dtype, device=like.device).reshape(-1, *[1] * axes)


def layer_norm(tensor: Tensor, axes: int) -> Tensor:
    """Return the l2 norm of a layer `(..., *shape)`, one a member, so that it broadcasts: `(..., 1, ..., 1)`."""
    if axes == 0:
        return tensor.abs()
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(-axes, 0)), keepdim=True)
    return norm
