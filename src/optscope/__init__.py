"""See what the choice of optimiser does to a trained model, beyond its loss curve."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optscope.engine.checkpoint import load_snapshot
    from optscope.engine.plan import Plan
    from optscope.engine.train import train
    from optscope.errors import UserError
    from optscope.lab import compare, probe, run_study
    from optscope.optim.rule import Rule
    from optscope.probes.probe import Probe
    from optscope.protocol.comparison import Arm
    from optscope.protocol.search import Grid, Halton, Random
    from optscope.protocol.settings import Settings
    from optscope.protocol.space import Choice, Log, Space, Uniform, half_decades
    from optscope.recorder import Recorder
    from optscope.tasks.snapshot import Snapshot
    from optscope.tasks.task import Task

_HOMES = {"Arm": "protocol.comparison", "Choice": "protocol.space", "Grid": "protocol.search",
          "Halton": "protocol.search", "Log": "protocol.space", "Plan": "engine.plan", "Probe": "probes.probe",
          "Random": "protocol.search", "Recorder": "recorder", "Rule": "optim.rule",
          "Settings": "protocol.settings", "Snapshot": "tasks.snapshot", "Space": "protocol.space",
          "Task": "tasks.task", "Uniform": "protocol.space", "UserError": "errors", "compare": "lab",
          "half_decades": "protocol.space", "load_snapshot": "engine.checkpoint", "probe": "lab",
          "run_study": "lab", "train": "engine.train"}
__all__ = ["Arm", "Choice", "Grid", "Halton", "Log", "Plan", "Probe", "Random", "Recorder", "Rule", "Settings",
           "Snapshot",
           "Space", "Task", "Uniform", "UserError", "compare", "half_decades", "load_snapshot", "probe",
           "run_study", "train"]


def __dir__() -> list[str]:
    """List the public names, of which none is imported for that."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import optscope` costs nothing."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("optscope")
    if name not in _HOMES:
        raise AttributeError(f"module 'optscope' has no attribute {name!r}")
    return getattr(importlib.import_module(f"optscope.{_HOMES[name]}"), name)
