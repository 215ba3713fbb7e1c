"""Whether a loss is a mean over its examples, as all that is read from its slope and curvature takes it for one."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.tasks.tree import Batch, mapped

SHARE = 1e-3
"""How far the gradients of the same examples once and twice may lie apart, relative to the largest number."""


def check_mean(loss: Callable[[Tensor, Any], Tensor], outputs: Tensor, targets: Any) -> None:
    """Raise unless a loss of a batch is the same when every example in it is taken twice.

    Means are, with class weights and ignored labels too; sums are not, whatever constant divides them. The
    gradients in the outputs are compared, which tell more than the values where the loss is small, and every output
    is judged by its neighbour's target, as a fitted one tells nothing. `outputs` `(n, ...)`, `targets` `(n, ...)`,
    a tree of them, or the batch where the loss sees it; no model is called, so that batch normalisation and dropout
    do not matter.

    >>> check_mean(torch.nn.CrossEntropyLoss(), torch.eye(3), torch.arange(3))
    >>> check_mean(torch.nn.CrossEntropyLoss(reduction="sum"), torch.eye(3), torch.arange(3))
    Traceback (most recent call last):
    optscope.errors.UserError: the loss must be a mean over the examples, ...

    Raises:
        UserError: when it is another one, or the loss takes no batch of twice the size.
    """
    apart = torch.roll(outputs.detach(), 1, 0)
    slope = _slope(loss, apart, targets)
    try:
        twice = _slope(loss, torch.cat([apart, apart]), _each(lambda t: torch.cat([t, t]), targets))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"the loss must be a mean over as many examples as it is given; it takes {len(outputs)} of "
                        f"them, and of twice as many it says: {str(error).splitlines()[0]}") from error
    change = _change(slope, twice.reshape(2, *slope.shape).sum(0))
    if change:
        raise UserError("the loss must be a mean over the examples, with the same gradient when each is taken "
                        f"twice; this one's changes by {change:.0%}: use reduction='mean'")


def parts_change(loss: Callable[[Tensor, Any], Tensor], outputs: Tensor, targets: Any,
                 sizes: Sequence[int]) -> float:
    """Return by how much the gradient of a loss of all examples differs from that of its parts' mean, 0 if not.

    The parts are the next `sizes[0]` examples, the next `sizes[1]`, ..., and each counts by its examples. Means
    over examples do not differ; class weights and ignored labels make means of another kind. Gradients in the
    outputs are compared, since values agree wherever the model says the same of every example.

    >>> parts_change(torch.nn.CrossEntropyLoss(), torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), [2, 2])
    0.0
    >>> weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    >>> round(parts_change(weighted, torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), [2, 2]), 2)
    0.25
    """
    apart = torch.roll(outputs.detach(), 1, 0)
    slopes, start = [], 0
    for size in sizes:
        rows = slice(start, start := start + size)
        some = _each(operator.itemgetter(rows), targets)
        slopes.append(_slope(loss, apart[rows], some) * (size / len(apart)))
    return _change(_slope(loss, apart, targets), torch.cat(slopes))


def _each(function: Callable[[Tensor], Tensor], targets: Any) -> Any:
    return targets.mapped(function) if isinstance(targets, Batch) else mapped(function, targets)


def _change(slope: Tensor, other: Tensor) -> float:
    """Return the largest difference of two gradients over the largest number of the first, 0 within rounding."""
    moved, size, others = to_floats((other - slope).abs().max(), slope.abs().max(), other.abs().max())
    if moved <= max(SHARE, 8 * torch.finfo(slope.dtype).eps) * max(size, others):
        return 0.0
    return moved / size if size else math.inf


def _slope(loss: Callable[[Tensor, Any], Tensor], outputs: Tensor, targets: Any) -> Tensor:
    """Return the gradient of the loss in the outputs, zero where it has none."""
    with torch.inference_mode(False), torch.enable_grad():
        z = outputs.clone().requires_grad_()
        value = loss(z, targets)
        if value.dim() != 0 or not value.requires_grad:
            return torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value, z, allow_unused=True, materialize_grads=True)
    return slope
