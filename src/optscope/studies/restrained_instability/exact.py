"""The exact half of the study: what the theory says of its equations, computed next to what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from optscope.evidence.growth import growth_rate
from optscope.evidence.records import Record, measured
from optscope.tasks.task import Data
from optscope.theory import heat
from optscope.theory.checkerboard import ScalarMap, checkerboard
from optscope.theory.one_layer import OneLayer, convolved_gradient, distance, gram, patches, window

Array = NDArray[np.float64]
Found = tuple[list[Record], Mapping[str, NDArray[Any]]]

PAPER = ScalarMap()
WINDOW_LR = 1e-8
WINDOW_DECAYS = (1.1e7, 1.2e7, 1.3e7, 1.9e8, 2.0e8, 2.1e8, 2.2e8)
"""The paper's figure 3."""
RATES = (0.01, 0.03, 0.05, 0.07, 0.09, 0.11, 0.13)
"""The paper's figure 4; 0.1 is marginal."""
CHAOTIC = (0.05, 0.07, 0.09, 0.099)
PARTED = 1e-2
"""A rounding distance that counts as amplified in the one-layer network."""


def heat_equation() -> Found:
    """March the heat equation on both sides of its limit, and the equation with feedback beyond it."""
    nodes, top = 31, heat.rates(31)[-1]
    sawtooth = np.sin(29 * np.pi * np.arange(nodes) / 30)

    def growth(dt: float) -> float:
        states, _ = heat.march(sawtooth, dt, 50)
        return float(np.log(np.abs(states[-1]).max() / np.abs(states[0]).max()))

    rows = [measured("heat", 0, "measured step limit", float(brentq(growth, 0.4, 0.6, xtol=1e-12))),
            measured("heat", 0, "predicted step limit", heat.step_limit(nodes))]
    arrays: dict[str, NDArray[Any]] = {}
    for dt in (0.4, 0.8):
        arrays[f"heat {dt:g}"], _ = heat.march(heat.tent(), dt, round(100 / dt))
    sizes = np.abs(heat.march(heat.tent(), 0.51, 2000)[0]).max(1)[-500:]
    rows += [measured("heat", 0, "measured factor a step", float(sizes[-1] / sizes[0]) ** (1 / 499)),
             measured("heat", 0, "predicted factor a step", abs(1 - 0.51 * float(top)))]
    for dt in (0.4, 0.51, 0.6, 0.8):
        states, diffusivities = heat.march(heat.tent(), dt, 5000, feedback=1.0)
        rows += [measured("feedback", 0, "diffusivity at the end", float(diffusivities[-1]), at=dt),
                 measured("feedback", 0, "2/(dt λ)", float(2 / dt / top), at=dt),
                 measured("feedback", 0, "largest |u| at the end", float(np.abs(states[-1]).max()), at=dt)]
        arrays[f"feedback {dt:g}"], arrays[f"feedback edge {dt:g}"] = states[-1], dt * top * diffusivities / 2
    return rows, arrays


def linear_window() -> Found:
    """Measure growth factors and both ends of the weight-decay window on the paper's checkerboard."""
    kernel = np.random.RandomState(7).randn(PAPER.squared_norm)
    rows, arrays = [], {}
    for decay in WINDOW_DECAYS:
        layer = _layer(decay)
        rate = PAPER.squared_norm * sum(PAPER.counts) / 4
        factors = np.abs([1 - WINDOW_LR * (decay - rate), 1 - WINDOW_LR * decay])
        rows += [measured("checkerboard", 0, "measured factor a step", _factor(layer, kernel, WINDOW_LR), at=decay),
                 measured("checkerboard", 0, "predicted factor a step", float(factors.max()), at=decay)]
        arrays[f"loss {decay:g}"] = layer.loss(layer.descend_linear(kernel, WINDOW_LR, 1000))
    rows += _ends("checkerboard", _layer, gram(checkerboard(), 32), WINDOW_LR, kernel)
    spectrum = np.abs(np.fft.fft2(checkerboard())) ** 2
    rows.append(measured("checkerboard", 0, "lower end by the Fourier transform of the image",
                    window(spectrum, WINDOW_LR)[0]))
    return rows, arrays


def _layer(decay: float) -> OneLayer:
    return ScalarMap(decay=decay).layer()


def linear_window_of_images(data: Callable[[], Data]) -> Found:
    """Measure both ends of the window on other images, each with a learning rate that leaves a window."""
    rows = []
    for name, (image, size) in images(data).items():
        operator, kernel = gram(image, size), np.random.default_rng(0).normal(size=size * size)

        def layer(decay: float, image: Array = image, size: int = size) -> OneLayer:
            return OneLayer.of(image, size, decay)

        rows += _ends(name, layer, operator, 0.2 / float(np.linalg.eigvalsh(operator)[-1]), kernel)
    return rows, {}


