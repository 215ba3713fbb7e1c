"""A snapshot is one model at one moment of its training: what training hands out and probes look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optscope.optim.rule import Rule
from optscope.tasks.task import Task


@dataclass(frozen=True)
class Snapshot:
    """One model at one moment of its training.

    `seed` seeds the randomness of probes, so that arms which share a seed see the same noise. `step` counts
    the steps made; `losses` holds the training loss of each of them, `(step,)`, in games of each player,
    `(step, players)`. `batch` is how many examples a step sees. `from_seed` says whether these steps began at the
    model that the task makes of the seed, as they do in all trainings but those of somebody else's loop.
    """

    model: nn.Module
    task: Task
    seed: int = 0
    step: int | None = None
    rule: Rule | None = None
    optimizer: torch.optim.Optimizer | None = None
    losses: Tensor | None = None
    batch: int | None = None
    from_seed: bool = True
