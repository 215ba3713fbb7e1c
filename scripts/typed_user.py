"""What a user writes, with types: mypy --strict and pyright read it with the package as it is installed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optscope import Arm, Grid, Plan, Settings, Snapshot, Task, compare, train
from optscope.evidence.records import Records
from optscope.optim import SGD, Adam, Graft, Rule
from optscope.probes.accuracy import Accuracy


def model() -> nn.Module:
    """Return a fresh model."""
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))


def task() -> Task:
    """Return points in the unit square, told apart by a line."""
    points: Tensor = torch.rand(60, 2)
    sides = (points[:, 0] > points[:, 1]).long()
    return Task.from_tensors(model, (points, sides), (points, sides), name="sides")


def accuracies(seeds: int) -> dict[int, float]:
    """Compare two rules, and return the accuracy of one by seed."""
    rule: Rule = Graft(magnitude=Adam(lr=0.01), direction=SGD(lr=1.0))
    arms = [Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("graft", rule, Grid((0.01, 0.03)))]
    result = compare(task(), arms, settings=Settings(seeds=seeds, epochs=1))
    records: Records = result.records
    for claim, verdict in result.verdicts:
        print(claim.text, verdict.outcome, verdict.effect)
    return records.by_seed("graft", "accuracy")


def one() -> float:
    """Train once, and measure."""
    snapshot: Snapshot = train(task(), Adam(lr=0.01), Plan(epochs=1, batch=16), seed=1).snapshot
    value = Accuracy()(snapshot).values["accuracy"]
    assert isinstance(value, float)
    return value
