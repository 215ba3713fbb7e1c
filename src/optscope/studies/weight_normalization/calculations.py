"""Calculations of the weight-normalisation study on sparse problems: exact limits, descents, flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from optscope.evidence.records import Factor, Record, measured
from optscope.tasks.diagonal import Descent, Instances, Settings, descend, flow, gaussian
from optscope.theory.bregman import Array
from optscope.theory.diagonal import (
    Limit,
    basis_pursuit,
    excess_bound,
    fit,
    invariant,
    rate,
    robust_bound,
)

Found = tuple[list[Record], Mapping[str, NDArray[np.float64]]]

FINISHED = 1e-2
"""A descent whose relative residual is above this is counted as unfinished and never scored."""
FIRST_TUNING_SEED = 1000


def least(problems: Instances) -> Array:
    """Return Q, the least ‖x‖₁, of every problem."""
    return np.array([np.abs(basis_pursuit(A, y, signed=problems.signed)).sum()
                     for A, y in zip(problems.A, problems.y, strict=True)])


def starts(problems: Instances, depth: int, shares: Sequence[float]) -> Array:
    """Return the starts α `(S, K)` at which r0² is that share of Σ |x*|^{2/L}, its value at x*."""
    parts = (1 + problems.signed) * problems.x.shape[1]
    square = target_square(problems, depth)[:, None]
    return np.asarray((np.asarray(shares) * square / parts) ** (depth / 2))


def target_square(problems: Instances, depth: int) -> Array:
    """Return Σ |x*|^{2/L}, r² at the sparse solution, of every problem."""
    return np.asarray((np.abs(problems.x) ** (2 / depth)).sum(-1))


def error(problems: Instances, x: Array) -> Array:
    """Return ‖x − x*‖/‖x*‖, `(S,)`."""
    return np.asarray(np.linalg.norm(x - problems.x, axis=-1) / np.linalg.norm(problems.x, axis=-1))


def rows_of(arm: str, factors: Mapping[str, Factor], seeds: Sequence[int], at: float | None,
            **metrics: Array) -> list[Record]:
    """Return a row a metric and seed; an underline in a metric's name is a space."""
    return [measured(arm, seed, name.replace("_", " "), float(value), at, None, **factors)
            for name, values in metrics.items() for seed, value in zip(seeds, values, strict=True)]


def sweep(depth: int, seeds: Sequence[int], alphas: Sequence[float], ratios: Sequence[float]) -> Found:
    """Find the exact limits of plain and polar flows over starts α; "torch" is the ratio 1/r0².

    Rows at α: excess E/Q, error, log10 of the effective start ρα, and the excess less its bound.
    """
    problems = gaussian(seeds)
    Q = least(problems)
    size = 2 * problems.x.shape[1]
    of: Mapping[str, Factor] = {"depth": depth}
    rows = rows_of("linear programme", of, seeds, None, least_l1=Q, error=error(problems, np.stack(
        [basis_pursuit(A, y) for A, y in zip(problems.A, problems.y, strict=True)])))
    for alpha in alphas:
        arms: list[tuple[str, float | None, Mapping[str, Factor]]] = [
            ("plain", None, of), *((f"κ={k:g}", k, {**of, "ratio": k}) for k in ratios),
            ("torch", 1 / (size * alpha ** (2 / depth)), of)]
        for name, kappa, factors in arms:
            limit = fit(problems.A, problems.y, alpha, depth=depth, ratio=kappa)
            excess = (limit.l1 - Q) / Q
            bound = np.array([float(excess_bound(np.exp(s) * alpha, size, q, depth))  # 0 where ρ underflows
                              for s, q in zip(limit.log_rho, Q, strict=True)])
            if kappa is not None and depth == 2:
                bound = np.minimum(bound, [float(robust_bound(alpha, size, q, kappa)) for q in Q])
            rows += rows_of(name, factors, seeds, alpha, excess=excess, error=error(problems, limit.x),
                            log10_effective_start=limit.log_rho / np.log(10) + np.log10(alpha),
                            excess_less_bound=excess - np.minimum(bound, 1e9))
    return rows, {}


