"""A search without gradients: what it finds where a gradient attack failed shows that gradients were masked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from optscope.devices import moved
from optscope.probes.attack import Attack, Batch, check_counts, lowest, worth_leaving
from optscope.probes.attack_losses import MarginLoss
from optscope.probes.perturbation import per_example


@final
@dataclass(frozen=True, repr=False)
class RandomSearch(Attack):
    """Write a random sign into a random window of the perturbation; keep it where the margin rises.

    delta = eps * steepest(v): all coordinates at +-eps in the linf ball, a vector of length eps in the l2 ball.
    v (of mean square 1) starts as stripes and changes by +-2 over a window, a square of an image `(n, c, h, w)`
    or a run of any other input, whose share of the input falls geometrically from a half to one coordinate. Random
    numbers are drawn for every image, so that what one is shown does not depend on when others are fooled.
    After Square Attack, arXiv 1912.00049, with a simpler sampling in the l2 ball.

    Raises:
        UserError: unless queries is a whole number >= 1.
    """

    queries: int = 500

    def __post_init__(self) -> None:
        check_counts(self, "queries")

    def search(self, batch: Batch) -> Tensor:
        """Return the first fooling query of each image, else the one of largest margin."""
        margin, generator = MarginLoss(), batch.generator
        v, whole = _stripes(batch.inputs, generator), batch.inputs
        found = best = _at_end(batch, v)
        value = lowest(margin(batch.logits(best), batch.labels))
        left = torch.arange(len(batch), device=best.device)
        for query in range(self.queries):
            if (stay := worth_leaving(value > 0, query)) is not None:
                found = found.index_copy(0, left, best)
                batch, v, best, value, left = batch.take(stay), v[stay], best[stay], value[stay], left[stay]
                if len(left) == 0:
                    return found
            share = 0.5 * (2 / whole[0].numel()) ** (query / self.queries)
            proposal = batch.ball.steepest(v + 2 * _window(whole, share, generator, left))
            proposal = proposal / per_example(proposal.flatten(1).square().mean(1).sqrt(), proposal)
            x = _at_end(batch, proposal)
            there = lowest(margin(batch.logits(x), batch.labels))
            better = per_example((there > value) & (value <= 0), x)
            v, best = torch.where(better, proposal, v), torch.where(better, x, best)
            value = torch.where(value > 0, value, torch.maximum(there, value))
        return found.index_copy(0, left, best)

    def longer(self, times: int) -> RandomSearch:
        """Return the attack with `times` the queries."""
        return replace(self, queries=times * self.queries)


def _at_end(batch: Batch, v: Tensor) -> Tensor:
    return batch.step(batch.inputs, batch.ball.steepest(v), 1.0)


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    coins = torch.randint(2, shape, generator=generator, device="cpu")
    return moved(coins, like.device).mul(2).sub(1).to(like.dtype)


def _stripes(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return one random sign a column and channel of each image, or a coordinate of any other input."""
    shape = list(inputs.shape)
    if inputs.dim() == 4:
        shape[2] = 1
    return _signs(tuple(shape), generator, inputs).expand_as(inputs)


def _window(inputs: Tensor, share: float, generator: torch.Generator, left: Tensor) -> Tensor:
    """Return a random sign a channel in a random window, 0 outside, for the inputs `left` `(m,)`: `(m, ...)`."""
    n = len(inputs)
    c, h, w = inputs.shape[1:] if inputs.dim() == 4 else (1, 1, inputs[0].numel())
    scale = share if h == 1 else share**0.5
    rows, columns = (_run(n, extent, scale, generator, left) for extent in (h, w))
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    signs = _signs((n, c, 1, 1), generator, inputs)[left]
    return (inside.to(inputs.dtype) * signs).view(len(left), *inputs.shape[1:])


def _run(n: int, extent: int, share: float, generator: torch.Generator, left: Tensor) -> Tensor:
    """Return random runs that cover a share of `extent` places, `(m, extent)`, true inside."""
    length = max(1, round(share * extent))
    first = moved(torch.randint(extent - length + 1, (n, 1), generator=generator, device="cpu"), left.device)[left]
    place = torch.arange(extent, device=left.device)
    return (place >= first) & (place < first + length)
