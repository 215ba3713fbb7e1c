"""Kinds of task: what each takes its loss and its accuracy of, as rows of logits and their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The label of places that count neither in a loss nor in an accuracy."""
VOID = 255
"""The same where masks are bytes, as those of images are."""

BATCH = 512
"""As many examples as are handed to a model at once, where nobody trains."""
MOST = 2**24
"""So many outputs at once at most, if an example has many."""

Pairs = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Kind:
    """What a kind of task does with outputs and targets.

    Args:
        loss: the loss when a task gives none, a mean over all labels that count.
        pairs: `pairs(outputs, targets)` as logits `(m, classes)` and labels `(m,)` of int64, `IGNORED` where they
            do not count. None: there are no classes.
        needs: what outputs and targets it takes, in words.
        fits: whether it takes outputs of this shape, the first axis counting the examples, with these targets.
        about: what the accuracy is the share of.
        dense: it has many labels an example, which are not independent of each other.
        exact: an example all of whose labels are told rightly is a number of its own.
        perplexity: so is the exponential of the loss.
    """

    loss: Callable[[Tensor, Any], Tensor]
    pairs: Pairs | None = None
    needs: str = ""
    fits: Callable[[tuple[int, ...], Tensor], bool] = lambda shape, targets: True
    about: str = ""
    dense: bool = False
    exact: bool = False
    perplexity: bool = False


    @property
    def single(self) -> bool:
        """Whether every example has one label."""
        return self.pairs is not None and not self.dense


def counted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows whose labels count."""
    counts = (labels != IGNORED).nonzero().squeeze(1)
    return logits[counts], labels[counts]


def portion(outputs: Tensor) -> int:
    """Return how many examples with outputs like these `(n, ...)` may be handed to a model at once.

    >>> portion(torch.zeros(1, 10)), portion(torch.zeros(1, 10).expand(2**20, 10)[None])
    (512, 1)
    """
    return max(1, min(BATCH, MOST // max(1, outputs[:1].numel())))


def _classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs, targets


def _labels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Take a logit z of a label for the classes "not" and "so", whose logits are 0 and z: its sigmoid is theirs."""
    z = outputs.flatten()
    return torch.stack([torch.zeros_like(z), z], 1), targets.flatten().long()


def _places(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    labels = targets.flatten().long()
    if outputs.shape[1] <= VOID:
        labels = labels.masked_fill(labels == VOID, IGNORED)
    return outputs.movedim(1, -1).flatten(0, -2), labels


def _tokens(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.flatten(0, 1), targets.flatten().long()


def _following(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return _tokens(outputs[:, :-1], targets[:, 1:])


def _mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the labels that count, 0 when none does: such a batch moves nothing."""
    mean = functional.cross_entropy(logits, labels, ignore_index=IGNORED)
    return torch.where((labels != IGNORED).any(), mean, torch.zeros_like(mean))


def label_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy, in nats, of logits `(n, labels)` and targets of 0 and 1 alike."""
    return functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


def place_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of logits `(n, classes, ...)` and labels `(n, ...)` that count.

    Labels of -100 do not, and of 255 unless there are so many classes.

    >>> logits, mask = torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 1], [255, -100]]])
    >>> round(float(place_cross_entropy(logits, mask)), 4)
    0.6931
    """
    return _mean(*_places(outputs, targets))


def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of logits `(n, T, classes)` and labels `(n, T)` other than -100."""
    return _mean(*_tokens(outputs, targets))


def next_token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of logits `(n, T, V)` and the tokens `(n, T)` one place later.

    Tokens of -100 are not foretold.

    >>> logits = 100 * functional.one_hot(torch.tensor([[1, 0, 1]]), 2).float()
    >>> float(next_token_cross_entropy(logits, torch.tensor([[0, 1, 0]])))
    0.0
    """
    return _mean(*_following(outputs, targets))


def _whole(targets: Tensor) -> bool:
    return not targets.is_floating_point() and not targets.is_complex()


NOTHING = Kind(functional.mse_loss)
"""What there is to say where there is no kind of this name."""
KINDS: dict[str, Kind] = {
    "classification": Kind(
        functional.cross_entropy, _classes, "outputs (batch, classes) and whole-number labels (batch,)",
        lambda shape, targets: len(shape) == 2 and targets.dim() == 1 and _whole(targets),
        "examples that are classified rightly"),
    "multi-label": Kind(
        label_cross_entropy, _labels, "outputs (batch, labels) and targets of 0 and 1 of the same shape",
        lambda shape, targets: len(shape) == 2 and tuple(targets.shape[1:]) == shape[1:],
        "labels that are told rightly", dense=True, exact=True),
    "segmentation": Kind(
        place_cross_entropy, _places,
        "outputs (batch, classes, height, width), or any other axes of places, and whole-number labels (batch, "
        "height, width), -100 or 255 where they do not count",
        lambda shape, targets: len(shape) > 2 and tuple(targets.shape[1:]) == shape[2:] and _whole(targets),
        "places that are classified rightly", dense=True),
    "token-classification": Kind(
        token_cross_entropy, _tokens,
        "outputs (batch, length, classes) and whole-number labels (batch, length), -100 where they do not count",
        lambda shape, targets: len(shape) == 3 and tuple(targets.shape[1:]) == shape[1:2] and _whole(targets),
        "tokens that are classified rightly", dense=True),
    "causal-lm": Kind(
        next_token_cross_entropy, _following,
        "outputs (batch, length, vocabulary) and as targets the tokens (batch, length) themselves, which the loss "
        "shifts by one, -100 where they are not to be foretold",
        lambda shape, targets: len(shape) == 3 and tuple(targets.shape[1:]) == shape[1:2] and shape[1] > 1
        and _whole(targets),
        "next tokens that are foretold", dense=True, perplexity=True),
    "regression": Kind(functional.mse_loss),
}