def cells(depth: int, seeds: Sequence[int], sparsities: Sequence[int], measurements: Sequence[int],
          shares: Sequence[float], strength: float) -> Found:
    """Find exact limits over sparsities s, measurements M and shares of the threshold.

    Polar flow has κ Σ|x*|^{2/L} = `strength`. Factors are depth, sparsity and measurements; rows at the share:
    excess, error, and whether basis pursuit finds x*.
    """
    rows: list[Record] = []
    for s in sparsities:
        for m in measurements:
            problems = gaussian(seeds, measurements=m, sparsity=s)
            Q = least(problems)
            recovered = np.abs(Q - 1) < 1e-8
            factors = {"depth": depth, "sparsity": s, "measurements": m}
            rows += rows_of("linear programme", factors, seeds, None,
                            l1_minimiser_is_the_target=recovered.astype(np.float64))
            ratio = strength / target_square(problems, depth)
            for share, alpha in zip(shares, starts(problems, depth, shares).T, strict=True):
                for arm, kappa in (("plain", None), ("polar", ratio)):
                    limit = fit(problems.A, problems.y, alpha, depth=depth, ratio=kappa)
                    rows += rows_of(arm, factors, seeds, share, excess=(limit.l1 - Q) / Q,
                                    error=error(problems, limit.x))
    return rows, {}


def dose(depth: int, seeds: Sequence[int], share: float, strengths: Sequence[float]) -> Found:
    """Find exact limits over κ Σ|x*|^{2/L}, the strength, at one share of the threshold; rows at the strength."""
    problems = gaussian(seeds)
    Q, square, alpha = least(problems), target_square(problems, depth), starts(problems, depth, [share])[:, 0]
    rows = []
    for strength in strengths:
        limit = fit(problems.A, problems.y, alpha, depth=depth, ratio=strength / square)
        rows += rows_of("polar", {"depth": depth}, seeds, strength, excess=(limit.l1 - Q) / Q)
    return rows, {}


def phase(depth: int, seeds: Sequence[int], shares: Sequence[float], strengths: Sequence[float]) -> Found:
    """Find log10 of polar over plain excess, median over seeds, at every strength (rows) and share (columns)."""
    problems = gaussian(seeds)
    Q, square = least(problems), target_square(problems, depth)
    every = starts(problems, depth, shares).T

    def log_excess(limit: Limit) -> Array:
        return np.log10(np.maximum((limit.l1 - Q) / Q, 1e-10))

    plain = [log_excess(fit(problems.A, problems.y, alpha, depth=depth)) for alpha in every]
    table = [[float(np.median(log_excess(fit(problems.A, problems.y, alpha, depth=depth, ratio=k / square)) - base))
              for alpha, base in zip(every, plain, strict=True)] for k in strengths]
    return [], {f"L={depth}": np.array(table), "shares": np.array(shares), "strengths": np.array(strengths)}


def table(depth: int, seeds: Sequence[int], alphas: Sequence[float], ratios: Sequence[float],
          iterations: int) -> Found:
    """Descend at the same small step from every α, plainly and at every ratio: h = 0.25/‖A‖², rows at α."""
    problems = gaussian(seeds)
    Q = least(problems)
    found = {"plain": descend(problems, Settings(depth, np.array(alphas), np.array([0.25])), iterations)}
    many = np.repeat(alphas, len(ratios)), np.tile(ratios, len(alphas))
    polar = descend(problems, Settings(depth, many[0], np.array([0.25]), many[1]), iterations)
    rows: list[Record] = []
    for i, alpha in enumerate(alphas):
        rows += scored("plain", {"depth": depth}, problems, Q, seeds, alpha, found["plain"], i)
        for j, kappa in enumerate(ratios):
            rows += scored(f"κ={kappa:g}", {"depth": depth, "ratio": kappa}, problems, Q, seeds, alpha, polar,
                           i * len(ratios) + j)
    return rows, {}


def scored(arm: str, factors: Mapping[str, Factor], problems: Instances, Q: Array, seeds: Sequence[int],
           at: float, run: Descent, column: int) -> list[Record]:
    """Return what a descent reached: nan for error and excess where it is unfinished."""
    residual = run.residual[:, column]
    whole = np.where(residual <= FINISHED, 1.0, np.nan)
    times = {f"iterations_to_{name.replace(' ', '_')}": reached[:, column] for name, reached in run.reached.items()}
    return rows_of(arm, factors, seeds, at, error=run.error[:, column] * whole, residual=residual,
                   excess=(np.abs(run.x[..., column]).sum(-1) - Q) / Q * whole,
                   unfinished=np.isnan(whole).astype(float), **times)


