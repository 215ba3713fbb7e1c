"""The two-mode theory once more: usual networks in all coordinates, torch's gradients, torch's own descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.evidence.records import Record, Records, measured
from optscope.protocol.twice import Twice
from optscope.studies.gan_grafting.claims import normalised, plain
from optscope.tasks.two_modes import BATCH, batches
from optscope.theory.gan_modes import HIT, SHARE, TwoModes

STEPS = "steps to both modes"
IN_SPACE = f"{STEPS}, in all coordinates"
REPLAYED = (1000, 1001, 1002, 1003)
"""Fresh seeds that are played in both ways."""


class Discriminator(nn.Module):
    """The logit of D, Σ_i σ(⟨w_i, x⟩) + λ b, of points `(n, d)`."""

    def __init__(self, weight: Tensor, problem: TwoModes) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(weight.new_zeros(()))
        self.cut, self.scale = problem.cut, problem.bias_scale

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(n,)`."""
        inner = functional.linear(x, self.weight)
        tangent = 3 * self.cut**2 * inner - 2 * self.cut**3 * inner.sign()
        return torch.where(inner.abs() <= self.cut, inner**3, tangent).sum(1) + self.scale * self.bias


def steps_to_both(problem: TwoModes, unit: bool, rates: tuple[float, float], looks: Sequence[int],
                  seed: int) -> float:
    """Return the first of `looks`, in steps, at which the generator makes both modes, inf if none.

    Start and latent vectors are those of `simulate`, turned into R^d at random. Both players move at once, by
    `rates` `(η_D, η_G)` along their gradients, which are `unit` vectors in normalised descent.
    """
    drawn = np.random.default_rng((seed, 2)).standard_normal((problem.dimension, problem.span))
    turn = torch.linalg.qr(torch.from_numpy(drawn))[0]
    modes, weight, columns = (torch.from_numpy(part) @ turn.T for part in (
        problem.modes(), *problem.start(np.random.default_rng((seed, 0)))))
    data, chances = torch.cat([modes, modes.sum(0, keepdim=True)]), torch.from_numpy(problem.chances)
    generator = nn.Linear(problem.columns, problem.dimension, bias=False, dtype=torch.float64)
    generator.weight = nn.Parameter(columns.T.contiguous())
    discriminator = Discriminator(weight, problem)
    players = discriminator, generator
    descents = [torch.optim.SGD(player.parameters(), lr=rate, maximize=player is discriminator)
                for player, rate in zip(players, rates, strict=True)]
    judged = torch.from_numpy(problem.latents(np.random.default_rng(0), 1000))
    due = frozenset(looks)
    for step, (latent,) in zip(range(1, max(looks) + 1), batches(problem, (seed,), BATCH), strict=False):
        real, fake = discriminator(data), discriminator(generator(latent))
        value = (chances * functional.logsigmoid(real)).sum() + functional.logsigmoid(-fake).mean()
        for descent in descents:
            descent.zero_grad()
        value.backward()
        for player, descent in zip(players, descents, strict=True):
            if unit:
                length = nn.utils.get_total_norm([p.grad for p in player.parameters() if p.grad is not None])
                for p in player.parameters():
                    p.grad = p.grad / length if p.grad is not None else None
            descent.step()
        if step in due:
            with torch.no_grad():
                made = functional.normalize(generator(judged), dim=1) @ modes.T
            if bool(((made > HIT).double().mean(0) >= SHARE).all()):
                return float(step)
    return float("inf")


def replayed(arm: str, problem: TwoModes, unit: bool, rates: tuple[float, float], looks: Sequence[int],
             seeds: Sequence[int]) -> list[Record]:
    """Return rows, by seed: after how many steps both modes were seen, in all coordinates."""
    return [measured(arm, seed, IN_SPACE, steps_to_both(problem, unit, rates, looks, seed)) for seed in seeds]


@dataclass(frozen=True)
class Steps:
    """The median number of steps to both modes of the seeds that were played in both ways, nan without any."""

    arm: str

    def __call__(self, records: Records) -> tuple[float, float]:
        """Return it of the play in the span and of that in all coordinates."""
        mine = records.where(experiment="theory", arm=self.arm)
        twice = {row.seed: row.value for row in mine.where(metric=IN_SPACE)}
        once = [row.value for row in mine.where(metric=STEPS) if row.seed in twice]
        return (float(np.median(once)), float(np.median(list(twice.values())))) if twice else (np.nan, np.nan)


TWICE = tuple(Twice(f"steps until {name} had found both modes, median of {len(REPLAYED)} fresh seeds",
                    "exact play in the 26 dimensions that all spans, its own gradients",
                    "networks in all 1,000 dimensions, torch's gradients and SGD", Steps(arm), 0.1, relative=True)
              for name, arm in (("plain descent", plain()), ("normalised descent", normalised())))