def _ends(name: str, layer: Callable[[float], OneLayer], operator: Array, lr: float, kernel: Array) -> list[Record]:
    """Return both ends of the window, predicted from the patch Gram matrix and found by bisection."""
    low, high = window(np.linalg.eigvalsh(operator), lr)

    def growth(decay: float) -> float:
        return float(np.log(_factor(layer(decay), kernel, lr)))

    return [measured(name, 0, "predicted lower end", low), measured(name, 0, "predicted upper end", high),
            measured(name, 0, "measured lower end", float(brentq(growth, 0.7 * low, 1.3 * low, rtol=1e-7))),
            measured(name, 0, "measured upper end", float(brentq(growth, 0.97 * high, 1.03 * high, rtol=1e-7)))]


def _factor(layer: OneLayer, kernel: Array, lr: float, steps: int = 1500) -> float:
    """Return by how much a step of the linear equation multiplies what it multiplies most, by power iteration."""
    rest = layer.descend_linear(np.zeros_like(kernel), lr, 1)[1]
    size = 1.0
    for _ in range(steps):
        kernel = layer.descend_linear(kernel, lr, 1)[1] - rest
        size = float(np.linalg.norm(kernel))
        kernel = kernel / size
    return size


def regions(steps: int) -> Found:
    """Measure the constant of the activated region, and how over-driven runs move between regions."""
    # All activations far inside the activated region (β z large), the output near 0: f = s(z mean) there.
    image = 0.5 + np.random.default_rng(0).random((12, 12))
    layer = OneLayer.of(image, 3, decay=0.0, beta=1e9)
    mean = layer.share @ layer.patches
    kernel = 1e-6 * mean
    slope = float(mean @ layer.hessian(kernel) @ mean / (mean @ mean) ** 2)
    rows = [measured("activated", 0, "constant", slope)]
    for lr in CHAOTIC[:3]:
        z = np.array(_trajectory(lr, 0.036, steps))
        unstable = np.abs(1 + lr * PAPER.slope(z)) > 1
        rows += [measured("map", 0, "share of unstable steps", float(unstable.mean()), at=lr),
                 measured("map", 0, "longest unstable stay", float(_longest(unstable)), at=lr),
                 measured("map", 0, "median |z| where unstable", float(np.median(np.abs(z[unstable]))), at=lr),
                 measured("map", 0, "median |z| where stable", float(np.median(np.abs(z[~unstable]))), at=lr)]
    return rows, {}


