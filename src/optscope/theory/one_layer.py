"""Training one convolution with one output, as the explicit discretisation of a partial differential equation.

    f(K) = s(P[r(K * I)]),   loss = −y log f − (1 − y) log(1 − f) + (α/2) ‖K‖²
    ∂ₜK = −(f − y) P[r'(K * I) · patch] − α K

I is an image, K a kernel, r(z) = z s(βz) the Swish, s the logistic function, P the mean over positions. Gradient
descent with learning rate lr steps this equation with dt = lr. Sun et al. 2022, arXiv 2206.02001, equations 8
and 9 and table 3. The valid convolution K * I is a product with the image's patches (one a position), so all
that matters of an image are its patches, and how often each occurs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import correlate2d
from scipy.special import expit

from optscope.errors import UserError

Array = NDArray[Any]


def swish(z: Array, beta: float) -> Array:
    """Return r(z) = z s(βz)."""
    return np.asarray(z * expit(beta * z))


def swish_slope(z: Array, beta: float) -> Array:
    """Return r'(z) = s(βz) + βz s(βz) (1 − s(βz))."""
    s = expit(beta * z)
    return np.asarray(s + beta * z * s * (1 - s))


def swish_bend(z: Array, beta: float) -> Array:
    """Return r''(z) = β s (1 − s) (2 + βz (1 − 2s)) with s = s(βz)."""
    s = expit(beta * z)
    return np.asarray(beta * s * (1 - s) * (2 + beta * z * (1 - 2 * s)))


def patches(image: Array, size: int) -> Array:
    """Return all patches of an image `(h, w)`, flat: `((h − size + 1)(w − size + 1), size²)`.

    Raises:
        UserError: unless it is grey, and no smaller than a patch.
    """
    _check_size(image, size)
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    return np.asarray(windows.reshape(-1, size * size))


def gram(image: Array, size: int) -> Array:
    """Return G = Σ patch patchᵀ over all positions, `(size², size²)`, a row of positions at a time.

    Raises:
        UserError: unless the image is grey, and no smaller than a patch.
    """
    _check_size(image, size)
    bands = (patches(image[i:i + size], size) for i in range(image.shape[0] - size + 1))
    return np.asarray(sum(band.T @ band for band in bands))


def window(spectrum: Array, lr: float, a: float = -0.5, beta: float = 1.0) -> tuple[float, float]:
    """Return between which weight decays the linear equation is stable, in the region of transition.

        max(−aβ/2 · G) <= α <= 2/lr − max(aβ/2 · G)        over the eigenvalues of G in `spectrum`

    a = f − y, frozen. Below the lower bound the equation itself grows, whatever the step; above the upper one its
    explicit steps do. The two meet at the largest learning rate that any decay can save. Arguments of the
    paper's Fourier bound are |Î|²; a kernel of finite size has the patch Gram matrix instead.
    """
    rates = a * beta / 2 * np.asarray(spectrum)
    return float(np.max(-rates)), float(2 / lr - np.max(rates))