def descents(depth: int, seeds: Sequence[int], shares: Sequence[float], strength: float, iterations: int) -> Found:
    """Descend from shares of the threshold, plainly and at κ Σ|x*|^{2/L} = `strength`, h = 1/‖A‖²; rows at share.

    Besides the scores: how far x ends from the plain limit from ρ x0, with ρ from the measured r0 and r (in ‖x*‖),
    log10 of the effective start ρα, and the excess of that limit. Arrays: residuals, x and rates of the first seed.
    """
    problems = gaussian(seeds)
    Q, square, alphas = least(problems), target_square(problems, depth), starts(problems, depth, shares)
    ratio = np.repeat((strength / square)[:, None], len(shares), axis=1)
    rows: list[Record] = []
    arrays: dict[str, Array] = {}
    for name, kappa in (("plain", None), ("polar", ratio)):
        run = descend(problems, Settings(depth, alphas, np.array([1.0]), kappa), iterations, stop=1e-7)
        arrays |= {f"L={depth}/{name}/steps": run.steps, f"L={depth}/{name}/residuals": run.residuals[:, 0],
                   f"L={depth}/{name}/x": run.x[0]}
        first = 2 * problems.x.shape[1] * alphas ** (2 / depth)
        log_rho = np.zeros(alphas.shape) if kappa is None else (
            depth / 2 * np.log(run.norms / first) - depth / 2 * kappa * (run.norms - first))
        for i, share in enumerate(shares):
            limit = fit(problems.A, problems.y, np.exp(log_rho[:, i]) * alphas[:, i], depth=depth)
            whole = np.where(run.residual[:, i] <= FINISHED, 1.0, np.nan)
            gap = np.linalg.norm(run.x[..., i] - limit.x, axis=-1) / np.linalg.norm(problems.x, axis=-1)
            rows += scored(name, {"depth": depth}, problems, Q, seeds, share, run, i)
            rows += rows_of(name, {"depth": depth}, seeds, share, distance_to_the_limit=gap * whole,
                            excess_of_the_limit=(limit.l1 - Q) / Q,
                            log10_effective_start=(log_rho[:, i] + np.log(alphas[:, i])) / np.log(10))
            arrays[f"L={depth}/{name}/rate {share:g}"] = np.array([_per_step(problems, limit, depth, kappa, i)])
    return rows, arrays | {f"L={depth}/target": problems.x[0]}


def _per_step(problems: Instances, limit: Limit, depth: int, kappa: Array | None, column: int) -> float:
    """Return by how much the log residual of the first problem is predicted to fall in a step of h = 1/‖A‖²."""
    ratio = None if kappa is None else float(kappa[0, column])
    step = 1 / problems.gram_norm[0] / max(1.0, ratio or 1.0)  # h_r
    return float(rate(problems.A[0], limit.parts[0], limit.signs, depth, ratio) * step)


def flows(seeds: Sequence[int]) -> Found:
    """Integrate flows of 30 unknowns and compare them with theory: limits, invariants, rates, and a control."""
    rows = []
    for seed in seeds:
        for depth in (2, 3, 4):
            for signed in (True, False):
                problems = gaussian([seed], 30, 15 if signed else 10, 3, signed)
                A, y = problems.A[0], problems.y[0]
                start = np.random.default_rng([seed, depth]).uniform(0.003, 0.03, (1 + signed, 30))
                arm = "signed" if signed else "unsigned"
                for kappa in (0.5, 3.0):
                    rows += [measured(arm, seed, name, value, kappa, depth=depth) for name, value in
                             _against_theory(A, y, start, depth, kappa, signed).items()]
                rows += [measured(arm, seed, f"rate of {name} flow over prediction",
                                  _measured_rate(A, y, start, depth, ratio, signed), depth=depth)
                         for name, ratio in (("plain", None), ("polar", 3.0))]
                plain = flow(A, y, start, depth, signed=signed)
                same = flow(A, y, start, depth, lambda r: 1 / r**2, signed=signed)
                gap = np.abs(plain.x(depth, signed)[-1] - same.x(depth, signed)[-1]).max()
                rows.append(measured(arm, seed, "distance of the flow at κ=1/r² from plain flow", float(gap),
                                     depth=depth))
    return rows, {}


