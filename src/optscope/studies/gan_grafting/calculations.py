"""The two-mode theory of the GAN study, played over a grid of rates and at the best of them on fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.records import Record, measured
from optscope.optim import SGD, NormalizedSGD, Players, Rule
from optscope.studies.gan_grafting.twice import replayed
from optscope.tasks.two_modes import Play, labels, simulate
from optscope.theory.gan_modes import OUTCOMES, TwoModes

Array = NDArray[np.float64]
Found = tuple[list[Record], Mapping[str, Array]]
Cells = Sequence[tuple[float, float]]
"""Learning rates to try, (η_D, η_G)."""

MOMENTS = ("once D has fitted", "at the budget", "at the end")
BUDGET = 100.0
"""Of the theory: steps times η_D, within which normalised descent should have found both modes."""


def theory(arm: str, problem: TwoModes, normalised: bool, cells: Cells, steps: tuple[int, int],
           seeds: Sequence[int], fresh: Sequence[int], again: Sequence[int] = ()) -> Found:
    """Play the two-mode GAN over a grid of rates, then its best cell on fresh seeds, for so many `steps` each.

    Seeds in `again` are played a second time, in all coordinates, by other code.

    Rows of a cell (at: its number): the share of seeds with both modes at each of the moments, within the budget
    and ever, and, of the seeds whose discriminator fitted, the share that had not found both by then. Rows of a
    seed of the grid: the same two shares over its cells, for cells of one seed have start and latent vectors in
    common. Rows of a fresh seed: steps until both modes were seen, until the discriminator fitted, until the
    generator moved by its own length (nan: never), and the pace. The best cell is the one where most seeds ever
    saw both, of equals the fastest.
    """
    play = _played(problem, normalised, cells, steps[0], seeds)
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
             measured(arm, 0, "steps played", float(steps[1]))]
    last = _played(problem, normalised, [cells[best]], steps[1], fresh)
    rows += _fresh_rows(arm, last, fresh)
    rows += replayed(arm, problem, normalised, cells[best], last.steps.tolist(), again)
    counts = np.stack([[np.mean(labelled == k, axis=0) for k in range(len(OUTCOMES))] for labelled in found])
    return rows, {f"{arm}/cells": np.array(cells), f"{arm}/outcomes": counts,
                  f"{arm}/steps": last.steps.astype(np.float64), f"{arm}/pace": np.median(last.pace, axis=1),
                  f"{arm}/doubt": np.median(last.doubt, axis=1), f"{arm}/moved": np.median(last.moved, axis=1),
                  f"{arm}/both": (last.outcomes == 0).mean(1)}


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
