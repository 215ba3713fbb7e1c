"""Kronecker preconditioners: gradients of matrices divided from both sides (Shampoo), or rotated (SOAP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.muon import matrix_shape
from optscope.optim.per_layer import PerLayer, per_layer
from optscope.optim.preconditioner import Preconditioner
from optscope.optim.rule import Hyper, State, check_hyper


def as_matrix(layer: Tensor, axes: int) -> Tensor:
    """Return a layer `(..., *shape)` of two axes or more as matrices `(..., rows, columns)`."""
    return layer.reshape(*layer.shape[:layer.dim() - axes], *matrix_shape(layer.shape[layer.dim() - axes:]))


def _check_whole(owner: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{owner}: {name} must be a whole number >= 1; got {value!r}")


@dataclass(frozen=True, repr=False)
class Shampoo(PerLayer):
    """Divide a matrix's gradient from the left and from the right by roots of sums of its products.

        L ← L + G Gᵀ,   R ← R + Gᵀ G                       L₀ = R₀ = eps · I
        step = −lr · L^(−1/4) G R^(−1/4)

    A kernel (out, in, h, w) is a matrix of out rows. Vectors have the diagonal of theirs: g/√(eps + Σ g²). Roots
    are taken every `every` steps, by eigenvalues (`eigh`): no block is cut, so sides of thousands are slow.
    With a length of another rule, as it is mostly used, it is Graft(Adam(...), Shampoo(lr=1.0)).

    Gupta, Koren, Singer 2018, arXiv 1802.09568, algorithm 1. Where L or R has nearly equal eigenvalues the roots do
    not depend on which eigenvectors are taken.

    Raises:
        UserError: unless lr > 0, eps > 0 and every is a whole number >= 1.
    """

    lr: Hyper
    eps: Hyper = 1e-4
    every: int = 1

    def __post_init__(self) -> None:
        check_hyper("Shampoo", "lr", self.lr, open_low=True)
        check_hyper("Shampoo", "eps", self.eps, open_low=True)
        _check_whole("Shampoo", "every", self.every)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return sums "left" and "right" of eps · I and their roots, or a vector's sum "s"; and the steps made."""
        eps = per_layer(self.eps, params, axes)
        if axes < 2:
            return {"s": torch.zeros_like(params) + eps}
        matrix = as_matrix(params, axes)
        eyes = [torch.eye(n, dtype=params.dtype, device=params.device).expand(*matrix.shape[:-2], n, n)
                for n in matrix.shape[-2:]]
        left, right = (per_layer(self.eps, params, 2) * eye for eye in eyes)
        return {"left": left, "right": right, "left root": left, "right root": right, "step": torch.zeros(())}

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step and the new sums."""
        lr = per_layer(self.lr, grad, axes)
        if axes < 2:
            s = state["s"] + grad.square()
            return -lr * grad / s.sqrt(), {"s": s}
        g = as_matrix(grad, axes)
        after = {**state, "left": state["left"] + g @ g.mT, "right": state["right"] + g.mT @ g,
                 "step": state["step"] + 1}
        if int(state["step"]) % self.every == 0:
            after |= {f"{side} root": fourth_root(after[side]) for side in ("left", "right")}
        return -lr * (after["left root"] @ g @ after["right root"]).reshape(grad.shape), after

    def preconditioner(self, state: State, params: Tensor, grad: Tensor) -> Preconditioner | None:
        """Return P = L^(1/4) ⊗ R^(1/4), as the roots in use have it, or √s."""
        if params.dim() < 2:
            return Preconditioner(lambda v: v * state["s"].pow(-0.25))
        if not state["step"]:
            return None
        left, right = (_square_root(state[f"{side} root"]) for side in ("left", "right"))
        return Preconditioner(lambda v: (left @ as_matrix(v, v.dim()) @ right).reshape(v.shape))


def fourth_root(matrix: Tensor) -> Tensor:
    """Return the inverse fourth root of positive matrices `(..., n, n)`; none counts as below rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    tiny = torch.finfo(matrix.dtype).eps * values[..., -1:].clamp(min=torch.finfo(matrix.dtype).tiny)
    root: Tensor = vectors * values.clamp(min=tiny).pow(-0.25).unsqueeze(-2) @ vectors.mT
    return root


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    return root