def _against_theory(A: Array, y: Array, start: Array, depth: int, kappa: float, signed: bool) -> dict[str, float]:
    run = flow(A, y, start, depth, kappa, signed=signed)
    end = run.x(depth, signed)[-1]
    first = np.log(run.r[0]**2)
    log_rho = depth / 2 * (np.log(run.r[-1]**2) - first) - kappa * depth / 2 * (run.r[-1]**2 - run.r[0]**2)
    limit = fit(A, y, np.exp(log_rho) * start, depth=depth, signed=signed)
    kept = invariant(run.u, run.r, depth, kappa) @ null_space(np.hstack([A, -A]) if signed else A)
    return {"distance of the flow from the plain limit at ρ": float(np.abs(end - limit.x).max()),
            "drift of the invariants": float(np.ptp(kept, axis=0).max() / np.abs(kept).max()),
            "final residual": float(np.linalg.norm(A @ end - y) / np.linalg.norm(y))}


def _measured_rate(A: Array, y: Array, start: Array, depth: int, kappa: float | None, signed: bool) -> float:
    """Return the slope of the logarithm of the residual between e⁻¹⁷ and e⁻²², over its prediction."""
    limit = fit(A, y, start, depth=depth, ratio=kappa, signed=signed)
    predicted = rate(A, limit.parts, limit.signs, depth, kappa)
    run = flow(A, y, start, depth, kappa, signed=signed, times=np.linspace(0, 40 / predicted, 2000).tolist())
    gaps = np.log(np.linalg.norm(run.x(depth, signed) @ A.T - y, axis=1))
    last = (gaps < -17) & (gaps > -22)
    return float(-np.polyfit(run.times[last], gaps[last], 1)[0] / predicted) if last.sum() > 10 else float("nan")


def controls(seeds: Sequence[int], strength: float) -> Found:
    """Find exact limits where polar flow must not help: a dense x*, and a tiny start with κ = 1."""
    dense = gaussian(seeds, sparsity=100)
    rows: list[Record] = []
    for depth in (2, 3):
        alpha, ratio = starts(dense, depth, [0.2])[:, 0], strength / target_square(dense, depth)
        limit = fit(dense.A, dense.y, alpha, depth=depth, ratio=ratio)
        rows += rows_of("polar", {"depth": depth, "problem": "dense"}, seeds, None, error=error(dense, limit.x))
        sparse = gaussian(seeds)
        for name, kappa in (("plain", None), ("κ=1", 1.0)):
            tiny = fit(sparse.A, sparse.y, 1e-6, depth=depth, ratio=kappa)
            rows += rows_of(name, {"depth": depth, "problem": "tiny start"}, seeds, None,
                            error=error(sparse, tiny.x))
    return rows, {}


def tuned_speed(depth: int, tuning: Sequence[int], seeds: Sequence[int], iterations: int) -> Found:
    """Tune start, step and ratio of plain and polar descent for the fewest iterations to an error; compare afresh.

    Chosen is the smallest median over `tuning`, once for 5 % and once for 1 %. Rows at the error in percent; arrays
    hold what was chosen.
    """
    alphas, steps = (1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3), (0.25, 1.0, 2.0, 4.0, 8.0)
    ratios = (1.0, 3.0, 10.0, 30.0)
    grids: dict[str, list[Array]] = {"plain": [g.ravel() for g in np.meshgrid(alphas, steps)],
                                     "polar": [g.ravel() for g in np.meshgrid(alphas, steps, ratios)]}
    rows: list[Record] = []
    arrays: dict[str, Array] = {}
    for name, grid in grids.items():
        def run(problems: Instances, grid: list[Array]) -> Descent:
            with np.errstate(all="ignore"):  # the largest steps may diverge: they are never chosen
                return descend(problems, Settings(depth, grid[0], grid[1], grid[2] if len(grid) > 2 else None),
                               iterations)
        trials = run(gaussian(tuning), grid)
        for percent in (5, 1):
            best = int(np.argmin(np.median(trials.reached[f"error {percent} %"], axis=0)))
            chosen = [g[best:best + 1] for g in grid]
            final = run(gaussian(seeds), chosen)
            rows += rows_of(name, {"depth": depth}, seeds, float(percent),
                            iterations=final.reached[f"error {percent} %"][:, 0])
            arrays[f"L={depth}/{name}/{percent}"] = np.concatenate(chosen)
    return rows, arrays
