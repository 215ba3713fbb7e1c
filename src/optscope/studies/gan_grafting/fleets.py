"""Rules on mixtures of Gaussians, whose tiny networks learn in fleets: tuned once, then played on any seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optscope.engine.fleet import outputs, play_members
from optscope.engine.plan import Plan
from optscope.engine.rows import Use
from optscope.engine.run import Call
from optscope.evidence.records import Record, Records, measured
from optscope.optim import Linear, Players
from optscope.probes.modes import count_modes
from optscope.protocol.comparison import Arm, Job
from optscope.protocol.search import PlayerGrid
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Mixture

Array = NDArray[np.float64]
Found = tuple[list[Record], Mapping[str, Array]]

SAMPLES, SHOWN = 2000, 400
BATCH = 64
FLEET = 24
"""Members that play together: so few that their activations stay in the cache."""


def tune(arm: str, data: Mixture, rule: Players, grid: PlayerGrid, epochs: int, seeds: Sequence[int]) -> Found:
    """Find the pair of rates with the least missed mass, mean over seeds; one that diverged counts as the worst.

    Rows, under the arm's grid: the best rates and what they missed. Arrays: the grid's mean missed mass and modes,
    `(η_D, η_G)`.
    """
    candidates = _candidates(rule, grid)
    tried = _scores(data, candidates, epochs, seeds, 0)
    missed = tried["missed mass"].mean(0)
    missed = np.where(np.isfinite(missed), missed, np.inf)
    best = candidates[int(missed.argmin())]
    rows = [measured(grid_of(arm), 0, _best(name), float(each.lr))  # type: ignore[arg-type]
            for name, each in best.rules]
    rows.append(measured(grid_of(arm), 0, "missed mass when tuned", float(missed.min())))
    return rows, {f"{arm}/missed": missed.reshape(grid.shape),
                  f"{arm}/modes": tried["modes"].mean(0).reshape(grid.shape)}


def useful(arm: str, data: Mixture, rule: Players, grid: PlayerGrid, epochs: int, seeds: Sequence[int]) -> Found:
    """Return, under the arm's grid, the share of pairs with half of the modes and 40 % of high quality, by seed."""
    tried = _scores(data, _candidates(rule, grid), epochs, seeds, 0)
    good = (tried["modes"] >= len(data.means) / 2) & (tried["high quality"] >= 0.4)
    return [measured(grid_of(arm), seed, "useful cells", float(share))
            for seed, share in zip(seeds, good.mean(1), strict=True)], {}


def play(arm: str, data: Mixture, rule: Players, epochs: int, seeds: Sequence[int], shown: bool) -> Found:
    """Play one rule from seeds: rows are the metrics of `Modes`; if `shown`, samples of the first are kept."""
    found = _scores(data, [rule], epochs, seeds, 1)
    samples = found.pop("samples")
    rows = [measured(arm, seed, name, float(values[i, 0])) for name, values in found.items()
            for i, seed in enumerate(seeds)]
    return rows, {f"{arm}/samples": samples[0, 0, :SHOWN]} if shown else {}


@dataclass(frozen=True)
class Fleets:
    """Rules on one mixture: every arm is tuned alike, then played on shared seeds.

    What is tuned is the pair of rates in the arm's `PlayerGrid`. Arms in `useful` play their whole grid for all
    epochs besides, on seeds of its own (how wide is the region that works?). Arms are tuned apart from each other,
    so the same with other `seeds`, or with some of the arms, tunes nothing again.
    """

    name: str
    data: Mixture
    arms: tuple[Arm, ...]
    epochs: int
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    useful: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def jobs(self, records: Records) -> list[Job]:
        """Return the tuning of every arm and, of those that are tuned, the plays."""
        found = [self._job(tune, arm, rule=arm.rule, grid=arm.search, epochs=self.epochs,
                           seeds=self.tuning_seeds) for arm in self.arms]
        found += [self._job(useful, arm, rule=arm.rule, grid=arm.search, epochs=self.epochs,
                            seeds=self.useful[arm.name]) for arm in self.arms if arm.name in self.useful]
        mine = records.where(experiment=self.name)
        for arm in self.arms:
            rates = {f"{row.metric.removeprefix(_best(''))}.lr": row.value
                     for row in mine.where(arm=grid_of(arm.name)) if row.metric.startswith(_best(""))}
            if not rates:
                continue
            found += [self._job(play, arm, rule=arm.rule.with_(**rates), epochs=self.epochs, seeds=block,
                                shown=block[0] == self.seeds[0]) for block in _blocks(self.seeds)]
        return found

    def _job(self, function: Callable[..., Found], arm: Arm, **given: Any) -> Job:
        call = Call(function, {"arm": arm.name, "data": self.data, **given}, arm.factors)
        return Job(call, Use(self.name, "", "final", 0, "", call.id, (), call.factors))


def grid_of(arm: str) -> str:
    """Return the name under which the tuning of an arm is filed, for its seeds are not those that compare."""
    return f"{arm} (grid)"


def _best(player: str) -> str:
    return f"best rate of the {player}"


def _blocks(seeds: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(seeds[first:first + FLEET]) for first in range(0, len(seeds), FLEET)]


def _candidates(rule: Players, grid: PlayerGrid) -> list[Players]:
    return [each for each in grid.candidates(rule) if isinstance(each, Players)]


def _scores(data: Mixture, candidates: Sequence[Players], epochs: int, seeds: Sequence[int],
            judge: int) -> dict[str, Array]:
    """Return the metrics of `Modes`, `(seeds, candidates)` each, and the samples they are of, drawn by `judge`."""
    game = gan("mixture", Perceptron((8, 64, 64, 2)), Perceptron((2, 64, 64, 1)), data, bounds=None)
    latent = game.latent(SAMPLES, torch.Generator().manual_seed(judge))
    members = [(seed, rule) for seed in seeds for rule in candidates]
    parts = []
    for first in range(0, len(members), FLEET):
        some, rules = zip(*members[first:first + FLEET], strict=True)
        vectors = play_members(game, _together(rules), Plan(epochs, BATCH, Linear()), some)
        parts.append(outputs(game, "generator", vectors, latent))
    made = torch.cat(parts)
    shape = len(seeds), len(candidates)
    found = {name: values.numpy().reshape(shape)
             for name, values in count_modes(made, data.means, data.std).items()}
    return found | {"samples": made.numpy().astype(np.float64).reshape(*shape, SAMPLES, 2)}


def _together(rules: Sequence[Players]) -> Players:
    """Return one rule whose members have the rates of `rules`, which differ in nothing else."""
    def rates(name: str) -> tuple[float, ...]:
        return tuple(float(rule.by_name[name].lr) for rule in rules)  # type: ignore[arg-type]
    return Players(**{name: each.with_(lr=rates(name)) for name, each in rules[0].rules})
