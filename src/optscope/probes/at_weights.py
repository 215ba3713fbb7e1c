"""A model held at copies of its trained weights: where gradients, Hessians and Jacobians of games are taken."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cuda

from optscope.errors import UserError
from optscope.optim.kinds import layers_of
from optscope.tasks.kinds import MOST
from optscope.tasks.mean_loss import parts_change
from optscope.tasks.task import Loss
from optscope.tasks.tree import Batch, Tree, called, joined, mapped, sees_batch
from optscope.vector import Layout

Call = Callable[[nn.Module, Any], Tensor]
"""`call(model, inputs)` gives a model's outputs for a tree of inputs, as `Task.outputs` does."""


class AtWeights:
    """The trained weights of a model, copied, and the model while it uses the copies.

    `names` says which weights are trained; without it, those that require a gradient. All others are constants. A
    backward pass may call layers again (activation checkpointing), so it is taken while the model is `held` too.
    `call(model, inputs)` gives the outputs for inputs, a tree.

    Raises:
        UserError: when nothing is trained, a trained weight is complex, or the model is compiled by torch.jit.
    """

    def __init__(self, model: nn.Module, names: Collection[str] | None = None, *, training: bool = False,
                 call: Call = called) -> None:
        self.model, self._training, self._call = model, training, call
        self._modules = list(model.modules())
        if any(isinstance(module, torch.jit.ScriptModule) for module in self._modules):
            raise UserError("gradients and curvature are taken at copies of the weights, which a model that is "
                            "compiled by torch.jit does not take: give the module it was made from")
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
        layers = layers_of(model)
        self.layout = Layout.of_layers(layers[name] for name in self.weights)
        self.dtype = torch.float32  # or more: sums over many numbers need more digits than the weights may have
        for weight in self.weights.values():
            self.dtype = torch.promote_types(self.dtype, weight.dtype)
        full = {id(p): name for name, p in trained.items()}
        self._places: list[tuple[dict[str, Any], str, str]] = [
            (module._parameters, own, full[id(p)]) for module in self._modules
            for own, p in module._parameters.items() if id(p) in full]

    @contextmanager
    def held(self, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Put the copies in their places, in eval mode unless in training, and the model's own back afterwards.

        Embeddings with sparse gradients, of which there are no second derivatives, give dense ones meanwhile.
        Buffers are copied too, as batch normalisation in training mode would move them. `weights` by name are held
        instead of the copies.
        """
        held = self.weights if weights is None else weights
        buffers = [(module._buffers, name, b.clone()) for module in self._modules
                   for name, b in module._buffers.items() if b is not None]
        copies: list[tuple[dict[str, Any], str, Tensor]] = [
            *((table, own, held[name]) for table, own, name in self._places), *buffers]
        own = [(table, name, table[name]) for table, name, _ in copies]
        awake = [] if self._training else [module for module in self._modules if module.training]
        tables = [each for each in self._modules
                  if isinstance(each, (nn.Embedding, nn.EmbeddingBag)) and each.sparse]
        with twice_differentiable():
            try:
                for module in awake:
                    module.training = False
                for module in tables:
                    module.sparse = False
                for table, name, copy in copies:
                    table[name] = copy
                yield
            finally:
                for module in awake:
                    module.training = True
                for module in tables:
                    module.sparse = True
                for table, name, value in own:
                    table[name] = value

    def outputs(self, inputs: Tree) -> Tensor:
        """Return the model's outputs; call it while the model is held."""
        return self._call(self.model, mapped(torch.clone, inputs))  # a layer may write into its input

    def gradient(self, loss: Loss, batch: Batch) -> Tensor:
        """Return the gradient of the loss, `(P,)`, by one backward pass as in training.

        Raises:
            UserError: when the loss does not depend on the trained weights.
        """
        for weight in self.weights.values():
            weight.grad = None
        with self.held(), grads():
            value = loss(self.outputs(batch.inputs), seen(loss, batch))
            check_depends(value)
            value.backward()
        return self.flatten([torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights.values()])

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return one tensor a trained weight, joined, `(P,)`."""
        return self.layout.flatten([t.detach().to_dense() for t in tensors]).to(self.dtype)


def check_depends(value: Tensor) -> None:
    """Raise UserError unless a loss, or outputs, depend on the trained weights."""
    if not value.requires_grad:
        raise UserError("in eval mode the loss does not depend on the trained parameters, so its slope there says "
                        "nothing of training: look for adapters that eval() merges, and for torch.no_grad")


def plain_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return g v/‖v‖, with norms over all axes but one (over all for -1)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


NORMS: tuple[Any, ...] = (torch, importlib.import_module("torch.nn.utils.weight_norm"))
"""The modules where the two ways to normalise weights find torch's kernel."""

KERNELS: tuple[tuple[Any, Any, bool], ...] = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp, False), (cuda.math_sdp_enabled, cuda.enable_math_sdp, True),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, False),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, False))
"""Torch's kernels of attention, on any device: of them only the plain one can be differentiated twice."""


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Use plain operations where torch's kernels have no second derivatives, or wrong ones.

    Those of its weight normalisation take ‖v‖ for a constant on a CPU (2.13).
    """
    attention = [(enable, enabled()) for enabled, enable, _ in KERNELS]
    fused = [(module, module._weight_norm) for module in NORMS]
    try:
        for module in NORMS:
            module._weight_norm = plain_weight_norm
        for _, enable, wanted in KERNELS:
            enable(wanted)
        yield
    finally:
        for module, kernel in fused:
            module._weight_norm = kernel
        for enable, before in attention:
            enable(before)


@contextmanager
def grads() -> Iterator[None]:
    """Record graphs, wherever this is called."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@dataclass(frozen=True)
