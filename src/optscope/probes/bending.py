"""How parts of the examples bend the loss along each other's gradients: g_iᵀ H_m g_j, of all of them at once.

Along weights w + s V + t U, let x move by s x(V) + t x(U), x being what a layer sees, and z the outputs. Where
layers are linear in their weights and in what they see, and all else is linear by pieces, the loss of an example
bends by

    Vᵀ H U = z(V)ᵀ B z(U) + Σ over layers of δ · (V x(U) + U x(V))

with B the loss's second derivative in the outputs and δ its slopes in what a layer gives. One pass in forward mode
gives x and z along all gradients, and no second derivative of the model is taken. What it says is held against one
product with a Hessian; where they are apart, or a layer has no rule, all is read from such products.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn import grad as kernels

from optscope.devices import to_floats
from optscope.probes.at_weights import AtWeights, grad, grads, seen
from optscope.probes.hessian import CACHED, Hessian, HessianGraph
from optscope.probes.layer_gradients import NoRuleError
from optscope.probes.per_example import APART, Layers, check_rows, first_seen, layer_calls, trained_layers
from optscope.probes.probe import Subject
from optscope.tasks.task import Loss
from optscope.tasks.tree import Batch, joined

MEMORY = 2**30
"""Bytes that layers may see and give of all examples together: slopes of all are kept."""

Slopes = Sequence[tuple[int, Tensor]]
"""The calls of layers in their order: the number of the layer, and the loss's slopes in what it gave."""


def by_layers(at: AtWeights, loss: Loss, parts: Sequence[Batch],
              look: Callable[[Tensor], None]) -> tuple[Tensor, Tensor]:
    """Return the parts' gradients g_i `(k, P)`, and g_iᵀ H_m g_j at [m, i, j] `(k, k, k)` of float64.

    Parts are of one size, and the loss is a mean over examples. `look` is shown the outputs of all of them.

    Raises:
        NoRuleError: for a model of which the equation above does not hold, or is not known to.
        UserError: when the loss does not depend on the trained weights, or torch cannot differentiate twice.
    """
    layers = trained_layers(at)
    each = first_seen(at, layers, parts[0].first(2))[1]
    if each * len(parts) * len(parts[0]) > MEMORY:
        raise NoRuleError("the slopes of all layers are too many to keep")
    taken = [_taken(at, layers, loss, part) for part in parts]
    outputs = torch.stack([out for out, _, _ in taken])
    look(outputs.flatten(0, 1))
    gradients = torch.stack([gradient for _, gradient, _ in taken])
    many = max(1, int(CACHED / (each * len(parts) * len(parts[0]))))
    found = []
    for some in torch.arange(len(parts), device="cpu").split(many):
        here = slice(int(some[0]), int(some[-1]) + 1)
        found.append(_bent(at, layers, loss, joined(parts[here]), gradients,
                           outputs[here], [slopes for _, _, slopes in taken[here]]))
    products = torch.cat(found)
    _check(at, loss, parts[0], gradients, products[0, :, 1])
    return gradients, products


def by_hessians(subject: Subject, parts: Sequence[Batch], gradients: Tensor) -> Tensor:
    """Return g_iᵀ H_m g_j at [m, i, j] for i other than m, `(k, k, k)` of float64, k - 1 products a part."""
    k = len(parts)
    products = torch.zeros(k, k, k, dtype=torch.float64, device=gradients.device)
    for m, part in enumerate(parts):  # one Hessian at a time, as each keeps a graph
        hessian = Hessian(subject.model, subject.loss, part.inputs, part.targets, parameters=subject.trained,
                          call=subject.task.outputs)
        for i in range(k):
            if i != m:
                products[m, i] = gradients @ hessian(gradients[i])
    return products


def _taken(at: AtWeights, layers: Layers, loss: Loss, part: Batch) -> tuple[Tensor, Tensor, Slopes]:
    """Return a part's outputs, its gradient `(P,)` and the slopes in what its layers gave."""
    outputs, calls = layer_calls(at, layers, loss, part)
    gradient = at.flatten([torch.zeros_like(w) if w.grad is None else w.grad for w in at.weights.values()])
    found = []
    for number, x, slopes in calls:
        if len(slopes) != 1 or len(x) != len(part) or len(slopes[0]) != len(part):
            raise NoRuleError("a layer does not see one row an example")
        found.append((number, slopes[0]))
    return outputs, gradient, found


def _bent(at: AtWeights, layers: Layers, loss: Loss, batch: Batch, gradients: Tensor, outputs: Tensor,
          slopes: Sequence[Slopes]) -> Tensor:
    """Return the products for some parts, joined: of `outputs` `(parts, n, ...)`, `(parts, k, k)` of float64."""
    named = dict(zip(at.weights, at.layout.views(gradients), strict=True))
    along = {name: named[name].to(weight.dtype) for name, weight in at.weights.items()}
    try:
        numbers, z, dz, dx = _moved(at, layers, batch, along)
        check_rows(outputs.flatten(0, 1), z)
        total = _through_outputs(at, loss, batch, z, dz, len(outputs))
    except (RuntimeError, ValueError) as error:  # of memory too: Hessians look at one part at a time
        raise NoRuleError("torch does not take this model in forward mode") from error
    if any([number for number, _ in some] != numbers for some in slopes):
        raise NoRuleError("layers are called in another order")
    for number, moves, *steep in zip(numbers, dx, *[[slope for _, slope in some] for some in slopes], strict=True):
        module, kind, own = layers[number]
        if moves is None:
            continue
        if kind not in TILTS:
            raise NoRuleError(f"a {kind.__name__} is not linear in what it sees")
        for row, x, slope in zip(total, moves.split(len(steep[0]), 1), steep, strict=True):
            for short, tilt in TILTS[kind](module, x, slope).items():
                if short in own:
                    half = named[own[short]].flatten(1) @ tilt.flatten(1).to(gradients.dtype).mT
                    row += half + half.mT
    return total


