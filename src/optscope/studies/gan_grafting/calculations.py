"""Calculations of the GAN study that train no single network: the two-mode theory, and fleets on mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from optscope.engine.fleet import outputs, play_members
from optscope.engine.plan import Plan
from optscope.evidence.records import Record, measured
from optscope.optim import SGD, Linear, NormalizedSGD, Players, Rule
from optscope.probes.modes import count_modes
from optscope.protocol.search import PlayerGrid
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Mixture
from optscope.tasks.two_modes import Play, labels, simulate
from optscope.theory.gan_modes import OUTCOMES, TwoModes

Array = NDArray[np.float64]
Found = tuple[list[Record], Mapping[str, Array]]
Cells = Sequence[tuple[float, float]]
"""Learning rates to try, (η_D, η_G)."""

MOMENTS = ("once D has fitted", "at the budget", "at the end")
SAMPLES, SHOWN = 2000, 400
BATCH = 64
FLEET = 24
"""Members that play together: so few that their activations stay in the cache."""
BUDGET = 100.0
"""Of the theory: steps times η_D, within which normalised descent should have found both modes."""


def theory(arm: str, problem: TwoModes, normalised: bool, cells: Cells, steps: int, seeds: Sequence[int],
           fresh: Sequence[int]) -> Found:
    """Play the two-mode GAN over a grid of rates, then its best cell on fresh seeds.

    Rows of a cell (at: its number): the share of seeds with both modes at each of the moments, within the budget
    and ever, and, of the seeds whose discriminator fitted, the share that had not found both by then. Rows of a
    seed of the grid: the same two shares over its cells, for cells of one seed have start and latent vectors in
    common. Rows of a fresh seed: steps until both modes were seen, until the discriminator fitted, until the
    generator moved by its own length (nan: never), and the pace. The best cell is the one where most seeds ever
    saw both, of equals the fastest.
    """
    play = _played(problem, normalised, cells, steps, seeds)
    members = len(seeds), len(cells)
    ever = (play.outcomes == 0).any(0).reshape(members)
    first = play.first_both().reshape(members)
    found = [(labels(shares)).reshape(members) for shares in (play.at_fit, play.at_budget, play.shares[-1])]
    rows = [measured(arm, 0, f"both modes {moment}", float(np.mean(labelled[:, i] == 0)), float(i))
            for moment, labelled in zip(MOMENTS, found, strict=True) for i in range(len(cells))]
    in_budget = first <= BUDGET / np.array(cells)[:, 0]
    fitted = found[0] >= 0
    collapsed = np.where(fitted, found[0] != 0, np.nan)
    for i in range(len(cells)):
        rows += [measured(arm, 0, "both modes ever", float(ever[:, i].mean()), float(i)),
                 measured(arm, 0, "both modes within the budget", float(in_budget[:, i].mean()), float(i)),
                 measured(arm, 0, "fitted", float(fitted[:, i].mean()), float(i)),
                 measured(arm, 0, "collapsed once D has fitted", _mean(collapsed[:, i]), float(i))]
    for seed, held, lost in zip(seeds, in_budget, collapsed, strict=True):
        rows += [measured(arm, seed, "cells with both modes within the budget", float(held.mean())),
                 measured(arm, seed, "cells collapsed once D has fitted", _mean(lost))]
    order = [(-ever[:, i].mean(), float(np.median(first[:, i])), i) for i in range(len(cells))]
    best = min(order)[2]
    rows += [measured(arm, 0, "best rate of D", cells[best][0]), measured(arm, 0, "best rate of G", cells[best][1]),
             measured(arm, 0, "steps played", float(steps))]
    again = _played(problem, normalised, [cells[best]], steps, fresh)
    rows += _fresh_rows(arm, again, fresh)
    counts = np.stack([[np.mean(labelled == k, axis=0) for k in range(len(OUTCOMES))] for labelled in found])
    return rows, {f"{arm}/cells": np.array(cells), f"{arm}/outcomes": counts,
                  f"{arm}/steps": again.steps.astype(np.float64), f"{arm}/pace": np.median(again.pace, axis=1),
                  f"{arm}/doubt": np.median(again.doubt, axis=1), f"{arm}/moved": np.median(again.moved, axis=1),
                  f"{arm}/both": (again.outcomes == 0).mean(1)}


def _mean(values: Array) -> float:
    """Return the mean of those that are not nan; nan without any."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else np.nan


def _played(problem: TwoModes, normalised: bool, cells: Cells, steps: int, seeds: Sequence[int]) -> Play:
    def rule(rates: tuple[float, ...]) -> Rule:
        return NormalizedSGD(lr=rates, per="model") if normalised else SGD(lr=rates)
    d, g = zip(*cells, strict=True)
    return simulate(problem, Players(discriminator=rule(d), generator=rule(g)), steps, tuple(seeds), budget=BUDGET)


def _fresh_rows(arm: str, play: Play, seeds: Sequence[int]) -> list[Record]:
    times = {"steps to both modes": play.first_both(), "steps until D had fitted": play.fitted,
             "steps until G had moved": play.first_move()}
    rows = [measured(arm, seed, name, float(value)) for name, values in times.items()
            for seed, value in zip(seeds, values, strict=True)]
    low, high = np.nanquantile(play.pace, (0.25, 0.75), axis=0)
    for i, seed in enumerate(seeds):
        rows += [measured(arm, seed, "both modes at last", float(play.outcomes[-1, i] == 0)),
                 measured(arm, seed, "range of the log pace ratio",
                     float(np.nanmax(play.pace[:, i]) - np.nanmin(play.pace[:, i]))),
                 measured(arm, seed, "band of the log pace ratio", float(high[i] - low[i]))]
    return rows


def mixture(arm: str, data: Mixture, rule: Players, grid: PlayerGrid, epochs: int, tuning: Sequence[int],
            seeds: Sequence[int]) -> Found:
    """Tune a rule on a mixture by the missed mass, mean over the tuning seeds, then play the best pair on others.

    Rows: the metrics of `Modes` by seed, and under the arm's grid, by tuning seed, the share of cells with half of
    the modes and 40 % of high quality. Arrays: the grid's mean missed mass and modes, `(η_D, η_G)`; samples of the
    first seed.
    """
    candidates = [each for each in grid.candidates(rule) if isinstance(each, Players)]
    tried = _scores(data, candidates, epochs, tuning, 0)
    missed = tried["missed mass"].mean(0)
    missed = np.where(np.isfinite(missed), missed, np.inf)
    best = candidates[int(missed.argmin())]
    useful = (tried["modes"] >= len(data.means) / 2) & (tried["high quality"] >= 0.4)
    rows = [measured(grid_of(arm), seed, "useful cells", float(useful[i].mean())) for i, seed in enumerate(tuning)]
    rows += [measured(grid_of(arm), 0, f"best rate of the {name}", float(each.lr))  # type: ignore[arg-type]
             for name, each in best.rules]
    rows.append(measured(grid_of(arm), 0, "missed mass when tuned", float(missed.min())))
    final = _scores(data, [best], epochs, seeds, 1)
    samples = final.pop("samples")
    rows += [measured(arm, seed, name, float(values[i, 0])) for name, values in final.items()
             for i, seed in enumerate(seeds)]
    modes = tried["modes"].mean(0)
    return rows, {f"{arm}/missed": missed.reshape(grid.shape), f"{arm}/modes": modes.reshape(grid.shape),
                  f"{arm}/samples": samples[0, 0, :SHOWN]}


def grid_of(arm: str) -> str:
    """Return the name under which the tuning of an arm is filed, for its seeds are not those that compare."""
    return f"{arm}, grid"


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
