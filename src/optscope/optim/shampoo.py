"""Kronecker preconditioners: gradients of matrices divided from both sides (Shampoo), or rotated (SOAP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.fused import adam_
from optscope.optim.muon import matrix_shape
from optscope.optim.per_layer import PerLayer, per_layer
from optscope.optim.pieces import Room
from optscope.optim.preconditioner import Preconditioner
from optscope.optim.rule import Hyper, State, check_hyper
from optscope.optim.symmetric import symmetric


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
        return {"left": left, "right": right, "left root": left, "right root": right,
                "step": torch.zeros((), device="cpu")}

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


    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place, with half of each symmetric product."""
        rate: float = self.lr * scale  # type: ignore[operator]
        for target, grad, state in zip(targets, grads, states, strict=True):
            if grad.dim() < 2:
                target.addcdiv_(grad, state["s"].addcmul_(grad, grad).sqrt(), value=-rate)
                continue
            g, due = as_matrix(grad, grad.dim()), int(state["step"]) % self.every == 0
            _add_products_(state, g, alpha=1.0, beta=1.0)
            state["step"] += 1
            if due:
                state.update({f"{side} root": fourth_root(state[side]) for side in ("left", "right")})
            along = state["left root"] @ g @ state["right root"]
            target.add_(along.view(target.shape), alpha=-rate)


def _add_products_(state: State, matrix: Tensor, *, alpha: float, beta: float) -> None:
    """Add alpha times a matrix's products with itself to beta times those in a state, of sides that have one."""
    for side in ("left", "right"):
        if side in state:
            x, product = (matrix if side == "left" else matrix.mT).unsqueeze(0), state[side].unsqueeze(0)
            symmetric(x, x.mT, product, product, alpha=alpha, beta=beta)


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
        m, v = (torch.zeros_like(params, memory_format=torch.contiguous_format) for _ in range(2))
        state = {"m": m, "v": v, "step": torch.tensor(-1.0, device="cpu")}
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

    def add_step_(self, targets: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State],
                  params: Sequence[Tensor], scale: float = 1.0) -> None:
        """Add the step in place: Adam's fused kernel between two rotations, and half of each symmetric product."""
        rate: float = self.lr * scale  # type: ignore[operator]
        room = Room()
        for target, grad, state, param in zip(targets, grads, states, params, strict=True):
            t, g = int(state["step"]) + 1, as_matrix(grad, grad.dim()) if grad.dim() > 1 else grad
            g = g.contiguous()  # as the moments are, which the kernel goes through side by side
            if t > 0:
                free = room.like([g, g])
                turned = _rotate_(g, state, free)
                step = free[0].zero_()
                adam_([step], [turned], [state["m"].view(g.shape)], [state["v"].view(g.shape)],
                      [g.new_full((), t - 1, dtype=torch.float32)], lr=rate, beta1=self.beta1, beta2=self.beta2,  # type: ignore[arg-type]
                      eps=self.eps, decay=0.0)  # type: ignore[arg-type]
                if self.decay:
                    target.add_(param, alpha=-rate * self.decay)  # type: ignore[operator]
                free.reverse()
                target.add_(_rotate_(step, state, free, back=True).view(target.shape))
            state["step"] += 1
            _add_products_(state, g, alpha=1 - self.beta2, beta=self.beta2)  # type: ignore[operator, arg-type]
            state.update(self._rebased(state, grad.dim()))

    def _turned(self, grad: Tensor, state: State, axes: int) -> State:
        """Return the state with the gradient in its products, and new bases if it is time."""
        if axes < 2:
            return state
        g, beta = as_matrix(grad, axes), per_layer(self.beta2, grad, 2)
        for side, x in (("left", g), ("right", g.mT)):
            if side in state:
                state[side] = beta * state[side] + (1 - beta) * (x @ x.mT)
        return {**state, **self._rebased(state, axes)}

    def _rebased(self, state: State, axes: int) -> State:
        """Return what changes of a state with new products, if it is time: the bases, and the moments in them."""
        t, sides = int(state["step"]), [side for side in ("left", "right") if side in state]
        if not sides or t % self.every:
            return {}
        if t == 0:
            return {f"{side} basis": torch.linalg.eigh(state[side]).eigenvectors.flip(-1) for side in sides}
        after = dict(state)
        for side in sides:
            after |= _next_basis(side, after, axes)
        after["m"] = _rotated(_rotated(state["m"], state, axes, back=True), after, axes)
        return {name: after[name] for name in ("m", "v", *(f"{side} basis" for side in sides))}


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


def _rotate_(matrix: Tensor, state: State, free: list[Tensor], *, back: bool = False) -> Tensor:
    """Return `_rotated` of a matrix in one of two others, `free`, of which the first is free afterwards too."""
    for side in ("left", "right"):
        if side in state:
            basis = state[f"{side} basis"] if back == (side == "left") else state[f"{side} basis"].mT
            matrix = torch.mm(*((basis, matrix) if side == "left" else (matrix, basis)), out=free[0])
            free.reverse()
    return matrix


def _next_basis(side: str, state: State, axes: int) -> State:
    """Return a side's basis after a step of orthogonal iteration, and the squares in the order of its columns."""
    basis, axis = state[f"{side} basis"], -2 if side == "left" else -1
    moved = state[side] @ basis
    order = (basis * moved).sum(-2).argsort(dim=-1, descending=True)
    v = as_matrix(state["v"], axes)
    v = torch.take_along_dim(v, order.unsqueeze(-1) if axis == -2 else order.unsqueeze(-2), axis)
    moved = torch.take_along_dim(moved, order.unsqueeze(-2), -1)
    return {f"{side} basis": torch.linalg.qr(moved).Q, "v": v.reshape(state["v"].shape)}
