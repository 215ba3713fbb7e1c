"""What one example adds to the gradient of a layer's weights, by its length and its product with a direction.

A layer z = W x with the slopes δ = dl/dz of the examples' losses has of an example the gradient Σ_t δ_t x_tᵀ over
the places t where the example uses it. With one place

    |g|² = |x|² |δ|²            g·V = δᵀ V x

and with more of them the first is Σ_tu (x_t·x_u)(δ_t·δ_u), or the length of the sum, whichever is less work.
Goodfellow 2015, arXiv 1510.01799; Rochette, Manoel and Tramel 2019, arXiv 1912.06015, for convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SOME = 2**21
"""So many numbers of unfolded images are looked at together: they stay in a processor's cache."""


class NoRuleError(Exception):
    """Why the gradients of single examples are not known of a model."""


@dataclass(frozen=True)
class Call:
    """One call of a layer: what it saw `(n, ...)`, and the slopes of the examples' losses in what it gave."""

    layer: Any
    x: Tensor
    slope: Tensor


@dataclass(frozen=True)
class AsMatrix:
    """A weight that multiplies: `seen(x)` `(n, groups, in, places)` and `met(slope)` `(n, groups, out, places)`."""

    call: Call
    seen: Callable[[Tensor], Tensor]
    met: Callable[[Tensor], Tensor]
    image: Callable[[Tensor, Tensor], Tensor]

    def product(self, direction: Tensor) -> Tensor:
        """Return g·V of every example, `(n,)`: along the slopes, what V as weights makes of x."""
        return (self.image(self.call.x, direction) * self.call.slope).flatten(1).sum(1)


@dataclass(frozen=True)
class AsVector:
    """A weight with few numbers: the examples' gradients themselves, `(n, numbers)`."""

    each: Tensor

    def product(self, direction: Tensor) -> Tensor:
        """Return g·V of every example, `(n,)`."""
        return self.each @ direction.reshape(-1)


@dataclass(frozen=True)
class AsTable:
    """A weight whose rows are looked up: which `(n, places)`, -1 where none counts, and slopes `(n, places, d)`."""

    rows: Tensor
    slope: Tensor

    def product(self, direction: Tensor) -> Tensor:
        """Return g·V of every example, `(n,)`."""
        found = direction[self.rows.clamp_min(0)] * (self.rows >= 0).unsqueeze(2)
        return (found * self.slope).sum((1, 2))


Use = AsMatrix | AsVector | AsTable
"""How an example's gradient of a weight follows from one call."""


