"""Calculations beyond equal starts and one norm: unequal ones, a norm a part, a convolution, flows that wait."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.func import functional_call

from optscope.dct import matrix
from optscope.evidence.records import Record
from optscope.optim import SGD, PolarSGD
from optscope.optim.rule import Rule
from optscope.studies.weight_normalization.calculations import (
    FINISHED,
    Found,
    error,
    least,
    rows_of,
    scored,
    starts,
    target_square,
)
from optscope.tasks.convolution import ConvolutionReadout
from optscope.tasks.diagonal import Settings, arrival, descend, gaussian
from optscope.theory.bregman import Array
from optscope.theory.diagonal import fit
from optscope.vector import Layout

SPREAD = 0.5
"""Unequal starts: every weight of every factor is multiplied by exp(SPREAD ξ), ξ ~ N(0, 1)."""


def unequal(depth: int, seeds: Sequence[int], shares: Sequence[float], strength: float, iterations: int) -> Found:
    """Descend from unequal starts, one norm a factor, from shares of the threshold, h = 1/‖A‖²; rows at the share.

    α is the size that the start would have without `SPREAD`; κ Σ|x*|^{2/L} is `strength`.
    """
    problems = gaussian(seeds)
    Q, alphas = least(problems), starts(problems, depth, shares)
    shape = depth, 2, problems.x.shape[1]
    tilt = np.exp(SPREAD * np.stack([np.random.default_rng([seed, depth]).normal(size=shape) for seed in seeds], 1))
    ratio = np.repeat((strength / target_square(problems, depth))[:, None], len(shares), axis=1)
    rows: list[Record] = []
    for name, kappa in (("plain", None), ("polar", ratio)):
        settings = Settings(depth, alphas, np.array([1.0]), kappa, tied=False, tilt=tilt)
        run = descend(problems, settings, iterations, stop=1e-7)
        for i, share in enumerate(shares):
            rows += scored(name, {"depth": depth}, problems, Q, seeds, share, run, i)
    return rows, {}


def apart(depth: int, seeds: Sequence[int], shares: Sequence[float], strength: float, iterations: int) -> Found:
    """Descend with a norm for w and one for v, from equal starts; rows at the share of the threshold.

    No limit is known: each part keeps its own invariants, but moves in a time of its own, r_j² dt at L = 2.
    """
    problems = gaussian(seeds)
    Q, alphas = least(problems), starts(problems, depth, shares)
    kappa = np.repeat((strength / target_square(problems, depth))[:, None], len(shares), axis=1)
    rows: list[Record] = []
    for name, ratio in (("plain", None), ("polar", kappa)):
        settings = Settings(depth, alphas, np.array([1.0]), ratio, blocks="part")
        run = descend(problems, settings, iterations, stop=1e-7)
        for i, share in enumerate(shares):
            rows += scored(name, {"depth": depth}, problems, Q, seeds, share, run, i)
    return rows, {}


def waits(depth: int, seeds: Sequence[int], shares: Sequence[float], strength: float) -> Found:
    """Integrate polar flows to the residual at which a descent counts as finished; rows at the share.

    Rows: the time in steps of h = 1/‖A‖², and the error there.
    """
    problems = gaussian(seeds)
    alphas, ratio = starts(problems, depth, shares), strength / target_square(problems, depth)
    rows: list[Record] = []
    for i, share in enumerate(shares):
        found = [arrival(A, y, float(alpha), depth, float(kappa), FINISHED) for A, y, alpha, kappa in
                 zip(problems.A, problems.y, alphas[:, i], ratio, strict=True)]
        steps = np.array([time for time, _ in found]) * np.maximum(1, ratio) * problems.gram_norm
        rows += rows_of("polar", {"depth": depth}, seeds, share,
                        error=error(problems, np.stack([x for _, x in found])),
                        steps_to_a_residual_of_1_percent=steps)
    return rows, {}


def convolution(seeds: Sequence[int], share: float, strength: float, iterations: int) -> Found:
    """Train a convolution with readout on signals of 50 points, for a target of 3 frequencies, by SGD and PolarSGD.

    Full batches of 25 signals, h = 1/‖A‖². Filters start at random, with equal norms, r0² at `share` of the
    threshold. Rows: the error of the spectrum, how far it is from the limit that is exact for these filters, in
    ‖x*‖, and the residual.
    """
    problems = gaussian(seeds, 50, 25, 3)
    square, size = target_square(problems, 2), problems.x.shape[1]
    network, D = ConvolutionReadout(size), matrix(size)
    layout = Layout.of(dict(network.named_parameters()))
    inputs, targets = torch.from_numpy(problems.A) @ D.T, torch.from_numpy(problems.y)
    spectra = np.stack([np.random.default_rng([seed, 2]).normal(size=(2, size)) for seed in seeds])
    spectra *= np.sqrt(share * square)[:, None, None] / np.linalg.norm(spectra, axis=-1, keepdims=True)
    kappa, h = strength / square, 1 / problems.gram_norm
    slow = tuple((h / np.maximum(1, kappa)).tolist())
    rows: list[Record] = []
    arms: list[tuple[str, Rule, Array | None]] = [
        ("SGD", SGD(lr=tuple(h.tolist())), None),
        ("PolarSGD", PolarSGD(lr=slow, ratio=tuple(kappa.tolist()), per="layer"), kappa)]

    def trained(rule: Rule) -> Array:
        """Return the spectra of filter and readout after training, `(seeds, 2, n)`."""
        vector = (torch.from_numpy(spectra) @ D.T).flatten(1)
        state = rule.init(vector, layout)
        for _ in range(iterations):
            weights = vector.detach().requires_grad_()
            named = dict(zip(layout.names, layout.views(weights), strict=True))
            loss = (functional_call(network, named, (inputs,)) - targets).square().sum() / 2
            (slope,) = torch.autograd.grad(loss, weights)
            step, state = rule.update(slope, state, vector, layout)
            vector = vector + step
        return np.asarray((vector.unflatten(1, (2, size)) @ D).numpy())

    for name, rule, ratio in arms:
        x = trained(rule).prod(1)
        parts = np.stack([((spectra[:, 0] + sign * spectra[:, 1]) / 2) ** 2 for sign in (1, -1)], axis=1)
        limit = fit(problems.A, problems.y, parts, ratio=ratio)
        residual = np.linalg.norm((problems.A @ x[..., None])[..., 0] - problems.y, axis=1)
        residual /= np.linalg.norm(problems.y, axis=1)
        whole = np.where(residual <= FINISHED, 1.0, np.nan)
        rows += rows_of(name, {}, seeds, None, error=error(problems, x) * whole, residual=residual,
                        unfinished=np.isnan(whole).astype(float), distance_to_the_limit=whole * np.linalg.norm(
                            x - limit.x, axis=-1) / np.linalg.norm(problems.x, axis=-1))
    return rows, {}
