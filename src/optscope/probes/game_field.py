"""How a game turns: the leading eigenvalues of its Jacobian, whose imaginary parts make players circle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optscope.devices import to_numpy
from optscope.evidence.records import Metric
from optscope.probes.at_weights import AtWeights, grad, grads
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject
from optscope.tasks.objective import Objective
from optscope.tasks.tree import Batch

RESTARTS = 10
"""Arnoldi restarts, of about 20 products each; eigenvalues that have not converged by then are left out."""


@dataclass(frozen=True, repr=False)
class Rotation(Probe):
    """Measure the `count` eigenvalues of largest modulus of the game's Jacobian, and how far they turn.

        v(θ) = (∇_{θ₁} L₁, ..., ∇_{θ_k} L_k),    J = ∂v/∂θ

    J is symmetric, its eigenvalues real, when all players share one loss; in a zero-sum game its off-diagonal part
    is antisymmetric, and imaginary parts appear. "rotation" is Σ|Im λ| / Σ|λ| over the eigenvalues found: 0 for
    descent on one loss, 1 for pure circling. θ holds the trained parameters. The networks are in eval mode (batch
    normalisation uses running statistics), the batch is the first `examples` of the split, the latent vectors come
    from the probe's stream. Players' losses are taken as they are, whether means over the batch or not: that of a
    sum makes its player's rows of J as many times as large as there are examples.

    Mescheder et al. 2017, arXiv 1705.10461; Gidel et al. 2019, arXiv 1802.10551.

    Raises:
        UserError: when the subject is no game, or a loss has no second derivative by all weights.
    """

    needs: ClassVar[tuple[Need, ...]] = ("players", "second derivative")
    count: int = 4
    tolerance: float = 1e-2
    examples: int | None = field(default=256, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="train", kw_only=True)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Rotation, and the leading eigenvalue's two parts."""
        return (Metric("rotation", "", "neither", "Σ|Im λ| / Σ|λ| over the leading eigenvalues"),
                Metric("leading eigenvalue, modulus", "", "neither", "of the game's Jacobian"),
                Metric("leading eigenvalue, imaginary", "", "neither", "its imaginary part, not negative"))

    def measure(self, subject: Subject) -> Reading:
        """Run Arnoldi's iteration on vector products with Jᵀ, whose eigenvalues are J's."""
        latent = subject.task.draw_latent(len(subject.batch), subject.generator)
        latent = latent if latent is None else latent.to(subject.device)
        jacobian = Jacobian(subject.task.objectives, subject.model, subject.batch, latent, subject.trained)
        values = leading(jacobian, self.count, self.tolerance)
        top = values[np.argmax(np.abs(values))]
        total = float(np.abs(values).sum())
        return Reading({"rotation": float(np.abs(values.imag).sum()) / total if total else 0.0,
                        "leading eigenvalue, modulus": float(abs(top)),
                        "leading eigenvalue, imaginary": float(abs(top.imag))},
                       {"eigenvalues": np.stack([values.real, values.imag], axis=1)})


class Jacobian:
    """Products of vectors with the transposed Jacobian of a game's gradient field at one batch.

    `names` says which weights of the table are trained, as in `AtWeights`.
    """

    def __init__(self, objectives: Sequence[Objective], table: torch.nn.Module, batch: Batch, latent: Tensor | None,
                 names: Collection[str] | None = None) -> None:
        self._at = AtWeights(table, names)
        self.params: list[Tensor] = []
        self.field: list[Tensor] = []
        with self._at.held(), grads():
            for objective in objectives:
                own = [w for name, w in self._at.weights.items() if name.startswith(f"{objective.player}.")]
                drawn = latent if latent is None else latent.clone()
                self.params += own
                self.field += grad([objective.loss(table, batch.copy(), drawn)], own, None, create_graph=True)
        self.size = sum(p.numel() for p in self.params)

    def product(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return Jᵀ u for u `(P,)`."""
        whole = torch.from_numpy(vector.reshape(-1)).to(self.params[0])
        parts = whole.split([p.numel() for p in self.params])
        # A component that is constant, such as that of a Wasserstein critic's last bias, has no graph.
        moving = [(v, part.view_as(v)) for v, part in zip(self.field, parts, strict=True) if v.requires_grad]
        with self._at.held():
            grads = grad([v for v, _ in moving], self.params, [u for _, u in moving])
        return to_numpy(torch.cat([g.reshape(-1) for g in grads]).double())


def leading(jacobian: Jacobian, count: int, tolerance: float) -> NDArray[np.complex128]:
    """Return the eigenvalues of largest modulus, by decreasing modulus; those of them that converged."""
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs  # for games alone: long

    n = jacobian.size
    values: NDArray[np.generic]
    if n <= count + 2:
        values = np.linalg.eigvals(np.column_stack([jacobian.product(row) for row in np.eye(n)]))
    else:
        operator = LinearOperator((n, n), matvec=jacobian.product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(n)
        try:
            values = eigs(operator, k=count, which="LM", tol=tolerance, v0=start, maxiter=RESTARTS,
                          return_eigenvectors=False)
        except ArpackNoConvergence as error:
            values = error.eigenvalues
        except ArpackError:
            if jacobian.product(start).any():
                raise
            values = np.zeros(count)  # a saturated discriminator moves nobody: J is 0, which Arnoldi refuses
    found = np.asarray(values, dtype=np.complex128)
    return found[np.argsort(-np.abs(found))]
