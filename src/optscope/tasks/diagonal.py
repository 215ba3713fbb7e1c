"""Deep diagonal models on sparse problems: instances, descent on many at once, and stiff integration of the flow.

The model and its two flows are those of `optscope.theory.diagonal`. Descent is the explicit Euler method,

    plain:  z ← z − h G        polar:  r ← r − h_r ⟨u, G⟩,  u ← u − h_u r (G − ⟨u, G⟩ u),  u ← u/‖u‖,  h_u/h_r = κ

both from the old (r, u), where the larger of the two polar steps is h. All seeds share one array, and so do all
settings (starts, ratios, steps), one on the last axis: K settings cost two matrix products, not 2 K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp

from optscope.errors import UserError
from optscope.theory.bregman import Array
from optscope.theory.diagonal import check_depth, check_ratio, check_start

CURVE = 200
"""How many residuals of a descent are kept, evenly spaced in the logarithm of the step."""


@dataclass(frozen=True, eq=False)
class Instances:
    """Problems A x = y with known x: `A` `(S, M, N)`, `y` `(S, M)`, `x` `(S, N)`, one a seed."""

    A: Array
    y: Array
    x: Array
    signed: bool

    @property
    def gram_norm(self) -> Array:
        """‖A‖₂², `(S,)`: steps are measured in its inverse."""
        return np.asarray(np.linalg.norm(self.A, ord=2, axis=(-2, -1)) ** 2)


def gaussian(seeds: Sequence[int], unknowns: int = 100, measurements: int = 40, sparsity: int = 5,
             signed: bool = True) -> Instances:
    """Draw A_ij ~ N(0, 1/M), and x with `sparsity` entries of size U(0.5, 1.5), random signs, scaled to ‖x‖₁ = 1.

    >>> gaussian([0, 1], sparsity=3).A.shape
    (2, 40, 100)

    Raises:
        UserError: unless 1 <= sparsity <= unknowns and measurements >= 1.
    """
    if not (1 <= sparsity <= unknowns and measurements >= 1):
        raise UserError("expected 1 <= sparsity <= unknowns and measurements >= 1; got "
                        f"sparsity={sparsity}, unknowns={unknowns}, measurements={measurements}")
    A, x = np.empty((len(seeds), measurements, unknowns)), np.zeros((len(seeds), unknowns))
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        A[i] = rng.normal(size=(measurements, unknowns)) / np.sqrt(measurements)
        support = rng.choice(unknowns, sparsity, replace=False)
        x[i, support] = rng.uniform(0.5, 1.5, sparsity) * (rng.choice([-1, 1], sparsity) if signed else 1)
    x /= np.abs(x).sum(-1, keepdims=True)
    return Instances(A, (A @ x[..., None])[..., 0], x, signed)


@dataclass(frozen=True, eq=False)
class Descent:
    """What descent left, one column a setting: all `(S, K)` but `x` `(S, N, K)` and the curves `(T, S, K)`.

    `error` is ‖x − x*‖/‖x*‖ and `residual` ‖A x − y‖/‖y‖ at the end; `norms` is r² of the first factor. `reached`
    gives for each target the first step at which it was met, inf where it never was; `steps` are the curves'.
    """

    x: Array
    error: Array
    residual: Array
    norms: Array
    reached: dict[str, Array]
    steps: Array
    residuals: Array
    errors: Array


TARGETS = {"error 5 %": ("error", 0.05), "error 1 %": ("error", 0.01), "residual 1e-5": ("residual", 1e-5)}


@dataclass(frozen=True, eq=False)
class Settings:
    """K ways to descend: `start` x(0) = α, `step` h in units of 1/‖A‖², each `(K,)` or `(S, K)`.

    `ratio` is κ, `(K,)` or `(S, K)`, for polar descent, None for plain. With `tied` factors one vector stands for
    all `depth` of them; untied ones are computed one by one, and may start apart: `tilt` `(depth, S, J, N)`
    multiplies their weights. `blocks` says what has a norm: "stack", (w; v) of a factor together, or "part", w and
    v apart.

    Raises:
        UserError: for depth < 2, a start, step, ratio or tilt <= 0, a tilt of tied factors, or other blocks.
    """

    depth: int
    start: Array
    step: Array
    ratio: Array | None = None
    tied: bool = True
    blocks: str = "stack"
    tilt: Array | None = None

    def __post_init__(self) -> None:
        check_depth(self.depth)
        check_start(self.start)
        if not (np.isfinite(self.step) & (self.step > 0)).all():
            raise UserError(f"the step must be finite and > 0, in units of 1/‖A‖²; got {self.step}")
        if self.ratio is not None:
            check_ratio(self.ratio)
        if self.blocks not in ("stack", "part"):
            raise UserError(f'blocks must be "stack" or "part"; got {self.blocks!r}')
        if self.tilt is not None and (self.tied or not (np.isfinite(self.tilt) & (self.tilt > 0)).all()):
            raise UserError("tilt multiplies the starts of untied factors by finite numbers > 0; got "
                            f"{'tied factors' if self.tied else self.tilt}")


def descend(problems: Instances, settings: Settings, iterations: int, stop: float = 0.0) -> Descent:
    """Run every setting on every problem, until all residuals are at most `stop` or `iterations` are done."""
    loop = _Loop(problems, settings)
    due = frozenset(np.unique(np.geomspace(1, iterations, CURVE).round().astype(int)).tolist())
    kept = []
    for iteration in range(iterations):
        residual, error = loop.look(iteration)
        if iteration in due:
            kept.append((iteration, residual, error))
        if (residual <= stop).all():
            break
        loop.step()
    else:
        residual, error = loop.look(iterations)
        iteration = iterations
    kept.append((iteration, residual, error))
    steps, residuals, errors = (np.array(each) for each in zip(*kept, strict=True))
    return Descent(loop.x, error, residual, loop.norms(), loop.reached, steps.astype(float),
                   residuals, errors)


class _Loop:
    """The arrays of a descent: z is `(F, S, J, N, K)`, with F = 1 tied factor or `depth` of them."""

    def __init__(self, problems: Instances, settings: Settings) -> None:
        self.problems, self.depth, self.tied = problems, settings.depth, settings.tied
        start, step = np.broadcast_arrays(settings.start, settings.step)
        start, step = (np.broadcast_to(v, (len(problems.A), v.shape[-1])) for v in (start, step))
        parts = 2 if problems.signed else 1
        factors, size = 1 if settings.tied else settings.depth, problems.A.shape[-1]
        self.signs = np.array([1.0, -1.0][:parts])[:, None, None]
        self.At = np.ascontiguousarray(problems.A.swapaxes(-1, -2))
        self.y = problems.y[..., None]
        self.y_norm = np.linalg.norm(self.y, axis=1)
        self.x_norm = np.linalg.norm(problems.x, axis=1)[:, None]
        h = (step / problems.gram_norm[:, None])[:, None, None, :]
        w = (start ** (1 / settings.depth))[:, None, None, :]
        z = np.broadcast_to(w, (factors, len(start), parts, size, start.shape[-1])).copy()
        if settings.tilt is not None:
            z *= settings.tilt[..., None]
        self.reached = {name: np.full(start.shape, np.inf) for name in TARGETS}
        self.ratio, self.h = settings.ratio, h
        self.z = z
        if self.ratio is not None:
            self.axes = (-3, -2) if settings.blocks == "stack" else (-2,)
            self.r = np.sqrt((z * z).sum(self.axes, keepdims=True))
            self.u = z / self.r
            ratio = np.broadcast_to(self.ratio, (len(problems.A), z.shape[-1]))[:, None, None, :]
            self.h_u, self.h_r = h * np.minimum(ratio, 1), h / np.maximum(ratio, 1)

    def look(self, iteration: int) -> tuple[Array, Array]:
        """Return residual and error, and note which targets are met for the first time."""
        if self.ratio is not None:
            np.multiply(self.r, self.u, out=self.z)
        self.others = self._others()
        self.x = (self.signs * (self.z[0] * self.others[0])).sum(1)
        self.gap = self.problems.A @ self.x - self.y
        values = {"residual": np.sqrt((self.gap**2).sum(1)) / self.y_norm,
                  "error": np.sqrt(((self.x - self.problems.x[..., None]) ** 2).sum(1)) / self.x_norm}
        for name, (what, level) in TARGETS.items():
            first = np.isinf(self.reached[name]) & (values[what] <= level)
            self.reached[name][first] = iteration
        return values["residual"], values["error"]

    def _others(self) -> Array:
        """Return for every factor the product of the others."""
        if self.tied:
            power = self.z.copy()
            for _ in range(self.depth - 2):
                power *= self.z
            return power
        return np.stack([np.prod(np.delete(self.z, f, axis=0), axis=0) for f in range(self.depth)])

    def step(self) -> None:
        """Make one step of descent from what `look` saw."""
        gradient = (self.At @ self.gap)[:, None] * self.signs * self.others
        if self.ratio is None:
            self.z -= self.h * gradient
            return
        along = (self.u * gradient).sum(self.axes, keepdims=True)
        gradient -= along * self.u
        gradient *= self.h_u * self.r
        self.r = self.r - self.h_r * along
        self.u -= gradient
        self.u /= np.sqrt((self.u * self.u).sum(self.axes, keepdims=True))

    def norms(self) -> Array:
        """Return the squared norm of the first factor, all parts together, `(S, K)`."""
        return np.asarray((self.z[0] ** 2).sum((1, 2)))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A flow: times `(T,)`, norms r `(T,)` and directions u `(T, J N)` of one factor."""

    times: Array
    r: Array
    u: Array

    def x(self, depth: int, signed: bool) -> Array:
        """Return x along the flow, `(T, N)`."""
        power = (self.r[:, None] * self.u) ** depth
        size = power.shape[1] // 2
        return np.asarray(power[:, :size] - power[:, size:] if signed else power)


