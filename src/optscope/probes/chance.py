"""Chance: what is scored by an answer that never looks at the input, and whether a model does better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from optscope.devices import to_numpy
from optscope.errors import UserError
from optscope.evidence.paired import paired_test
from optscope.evidence.records import Metric
from optscope.probes.accuracy import check_classifier, kind_of, named, nameless, percent
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject, check_examples, in_batches, portion_of
from optscope.tasks.kinds import BATCH, IGNORED, Kind
from optscope.tasks.tree import Batch, leaves

LEVEL = 0.025
"""The level of the test against chance, one-sided."""
SAMPLE = 10_000
"""So many examples say what is usual in a training part that is not in memory."""
MOST = 1000
"""Losses are taken example by example, of so many at most."""


@dataclass(frozen=True, repr=False)
class Chance(Probe):
    """Measure what the training part's commonest class, or mean target, scores, and whether the model beats it.

    Classification: the accuracy of always naming the commonest class (percent), and the exact sign test on the
    examples that only one of the two names rightly, P(Bin(b + c, 1/2) >= b) (McNemar, Psychometrika 12 (1947) 153).
    Where one class is rare a model may know much and still name the common one: so its log loss, −log softmax(z)_y,
    is held against that of the classes' frequencies too, by the paired test, and the smaller p counts twice. Those
    are the frequencies in the very examples, which no other constant answer can beat.
    Of many labels an example (`optscope.tasks.kinds`) only the latter is asked, of examples' mean log losses, as
    labels of one example are not independent.
    Regression: the loss of always answering the mean, over the first 1,000 examples, and the paired test on the
    losses of single examples. "better than chance" is 1 where p <= 0.025, one-sided, else 0.

    If at least half of several models pass at 0.025, then that happens by chance in 5 of 100 cases at most, however
    much they depend on each other (twice the median of p values is a p value; Rüger, Metrika 25 (1978) 171).
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The score of chance, and whether it is beaten."""
        blind = "what an answer scores that never looks at the input"
        return (
            Metric("accuracy of the commonest class", "%", "neither", blind),
            Metric("loss of the mean", "", "neither", blind),
            Metric("better than chance", "check", "higher",
                   "they are not shown to be better than an answer that never looks at the input"),
        )

    def measure(self, subject: Subject) -> Reading:
        """Score the constant answer and the model on the same examples."""
        kind = kind_of(subject)
        if kind.pairs is None:
            return _against_the_mean(subject)
        return _against_labels(subject, kind) if kind.dense else _against_the_class(subject)


def _against_the_class(subject: Subject) -> Reading:
    """Score the commonest class and the classes' frequencies."""
    check_classifier(subject)
    constant = _known(subject).targets
    logits = in_batches(subject.outputs, subject.inputs).cpu().double()
    targets = subject.targets.cpu().long()
    classes = named(logits)
    right, common = classes == targets, targets == commonest(constant)
    wins, losses = int((right & ~common).sum()), int((common & ~right).sum())
    by_chance, by_model = (functional.cross_entropy(z, targets, reduction="none").numpy() for z in
                           (frequencies(targets, logits.shape[1]).expand_as(logits), logits))
    p = 2 * min(float(scipy.special.bdtrc(wins - 1, wins + losses, 0.5)),
                1.0 if np.isnan(by_model).any() else paired_test(by_chance, by_model, one_sided=True).p)
    return Reading({"accuracy of the commonest class": percent(common),
                    "better than chance": float(p <= LEVEL)}, silence=nameless(classes))


