"""How well a model does on clean data: accuracy with its interval, loss, and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from optscope.devices import to_floats, to_numpy
from optscope.errors import UserError
from optscope.evidence.records import Direction, Metric
from optscope.evidence.stats import wilson
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject, check_examples, finite, in_batches, portion_of, refuse
from optscope.tasks.kinds import KINDS, MOST, Kind, counted
from optscope.tasks.mean_loss import SHARE
from optscope.tasks.tree import Batch, joined

BINS = 15


@dataclass(frozen=True, repr=False)
class Accuracy(Probe):
    """Measure accuracy (percent), loss, and the expected calibration error (points) on the clean inputs.

        calibration error = 100 Σ_b |B_b|/n · |acc(B_b) − conf(B_b)|        over 15 bins b of equal width

    with conf the largest softmax probability: Guo et al. 2017, arXiv 1706.04599, section 2. The loss is the task's
    own. What is counted right is a matter of the task's kind (`optscope.tasks.kinds`): an example's class; of many
    labels an example every one that counts, and then the share of examples without a wrong one (of several labels
    at once), or the perplexity (of next tokens). Regression tasks have only the loss. An output of nan names no
    class and counts as an error; where there is one, there is no loss and no calibration error, and `silence` says
    so; and where the outputs of all examples are too many to hold, that the loss is then taken of some at a time,
    if it is no mean over labels that count. Arrays, where an example has one label: "correct", one verdict an
    example (bool), and "accuracy interval", the 95 % Wilson interval in percent (low, high).
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, loss, calibration error, and what only some kinds of task have."""
        return (
            Metric("accuracy", "%", "higher", "examples, or labels of them, that are classified rightly"),
            Metric("loss", "", "lower", "the task's loss, mean over the examples"),
            Metric("calibration error", "points", "lower", f"confidence against accuracy in {BINS} bins"),
            Metric("exact match", "%", "higher", "examples all of whose labels are told rightly"),
            Metric("perplexity", "", "lower", "the exponential of the loss: so many tokens are left to guess"),
        )

    def measure(self, subject: Subject) -> Reading:
        """Measure on all inputs, in one pass.

        Raises:
            UserError: when outputs and targets are not those of the task's kind, or its loss is no mean.
        """
        kind = kind_of(subject)
        if kind.single:
            check_classifier(subject)
        else:
            check_examples(subject, every=False)
        score = scored(subject, subject.batch)
        if kind.pairs is None:
            refuse(score.missing, len(subject.batch))
        values, silence = {"loss": score.loss}, ""
        if kind.pairs is not None:
            silence = _nameless(score.missing, score.labels, "labels" if kind.dense else "examples")
            values["calibration error"] = 100 * score.gap
        if kind.perplexity:
            values["perplexity"] = math.exp(min(score.loss, 700.0))
        if kind.pairs is not None and any(map(math.isnan, values.values())):
            silence = f"{silence or 'some outputs are infinite'}: there is no {' and no '.join(values)}"
            values = {}
        if kind.pairs is not None:
            values = {"accuracy": 100 * score.right / score.labels, **values}
        if score.apart:
            silence = "; ".join(filter(None, (silence, _by_parts(score.apart))))
        if kind.exact:
            values["exact match"] = 100 * score.whole / len(subject.batch)
        if score.correct is None:
            return Reading(values, silence=silence)
        interval = wilson(score.right, score.labels)
        return Reading(values, {"correct": to_numpy(score.correct),
                                "accuracy interval": 100 * np.array([interval.low, interval.high])}, silence)


@dataclass(frozen=True)
class Score:
    """What a model makes of some examples: its loss, and of `labels` in all how many it tells right.

    Of `missing` it names no class (where there are none, its outputs are not finite), `whole` examples have no
    wrong one, `gap` is the calibration error. `correct` is the verdicts `(n,)`, where an example has one label.
    `apart` is in what parts the loss was taken, where it is another one of all examples at once.
    """

    loss: float
    labels: int = 0
    right: int = 0
    missing: int = 0
    whole: int = 0
    gap: float = math.nan
    correct: Tensor | None = None
    apart: int = 0


def scored(subject: Subject, batch: Batch) -> Score:
    """Return what the model makes of some examples, by the loss of its task and what its kind calls right.

    Where examples have many labels each, as many as fit into memory are looked at together. If the outputs of all
    fit, the loss is of all; else parts of them count in it by their labels, as in a mean over these.
    """
    kind = kind_of(subject)
    if kind.dense:
        return _of_many(subject, kind, batch)
    outputs = in_batches(subject.outputs, batch.inputs)
    with torch.no_grad():
        loss = subject.judged(outputs, batch)
    if kind.pairs is None:
        value, missing = to_floats(loss, (~finite(outputs)).sum())
        return Score(value, missing=int(missing))
    classes = named(outputs)
    correct = classes == batch.targets
    value, right, missing, gap = to_floats(loss, correct.sum(), (classes < 0).sum(),
                                           calibration_error(outputs, batch.targets))
    return Score(value, len(correct), int(right), int(missing), int(right), gap, correct)


def _of_many(subject: Subject, kind: Kind, batch: Batch) -> Score:
    """Return the score of examples with many labels each, a portion at a time."""
    assert kind.pairs is not None
    sums, gaps = (torch.zeros(n, dtype=torch.float64, device=subject.device) for n in (4, BINS))
    labels, size = 0, portion_of(subject)
    kept: list[Tensor] = []  # the outputs of all, or of the two parts that are compared
    some: list[tuple[Batch, int, Tensor]] = []
    with torch.no_grad():
        for part in batch.split(size):
            outputs = subject.outputs(part.inputs)
            fits = outputs[:1].numel() * len(batch) <= MOST
            logits, truth = counted(*kind.pairs(outputs, part.targets))
            if fits or (len(truth) and len(kept) < 2):
                kept.append(outputs)
            if not len(truth):
                continue
            classes = named(logits)
            correct = classes == truth
            whole = correct.view(len(part), -1).all(1).sum() if kind.exact else correct.sum()
            loss = subject.judged(outputs, part)
            some += [(part, len(truth), loss)] if len(some) < 2 else []
            sums += torch.stack([
                each.double() for each in (loss * len(truth), correct.sum(), (classes < 0).sum(), whole)])
            gaps += calibration_gaps(logits, truth)
            labels += len(truth)
        off = torch.zeros_like(sums[:1])
        if len(kept) > 1 and fits:
            sums[0] = subject.judged(torch.cat(kept), batch).double() * labels
        elif len(some) > 1:
            off = _off(subject, kept, some)
    loss, right, missing, whole, off, gap = torch.cat([sums, off, gaps.abs().sum().reshape(1)]).tolist()
    if not labels:
        raise UserError(f"no label of the {subject.task.name!r} examples counts, so there is no accuracy")
    return Score(loss / labels, labels, int(right), int(missing), int(whole), gap / labels,
                 apart=size if off > SHARE else 0)


def _off(subject: Subject, outputs: Sequence[Tensor], parts: Sequence[tuple[Batch, int, Tensor]]) -> Tensor:
    """Return how far the loss of two parts is from the mean of theirs over the labels, relative to it, `(1,)`."""
    shares = torch.stack([loss.double() * count for _, count, loss in parts])
    both = subject.judged(torch.cat(list(outputs)), joined([part for part, _, _ in parts])).double()
    count = sum(count for _, count, _ in parts)
    return ((both * count - shares.sum()).abs() / shares.abs().sum()).reshape(1)


def _by_parts(size: int) -> str:
    return (f"the outputs of all examples are too many to hold: the loss is the mean of that of {size} at a time, "
            "and of all at once another, as class weights or a mask make it no mean over the labels that count")


def kind_of(subject: Subject) -> Kind:
    """Return what the kind of a subject's task says of outputs and targets.

    Raises:
        UserError: when there is no such kind.
    """
    task = subject.task
    if task.kind not in KINDS:
        raise UserError(f"accuracy needs a task of one of the kinds {', '.join(KINDS)}; {task.name!r} is of the "
                        f"kind {task.kind!r}")
    return KINDS[task.kind]


@dataclass(frozen=True, repr=False)
class Checkpoint(Probe):
    """Measure validation and test side by side, so that the test value at the best validation moment can be read.

    Watched during training, it stands for keeping the checkpoint that does best on validation data: later choices
    may look at the validation metrics alone. Accuracies are in percent, and left out of regression. `examples`
    bounds the test part; `split` has no say.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Loss and accuracy of both parts."""
        return tuple(Metric(f"{part} {name} at checkpoint", unit, better) for part in ("validation", "test")
                     for name, unit, better in _METRICS)

    def measure(self, subject: Subject) -> Reading:
        """Measure the whole validation part, and the first `examples` of the test part."""
        data = subject.task.data()
        values, reasons = {}, []
        for part, split in (("validation", data.validation), ("test", data.test.first(self.examples))):
            score = scored(subject, split.to(subject.device))
            if math.isnan(score.loss):
                reasons.append(f"the {part} loss is nan, as outputs are, which count as errors")
            else:
                values[f"{part} loss at checkpoint"] = score.loss
            if score.apart:
                reasons.append(f"in the {part} part {_by_parts(score.apart)}")
            if score.labels:
                values[f"{part} accuracy at checkpoint"] = 100 * score.right / score.labels
        return Reading(values, silence=" and ".join(reasons))


_METRICS: tuple[tuple[str, str, Direction], ...] = (("accuracy", "%", "higher"), ("loss", "", "lower"))


def named(logits: Tensor) -> Tensor:
    """Return the classes that logits `(n, classes)` name, `(n,)`; -1 where one is nan: those name none.

    >>> named(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]))
    tensor([ 1, -1])
    """
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


def classes_of(subject: Subject, x: Tensor | None = None, where: Tensor | None = None) -> Tensor:
    """Return the classes that a model names, `(n,)`; -1 for none.

    They are those of all examples, or of the examples at `where` with `x` in the place of what is moved of them.
    """
    if x is None:
        return in_batches(lambda inputs: named(subject.outputs(inputs)), subject.inputs)
    where = torch.arange(len(x), device=x.device) if where is None else where
    return in_batches(lambda each: named(subject.moved(*each)), (x, where))


def verdicts(subject: Subject, x: Tensor | None = None, where: Tensor | None = None) -> Tensor:
    """Return which examples are classified rightly, `(n,)` of bool: as they are, or moved as in `classes_of`."""
    targets: Tensor = subject.targets if where is None else subject.targets[where]
    return classes_of(subject, x, where) == targets


def nameless(classes: Tensor) -> str:
    """Return a sentence that says how many examples name no class, "" if all do.

    >>> nameless(torch.tensor([1, -1]))
    '1 of 2 examples have outputs of nan and count as errors'
    """
    return _nameless(int((classes < 0).sum()), len(classes))


def _nameless(count: int, of: int, what: str = "examples") -> str:
    return f"{count} of {of} {what} have outputs of nan and count as errors" if count else ""


def percent(correct: Tensor) -> float:
    """Return the share of verdicts that are True, in percent.

    >>> percent(torch.tensor([True, True, False, True]))
    75.0
    """
    return 100 * int(correct.sum()) / correct.numel()


def check_classifier(subject: Subject) -> None:
    """Raise unless the model gives one logit a class and the targets are class numbers.

    Raises:
        UserError: naming the task.
    """
    task, targets, kind = subject.task, subject.targets, kind_of(subject)
    with torch.no_grad():
        shape = tuple(subject.outputs(subject.batch.first(1).inputs).shape[1:])
    if kind.pairs is None or kind.dense or not kind.fits((1, *shape), targets):
        raise UserError("accuracy needs a classification task with logits (n, classes) and class numbers "
                        f"(n,); the {task.kind} task {task.name!r} has outputs of shape {shape} an example "
                        f"and {targets.dtype} targets {tuple(targets.shape)}")
    check_examples(subject, every=False)


def calibration_error(logits: Tensor, targets: Tensor, bins: int = BINS) -> Tensor:
    """Return the expected calibration error of `logits` `(n, classes)`, in [0, 1], float64.

        ECE = Σ_b |B_b| / n · |acc(B_b) - conf(B_b)|

    over `bins` bins of equal width of the confidence, the largest softmax probability; a bin holds its upper
    edge. Guo et al. 2017, arXiv 1706.04599, section 2.

    >>> calibration_error(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    tensor(0., dtype=torch.float64)
    """
    return calibration_gaps(logits, targets, bins).abs().sum() / len(targets)


def calibration_gaps(logits: Tensor, targets: Tensor, bins: int = BINS) -> Tensor:
    """Return the sum of confidence less rightness over the examples of every bin, `(bins,)` of float64."""
    confidence, predicted = logits.double().softmax(1).max(1)
    surplus = confidence - (predicted == targets).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)[1:-1]
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gaps.index_add_(0, torch.bucketize(confidence, edges), surplus)
    return gaps
