"""Explicit steps of the heat equation: stable up to a step size, and beyond it unless a feedback restrains them.

    u_t = D u_xx,    uᵢ ← uᵢ + D (dt/dx²) (uᵢ₊₁ − 2 uᵢ + uᵢ₋₁),    both ends held

The mode sin(jπi/m) of m intervals is multiplied by 1 − dt D λⱼ each step, λⱼ = (4/dx²) sin²(jπ/2m). Sun et al.
2022, arXiv 2206.02001, section on background, with D = 1. The feedback is ours: the smallest equation in which a
step that is too large saws without blowing up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def tent(nodes: int = 31) -> Array:
    """Return the paper's initial state, min(i, nodes − 1 − i)/10, zero at both ends."""
    i = np.arange(nodes)
    return np.asarray(np.minimum(i, nodes - 1 - i) / 10)


def rates(nodes: int, dx: float = 1.0) -> Array:
    """Return the rates λⱼ of the modes j = 1 ... nodes − 2, ascending."""
    j = np.arange(1, nodes - 1)
    return np.asarray((2 / dx * np.sin(j * np.pi / (2 * (nodes - 1)))) ** 2)


def step_limit(nodes: int, dx: float = 1.0) -> float:
    """Return the largest stable dt on this grid, 2/λ_max; it falls to dx²/2 as the grid grows.

    >>> round(step_limit(31), 6)
    0.501373
    """
    return float(2 / rates(nodes, dx)[-1])


def march(start: Array, dt: float, steps: int, feedback: float = 0.0, dx: float = 1.0) -> tuple[Array, Array]:
    """Return the states `(steps + 1, nodes)` and the diffusivities D `(steps,)` of explicit steps.

    D = 1/(1 + feedback · mean(u_xx²)): rough states diffuse slowly. `feedback=0` is the heat equation. With
    feedback, a dt beyond the limit leaves a sawtooth that grows until D = 2/(dt λ_max), the edge of stability,
    and stays there.
    """
    states, diffusivities = np.empty((steps + 1, len(start))), np.empty(steps)
    states[0] = start
    for n in range(steps):
        u = states[n]
        bend = (u[2:] - 2 * u[1:-1] + u[:-2]) / dx**2
        diffusivities[n] = 1 / (1 + feedback * np.mean(bend**2))
        states[n + 1] = u
        states[n + 1, 1:-1] += dt * diffusivities[n] * bend
    return states, diffusivities