@dataclass(frozen=True, eq=False)
class OneLayer:
    """The one-layer network on given patches `(n, d)`, the i-th of which occurs `counts[i]` times.

    Kernels are `(..., d)`: leading axes hold members (initial kernels, learning rates). Everything is computed in
    the dtype of `patches`.
    """

    patches: Array
    counts: Array
    decay: float
    beta: float = 1.0
    label: float = 1.0

    @classmethod
    def of(cls, image: Array, size: int, decay: float, beta: float = 1.0, label: float = 1.0) -> OneLayer:
        """Return the network on an image with kernels of `size` x `size`."""
        rows = patches(image, size)
        return cls(rows, np.ones(len(rows), rows.dtype), decay, beta, label)

    @property
    def share(self) -> Array:
        """What part of the positions each patch takes, `(n,)`."""
        return np.asarray((self.counts / self.counts.sum()).astype(self.patches.dtype))

    def activations(self, kernel: Array) -> Array:
        """Return K * I at each patch, `(..., n)`."""
        return np.asarray(kernel @ self.patches.T)

    def output(self, kernel: Array) -> Array:
        """Return u, so that f = s(u), `(...)`."""
        return np.asarray(swish(self.activations(kernel), self.beta) @ self.share)

    def loss(self, kernel: Array) -> Array:
        """Return the loss `(...)`; log f = −log(1 + e^−u) without overflow."""
        with np.errstate(over="ignore"):
            u = self.output(kernel)
            entropy = self.label * np.logaddexp(0, -u) + (1 - self.label) * np.logaddexp(0, u)
            return np.asarray(entropy + self.decay / 2 * (kernel**2).sum(-1))

    def gradient(self, kernel: Array) -> Array:
        """Return the gradient of the loss, `(..., d)`."""
        z = self.activations(kernel)
        error = expit(swish(z, self.beta) @ self.share) - kernel.dtype.type(self.label)
        slopes = swish_slope(z, self.beta) * self.share
        return np.asarray(error[..., None] * (slopes @ self.patches) + kernel.dtype.type(self.decay) * kernel)

    def hessian(self, kernel: Array) -> Array:
        """Return the Hessian of the loss at one kernel `(d,)`, `(d, d)`."""
        z = self.activations(kernel)
        f = expit(swish(z, self.beta) @ self.share)
        mean = (swish_slope(z, self.beta) * self.share) @ self.patches
        bends = (f - self.label) * swish_bend(z, self.beta) * self.share
        return np.asarray((self.patches.T * bends) @ self.patches + f * (1 - f) * np.outer(mean, mean)
                          + self.decay * np.eye(len(kernel)))

    def descend(self, kernel: Array, lr: float, steps: int, k: int = 1) -> Array:
        """Return the kernels of `steps` steps K ← K − (lr k) fl(gradient/k), `(steps + 1, ..., d)`.

        k = 1 is gradient descent; another k differs by rounding alone.
        """
        kind = self.patches.dtype.type
        path = np.empty((steps + 1, *kernel.shape), kind)
        path[0] = kernel
        with np.errstate(over="ignore", invalid="ignore"):
            for n in range(steps):
                path[n + 1] = path[n] - kind(lr * k) * (self.gradient(path[n]) / kind(k))
        return path

    def descend_linear(self, kernel: Array, lr: float, steps: int, a: float = -0.5) -> Array:
        """Return the kernels of the linear equation in the region of transition, `(steps + 1, ..., d)`.

            K ← K − lr · {(a/2) (mean patch + β Σ patch patchᵀ K) + α K}

        As in the paper, the second term is a sum over positions, not a mean. The mean patch is what linearising
        the gradient gives, entry by entry; the authors' script adds the image's mean to every entry in its place
        (on their checkerboard 0 for ±2e-5). It is a constant of the equation: what grows, and the window, are the
        same with either.
        """
        mean = self.share @ self.patches
        path = np.empty((steps + 1, *kernel.shape))
        path[0] = kernel
        for n in range(steps):
            spread = (self.activations(path[n]) * self.counts) @ self.patches
            path[n + 1] = path[n] - lr * (a / 2 * (mean + self.beta * spread) + self.decay * path[n])
        return path


def convolved_gradient(image: Array, kernel: Array, decay: float, beta: float = 1.0, label: float = 1.0) -> Array:
    """Return the loss's gradient at one kernel `(size, size)` by the two correlations that define it.

    The slow, literal twin of `OneLayer.gradient`: one correlation forward, its adjoint back.
    """
    z = correlate2d(image, kernel, mode="valid")
    error = expit(swish(z, beta).mean()) - label
    return np.asarray(error * correlate2d(image, swish_slope(z, beta), mode="valid") / z.size + decay * kernel)


def distance(a: Array, b: Array) -> Array:
    """Return mean 2|a − b| / (|a| + |b|) over the last axis, 0 where both are 0: from 0 (equal) to 2 (opposite)."""
    size = np.abs(a) + np.abs(b)
    return np.asarray((2 * np.abs(a - b) / np.where(size > 0, size, 1)).mean(-1))


def _check_size(image: Array, size: int) -> None:
    if image.ndim != 2 or not 1 <= size <= min(image.shape):
        raise UserError(f"a kernel of {size} x {size} needs a grey image of at least that size; got an array of "
                        f"shape {image.shape}: give one image (height, width) and a smaller kernel")
