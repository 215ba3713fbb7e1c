"""Steps by pieces that stay in a cache, in memory that is taken again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Numbers of a tensor that are stepped before the next ones are: 1 MB of float32 stays in a cache."""
LINE = 16
"""Numbers at whose multiples a tensor begins in a room, as vector instructions like it."""


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching pieces of tensors of one shape; whole when small, or when they do not lie in memory alike."""
    if tensors[0].numel() > CHUNK and all(t.is_contiguous() for t in tensors):
        return zip(*(t.view(-1).split(CHUNK) for t in tensors), strict=True)
    return iter([tensors])


class Room:
    """Memory for what a portion needs, taken again by the next: fresh pages cost more than arithmetic in them."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors shaped and laid out like others, with any numbers in them; what it gave before is void."""
        starts = [0, *itertools.accumulate(-(-t.numel() // LINE) * LINE for t in tensors)]
        return [self._of(t, start, starts[-1]) for t, start in zip(tensors, starts, strict=False)]

    def _of(self, tensor: Tensor, start: int, size: int) -> Tensor:
        if not tensor.is_contiguous():
            return torch.empty_like(tensor)
        key = tensor.dtype, tensor.device
        if key not in self._held or self._held[key].numel() < size:
            self._held[key] = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
        return self._held[key][start:start + tensor.numel()].view(tensor.shape)
