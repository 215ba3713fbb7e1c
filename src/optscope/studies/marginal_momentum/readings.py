"""What the claims and pictures of the momentum study read off its records: names, scores, gaps, cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.records import Factor, Records
from optscope.evidence.verdicts import equivalent
from optscope.theory import stability
from optscope.theory.momentum import Regime, noise_left, regime

Array = NDArray[np.float64]
Pair = tuple[Array, Array]

CHANCE = 10.0
"""The accuracy in percent that a diverged run of a task with ten classes counts with."""
BETAS = (0.0, 0.9)
"""SGD and the momentum it is compared with."""
EXAMPLES = {"digits": 1200, "fashion-mnist": 6000, "cifar10": 6000}
"""How many training images a data set has at desk scale: batches are drawn from them without replacement."""


def experiment(data: str, batch: int, part: str = "") -> str:
    """Return the name of a grid's experiment, or of its part "tuned" or "watched"."""
    return f"{data}, batch {batch}" + (f", {part}" if part else "")


def svag_experiment(data: str, level: int) -> str:
    """Return the name of the experiment at one SVAG level."""
    return f"{data}, SVAG level {level}"


def method(beta: float) -> str:
    """Return what a rule with momentum β is called."""
    return f"momentum {beta:g}" if beta else "SGD"


def cell_arm(beta: float, rate: float) -> str:
    """Return the name of the arm with momentum β at the effective rate η."""
    return f"{method(beta)} at η {rate:g}"


def batches(records: Records, data: str) -> list[int]:
    """Return the batch sizes of a data set's grids, ascending."""
    return at(records, "view", "grid").where(data=data).levels("batch")


def at(records: Records, factor: str, level: Factor) -> Records:
    """Return the rows with a factor at a level; none where no experiment that varies it was run."""
    return records.where(**{factor: level}) if factor in records.factors() else Records()


def rates(records: Records, beta: float) -> list[float]:
    """Return the effective rates at which an experiment tried momentum β, ascending."""
    return records.where(momentum=beta).levels("rate")


def scores(records: Records, arm: str) -> Array:
    """Return the test accuracy of an arm, one a seed; a diverged run has that of chance, a failed one nan."""
    diverged = {row.seed for row in records.where(arm=arm, phase="final", status="diverged")}
    values = records.values(arm, "accuracy")
    return np.array([CHANCE if seed in diverged else value
                     for seed, value in zip(records.seeds(arm), values, strict=True)])


def gap(records: Records, first: str, second: str) -> Pair:
    """Return the accuracies of two arms on the seeds that both were trained on."""
    seeds = [sorted(records.seeds(arm)) for arm in (first, second)]
    both = sorted(set(seeds[0]) & set(seeds[1]))
    picked = [dict(zip(own, scores(records, arm), strict=True))
              for own, arm in zip(seeds, (first, second), strict=True)]
    return (np.array([picked[0][s] for s in both], dtype=np.float64),
            np.array([picked[1][s] for s in both], dtype=np.float64))


def tuned_gap(records: Records, data: str, batch: int) -> Pair:
    """Return the accuracies of momentum and SGD, each at the rate that validation data chose."""
    return gap(records.where(experiment=experiment(data, batch, "tuned")), method(BETAS[1]), method(BETAS[0]))


def slopes(gaps: Sequence[Pair], at: Sequence[float]) -> Array:
    """Return the least-squares slope of first - second on log2 of `at`, one a seed; nan where one is missing."""
    count = min((len(first) for first, _ in gaps), default=0)
    if len(gaps) < 2 or count == 0:
        return np.array([])
    differences = np.array([(first - second)[:count] for first, second in gaps])
    x = np.log2(np.array(at, dtype=np.float64))
    x = x - x.mean()
    return np.asarray(x @ differences / (x @ x), dtype=np.float64)


@dataclass(frozen=True)
class Cell:
    """One batch size and rate of one data set: what one momentum run showed, and how the seeds came out.

    `product` is the largest ηλ along that run, `curvature` and `noise` are the means over its moments of the terms
    of a step, `steps` is its length. `outcome` is "equal" (shown within the margin), "helps" or "hurts" (shown
    outside), or "open".
    """

    data: str
    batch: int
    rate: float
    product: float
    curvature: float
    noise: float
    steps: int
    gap: float
    outcome: str

    @property
    def predicted(self) -> Regime:
        """The regime that the one run predicts."""
        return regime(self.product, self.curvature, self.noise, self.steps * (1 - BETAS[1]))

    @property
    def share(self) -> float:
        """The curvature-induced term over the noise-induced one; estimates below 0 count as 0."""
        return max(self.curvature, 0.0) / max(self.noise, 1e-300)

    @property
    def agrees(self) -> bool | None:
        """Whether prediction and test agree; None where either leaves the matter open."""
        if self.predicted == "between" or self.outcome == "open":
            return None
        return self.outcome == ("equal" if self.predicted == "noise" else "helps")


def along(records: Records, arm: str, metric: str) -> Array:
    """Return a watched metric at each moment of an arm's run, in the order of steps."""
    rows = sorted((row.step, row.value) for row in records.where(arm=arm, metric=metric) if row.step is not None)
    return np.array([value for _, value in rows], dtype=np.float64)


def on_the_way(records: Records, data: str, batch: int, beta: float,
               rate: float) -> tuple[list[int], Array, Array, Array]:
    """Return the steps at which a run was watched, and ηλ, with η as it is then, and both terms of a step at each.

    The terms are what curvature and noise add to the loss, as they are measured: around zero they may be negative.
    The noise is that of batches drawn without replacement.
    """
    mine, arm = records.where(experiment=experiment(data, batch, "watched")), cell_arm(beta, rate)
    steps = sorted({row.step for row in mine.where(arm=arm, metric="noise-induced") if row.step is not None})
    product = along(mine, arm, "sharpness / threshold") * stability.averaged(1.0, beta)
    noise = along(mine, arm, "noise-induced") * noise_left(EXAMPLES[data], batch)
    return steps, product, along(mine, arm, "curvature-induced"), noise


def cells(records: Records, margins: dict[str, float]) -> list[Cell]:
    """Return every cell of every grid that was watched."""
    found = []
    for data, margin in margins.items():
        for batch in batches(records, data):
            grid = records.where(experiment=experiment(data, batch))
            for rate in rates(grid, BETAS[1]):
                steps, product, curved, noisy = on_the_way(records, data, batch, BETAS[1], rate)
                first, second = gap(grid, cell_arm(BETAS[1], rate), cell_arm(BETAS[0], rate))
                if len(product) and len(curved) and len(first) > 1:
                    found.append(Cell(data, batch, rate, float(product.max()), float(curved.mean()),
                                      float(noisy.mean()), steps[-1], float(np.nanmean(first - second)),
                                      outcome(first, second, margin)))
    return found


def outcome(first: Array, second: Array, margin: float) -> str:
    """Return how momentum's accuracies compare with SGD's: "equal", "helps", "hurts" or "open".

    Where neither trains they are not equal, but nothing is shown.
    """
    if max(np.nanmean(first), np.nanmean(second)) < 2 * CHANCE:
        return "open"
    found = equivalent(first, second, margin)
    named = {"holds": "equal", "fails": "helps" if found.effect > 0 else "hurts", "undecided": "open"}
    return named[found.outcome]
