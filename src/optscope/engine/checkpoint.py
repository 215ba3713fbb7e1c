"""Saved models: weights on disk become a snapshot, which any probe can look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from optscope.engine.store import RunFolder
from optscope.errors import UserError
from optscope.tasks.fresh import fresh_model
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task


def load_snapshot(task: Task, path: str | Path, *, seed: int | None = None) -> Snapshot:
    """Return the model of `task` with the weights saved at `path`.

    `path` is the folder of one run (`runs/<id>` in an output folder), which knows its seed and its steps, or a file
    that holds a state dict: a .safetensors file, or what `torch.save(model.state_dict(), path)` wrote. `seed` seeds
    the random numbers of probes; without it, it is the run's, or 0. Adaptive rules' preconditioners are not saved:
    probes that need a live optimiser are taken during training, by `Watch`.

    Raises:
        UserError: when there are no such weights, or they are another model's.
    """
    folder = RunFolder(Path(path))
    run: Mapping[str, Any] = folder.result() if folder.has_result() else {}
    weights = folder.weights() if run else _state_dict(folder.path)
    seed = int(run.get("seed", 0)) if seed is None else seed
    model = fresh_model(task, seed)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the weights in {path} are not those of the model of {task.name!r}: {reason}") from error
    return Snapshot(model, task, seed, run.get("steps"))


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no weights at {path}: give a run's folder (out/runs/<id>), a .safetensors file, or one "
                        "written by torch.save(model.state_dict(), path)")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # of bytes that are no checkpoint, the unpickler raises whatever they lead it to
        raise UserError(f"{path} cannot be read as weights ({type(error).__name__}): write it by "
                        "torch.save(model.state_dict(), path) or safetensors") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} must hold a state dict, tensors by name; got {type(found).__name__}: write it by "
                        "torch.save(model.state_dict(), path)")
    return found
