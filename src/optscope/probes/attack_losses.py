"""What attacks climb: losses an image that grow as the model comes nearer to a mistake.

Only the direction of a loss's gradient matters to the attacks here, so each loss is written in the form whose
gradient does not vanish in floating point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

_NEARLY_TIED = 1e-12  # keeps the ratios finite where the top logits tie, as in section 4 of arXiv 2003.01690


@dataclass(frozen=True)
class AttackLoss(ABC):
    """A loss an image from its logits z `(n, C)` and its labels y `(n,)`."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each image, `(n,)`."""


@dataclass(frozen=True)
class CrossEntropy(AttackLoss):
    """The log-odds of a mistake, log sum_{i != y} exp(z_i) - z_y.

    Cross-entropy is log(1 + exp(m)) of these log-odds m: it orders inputs in the same way and its gradient
    points the same way, but it flattens in float32 where the model is sure, and this does not.

    >>> CrossEntropy()(torch.tensor([[200.0, 0.0]]), torch.tensor([0]))
    tensor([-200.])
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return log sum_{i != y} exp(z_i) - z_y, `(n,)`."""
        return _without(logits, labels).logsumexp(1) - _at(logits, labels)


@dataclass(frozen=True)
class MarginLoss(AttackLoss):
    """The lead of the best wrong class, max_{i != y} z_i - z_y: positive exactly where the model errs."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return max_{i != y} z_i - z_y, `(n,)`."""
        return _without(logits, labels).amax(1) - _at(logits, labels)


@dataclass(frozen=True)
class DLR(AttackLoss):
    """Difference of logits ratio, (max_{i != y} z_i - z_y) / (z_(1) - z_(3)), z_(k) the k-th largest logit.

    It does not change when logits are shifted or scaled. Two classes have no third logit: there the numerator
    alone is used. arXiv 2003.01690, equation 6.
    """

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the ratio, `(n,)`."""
        lead = MarginLoss()(logits, labels)
        if logits.shape[1] < 3:
            return lead
        top = logits.topk(3, dim=1).values
        return lead / (top[:, 0] - top[:, 2]).clamp_min(_NEARLY_TIED)


@dataclass(frozen=True)
class TargetedDLR:
    """The ratio towards a goal class t, (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2).

    With fewer than four classes the numerator alone is used. arXiv 2003.01690, equation 7.
    """

    def __call__(self, logits: Tensor, labels: Tensor, goals: Tensor) -> Tensor:
        """Return the ratio, `(n,)`, for goal classes `(n,)`."""
        lead = _at(logits, goals) - _at(logits, labels)
        if logits.shape[1] < 4:
            return lead
        top = logits.topk(4, dim=1).values
        return lead / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_NEARLY_TIED)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels.unsqueeze(1), -torch.inf)