class Chunk:
    """Some of the examples, and their share of all."""

    batch: Batch
    share: float


def seen(loss: Loss, batch: Batch) -> Any:
    """Return what a loss sees beside the outputs: the targets, or the batch."""
    return batch if sees_batch(loss) else batch.targets


def chunks(at: AtWeights, loss: Loss, batch: Batch, size: int) -> list[Chunk]:
    """Return the examples in chunks of `size`, or in one where the loss is not the mean of its chunks' losses.

    Class weights and ignored labels make means of another kind.
    """
    parts = list(batch.split(size))
    if len(parts) == 1 or not change_by_parts(at, loss, parts, lambda part: [len(part)]):
        return [Chunk(part, len(part) / len(batch)) for part in parts]
    return [Chunk(batch, 1.0)]


def mean_gradient(at: AtWeights, loss: Loss, batch: Batch, size: int) -> Tensor:
    """Return the gradient of the loss of a batch, `(P,)`, taken of `size` examples at a time."""
    parts = chunks(at, loss, batch, size)
    return torch.stack([part.share * at.gradient(loss, part.batch) for part in parts]).sum(dim=0)


def change_by_parts(at: AtWeights, loss: Loss, batches: Sequence[Batch],
                    sizes: Callable[[Batch], list[int]]) -> float:
    """Return by how much the gradient of a loss of batches differs from the mean of their parts', 0 if not.

    Each is cut into parts of `sizes(batch)`. Where all the outputs would be too many to hold, as those of tokens,
    neighbours are compared: if each agrees with the next, all do.
    """
    with at.held(), torch.no_grad():
        many = MOST // at.outputs(batches[0].inputs).numel()
        for start in range(0, max(1, len(batches) - 1), max(1, many - 1)):
            some = batches[start:start + max(2, many)]
            outputs, whole = torch.cat([at.outputs(each.inputs) for each in some]), joined(some)
            change = parts_change(loss, outputs, seen(loss, whole), [size for each in some for size in sizes(each)])
            if change:
                return change
    return 0.0


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
