"""A task so small that a run takes milliseconds, shared by tests of the engine and of everything above it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from optscope import cli
from optscope.engine.executor import Executor, Outcome
from optscope.engine.work import Work
from optscope.evidence.records import Record, measured
from optscope.tasks.task import Data, Split, Task


@dataclass(frozen=True)
class Blobs:
    """Three Gaussian clouds in [0, 1]^2, as many examples as asked for."""

    examples: int = 96

    def __call__(self) -> Data:
        g = torch.Generator().manual_seed(0)
        labels = torch.arange(3 * self.examples) % 3
        centres = torch.tensor([[0.2, 0.2], [0.8, 0.3], [0.5, 0.8]])
        inputs = (centres[labels] + 0.08 * torch.randn(len(labels), 2, generator=g)).clamp(0, 1)
        n = self.examples
        return Data(*(Split(inputs[i * n:(i + 1) * n], labels[i * n:(i + 1) * n]) for i in range(3)))


@dataclass(frozen=True)
class Net:
    """Two inputs, one hidden layer with dropout, three classes."""

    width: int = 8

    def __call__(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, self.width), nn.ReLU(), nn.Linear(self.width, 3))


TASK = Task("blobs", Net(), Blobs())


def kill_once(marker: str) -> tuple[list[Record], dict[str, object]]:
    """Kill this process the first time, then give a row."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [measured("a", 0, "alive", 1.0)], {}


def kill_always() -> tuple[list[Record], dict[str, object]]:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return [], {}


def fail() -> tuple[list[Record], dict[str, object]]:
    """Raise."""
    raise ZeroDivisionError("on purpose")


def succeed(value: float) -> tuple[list[Record], dict[str, object]]:
    """Give a row."""
    return [measured("a", 0, "value", value)], {}


def ended(executor: Executor, works: Sequence[Work], folder: Path) -> list[Outcome]:
    """Do pieces of work below a folder and return how they ended."""
    return [report for report in executor.run(works, folder) if isinstance(report, Outcome)]


def call(monkeypatch, argv: str) -> object:
    """Run the command `optscope argv` here and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["optscope", *argv.split()])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0
