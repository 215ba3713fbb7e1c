"""The networks that bars measure, trained by torch's own Adam."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from optscope.tasks.task import Task


def trained(task: Task, steps: int, batch: int = 128) -> nn.Module:
    """Return a task's model after some steps on random batches, in eval mode."""
    torch.manual_seed(0)
    model, train = task.model(), task.data().train
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        some = torch.randint(len(train), (batch,))
        optimizer.zero_grad()
        cross_entropy(model(train.inputs[some]), train.targets[some]).backward()
        optimizer.step()
    return model.eval()