def flow(A: Array, y: Array, start: ArrayLike, depth: int, ratio: float | Callable[[float], float] | None = None, *,
         signed: bool = True, times: Sequence[float] = (0.0, 1e6)) -> Trajectory:
    """Integrate plain flow, or polar flow with `ratio` κ (or a function κ(r)), of one problem, from x(0) = `start`.

    `start` is one number or the parts `(J, N)`. LSODA with rtol 1e-11, atol 1e-16, evaluated at `times`.

    Raises:
        UserError: for depth < 2, start or ratio <= 0; when the integration breaks down.
    """
    check_depth(depth)
    check_start(start)
    if ratio is not None and not callable(ratio):
        check_ratio(ratio)
    B = np.hstack([A, -A]) if signed else A
    z0 = np.broadcast_to(start, (1 + signed, A.shape[1])).reshape(-1) ** (1 / depth)

    def plain(_: float, z: Array) -> Array:
        return np.asarray(-(B.T @ (B @ z**depth - y)) * z ** (depth - 1))

    def polar(t: float, state: Array) -> Array:
        r, u = state[0], state[1:]
        G = -plain(t, r * u)
        kappa = ratio(r) if callable(ratio) else ratio or 0.0
        along = u @ G
        return np.concatenate([[-along], -kappa * r * (G - along * u)])

    r0 = np.linalg.norm(z0)
    motion, first = (plain, z0) if ratio is None else (polar, np.concatenate([[r0], z0 / r0]))
    found = solve_ivp(motion, (times[0], times[-1]), first, method="LSODA", rtol=1e-11, atol=1e-16, t_eval=times)
    if not found.success:
        raise UserError(f"the flow could not be integrated to t = {times[-1]:g}: {found.message}")
    if ratio is None:
        r = np.linalg.norm(found.y, axis=0)
        return Trajectory(found.t, r, (found.y / r).T)
    return Trajectory(found.t, found.y[0], found.y[1:].T)


