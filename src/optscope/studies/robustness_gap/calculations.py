"""Calculations of the robustness study that train no comparison: the linear theory, spectra, example pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.evidence.records import Factor, Record, measured
from optscope.optim import SGD, Adam, RMSProp, Rule, SignSGD
from optscope.probes.attack import PGD
from optscope.probes.frequency import spectral_energy
from optscope.probes.still import frozen
from optscope.tasks.images import HighEnergy, LowPass
from optscope.tasks.signals import simulate
from optscope.tasks.task import Data, Task
from optscope.theory.three_frequency import PAPER, Problem, sign_limit

Found = tuple[list[Record], Mapping[str, NDArray[np.float64]]]

RULES: dict[str, Rule] = {"GD": SGD(lr=0.01), "signGD": SignSGD(lr=0.01), "Adam": Adam(lr=0.01),
                          "RMSProp": RMSProp(lr=0.01)}

PROBLEMS = ((0.1, 0.05, 5.0, 10.0), (0.1, 0.05, 5.0, 40.0), (0.1, 0.05, 5.0, 15.0), (0.1, 0.05, 10.0, 5.0),
            (0.1, 0.08, 5.0, 10.0), (0.1, 0.08, 10.0, 5.0))
"""(s0, s1, w0*, w1*): both orders of |A(0)| and |B(0)| on both sides of s1² = s0²/3."""


def linear_dynamics(steps: int, seeds: Sequence[int], batch: int | None) -> Found:
    """Run the four rules on the three-frequency regression; `batch=None` takes the population gradient.

    Factors are the gradient, "sampled" or "population", and the batch of samples. Arrays hold the trajectories of
    the errors and risks, mean over seeds.
    """
    rows: list[Record] = []
    arrays: dict[str, NDArray[np.float64]] = {}
    gradient = "sampled" if batch else "population"
    factors: dict[str, Factor] = {"gradient": gradient} | ({"batch": batch} if batch else {})
    for name, rule in RULES.items():
        run = simulate(rule, PAPER, steps, tuple(seeds) if batch else tuple(seeds)[:1], batch=batch)
        standard, adversarial = run.standard_risk(), run.adversarial_risk()
        for i, seed in enumerate(run.seeds):
            final = run.final[i]
            rows += [measured(name, seed, metric, float(value), None, None, **factors) for metric, value in (
                ("standard risk", standard[-1, i]), ("adversarial risk by sampling", sampled_risk(final, seed)),
                ("adversarial risk", adversarial[-1, i]), ("squared weight norm", final @ final),
                ("weight on the empty frequency", final[2]))]
        key = f"{name}/{gradient}"
        arrays |= {f"{key}/steps": run.steps.astype(np.float64), f"{key}/errors": run.errors.mean(1),
                   f"{key}/standard": standard.mean(1), f"{key}/adversarial": adversarial.mean(1)}
    return rows, arrays


def sampled_risk(weights: NDArray[np.float64], seed: int, samples: int = 100_000) -> float:
    """Return the mean loss ½(⟨w, x + δ⟩ − y)² over sampled inputs, each with its worst δ of l2 norm √2.

    The worst δ is √2 · sign(⟨w − w*, x⟩) · w/‖w‖: it pushes the error the way it already points.
    """
    x = np.random.default_rng(seed).normal(0.0, PAPER.s, (samples, 3))
    error = x @ (weights - PAPER.target)
    delta = np.sqrt(2) * np.where(error >= 0, 1.0, -1.0)[:, None] * weights / np.linalg.norm(weights)
    return float(np.mean(0.5 * (error + delta @ weights) ** 2))


def linear_closed_form(steps: int) -> Found:
    """Compare signGD's end point with its closed form on problems of every regime (population, lr 1e-3).

    The error is relative to the drift of the weight on the empty frequency.
    """
    rows = []
    for s0, s1, w0, w1 in PROBLEMS:
        problem = Problem((s0, s1, 0.0), (w0, w1, 0.0), (0.0, 0.0, 0.0))
        longest = int(2.5 * (w0 + w1) / 1e-3)
        run = simulate(SignSGD(lr=1e-3), problem, min(longest, 10 * steps), (0,), batch=None)
        expected = sign_limit(problem)[2]
        error = abs(run.final[0, 2] - expected) / abs(expected)
        rows.append(measured("signGD", 0, "relative error of the closed form", float(error), gradient="population",
                             s0=s0, s1=s1, w0=w0, w1=w1))
    return rows, {}


def spectrum(data: Callable[[], Data], name: str) -> Found:
    """Measure the spectral energy of training images, and fit an exponential to its diagonal without DC."""
    energy = spectral_energy(data().train.first(None).inputs).numpy().astype(np.float64)
    diagonal = np.log(np.diagonal(energy)[1:])
    frequency = np.arange(1, len(diagonal) + 1)
    slope, offset = np.polyfit(frequency, diagonal, 1)
    residual = diagonal - (slope * frequency + offset)
    rows = [measured(name, 0, "slope of log energy along the diagonal", float(slope)),
            measured(name, 0, "R² of the exponential", float(1 - residual.var() / diagonal.var()))]
    return rows, {f"energy {name}": energy}


def dissect_images(task: Task, epochs: int) -> Found:
    """Make pictures: filtered training images, and attacked test images.

    Attacked are an SGD and an Adam model trained for `epochs`, within l2 radius 1.
    """
    arrays: dict[str, NDArray[np.float64]] = {}
    few = task.data().train.first(6).inputs
    for keep in (50, 10, 3):
        arrays[f"low energy removed, keep {keep} %"] = _grey(HighEnergy(task.data, keep / 100).filtered(few))
        arrays[f"high frequencies removed, keep {keep} %"] = _grey(LowPass(task.data, keep / 100).filtered(few))
    arrays["original"] = _grey(few)
    test = task.data().test.first(6)
    arrays["clean"] = _grey(test.inputs)
    for name, rule in (("SGD", SGD(lr=0.1)), ("Adam", Adam(lr=1e-3))):
        model = train(task, rule, Plan(epochs), seed=0).snapshot.model
        with frozen(model):
            attacked = PGD(steps=50).run(model, test.inputs, test.targets, 1.0, "l2", task.bounds or (0.0, 1.0),
                                         torch.Generator().manual_seed(0))
            arrays[f"attacked {name}"] = _grey(attacked)
            arrays[f"classes {name}"] = model(attacked).argmax(1).numpy().astype(np.float64)
    arrays["classes clean"] = test.targets.numpy().astype(np.float64)
    return [], arrays


def _grey(images: torch.Tensor) -> NDArray[np.float64]:
    return images.detach().mean(1).clamp(0, 1).numpy().astype(np.float64)
