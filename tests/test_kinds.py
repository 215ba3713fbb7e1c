"""Every kind of task has the loss and the accuracy that a loop over its labels would give it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from optscope.errors import UserError
from optscope.probes.accuracy import Accuracy, Checkpoint, calibration_error
from optscope.tasks.kinds import KINDS
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Data, InMemory, Split, Task

G = torch.Generator().manual_seed(0)
N, T, C = 9, 5, 4


class Given(nn.Module):
    """Returns outputs that were drawn before, by the number that an example has for input."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, number):
        return self.outputs[number]


OUTPUTS = {"multi-label": (N, C), "segmentation": (N, C, 2, 3), "token-classification": (N, T, C),
           "causal-lm": (N, T, C)}
TARGETS = {"multi-label": torch.randint(2, (N, C), generator=G),
           "segmentation": torch.randint(C, (N, 2, 3), generator=G),
           "token-classification": torch.randint(C, (N, T), generator=G),
           "causal-lm": torch.randint(C, (N, T), generator=G)}
TARGETS["segmentation"][0, 0, 0], TARGETS["segmentation"][3, 1, 2] = 255, -100
TARGETS["token-classification"][2, 3:] = -100
TARGETS["causal-lm"][4, 1:3] = -100


def pairs(kind, outputs, targets):
    """Yield the logits of every label that counts, and the label, one by one."""
    if kind == "multi-label":
        for i, j in np.ndindex(N, C):
            yield torch.tensor([0.0, outputs[i, j]]).double(), int(targets[i, j])
    if kind == "segmentation":
        for i, y, x in np.ndindex(N, 2, 3):
            if targets[i, y, x] not in (255, -100):
                yield outputs[i, :, y, x].double(), int(targets[i, y, x])
    if kind == "token-classification":
        for i, t in np.ndindex(N, T):
            if targets[i, t] != -100:
                yield outputs[i, t].double(), int(targets[i, t])
    if kind == "causal-lm":
        for i, t in np.ndindex(N, T - 1):
            if targets[i, t + 1] != -100:
                yield outputs[i, t].double(), int(targets[i, t + 1])


def snapshot(kind, outputs, targets, **settings):
    part = Split(torch.arange(N), targets)
    task = Task(kind, lambda: Given(outputs), InMemory(Data(part, part, part)), kind=kind, bounds=None, **settings)
    return Snapshot(task.model(), task)


@pytest.mark.parametrize("most", [2**24, 45], ids=["at once", "in portions"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_loss_and_accuracy_are_those_of_a_loop_over_labels(kind, most, monkeypatch):
    monkeypatch.setattr("optscope.tasks.kinds.MOST", most)
    outputs, targets = 2 * torch.randn(OUTPUTS[kind], generator=G), TARGETS[kind]
    if kind == "multi-label":  # some examples without a wrong label
        outputs[:3] = outputs[:3].abs() * (2 * targets[:3] - 1)
    rows = list(pairs(kind, outputs, targets))
    loss = sum(float(-z.log_softmax(0)[y]) for z, y in rows) / len(rows)
    right = [int(z.argmax()) == y for z, y in rows]
    given = snapshot(kind, outputs, targets)
    found = Accuracy()(given)
    assert found.values["loss"] == pytest.approx(loss, rel=1e-6)
    assert found.values["accuracy"] == pytest.approx(100 * sum(right) / len(right), rel=1e-12)
    assert found.values["calibration error"] == pytest.approx(100 * float(calibration_error(
        torch.stack([z for z, _ in rows]), torch.tensor([y for _, y in rows]))), rel=1e-9)
    assert "correct" not in found.arrays
    if kind == "multi-label":
        whole = [bool(((outputs[i] > 0) == targets[i].bool()).all()) for i in range(N)]
        assert sum(whole) > 0
        assert found.values["exact match"] == pytest.approx(100 * sum(whole) / N)
    assert ("perplexity" in found.values) == (kind == "causal-lm")
    if kind == "causal-lm":
        assert found.values["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    kept = Checkpoint()(given).values
    assert kept["test loss at checkpoint"] == found.values["loss"]
    assert kept["validation accuracy at checkpoint"] == found.values["accuracy"]


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 20.0, 3.0, 0.1])], ids=["mean", "class weights"])
@pytest.mark.parametrize("held", [True, False])
def test_a_loss_that_is_no_mean_over_labels_is_that_of_all_or_said_to_be_of_parts(held, weight, monkeypatch):
    monkeypatch.setattr("optscope.tasks.kinds.MOST", 45)
    monkeypatch.setattr("optscope.probes.accuracy.MOST", 2**24 if held else 45)
    kind = "token-classification"
    outputs = 2 * torch.randn(OUTPUTS[kind], generator=G)

    def loss(z, tags):
        return functional.cross_entropy(z.transpose(1, 2), tags, weight)

    given = snapshot(kind, outputs, TARGETS[kind], loss=loss)
    for probe, name in ((Accuracy(), "loss"), (Checkpoint(), "test loss at checkpoint")):
        found = probe(given)
        right = found.values[name] == pytest.approx(float(loss(outputs, TARGETS[kind])), rel=1e-6)
        assert right == (held or weight is None)
        assert ("the mean of that of 2 at a time, and of all at once another" in found.silence) == (not right)


