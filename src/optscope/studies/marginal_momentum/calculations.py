"""Calculations of the momentum study that train no network: identities, approximation, slow drift, quadratics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from optscope.evidence.records import Record, measured
from optscope.optim import SGD, Momentum, Rule, StepDecay
from optscope.optim.momentum import practical
from optscope.theory.momentum import (
    averaged_rates,
    coupled,
    noise_ratio,
    stationary_variance,
)
from optscope.theory.noisy_oracle import distance, drift, quadratic, settled_variance, together
from optscope.theory.valley import account
from optscope.vector import Layout

Array = NDArray[np.float64]
Found = tuple[list[Record], Mapping[str, Array]]


def identities(steps: int = 300, size: int = 50, seed: int = 0) -> Found:
    """Measure the largest error, in float64, of what holds exactly; gradients do not depend on the weights.

    The two forms of momentum are one rule; y = x − ηβ/(1−β) m moves as SGD; after the last gradient momentum ends
    where SGD with the averaged rates does, while rate and β change.
    """
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, size))
    eta, beta = 0.1, 0.9
    x = _path(Momentum(lr=eta, beta=beta), grads)
    forms = np.abs(x - _path(practical(Momentum(lr=eta, beta=beta)), grads)).max()
    m = -np.diff(x, axis=0, prepend=np.zeros((1, size))) / eta
    coupling = np.abs(coupled(x, m, eta, beta) - _path(SGD(lr=eta), grads)).max()
    factor = StepDecay(at=(0.3, 0.6))
    rates = np.array([eta * factor(k / steps) for k in range(steps)])
    betas = rng.uniform(0.5, 0.9, steps)
    tail = 600
    weights, mean = np.zeros(size), np.zeros(size)
    for k in range(steps + tail):
        at = min(k, steps - 1)
        mean = betas[at] * mean + (1 - betas[at]) * (grads[k] if k < steps else 0.0)
        weights = weights - rates[at] * mean
    ends = np.abs(weights + averaged_rates(rates, betas) @ grads).max()
    found = {"two forms": forms, "coupling": coupling, "averaged rates": ends}
    return [measured(name, 0, "largest error", float(value)) for name, value in found.items()], {}


def _path(rule: Rule, grads: Array) -> Array:
    """Return the weights of a rule after each of the gradients, from zero."""
    layout = Layout(("w",), (torch.Size([grads.shape[1]]),))
    weights = torch.zeros(grads.shape[1], dtype=torch.float64)
    state, points = rule.init(weights, layout), []
    for grad in torch.from_numpy(grads):
        step, state = rule.update(grad, state, weights, layout)
        weights = weights + step
        points.append(weights.numpy())
    return np.array(points)


def approximation(alpha: float, scale: float, rates: Sequence[float], paths: int) -> Found:
    """Measure how far momentum with 1 − β = scale · η^alpha is from SGD in two wells, at each rate η."""
    rows, arm = [], f"alpha {alpha:g}"
    for rate in rates:
        found = distance(rate, alpha, scale, paths=paths)
        rows += [measured(arm, 0, "coupled distance", found.coupled, rate, alpha=alpha),
                 measured(arm, 0, "weak distance", found.weak, rate, alpha=alpha)]
    return rows, {}


def along_valley(rate: float, paths: int) -> Found:
    """Follow u² − v² along the valley uv = 1 under label noise for SGD and momentum, over slow time 1.

    Of momentum 0.9 rows say besides what puts it off its limit (`theory.valley.account`).
    """
    betas = {"SGD": 0.0, "momentum 0.9": 0.9, "momentum 0.97": 0.97, "momentum 1 − η": 1 - rate}
    found = drift(rate, tuple(betas.values()), paths=paths)
    rows = [measured("limit", 0, "u² − v² at time 1", float(found.limit[-1]), rate)]
    arrays = {f"{rate:g}/time": found.time, f"{rate:g}/limit": found.limit}
    for i, arm in enumerate(betas):
        rows += [measured(arm, 0, "u² − v² at time 1", float(found.mean[-1, i]), rate),
                 measured(arm, 0, "standard error", float(found.error[i]), rate)]
        arrays[f"{rate:g}/{arm}"] = found.mean[:, i]
    why = account(rate, betas["momentum 0.9"], paths=paths)
    rows += [measured("momentum 0.9", 0, f"beyond the limit, {what}", value, rate)
             for what, value in (("by curvature and buffer", why.still), ("unexplained", why.unexplained),
                                 ("by motion within the memory", why.moving))]
    return rows, arrays


def on_quadratic(products: Sequence[float], betas: Sequence[float], paths: int) -> Found:
    """Compare the variance at which a quadratic settles with its closed form, at each ηh that β bears (η = 0.1)."""
    rate, rows = 0.1, []
    for beta in betas:
        for product in products:
            expected = stationary_variance(rate, beta, product / rate)
            if math.isfinite(expected):
                seen = settled_variance(rate, beta, product / rate, paths=paths)
                rows.append(measured(f"β {beta:g}", 0, "variance", seen, product, momentum=beta))
                rows.append(measured(f"β {beta:g}", 0, "variance over closed form", seen / expected, product,
                                     momentum=beta))
    return rows, {}


def beyond_stability(product: float, betas: Sequence[float], steps: int = 500) -> Found:
    """Run a quadratic of one ηh without noise, from 1, and keep log10 |x| at the end: below 0 it was stable."""
    *_, ends = together(quadratic(product / 0.1, 0.0), np.ones(1), 0.1, betas, steps, seed=0)
    return [measured(f"β {beta:g}", 0, "log10 |x| at the end", float(np.log10(np.abs(x[0]) + 1e-300)), product,
                     momentum=beta)
            for beta, x in zip(betas, ends, strict=True)], {}


def pure_noise(beta: float, horizons: Sequence[int], paths: int, seed: int = 0) -> Found:
    """Compare the variance after K steps of pure noise, momentum's over SGD's, with its closed form."""
    rows, kept = [], set(horizons)
    noise = quadratic(0.0, 1.0)
    for k, (z, x) in enumerate(together(noise, np.zeros(paths), 0.1, (0.0, beta), max(horizons), seed), start=1):
        if k in kept:
            rows += [measured(f"β {beta:g}", 0, "variance ratio", float(x.var() / z.var()), k, momentum=beta),
                     measured(f"β {beta:g}", 0, "variance ratio, closed form", noise_ratio(beta, k), k,
                              momentum=beta)]
    return rows, {}
