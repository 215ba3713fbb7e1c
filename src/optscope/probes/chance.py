"""Chance: what is scored by an answer that never looks at the input, and whether a model does better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional

from optscope.devices import to_numpy
from optscope.errors import UserError
from optscope.evidence.paired import paired_test
from optscope.evidence.records import Metric
from optscope.probes.accuracy import check_classifier, named, nameless, percent
from optscope.probes.probe import Probe, Reading, Subject, check_examples, in_batches

LEVEL = 0.025
"""The level of the test against chance, one-sided."""
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
    Regression: the loss of always answering the mean, over the first 1,000 examples, and the paired test on the
    losses of single examples. "better than chance" is 1 where p <= 0.025, one-sided, else 0.

    If at least half of several models pass at 0.025, then that happens by chance in 5 of 100 cases at most, however
    much they depend on each other (twice the median of p values is a p value; Rüger, Metrika 25 (1978) 171).
    """

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
        constant = subject.snapshot.task.data().train.targets
        if subject.snapshot.task.kind == "classification":
            check_classifier(subject)
            logits, targets = in_batches(subject.model, subject.inputs).cpu().double(), subject.targets.cpu().long()
            classes = named(logits)
            right, common = classes == targets, targets == commonest(constant)
            wins, losses = int((right & ~common).sum()), int((common & ~right).sum())
            by_chance, by_model = (functional.cross_entropy(z, targets, reduction="none").numpy() for z in
                                   (frequencies(targets, logits.shape[1]).expand_as(logits), logits))
            p = 2 * min(float(stats.binom.sf(wins - 1, wins + losses, 0.5)),
                        1.0 if np.isnan(by_model).any() else paired_test(by_chance, by_model, one_sided=True).p)
            return Reading({"accuracy of the commonest class": percent(common),
                            "better than chance": float(p <= LEVEL)}, silence=nameless(classes))
        check_examples(subject)
        outputs, targets = in_batches(subject.model, subject.inputs[:MOST]), subject.targets[:MOST]
        if outputs.shape != targets.shape or not targets.is_floating_point():
            raise UserError("the loss of the mean needs targets that are numbers of the outputs' shape; got "
                            f"{targets.dtype} targets {tuple(targets.shape)} for outputs {tuple(outputs.shape)}")
        answer = constant.to(torch.float64).mean(0).to(outputs).expand_as(outputs)
        by_chance, by_model = (each_loss(subject, given, targets) for given in (answer, outputs))
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


def each_loss(subject: Subject, outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Return the loss of each example by itself, `(n,)` in float64."""
    with torch.no_grad():
        each = [subject.loss(outputs[i:i + 1], targets[i:i + 1]) for i in range(len(outputs))]
        return to_numpy(torch.stack(each).double())
