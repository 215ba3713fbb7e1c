"""How well a model does on clean data: accuracy with its interval, loss, and calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.evidence.records import Direction, Metric
from optscope.evidence.stats import wilson
from optscope.probes.probe import Probe, Reading, Subject, check_examples, in_batches

BINS = 15


@dataclass(frozen=True, repr=False)
class Accuracy(Probe):
    """Measure accuracy (percent), loss, and the expected calibration error (points) on the clean inputs.

    The loss is the task's own. Regression tasks have only the loss. An output of nan names no class and counts as
    an error; where there is one, there is no loss and no calibration error, and `silence` says so. Arrays:
    "correct", one verdict an example (bool), and "accuracy interval", the 95 % Wilson interval in percent (low,
    high).
    """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, loss and calibration error."""
        return (
            Metric("accuracy", "%", "higher", "examples that are classified rightly"),
            Metric("loss", "", "lower", "the task's loss, mean over the examples"),
            Metric("calibration error", "points", "lower", f"confidence against accuracy in {BINS} bins"),
        )

    def measure(self, subject: Subject) -> Reading:
        """Measure on all inputs, in one pass."""
        task = subject.snapshot.task
        (check_classifier if task.kind == "classification" else check_examples)(subject)
        outputs = in_batches(subject.model, subject.inputs)
        loss = float(subject.loss(outputs, subject.targets))
        if task.kind == "regression":
            return Reading({"loss": loss})
        others = {"loss": loss, "calibration error": 100 * calibration_error(outputs, subject.targets)}
        silence = nameless(classes := named(outputs))
        if any(map(math.isnan, others.values())):
            silence = f"{silence or 'some outputs are infinite'}: there is no {' and no '.join(others)}"
            others = {}
        correct = classes == subject.targets
        interval = wilson(int(correct.sum()), len(correct))
        return Reading({"accuracy": percent(correct), **others},
                       {"correct": correct.cpu().numpy(),
                        "accuracy interval": 100 * np.array([interval.low, interval.high])}, silence)


@dataclass(frozen=True, repr=False)
class Checkpoint(Probe):
    """Measure validation and test side by side, so that the test value at the best validation moment can be read.

    Watched during training, it stands for keeping the checkpoint that does best on validation data: later choices
    may look at the validation metrics alone. Accuracies are in percent, and left out of regression. `examples`
    bounds the test part; `split` has no say.
    """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Loss and accuracy of both parts."""
        return tuple(Metric(f"{part} {name} at checkpoint", unit, better) for part in ("validation", "test")
                     for name, unit, better in _METRICS)

    def measure(self, subject: Subject) -> Reading:
        """Measure the whole validation part, and the first `examples` of the test part."""
        task = subject.snapshot.task
        data = task.data()
        values, reasons = {}, []
        for part, split in (("validation", data.validation), ("test", data.test.first(self.examples))):
            outputs = in_batches(subject.model, split.inputs)
            loss = float(subject.loss(outputs, split.targets))
            if math.isnan(loss):
                reasons.append(f"the {part} loss is nan, as outputs are, which count as errors")
            else:
                values[f"{part} loss at checkpoint"] = loss
            if task.kind == "classification":
                values[f"{part} accuracy at checkpoint"] = percent(named(outputs) == split.targets)
        return Reading(values, silence=" and ".join(reasons))


_METRICS: tuple[tuple[str, str, Direction], ...] = (("accuracy", "%", "higher"), ("loss", "", "lower"))


def named(logits: Tensor) -> Tensor:
    """Return the classes that logits `(n, classes)` name, `(n,)`; -1 where one is nan: those name none.

    >>> named(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]))
    tensor([ 1, -1])
    """
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


def classes_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the classes that a model names, `(n,)`; -1 for none."""
    return in_batches(lambda x: named(model(x)), inputs)


def verdicts(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return which of `inputs` `(n, ...)` are classified rightly, `(n,)` of bool."""
    return classes_of(model, inputs) == targets


def nameless(classes: Tensor) -> str:
    """Return a sentence that says how many examples name no class, "" if all do.

    >>> nameless(torch.tensor([1, -1]))
    '1 of 2 examples have outputs of nan and count as errors'
    """
    count = int((classes < 0).sum())
    return f"{count} of {len(classes)} examples have outputs of nan and count as errors" if count else ""


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
    task, targets = subject.snapshot.task, subject.targets
    with torch.no_grad():
        shape = tuple(subject.model(subject.inputs[:1]).shape[1:])
    if task.kind != "classification" or len(shape) != 1 or targets.ndim != 1 or targets.is_floating_point():
        raise UserError("accuracy needs a classification task with logits (n, classes) and class numbers "
                        f"(n,); the {task.kind} task {task.name!r} has outputs of shape {shape} an example "
                        f"and {targets.dtype} targets {tuple(targets.shape)}")
    check_examples(subject, every=False)


def calibration_error(logits: Tensor, targets: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error of `logits` `(n, classes)`, in [0, 1].

        ECE = Σ_b |B_b| / n · |acc(B_b) - conf(B_b)|

    over `bins` bins of equal width of the confidence, the largest softmax probability; a bin holds its upper
    edge. Guo et al. 2017, arXiv 1706.04599, section 2.

    >>> calibration_error(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    0.0
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    surplus = confidence - (predicted == targets).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)[1:-1]
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gaps.index_add_(0, torch.bucketize(confidence, edges), surplus)
    return float(gaps.abs().sum()) / len(targets)