def squares(uses: Sequence[Use]) -> Tensor:
    """Return |g|² of every example, `(n,)`, with g the sum of what several uses of one weight add.

    Raises:
        NoRuleError: when a weight is used in several ways, as one that is a table and a matrix.
    """
    if len({type(use) for use in uses}) > 1:
        raise NoRuleError("a weight is used by layers of different kinds")
    if isinstance(uses[0], AsVector):
        return torch.stack([use.each for use in uses if isinstance(use, AsVector)]).sum(0).square().sum(1)
    if isinstance(uses[0], AsTable):
        tables = [use for use in uses if isinstance(use, AsTable)]
        rows, slope = torch.cat([use.rows for use in tables], 1), torch.cat([use.slope for use in tables], 1)
        same = (rows.unsqueeze(1) == rows.unsqueeze(2)) & (rows >= 0).unsqueeze(1)
        return (same * (slope @ slope.mT)).sum((1, 2))
    matrices = [use for use in uses if isinstance(use, AsMatrix)]
    n = len(matrices[0].call.x)
    each = sum(use.seen(use.call.x[:1]).numel() for use in matrices)
    size = max(1, min(n, SOME // each))
    found = []
    for start in range(0, n, size):
        here = slice(start, start + size)
        found.append(_of_matrices(_joined([use.seen(use.call.x[here]) for use in matrices]),
                                  _joined([use.met(use.call.slope[here]) for use in matrices])))
    return torch.cat(found)


def _joined(places: Sequence[Tensor]) -> Tensor:
    return places[0] if len(places) == 1 else torch.cat(list(places), 3)


def _of_matrices(x: Tensor, slope: Tensor) -> Tensor:
    """Return |Σ_t δ_t x_tᵀ|² from x `(n, groups, in, places)` and δ `(n, groups, out, places)`, `(n,)`."""
    inside, outside, places = x.shape[2], slope.shape[2], x.shape[3]
    if places == 1:
        long, steep = (torch.linalg.vector_norm(each, dim=(2, 3)) for each in (x, slope))
        both: Tensor = long * steep
        return both.square().sum(1)
    if places * (inside + outside) < inside * outside:
        return ((x.mT @ x) * (slope.mT @ slope)).sum((1, 2, 3))
    return (slope @ x.mT).square().sum((1, 2, 3))


def _wide(tensor: Tensor) -> Tensor:
    """Return numbers in at least float32, for sums of many."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _linear(call: Call) -> Iterator[tuple[str, Use]]:
    def columns(t: Tensor) -> Tensor:
        return t.reshape(len(t), 1, -1, t.shape[-1]).mT

    yield "weight", AsMatrix(call, columns, columns, functional.linear)
    if call.layer.bias is not None:
        yield "bias", AsVector(call.slope.reshape(len(call.slope), -1, call.slope.shape[-1]).sum(1))


def _convolution(call: Call) -> Iterator[tuple[str, Use]]:
    layer, groups = call.layer, call.layer.groups
    one = isinstance(layer, nn.Conv1d)
    if call.x.dim() != (3 if one else 4):
        raise NoRuleError("a convolution sees one example without an axis of examples")
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def row(settings: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *settings) if one else settings

    def unfolded(x: Tensor) -> Tensor:
        padded = functional.pad(x, layer._reversed_padding_repeated_twice, mode)
        if one:
            padded = padded.unsqueeze(2)
        found = functional.unfold(padded, row(layer.kernel_size), row(layer.dilation), 0, row(layer.stride))
        return found.view(len(x), groups, -1, found.shape[-1])

    def met(slope: Tensor) -> Tensor:
        return slope.reshape(len(slope), groups, slope.shape[1] // groups, -1)

    yield "weight", AsMatrix(call, unfolded, met, lambda x, weight: layer._conv_forward(x, weight, None))
    if layer.bias is not None:
        yield "bias", AsVector(call.slope.flatten(2).sum(2))


def _normalisation(call: Call) -> Iterator[tuple[str, Use]]:
    """Yield those of a layer that normalises, scales and shifts."""
    layer, slope = call.layer, call.slope
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        axes = len(layer.normalized_shape)

        def summed(t: Tensor) -> Tensor:
            return t.reshape(len(t), -1, *t.shape[t.dim() - axes:]).sum(1).flatten(1)
    else:
        def summed(t: Tensor) -> Tensor:
            return t.reshape(*t.shape[:2], -1).sum(2)
    yield "weight", AsVector(summed(slope * _plain(layer, call.x)))
    if getattr(layer, "bias", None) is not None:
        yield "bias", AsVector(summed(slope))


def _plain(layer: Any, x: Tensor) -> Tensor:
    """Return what a normalisation makes of x before it scales and shifts."""
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return functional.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(x, layer.num_groups, eps=layer.eps)
    if layer.running_mean is None:
        raise NoRuleError("a batch normalisation without running statistics mixes the examples")
    return functional.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)


def _embedding(call: Call) -> Iterator[tuple[str, Use]]:
    layer, x = call.layer, call.x
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        raise NoRuleError("an embedding with max_norm or scale_grad_by_freq is no plain table")
    rows = x.reshape(len(x), -1)
    if layer.padding_idx is not None:
        rows = rows.masked_fill(rows == layer.padding_idx, -1)
    yield "weight", AsTable(rows, call.slope.reshape(len(x), rows.shape[1], -1))


def _prelu(call: Call) -> Iterator[tuple[str, Use]]:
    each = (call.slope * call.x.clamp_max(0)).reshape(*call.x.shape[:2], -1).sum(2)
    yield "weight", AsVector(each if call.layer.num_parameters > 1 else each.sum(1, keepdim=True))


RULES: Mapping[type[nn.Module], Callable[[Call], Iterator[tuple[str, Use]]]] = {
    nn.Linear: _linear, nn.Conv1d: _convolution, nn.Conv2d: _convolution, nn.Embedding: _embedding,
    nn.PReLU: _prelu, nn.LayerNorm: _normalisation, nn.RMSNorm: _normalisation, nn.GroupNorm: _normalisation,
    nn.BatchNorm1d: _normalisation, nn.BatchNorm2d: _normalisation, nn.BatchNorm3d: _normalisation}
"""How each kind of layer's weights, by the names the layer has for them, enter its outputs in eval mode."""


def uses(kind: type[nn.Module], call: Call) -> Iterator[tuple[str, Use]]:
    """Yield the names of the weights of a layer of a kind in `RULES`, and how one call uses each.

    Raises:
        NoRuleError: for settings under which there is none.
    """
    wide = Call(call.layer, _wide(call.x) if call.x.is_floating_point() else call.x, _wide(call.slope))
    return RULES[kind](wide)