def _moved(at: AtWeights, layers: Layers, batch: Batch, along: Mapping[str, Tensor]
           ) -> tuple[list[int], Tensor, Tensor, list[Tensor | None]]:
    """Return which layers are called, the outputs `(n, ...)`, and how these move along k directions, `(k, n, ...)`.

    Last comes how what each call sees moves, `(k, n, ...)`, None where it does not.
    """
    numbers: list[int] = []
    moving: list[int] = []

    def once(along: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        found: list[Tensor] = []

        def look(number: int) -> Any:
            def hook(_: nn.Module, given: tuple[Any, ...], out: Any) -> None:
                move = forward_ad.unpack_dual(given[0]).tangent
                if move is not None:
                    moving.append(len(numbers))
                    found.append(move)
                numbers.append(number)
            return hook

        def outputs(weights: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
            with ExitStack() as stack:
                for number, (module, _, _) in enumerate(layers):
                    stack.callback(module.register_forward_hook(look(number)).remove)
                stack.enter_context(at.held(weights))
                return at.outputs(batch.inputs), found

        weights = {name: w.detach() for name, w in at.weights.items()}
        z, dz, moves = torch.func.jvp(outputs, (weights,), (along,), has_aux=True)  # type: ignore[misc]
        return z, dz, moves

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)  # torch's own first use of it
        z, dz, found = torch.func.vmap(once, out_dims=(None, 0, 0))(along)  # type: ignore[arg-type]
    moves: list[Tensor | None] = [None] * len(numbers)
    for place, move in zip(moving, found, strict=True):
        moves[place] = move
    return numbers, z, dz, moves


def _through_outputs(at: AtWeights, loss: Loss, batch: Batch, z: Tensor, dz: Tensor, parts: int) -> Tensor:
    """Return z(V)ᵀ B z(U) for each of the parts, `(parts, k, k)` of float64."""
    with at.held(), grads():
        leaf = z.detach().requires_grad_()
        (slope,) = grad([loss(leaf, seen(loss, batch))], [leaf], None, create_graph=True)
        bent = torch.zeros_like(dz)
        if slope.requires_grad:
            (bent,) = torch.autograd.grad(slope, leaf, dz, is_grads_batched=True, materialize_grads=True,
                                          allow_unused=True)
    left, right = (t.detach().double().reshape(len(dz), parts, -1).transpose(0, 1) for t in (dz, bent))
    found: Tensor = parts * (left @ right.mT)  # the loss is the mean over all parts
    return found


def _check(at: AtWeights, loss: Loss, part: Batch, gradients: Tensor, found: Tensor) -> None:
    """Raise NoRuleError unless the products of a part with the second gradient are those of its Hessian."""
    weights = list(at.weights.values())
    vector = [v.to(w.dtype) for v, w in zip(at.layout.views(gradients[1]), weights, strict=True)]
    with at.held(), grads():
        graph = HessianGraph(at.outputs(part.inputs), seen(loss, part), loss, 1.0, weights)
        bent = at.flatten(list(graph.product(vector, range(len(weights)))))
    exact, lengths = (gradients @ bent).double(), torch.linalg.vector_norm(gradients, dim=1)
    off, size, length, longest = to_floats((found - exact).abs().max(), exact.abs().max(), bent.norm(),
                                           lengths.max())
    eps = 8 * max(torch.finfo(w.dtype).eps for w in weights)
    if not off <= max(APART, eps) * size + eps * length * longest:
        raise NoRuleError("the loss bends by more than its layers say")


def _linear(layer: nn.Linear, x: Tensor, slope: Tensor) -> dict[str, Tensor]:
    steep, moves = slope.reshape(-1, slope.shape[-1]), x.reshape(len(x), -1, x.shape[-1])
    return {"weight": steep.mT @ moves}


def _convolution(layer: Any, x: Tensor, slope: Tensor) -> dict[str, Tensor]:
    weight: Any = kernels.conv1d_weight if isinstance(layer, nn.Conv1d) else kernels.conv2d_weight
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return {"weight": torch.stack([weight(
        functional.pad(each, layer._reversed_padding_repeated_twice, mode), layer.weight.shape, slope, layer.stride,
        0, layer.dilation, layer.groups) for each in x])}


def _batch_norm(layer: Any, x: Tensor, slope: Tensor) -> dict[str, Tensor]:
    if layer.running_var is None:
        raise NoRuleError("a batch normalisation without running statistics mixes the examples")
    each = (x * slope).reshape(*x.shape[:3], -1).sum((1, 3))
    return {"weight": each * (layer.running_var + layer.eps).rsqrt()}


TILTS: Mapping[type[nn.Module], Callable[[Any, Tensor, Tensor], dict[str, Tensor]]] = {
    nn.Linear: _linear, nn.Conv1d: _convolution, nn.Conv2d: _convolution, nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm, nn.BatchNorm3d: _batch_norm}
"""How the slopes in a layer's weights move, `(k, ...)`, as what it sees moves by x `(k, n, ...)`."""
