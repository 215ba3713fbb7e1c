"""B11: where flows on diagonal models end, exactly, against linear programming, the lasso, and descent.

The rival: `pip install celer`; without it the bar leaves it out.
"""

from __future__ import annotations

import importlib.util
import time
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.timing import Contender, interleave, rows
from optscope.tasks.diagonal import Settings, descend, gaussian
from optscope.theory.bregman import Array
from optscope.theory.diagonal import basis_pursuit, fit

UNKNOWNS, MEASUREMENTS, SPARSITY, PROBLEMS = 400, 100, 12, 64
START, RATIO = 1e-3, 30.0
TABLE = 40_000
LIMITS = {"one limit of 400 unknowns from 100 rows [ms]": 1.0, "one limit of 100 unknowns from 40 rows [ms]": 1.0,
          "64 limits together over one": 5.0, "ten descents of 40,000 steps [s]": 20.0}


def celer(A: Array, y: Array) -> Array:
    """Solve the lasso at a ten-thousandth of its largest penalty."""
    model = importlib.import_module("celer").Lasso(alpha=1e-4 * float(np.abs(A.T @ y).max()) / len(y), tol=1e-8,
                                                   fit_intercept=False, max_iter=1000)
    return np.asarray(model.fit(A, y).coef_)


def plain_descent(A: Any, step: float = 1.0, most: int = 20_000) -> Any:
    """Descend plainly from the start until the residual is 1e-3, at most 20,000 steps."""
    return descend(A, Settings(2, np.array([START]), np.array([step])), most, stop=1e-3)


def conditions(A: Array, y: Array, start: float, parts: Array) -> float:
    """Return by how much `parts` miss what makes them the limit of depth 2, in units of the largest entries.

    That is A x = y, and log parts = log start ± Aᵀν for some ν.
    """
    logs = np.log(parts / start)
    nu = np.linalg.lstsq(A.T, logs[0], rcond=None)[0]
    gaps = np.abs(A @ (parts[0] - parts[1]) - y).max(), np.abs(A.T @ nu - logs[0]).max(), np.abs(logs.sum(0)).max()
    return float(max(gaps[0] / np.abs(y).max(), gaps[1] / np.abs(logs).max(), gaps[2] / np.abs(logs).max()))


def b11(rounds: int = 7) -> dict[str, Any]:
    """Find limits of depth 2 from α = 1e-3, plain and polar, and time the rivals on the first problem."""
    problems = gaussian(range(PROBLEMS), UNKNOWNS, MEASUREMENTS, SPARSITY)
    A, y = problems.A[0], problems.y[0]
    small = gaussian([0])
    sparse = basis_pursuit(A, y)
    Q = float(np.abs(sparse).sum())
    limit, polar = fit(A, y, START), fit(A, y, START, ratio=RATIO)
    together = fit(problems.A, problems.y, START)
    worst = max(conditions(*each, START, parts) for *each, parts in zip(problems.A, problems.y, together.parts,
                                                                       strict=True))
    off = max(worst, conditions(A, y, START, limit.parts),
              conditions(A, y, START * float(np.exp(polar.log_rho)), polar.parts))
    if off > 1e-10:
        raise AssertionError(f"a limit misses its optimality conditions by {off}")

    def answer(x: Array) -> str:
        return f"‖x‖₁ {np.abs(x).sum() / Q - 1:.1e} above the least, {np.abs(A @ x - y).max():.0e} off Ax = y"

    first = gaussian([0], UNKNOWNS, MEASUREMENTS, SPARSITY)
    descent = plain_descent(first)
    ours, here = version("optscope"), version("scipy")
    contenders = [
        Contender("optscope, plain limit", ours, answer(limit.x), lambda: fit(A, y, START)),
        Contender("optscope, plain limit of 100 unknowns from 40 rows", ours, "",
                  lambda: fit(small.A[0], small.y[0], START)),
        Contender("optscope, 64 plain limits", ours, f"conditions met to {worst:.0e}",
                  lambda: fit(problems.A, problems.y, START)),
        Contender("optscope, polar limit", ours, answer(polar.x), lambda: fit(A, y, START, ratio=RATIO)),
        Contender("linear programme (HiGHS)", here, answer(sparse), lambda: basis_pursuit(A, y)),
        Contender("plain descent to residual 1e-3", ours, answer(descent.x[0, :, 0]), lambda: plain_descent(first),
                  {"steps": float(descent.steps[-1])})]
    if importlib.util.find_spec("celer"):
        contenders.append(Contender("celer, lasso at a small penalty", version("celer"), answer(celer(A, y)),
                                    lambda: celer(A, y)))
    times = interleave(contenders, rounds=rounds)
    start = time.process_time()
    descend(gaussian(range(10)), Settings(2, np.array([1e-3]), np.array([0.25]), np.array([10.0])), TABLE)
    cell = time.process_time() - start
    one, two = "optscope, plain limit", "optscope, plain limit of 100 unknowns from 40 rows"
    found = dict(zip(LIMITS, (1e3 * times.median(one), 1e3 * times.median(two),
                              times.ratio("optscope, 64 plain limits", one), cell), strict=True))
    rivals = {f"{c.who} over one limit": times.ratio(c.who, one) for c in contenders[3:]}
    return {"bar": "B11", "work": f"{UNKNOWNS} unknowns, {MEASUREMENTS} measurements, {SPARSITY} entries not 0, "
                                  f"{PROBLEMS} problems; depth 2, α = {START:g}, κ = {RATIO:g}",
            "rows": rows(contenders, times), "ratio": found | rivals, "limit": LIMITS}