@dataclass(frozen=True, repr=False)
class SOAP(PerLayer):
    """Adam in the slowly turning basis of Shampoo's eigenvectors.

        L ← β L + (1 − β) G Gᵀ,   R ← β R + (1 − β) Gᵀ G          β = beta2
        G′ = Qₗᵀ G Qᵣ,   m ← beta1 · m + (1 − beta1) · G′,   v ← beta2 · v + (1 − beta2) · G′²
        step = −lr · Qₗ (m̂ / (√v̂ + eps)) Qᵣᵀ − lr · decay · w

    with Adam's corrections m̂ and v̂; m is turned with the basis. Every `every`-th step Q ← QR(L Q), an
    iteration towards the eigenvectors, whose columns are sorted first. A side of more than `largest` numbers is
    not rotated; vectors are Adam's. The first gradient chooses the basis, by `eigh`, and moves nothing. A
    kernel is a matrix of out rows (the authors give each axis a basis of its own).

    Where eigenvalues are equal, rounding chooses among their eigenvectors, and Adam in another basis makes another
    step: last bits grow faster than under Adam, most of all while L and R have rank below their size.

    Vyas et al. 2024, arXiv 2409.11321, algorithm 3, and the authors' code of October 2024.

    Raises:
        UserError: unless lr > 0, 0 <= beta1, beta2 < 1, eps > 0, decay >= 0, and every and largest are whole >= 1.
    """

    lr: Hyper
    beta1: Hyper = 0.95
    beta2: Hyper = 0.95
    eps: Hyper = 1e-8
    decay: Hyper = 0.0
    every: int = 10
    largest: int = 10_000

    def __post_init__(self) -> None:
        check_hyper("SOAP", "lr", self.lr, open_low=True)
        check_hyper("SOAP", "beta1", self.beta1, high=1.0)
        check_hyper("SOAP", "beta2", self.beta2, high=1.0)
        check_hyper("SOAP", "eps", self.eps, open_low=True)
        check_hyper("SOAP", "decay", self.decay)
        _check_whole("SOAP", "every", self.every)
        _check_whole("SOAP", "largest", self.largest)

    def begin_layer(self, params: Tensor, axes: int) -> State:
        """Return zero moments, the steps made, and zero products and bases of the sides that are rotated."""
        state = {"m": torch.zeros_like(params), "v": torch.zeros_like(params), "step": torch.tensor(-1.0)}
        if axes > 1:
            matrix = as_matrix(params, axes)
            for side, n in zip(("left", "right"), matrix.shape[-2:], strict=True):
                if n <= self.largest:
                    state[side] = state[f"{side} basis"] = matrix.new_zeros(*matrix.shape[:-2], n, n)
        return state

    def step_layer(self, grad: Tensor, state: State, params: Tensor, axes: int) -> tuple[Tensor, State]:
        """Return the step and the new moments, products and bases."""
        t = int(state["step"]) + 1
        after = {**state, "step": state["step"] + 1}
        if t == 0:
            return torch.zeros_like(grad), self._turned(grad, after, axes)
        beta1, beta2 = (per_layer(value, grad, axes) for value in (self.beta1, self.beta2))
        turned = _rotated(grad, state, axes)
        after["m"] = beta1 * state["m"] + (1 - beta1) * turned
        after["v"] = beta2 * state["v"] + (1 - beta2) * turned.square()
        size = (after["v"] / (1 - beta2**t)).sqrt() + per_layer(self.eps, grad, axes)
        along = _rotated(after["m"] / (1 - beta1**t) / size, state, axes, back=True)
        step = -per_layer(self.lr, grad, axes) * (along + per_layer(self.decay, grad, axes) * params)
        return step, self._turned(grad, after, axes)

    def preconditioner(self, state: State, params: Tensor, grad: Tensor) -> Preconditioner | None:
        """Return P = Q D Qᵀ with Q = Qₗ ⊗ Qᵣ and D that of Adam, (1 − beta1ᵗ) (√v̂ + eps)."""
        axes, t = params.dim(), int(state["step"])
        if t < 1:
            return None
        beta1, beta2, eps = (per_layer(value, params, axes) for value in (self.beta1, self.beta2, self.eps))
        scale = ((1 - beta1**t) * ((state["v"] / (1 - beta2**t)).sqrt() + eps)).rsqrt()
        return Preconditioner(lambda v: _rotated(scale * _rotated(v, state, axes), state, axes, back=True))

    def _turned(self, grad: Tensor, state: State, axes: int) -> State:
        """Return the state with the gradient in its products, and new bases if it is time."""
        if axes < 2:
            return state
        g, t, old = as_matrix(grad, axes), int(state["step"]), dict(state)
        beta = per_layer(self.beta2, grad, 2)
        for side, x in (("left", g), ("right", g.mT)):
            if side not in state:
                continue
            state[side] = beta * state[side] + (1 - beta) * (x @ x.mT)
            if t == 0:
                state[f"{side} basis"] = torch.linalg.eigh(state[side]).eigenvectors.flip(-1)
            elif t % self.every == 0:
                state |= _next_basis(side, state, axes)
        if t and t % self.every == 0:
            state["m"] = _rotated(_rotated(state["m"], old, axes, back=True), state, axes)
        return state


def _rotated(layer: Tensor, state: State, axes: int, *, back: bool = False) -> Tensor:
    """Return a layer in the basis, or `back` from it."""
    if axes < 2:
        return layer
    x = as_matrix(layer, axes)
    if "left" in state:
        x = (state["left basis"] if back else state["left basis"].mT) @ x
    if "right" in state:
        x = x @ (state["right basis"].mT if back else state["right basis"])
    return x.reshape(layer.shape)


def _next_basis(side: str, state: State, axes: int) -> State:
    """Return a side's basis after a step of orthogonal iteration, and the squares in the order of its columns."""
    product, basis, axis = state[side], state[f"{side} basis"], -2 if side == "left" else -1
    order = (basis * (product @ basis)).sum(-2).argsort(dim=-1, descending=True)
    columns = torch.take_along_dim(basis, order.unsqueeze(-2), -1)
    v = as_matrix(state["v"], axes)
    v = torch.take_along_dim(v, order.unsqueeze(-1) if axis == -2 else order.unsqueeze(-2), axis)
    return {f"{side} basis": torch.linalg.qr(product @ columns).Q, "v": v.reshape(state["v"].shape)}
