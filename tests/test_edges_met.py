"""Trainings in full batches hover where their rule's stability threshold is printed, P moving as it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from optscope import Plan, Task, train
from optscope.optim import SOAP, AdamW, ByKind, Lion, Shampoo
from optscope.probes.edge import EdgeOfStability


def waves() -> Task:
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    y = torch.sin(6 * x[:, :1]) * torch.cos(4 * x[:, 1:])

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    return Task.from_tensors(network, (x, y), (x, y), validation=(x, y), kind="regression", bounds=None)


@pytest.mark.parametrize(("rule", "low", "high"), [
    (Shampoo(0.1), 0.9, 1.15), (SOAP(0.003), 0.8, 1.1), (Lion(0.001), 0.7, 1.4),
    (ByKind(matrices=SOAP(0.003), rest=AdamW(0.003)), 0.85, 1.15)], ids=repr)
def test_full_batch_training_hovers_at_the_printed_threshold(rule, low, high):
    found: list[float] = []
    train(waves(), rule, Plan(epochs=800, batch=200), seed=1, at=range(500, 801, 20),
          watch=lambda snapshot: found.append(EdgeOfStability()(snapshot).values["sharpness / threshold"]))
    assert low < np.median(found) < high
