"""Whether a loss is a mean over its examples, as all that is read from its slope and curvature takes it for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from optscope.errors import UserError

SHARE = 1e-3
"""How far the gradients of the same examples once and twice may lie apart, relative to the largest number."""


def check_mean(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> None:
    """Raise unless a loss of a batch is the same when every example in it is taken twice.

    Means are, with class weights and ignored labels too; sums are not, whatever constant divides them. The
    gradients in the outputs are compared, which tell more than the values where the loss is small, and every output
    is judged by its neighbour's target, as a fitted one tells nothing. `outputs` `(n, ...)`, `targets` `(n, ...)`;
    no model is called, so that batch normalisation and dropout do not matter.

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
        twice = _slope(loss, torch.cat([apart, apart]), torch.cat([targets, targets]))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"the loss must be a mean over as many examples as it is given; it takes {len(outputs)} of "
                        f"them, and of twice as many it says: {str(error).splitlines()[0]}") from error
    joined = twice.reshape(2, *slope.shape).sum(0)
    moved, size = float((joined - slope).abs().max()), float(slope.abs().max())
    if moved > max(SHARE, 8 * torch.finfo(slope.dtype).eps) * max(size, float(joined.abs().max())):
        change = moved / size if size else math.inf
        raise UserError("the loss must be a mean over the examples, with the same gradient when each is taken "
                        f"twice; this one's changes by {change:.0%}: use reduction='mean'")


def whole_and_parts(loss: Callable[[Tensor, Tensor], Tensor],
                    parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float, bool]:
    """Return the loss of all (outputs, targets), the mean of the parts' losses by size, and whether they are one.

    They are if they differ by no more than the rounding of the outputs' type explains, which of 16 bits is much.
    """
    n = sum(len(targets) for _, targets in parts)
    with torch.no_grad():
        whole = float(loss(*(torch.cat(column) for column in zip(*parts, strict=True))))
        each = [float(loss(outputs, targets)) for outputs, targets in parts]
    joined = sum(len(targets) / n * value for (_, targets), value in zip(parts, each, strict=True))
    share = max(1e-4, 4 * torch.finfo(parts[0][0].dtype).eps)
    return whole, joined, abs(whole - joined) <= share * max(abs(whole), *map(abs, each)) + 1e-6


def _slope(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the loss in the outputs, zero where it has none."""
    with torch.inference_mode(False), torch.enable_grad():
        z = outputs.clone().requires_grad_()
        value = loss(z, targets)
        if value.dim() != 0 or not value.requires_grad:
            return torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value, z, allow_unused=True, materialize_grads=True)
    return slope
