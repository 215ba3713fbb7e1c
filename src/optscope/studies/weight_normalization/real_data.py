"""Calculations of the weight-normalisation study on real data, and its rule against torch's own modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations

from optscope.evidence.records import Record, measured
from optscope.optim import PolarSGD
from optscope.studies.weight_normalization.calculations import Found
from optscope.tasks.recovery import diabetes, lasso, patch
from optscope.theory.bregman import Array
from optscope.theory.diagonal import basis_pursuit, fit


def photographs(seeds: Sequence[int]) -> Found:
    """Recover patches of photographs, 256 unknowns from 100 measurements, by five methods; rows: error, l1."""
    rows: list[Record] = []
    pictures: dict[str, list[Array]] = {}
    for seed in seeds:
        problem = patch(seed)
        for arm, x in solutions(problem.A, problem.y).items():
            rows += [measured(arm, seed, "error", float(np.linalg.norm(x - problem.x) / np.linalg.norm(problem.x))),
                     measured(arm, seed, "l1 over least", float(np.abs(x).sum()))]
            pictures.setdefault(arm, []).append(problem.image(x))
        pictures.setdefault("original", []).append(problem.image(problem.x))
    return _over_least(rows), {name: np.stack(images[:6]) for name, images in pictures.items()}


def polynomials(seeds: Sequence[int]) -> Found:
    """Predict diabetes from 60 people and 285 products of their numbers, by five methods; rows: R², l1."""
    rows: list[Record] = []
    for seed in seeds:
        problem = diabetes(seed)
        for arm, x in solutions(problem.A, problem.y).items():
            rows += [measured(arm, seed, "R²", problem.r2(x)),
                     measured(arm, seed, "l1 over least", float(np.abs(x).sum()))]
    return _over_least(rows), {}


def _over_least(rows: list[Record]) -> list[Record]:
    floor = {row.seed: row.value for row in rows if row.arm == "basis pursuit" and row.metric == "l1 over least"}
    return [measured(r.arm, r.seed, r.metric, r.value / floor[r.seed], r.at) if r.metric == "l1 over least" else r
            for r in rows]


def solutions(A: Array, y: Array) -> dict[str, Array]:
    """Solve a system by basis pursuit, plain and polar limits, the least l2 norm, and the cross-validated lasso.

    Both limits start at α = 0.1 ‖x₂‖₁/(2N), a tenth of the threshold of the least-l2 solution x₂; polar has
    κ = 30/‖x₂‖₁.
    """
    nearest: Array = np.linalg.lstsq(A, y, rcond=None)[0].astype(np.float64)
    size = np.abs(nearest).sum()
    alpha = 0.1 * size / (2 * A.shape[1])
    return {"basis pursuit": basis_pursuit(A, y), "plain limit": fit(A, y, alpha).x,
            "polar limit": fit(A, y, alpha, ratio=30 / size).x, "least l2 norm": nearest, "lasso": lasso(A, y)}


def identity(steps: int) -> Found:
    """Train a small network by `PolarSGD` and its twin by SGD under torch's `weight_norm`; row: the gap."""
    rows = []
    for per, dim in (("unit", 0), ("layer", None)):
        models = []
        for wrap in (False, True):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).double()
            if wrap:
                parametrizations.weight_norm(model[0], dim=dim)  # type: ignore[arg-type]
                parametrizations.weight_norm(model[3], dim=dim)  # type: ignore[arg-type]
            models.append(model)
        ours, theirs = models
        rules = (PolarSGD(lr=0.3, per=per).optimizer(ours.parameters()),  # type: ignore[arg-type]
                 torch.optim.SGD(theirs.parameters(), lr=0.3))
        inputs, labels = torch.randn(50, 1, 8, 8, dtype=torch.float64), torch.arange(50) % 10
        for _ in range(steps):
            for model, optimizer in zip(models, rules, strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        gap = max(float((a.weight - b.weight).detach().abs().max())  # type: ignore[operator]
                  for a, b in zip(ours, theirs, strict=True) if hasattr(a, "weight"))
        rows.append(measured(f"one norm a {per}", 0, "largest difference of the weights", gap))
    return rows, {}
