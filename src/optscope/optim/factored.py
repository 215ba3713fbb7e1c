"""Adafactor: second moments of a matrix kept as its rows' and its columns', and steps in proportion to weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.per_layer import PerLayer, layer_norm, per_layer
from optscope.optim.rule import Hyper, State, check_hyper, per_member
from optscope.optim.shampoo import as_matrix
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class Adafactor(PerLayer):
    """Divide a matrix's gradient by the rank-one root of its mean square, clip that, and scale it by the weights.

        β = 1 − t^(−exponent),   q = g² + eps1
        r ← β r + (1 − β) · mean of q over columns         of a matrix, one a row;     r₀ = 0
        c ← β c + (1 − β) · mean of q over rows            one a column;               c₀ = 0
        V = r cᵀ / mean r;   of vectors  V ← β V + (1 − β) q
        u = g/√V,   u ← u / max(1, RMS(u)/clip)            RMS(x) = ‖x‖₂/√size, of a layer
        step = −min(lr, 1/√t) · max(eps2, RMS(w)) · u

    A kernel (out, in, h, w) is a matrix of out rows. Rates are relative: at lr = 0.01, the paper's, a layer moves
    by a hundredth of its weights until t = 10⁴, and later by 1/√t of them. So lr is a cap, above which neither it
    nor a schedule does anything: at lr = 0.3 from t = 12 on. There is no first moment and no decay.

    Shazeer, Stern 2018, arXiv 1804.04235, algorithms 4 to 6. torch.optim.Adafactor 2.13, whose lr is the same cap,
    differs: its eps1, by default the precision of the numbers in place of 10⁻³⁰, is not added to g², but bounds
    mean r and √V from below; and of kernels it factors each (h, w) by itself, so that it keeps 2/3 as many numbers
    as a 3x3 kernel has.

    Raises:
        UserError: unless lr > 0, exponent > 0, clip > 0, eps1 > 0 and eps2 > 0.
    """

    lr: Hyper
    exponent: float = 0.8
    clip: float = 1.0
    eps1: float = 1e-30
    eps2: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("lr", "exponent", "clip", "eps1", "eps2"):
            check_hyper("Adafactor", name, getattr(self, name), open_low=True)

    @property
    def proportional(self) -> bool:
        """No: lr is a cap."""
        return False

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return zero means "rows" `(..., rows, 1)`, "columns" `(..., 1, columns)` or "v", and the steps made."""
        if axes < 2:
            return {"v": torch.zeros_like(params), "step": torch.zeros((), device="cpu")}
        matrix = as_matrix(params, axes)
        return {"rows": torch.zeros_like(matrix[..., :1]), "columns": torch.zeros_like(matrix[..., :1, :]),
                "step": torch.zeros((), device="cpu")}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step and the new means."""
        after: State = {"step": state["step"] + 1}
        t = int(after["step"])
        square, share = grad.square() + self.eps1, t**-self.exponent
        if axes < 2:
            after["v"] = torch.lerp(state["v"], square, share)
            u = grad * after["v"].rsqrt()
        else:
            square = as_matrix(square, axes)
            rows = after["rows"] = torch.lerp(state["rows"], square.mean(-1, keepdim=True), share)
            columns = after["columns"] = torch.lerp(state["columns"], square.mean(-2, keepdim=True), share)
            u = as_matrix(grad, axes) * (rows / rows.mean(-2, keepdim=True)).rsqrt() * columns.rsqrt()
            u = u.reshape(grad.shape)
        u = u / (_rms(u, axes) / self.clip).clamp(min=1.0)
        return -_capped(per_layer(self.lr, grad, axes), t) * _rms(params, axes).clamp(min=self.eps2) * u, after

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the step at `scale` times lr and the new means."""
        step, after = self.update(grad, state, params, layout)
        lr, t = per_member(self.lr, grad), int(after["0"]["step"])
        return step * (_capped(scale * lr, t) / _capped(lr, t)), after

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add each layer's step at `scale` times lr in place."""
        for target, grad, state, param in zip(targets, grads, states, params, strict=True):
            step, after = self.step_layer(grad, state, param, param.dim())
            state.update(after)
            lr: float = self.lr  # type: ignore[assignment]
            t = int(after["step"])
            target.add_(step, alpha=_capped(scale * lr, t) / _capped(lr, t))  # type: ignore[arg-type]


def _capped(lr: float | Tensor, t: int) -> float | Tensor:
    """Return min(lr, 1/√t)."""
    return lr.clamp(max=t**-0.5) if isinstance(lr, Tensor) else min(lr, t**-0.5)


def _rms(layer: Tensor, axes: int) -> Tensor:
    """Return the root mean square of a layer `(..., *shape)`, one a member, so that it broadcasts."""
    return layer_norm(layer, axes) / math.sqrt(math.prod(layer.shape[layer.dim() - axes:]))