def test_the_usual_losses_are_those_of_torch():
    outputs = {kind: torch.randn(shape, generator=G) for kind, shape in OUTPUTS.items()}
    tags, masks, words = (TARGETS[kind] for kind in ("token-classification", "segmentation", "causal-lm"))
    twins = {
        "multi-label": nn.BCEWithLogitsLoss()(outputs["multi-label"], TARGETS["multi-label"].float()),
        "segmentation": functional.cross_entropy(outputs["segmentation"], masks.where(masks != 255, -100)),
        "token-classification": functional.cross_entropy(outputs["token-classification"].transpose(1, 2), tags),
        "causal-lm": functional.cross_entropy(outputs["causal-lm"][:, :-1].transpose(1, 2), words[:, 1:])}
    for kind, twin in twins.items():
        torch.testing.assert_close(KINDS[kind].loss(outputs[kind], TARGETS[kind]), twin)
        torch.testing.assert_close(KINDS[kind].loss(outputs[kind], TARGETS[kind].short()), twin)


def test_a_class_255_counts_where_there_are_so_many():
    outputs = torch.randn(2, 300, 2, generator=G)
    labels = torch.tensor([[255, 3], [7, -100]])
    loss = functional.cross_entropy(outputs, labels)
    torch.testing.assert_close(KINDS["segmentation"].loss(outputs, labels), loss)


def test_outputs_of_nan_are_errors_and_leave_no_loss():
    outputs = torch.randn(OUTPUTS["causal-lm"], generator=G)
    outputs[1, 0, 0] = 77.0
    given = snapshot("causal-lm", outputs, TARGETS["causal-lm"],
                     output=lambda found: found.masked_fill(found == 77, torch.nan))
    found = Accuracy()(given)
    assert set(found.values) == {"accuracy"}
    right = [int(z.argmax()) == y and 77.0 not in z for z, y in pairs("causal-lm", outputs, TARGETS["causal-lm"])]
    assert found.values["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert found.silence == ("1 of 34 labels have outputs of nan and count as errors: there is no loss and no "
                             "calibration error and no perplexity")


def test_where_no_label_counts_there_is_no_accuracy():
    given = snapshot("token-classification", torch.zeros(N, T, C), torch.full((N, T), -100),
                     loss=lambda z, y: z.square().mean())
    with pytest.raises(UserError, match="no label of the 'token-classification' examples counts"):
        Accuracy()(given)


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(UserError, match=r"kinds classification, .*; 'segment' is of the kind 'segment'"):
        Accuracy()(snapshot("segment", torch.zeros(N, C), torch.zeros(N).long()))


def test_inputs_by_name_are_measured():
    part = Split({"number": torch.arange(N)}, torch.arange(N) % C)
    task = Task("tree", lambda: Given(torch.randn(N, C)), InMemory(Data(part, part, part)), bounds=None)
    assert set(Accuracy()(Snapshot(task.model(), task)).values) == {"accuracy", "loss", "calibration error"}


@pytest.mark.parametrize("kind", ["segmentation", "token-classification", "causal-lm"])
def test_a_batch_in_which_no_label_counts_moves_nothing(kind):
    outputs = torch.randn(OUTPUTS[kind], generator=G).requires_grad_()
    loss = KINDS[kind].loss(outputs, torch.full_like(TARGETS[kind], -100))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not bool(outputs.grad.any())