def _against_labels(subject: Subject, kind: Kind) -> Reading:
    """Score what is commonest among many labels an example, and their frequencies, example by example."""
    check_examples(subject)
    assert kind.pairs is not None
    labels, logs = [], []
    with torch.no_grad():
        for part in subject.batch.split(portion_of(subject)):
            z, y = kind.pairs(outputs := subject.outputs(part.inputs), part.targets)
            columns = outputs.shape[1] if kind.exact else 1  # labels of several kinds at once have each their own
            labels.append(y.view(len(part), -1, columns).cpu())
            each = functional.cross_entropy(z.double(), y, reduction="none")
            logs.append(each.view(len(part), -1, columns).cpu())
            classes = z.shape[1]
    y, by_model = torch.cat(labels), torch.cat(logs)
    counts = y != IGNORED
    if not bool(counts.any()):
        raise UserError(f"no label of the examples of {subject.task.name!r} counts, so there is no chance to beat")
    common, chances = torch.zeros_like(counts), torch.zeros_like(by_model)
    train = _train_labels(subject, kind)
    for column in range(y.shape[2]):
        own, here = y[..., column], counts[..., column]
        common[..., column] = here & (own == commonest(train[..., column][train[..., column] != IGNORED]))
        shares = -frequencies(own[here], classes).double()
        chances[..., column] = torch.where(here, shares[own.clamp_min(0)], 0.0)
    told = counts.flatten(1).sum(1)
    blind, seeing = (each.flatten(1).sum(1)[told > 0].div(told[told > 0]).numpy() for each in (chances, by_model))
    p = 1.0 if np.isnan(seeing).any() else paired_test(blind, seeing, one_sided=True).p
    return Reading({"accuracy of the commonest class": percent(common[counts]),
                    "better than chance": float(p <= LEVEL)})


def _train_labels(subject: Subject, kind: Kind) -> Tensor:
    """Return the labels of the training part as the kind counts them, `(n, labels, columns)`."""
    train = _known(subject)
    assert kind.pairs is not None
    with torch.no_grad():
        shape = subject.outputs(subject.batch.first(1).inputs).shape[1:]
    found = []
    for part in train.split(BATCH):
        blank = torch.empty(1, device="cpu").expand(len(part), *shape)  # of no memory: labels alone are asked for
        found.append(kind.pairs(blank, part.targets)[1].view(len(part), -1, shape[0] if kind.exact else 1))
    return torch.cat(found)


def _known(subject: Subject) -> Batch:
    """Return the training part, or as many examples of it as answer for those that are not in memory."""
    train = subject.task.data().train
    return train if isinstance(train, Batch) else train.sample(SAMPLE)


def _against_the_mean(subject: Subject) -> Reading:
    """Score the mean target by the task's loss."""
    check_examples(subject)
    batch = subject.batch.first(MOST)
    outputs, targets = in_batches(subject.outputs, batch.inputs), batch.targets
    if not isinstance(targets, Tensor) or outputs.shape != targets.shape or not targets.is_floating_point():
        got = f"{targets.dtype} targets {tuple(targets.shape)}" if isinstance(targets, Tensor) else (
            f"targets of several leaves ({', '.join(leaves(targets))})")
        raise UserError(f"the loss of the mean needs targets that are numbers of the outputs' shape; got {got} for "
                        f"outputs {tuple(outputs.shape)}")
    answer = _known(subject).targets.to(torch.float64).mean(0).to(outputs).expand_as(outputs)
    by_chance, by_model = (each_loss(subject, given, batch) for given in (answer, outputs))
    p = paired_test(by_chance, by_model, one_sided=True).p
    return Reading({"loss of the mean": float(by_chance.mean()), "better than chance": float(p <= LEVEL)})


def commonest(labels: Tensor) -> int:
    """Return the commonest class, of equals the smallest.

    >>> commonest(torch.tensor([2, 1, 1, 2, 0]))
    1
    """
    return int(torch.bincount(labels.long()).argmax())


def frequencies(labels: Tensor, classes: int) -> Tensor:
    """Return the logarithms of the classes' shares `(classes,)`, with half a label more of each: none is 0.

    >>> frequencies(torch.tensor([0, 0, 1]), 2).exp()
    tensor([0.6250, 0.3750], dtype=torch.float64)
    """
    counts = torch.bincount(labels.long(), minlength=classes).double() + 0.5
    return (counts / counts.sum()).log()


def each_loss(subject: Subject, outputs: Tensor, batch: Batch) -> NDArray[np.float64]:
    """Return the loss of each example by itself, `(n,)` in float64."""
    with torch.no_grad():
        each = [subject.judged(z[None], one) for z, one in zip(outputs, batch.split(1), strict=True)]
        return to_numpy(torch.stack(each).double())
