"""A convolution and a linear readout, of which the cosine transform makes a diagonal model of depth 2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optscope.dct import matrix


class ConvolutionReadout(nn.Module):
    """f(x) = ⟨w₂, w₁ ⊛ x⟩: a convolution of full width, of signals mirrored at both ends, then one number.

        w₁ ⊛ x = D (ŵ₁ ∘ x̂),   ŵ = Dᵀ w

    with D the orthonormal matrix of cosines (`optscope.dct`), in which such convolutions are diagonal (Martucci,
    IEEE Trans. Signal Process. 42 (1994) 1038). So f(x) = ⟨ŵ₁ ∘ ŵ₂, x̂⟩, and ŵ₁ ∘ ŵ₂ = p∘p − q∘q with p, q =
    (ŵ₁ ± ŵ₂)/2: the gradient flow of (w₁, w₂) is that of the signed diagonal model of depth 2 with weights (p; q).
    So is the polar flow with a norm for each of w₁ and w₂, if these norms start equal: then ⟨p, q⟩ = 0, both stay
    ‖(p; q)‖, and in w' = −κ r² G + (κ r² − 1) (⟨w, G⟩/r²) w the number before the last w is the same for both.

    Both weights are `(1, n)`, double, or `(members, 1, n)` where they are put in place of its own.
    """

    cosines: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("cosines", matrix(size), persistent=False)
        self.filter = nn.Parameter(torch.zeros(1, size, dtype=torch.float64))
        self.readout = nn.Parameter(torch.zeros(1, size, dtype=torch.float64))

    def convolved(self, x: Tensor) -> Tensor:
        """Return the filtered signals `(..., n)`."""
        return ((self.filter @ self.cosines) * (x @ self.cosines)) @ self.cosines.T

    def forward(self, x: Tensor) -> Tensor:
        """Return one number a signal, `(...)`."""
        return (self.convolved(x) * self.readout).sum(-1)