def arrival(A: Array, y: Array, start: float, depth: int, ratio: float, residual: float,
            end: float = 1e15) -> tuple[float, Array]:
    """Return when ‖A x − y‖/‖y‖ of a signed polar flow falls to `residual`, inf if not by `end`, and x then.

    Time is that of the norm (η_r = 1). Flows of depth > 2 wait at saddles for their next entry to grow, so long
    that only an implicit method gets past: BDF with the exact Jacobian, rtol 1e-5, atol 1e-14.

    Raises:
        UserError: for depth < 2, start or ratio <= 0; when the integration breaks down.
    """
    check_depth(depth)
    check_start(start)
    check_ratio(ratio)
    B = np.hstack([A, -A])
    gram, scale, size = B.T @ B, float(np.linalg.norm(y)), B.shape[1]

    def motion(_: float, state: Array) -> Array:
        r, u = state[0], state[1:]
        G = (B.T @ (B @ (r * u)**depth - y)) * (r * u) ** (depth - 1)
        return np.concatenate([[-u @ G], -ratio * r * (G - (u @ G) * u)])

    def jacobian(_: float, state: Array) -> Array:
        r, u = state[0], state[1:]
        z = r * u
        g = B.T @ (B @ z**depth - y)
        G = g * z ** (depth - 1)
        by_z = (z ** (depth - 1))[:, None] * gram * (depth * z ** (depth - 1))
        by_z[np.diag_indices(size)] += (depth - 1) * g * z ** (depth - 2)
        along, along_r, along_u = u @ G, u @ by_z @ u, G + r * (u @ by_z)
        found = np.empty((1 + size, 1 + size))
        found[0, 0], found[0, 1:] = -along_r, -along_u
        found[1:, 0] = -ratio * (G - along * u + r * (by_z @ u - along_r * u))
        found[1:, 1:] = -ratio * r * (r * by_z - np.outer(u, along_u) - along * np.eye(size))
        return found

    def above(_: float, state: Array) -> float:
        return float(np.linalg.norm(B @ (state[0] * state[1:])**depth - y)) / scale - residual

    above.terminal = True  # type: ignore[attr-defined]
    r0 = start ** (1 / depth) * np.sqrt(size)
    found = solve_ivp(motion, (0.0, end), np.concatenate([[r0], np.full(size, size**-0.5)]), method="BDF",
                      jac=jacobian, rtol=1e-5, atol=1e-14, events=above)
    if not found.success:
        raise UserError(f"the flow could not be integrated to t = {end:g}: {found.message}")
    parts = (found.y[0, -1] * found.y[1:, -1]) ** depth
    return (float(found.t[-1]) if found.status == 1 else np.inf), parts[:size // 2] - parts[size // 2:]