def _trajectory(lr: float, z: float, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(z)
        z += lr * float(PAPER.force(z))
    return found


def _longest(flags: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of True."""
    ends = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(int), [0]))))
    return int((ends[1::2] - ends[::2]).max(initial=0))


def full_computation(steps: int) -> Found:
    """Compare the full convolution on the paper's image with its reductions, over a few steps."""
    image, rows = checkerboard(), []
    for lr in (0.03, 0.07):
        full = np.random.RandomState(7).randn(32, 32)
        start = full.ravel()
        path, p = PAPER.layer().descend(start, lr, steps), PAPER.layer().patches[0]
        z, worst = float(start @ p), 0.0
        for n in range(steps):
            full = full - lr * convolved_gradient(image, full, PAPER.decay)
            z += lr * float(PAPER.force(z))
            worst = max(worst, float(np.abs(full.ravel() - path[n + 1]).max()),
                        abs(z - float(full.ravel() @ p)) / PAPER.squared_norm**0.5)
        rows.append(measured("map", 0, "largest difference of full and reduced", worst, at=lr))
    return rows, {}


def regimes(seeds: Sequence[int], steps: int, lines: int) -> Found:
    """Train the one-layer network on the checkerboard: losses, orbits, exponents, rounding twins."""
    rows: list[Record] = []
    arrays: dict[str, NDArray[Any]] = {}
    kernels = np.stack([np.random.RandomState(seed).randn(PAPER.squared_norm) for seed in seeds])
    double, single = PAPER.layer(), PAPER.layer(np.float32)
    starts = kernels @ double.patches[0]
    rows += [measured("map", 0, "classical limit", PAPER.step_limit),
             measured("map", 0, "limit of boundedness", PAPER.bounded_limit),
             measured("map", 0, "fixed point", PAPER.fixed_point)]
    for lr in sorted({*RATES, *CHAOTIC, 0.04, 0.06}):
        one = double.descend(kernels, lr, steps)
        losses = double.loss(one)
        arrays[f"loss {lr:g}"] = losses[:, 0]
        growth = np.log10(np.abs(one[-1]).max(-1) / np.abs(one[0]).max(-1))
        exponents = PAPER.orbits(lr, starts, max(steps, 1000)).exponents
        for i, seed in enumerate(seeds):
            rows += [measured("checkerboard", seed, "log10 of final |K| / initial", float(growth[i]), at=lr),
                     measured("checkerboard", seed, "Lyapunov exponent", float(exponents[i]), at=lr)]
        if lr >= PAPER.bounded_limit:
            continue
        rows += [measured("checkerboard", seed, "range of the late loss", float(np.ptp(losses[-100:, i])), at=lr)
                 for i, seed in enumerate(seeds)]
        for name, layer in (("float64", double), ("float32", single)):
            dtype = layer.patches.dtype
            first = one if name == "float64" else layer.descend(kernels.astype(dtype), lr, steps)
            twin = layer.descend(kernels.astype(dtype), lr, steps, k=3)
            apart = distance(first.astype(np.float64), twin.astype(np.float64))
            arrays[f"distance {name} {lr:g}"] = apart[:, 0]
            largest, late = apart.max(0), np.median(apart[-100:], axis=0)
            for i, seed in enumerate(seeds):
                rows += [measured("checkerboard", seed, "largest distance", float(largest[i]), lr, precision=name),
                         measured("checkerboard", seed, "late distance", float(late[i]), lr, precision=name)]
            if name == "float64":
                rows += [measured("checkerboard", seed, "growth rate of the distance",
                             growth_rate(np.arange(steps + 1), apart[:, i], 1e-13, PARTED).estimate, at=lr)
                         for i, seed in enumerate(seeds)]
    rates = np.linspace(0.02, 0.0999, lines)
    found = PAPER.orbits(rates, 0.036, 2000, tail=100)
    arrays |= {"bifurcation rates": rates, "bifurcation": np.abs(found.tail), "exponents": found.exponents}
    return rows, arrays


def images(data: Callable[[], Data]) -> dict[str, tuple[Array, int]]:
    """Return other images than the checkerboard, each with the side of its kernels."""
    noise = np.random.default_rng(0).normal(size=(32, 32))
    low = np.fft.fftfreq(32)[:, None] ** 2 + np.fft.fftfreq(32)[None, :] ** 2
    smooth = np.real(np.fft.ifft2(np.fft.fft2(noise) * np.exp(-low / (2 * 0.06**2))))
    clothes = data().train.first(3).inputs[:, 0].numpy().astype(np.float64)
    return {"smooth noise": (smooth / smooth.std(), 7), "white noise": (noise, 5),
            **{f"garment {i}": (image, 5) for i, image in enumerate(clothes, start=1)}}


def regimes_of_images(data: Callable[[], Data], seeds: Sequence[int], steps: int) -> Found:
    """Train the one-layer network on other images at learning rates below, between and above its two limits.

    The weight decay is the same share of the window's lower end as on the checkerboard, 20/256.
    """
    rows: list[Record] = []
    for name, (image, size) in images(data).items():
        rate = float(np.linalg.eigvalsh(gram(image, size))[-1]) / len(patches(image, size)) / 4
        layer = OneLayer.of(image, size, decay=rate * 20 / 256)
        limit = 2 / layer.decay
        for seed in seeds:
            start = np.random.default_rng(seed).normal(size=size * size)
            resting = layer.descend(start, 0.02 * limit, 4000)[-1]
            classical = 2 / float(np.linalg.eigvalsh(layer.hessian(resting))[-1])
            rows += [measured(name, seed, "classical limit / limit of boundedness", classical / limit),
                     measured(name, seed, "gradient at rest", float(np.linalg.norm(layer.gradient(resting))))]
            # Near the resting point below the classical limit; anywhere above it.
            for place, lr, begin in (("below", 0.9 * classical, resting + 1e-3 * start),
                                     ("between", 0.5 * (classical + limit), start),
                                     ("above", 1.1 * limit, start)):
                path = layer.descend(begin, lr, steps)
                growth = np.abs(path[-1]).max() / np.abs(path[0]).max()
                rows.append(measured(name, seed, "log10 of final |K| / initial", float(np.log10(growth)),
                                     place=place))
                if place != "above":
                    twin = layer.descend(begin, lr, steps, k=3)
                    late = layer.loss(path[-100:])
                    apart = float(np.median(distance(path[-100:], twin[-100:])))
                    rows += [measured(name, seed, "range of the late loss", float(np.ptp(late)), place=place),
                             measured(name, seed, "late distance", apart, place=place),
                             measured(name, seed, "Lyapunov exponent", exponent(layer, path, lr), place=place)]
    return rows, {}


def exponent(layer: OneLayer, path: Array, lr: float) -> float:
    """Return the largest Lyapunov exponent along the second half of a path, by carrying one tangent vector."""
    half = len(path) // 2
    tangent, total = np.ones(path.shape[-1]) / path.shape[-1] ** 0.5, 0.0
    for kernel in path[half:]:
        tangent = tangent - lr * (layer.hessian(kernel) @ tangent)
        size = float(np.linalg.norm(tangent))
        total += np.log(size)
        tangent /= size
    return total / (len(path) - half)
