"""A model held at copies of its trained weights: where gradients, Hessians and Jacobians of games are taken."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from optscope.errors import UserError
from optscope.tasks.task import Loss
from optscope.vector import Layout


class AtWeights:
    """The trained weights of a model, copied, and the model while it uses the copies.

    `names` says which weights are trained; without it, those that require a gradient. All others are constants. A
    backward pass may call layers again (activation checkpointing), so it is taken while the model is `held` too.

    Raises:
        UserError: when nothing is trained, or a trained weight is complex.
    """

    def __init__(self, model: nn.Module, names: Collection[str] | None = None, *, training: bool = False) -> None:
        self.model, self._training = model, training
        named = dict(model.named_parameters())
        trained = {name: p for name, p in named.items() if (p.requires_grad if names is None else name in names)}
        if not trained:
            raise UserError(f"gradients and curvature are taken in a model's trained parameters; this "
                            f"{type(model).__name__} has none: set requires_grad, or name them")
        for name, p in trained.items():
            if not p.is_floating_point():
                raise UserError(f"gradients and curvature are taken in real parameters; {name!r} is of {p.dtype}: "
                                "hold a pair of reals instead, as torch.view_as_real gives")
        self.weights = {name: p.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
                        for name, p in trained.items()}
        self.layout = Layout.of(self.weights)
        copies = {id(p): self.weights[name] for name, p in trained.items()}
        self._modules = list(model.modules())
        self._places: list[tuple[dict[str, Any], str, Tensor]] = [
            (module._parameters, name, copies[id(p)]) for module in self._modules
            for name, p in module._parameters.items() if id(p) in copies]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put the copies in their places, in eval mode unless in training, and the model's own back afterwards.

        Buffers are copied too, as batch normalisation in training mode would move them. Of the attention kernels
        only the plain one can be differentiated twice.
        """
        buffers = [(module._buffers, name, b.clone()) for module in self._modules
                   for name, b in module._buffers.items() if b is not None]
        copies: list[tuple[dict[str, Any], str, Tensor]] = [*self._places, *buffers]
        own = [(table, name, table[name]) for table, name, _ in copies]
        awake = [] if self._training else [module for module in self._modules if module.training]
        with sdpa_kernel(SDPBackend.MATH), torch.inference_mode(False), torch.enable_grad():
            try:
                for module in awake:
                    module.training = False
                for table, name, copy in copies:
                    table[name] = copy
                yield
            finally:
                for module in awake:
                    module.training = True
                for table, name, value in own:
                    table[name] = value

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the model's outputs, with their graph; call it while the model is held."""
        found: Tensor = self.model(inputs.clone())  # a layer may write into its input
        return found

    def gradient(self, loss: Loss, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of the loss, `(P,)`, by one backward pass as in training."""
        for weight in self.weights.values():
            weight.grad = None
        with self.held():
            value = loss(self.outputs(inputs), targets)
            if value.requires_grad:
                value.backward()
        return self.layout.flatten([torch.zeros_like(w) if w.grad is None else w.grad
                                    for w in self.weights.values()])


@dataclass(frozen=True)
class Chunk:
    """Some of the examples, and their share of all."""

    inputs: Tensor
    targets: Tensor
    share: float


def chunks(at: AtWeights, loss: Loss, inputs: Tensor, targets: Tensor, size: int) -> list[Chunk]:
    """Return the examples in chunks of `size`, or in one where the loss is not the mean of its chunks' losses.

    Class weights and ignored labels make means of another kind.
    """
    parts = [Chunk(x, y, len(x) / len(inputs))
             for x, y in zip(inputs.split(size), targets.split(size), strict=True)]
    if len(parts) == 1:
        return parts
    with at.held(), torch.no_grad():
        outputs = [at.outputs(part.inputs) for part in parts]
        whole = float(loss(torch.cat(outputs), targets))
        joined = sum(part.share * float(loss(z, part.targets)) for part, z in zip(parts, outputs, strict=True))
    return parts if abs(whole - joined) <= 1e-4 * abs(whole) + 1e-6 else [Chunk(inputs, targets, 1.0)]


def grad(outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor] | None, *,
         create_graph: bool = False) -> list[Tensor]:
    """Return a gradient that may be differentiated again, zero where nothing depends on anything; keep the graph.

    Raises:
        UserError: where torch cannot differentiate twice.
    """
    if not any(z.requires_grad for z in outputs):
        return [torch.zeros_like(x) for x in inputs]
    try:
        return list(torch.autograd.grad(outputs, inputs, weights, retain_graph=True, create_graph=create_graph,
                                        allow_unused=True, materialize_grads=True))
    except RuntimeError as error:
        if "allocate" in str(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError("curvature needs second derivatives, which torch lacks for a layer of this model or its "
                        f"loss: {str(error).splitlines()[0]}") from error
