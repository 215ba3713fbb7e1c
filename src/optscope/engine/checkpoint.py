"""Saved models: weights on disk become a snapshot, which any probe can look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optscope.engine.found_weights import misfit, named_as, read_weights
from optscope.engine.identity import describe, digest
from optscope.engine.run_folder import RunFolder
from optscope.engine.weights import from_files, load_into, to_files
from optscope.errors import UserError
from optscope.tasks.fresh import fresh_model, seeded
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.tasks.tree import Tree, mapped


def load_snapshot(task: Task, path: str | Path, *, seed: int | None = None) -> Snapshot:
    """Return the model of `task` with the weights saved at `path`.

    `path` is the folder of one run (`runs/<id>` in an output folder), which knows its seed, its steps and its
    batch, or a file or folder with a state dict in any of the ways that `found_weights` knows: .safetensors,
    `torch.save`, shards, a training's checkpoint, names with a prefix. No code of a file is run. `seed` seeds the
    random numbers of probes; without it, it is the run's, or 0. Adaptive rules' preconditioners are not saved:
    probes that need a live optimiser are taken during training, by `Watch`.

    Raises:
        UserError: when there are no such weights, they are another model's, or of another kind of number (whole,
            complex or true-false where the model has real ones, and so on) or too large for the model's type.
    """
    return found_at(task, path, seed=seed).snapshot


@dataclass(frozen=True)
class Found:
    """A saved model as a snapshot, its weights as they were found, and names of others `beside` it."""

    snapshot: Snapshot
    weights: Mapping[str, Any]
    beside: Sequence[str]

    @property
    def content(self) -> str:
        """A digest of the weights, wherever and however they were saved, and of what else a snapshot knows."""
        return digest([describe(dict(sorted(self.weights.items()))), self.snapshot.seed, self.snapshot.step])


def found_at(task: Task, path: str | Path, *, seed: int | None = None) -> Found:
    """Return what is saved at `path`, as `load_snapshot` finds it.

    Raises:
        UserError: as `load_snapshot`.
    """
    folder = RunFolder(Path(path))
    run: Mapping[str, Any] = folder.result() if folder.has_result() else {}
    seed = int(run.get("seed", 0)) if seed is None else seed
    model = fresh_model(task, seed)
    weights, beside = (folder.weights(), []) if run else named_as(
        read_weights(folder.path), model, folder.path)
    _load(model, weights, f"the weights in {path}", task, own=bool(run))
    return Found(Snapshot(model, task, seed, run.get("steps"), batch=run.get("batch")), weights, beside)


def check_kept(task: Task, model: nn.Module, seed: int, inputs: Tree | None = None) -> None:
    """Raise unless a trained `model` of `task` comes back from its files as it is.

    Its weights are written and read, into another model that starts from the same seed: every parameter and buffer
    must have the same value there, and for `inputs` the outputs in eval mode must be the same but for rounding.
    The model is left in eval mode.

    Raises:
        UserError: naming what would be lost.
    """
    try:
        weights = from_files(to_files(model.state_dict()))
    except UserError as error:
        raise UserError(f"{task.name}: {error}") from error
    except Exception as error:  # whatever the pickling of a user's object raises
        raise UserError(f"{task.name}: the model's state dict cannot be saved and read again "
                        f"({' '.join(str(error).split())[:200]}): keep tensors, numbers and text in it") from error
    other = fresh_model(task, seed)
    _load(other, weights, "the weights that training saved", task, own=True)
    mine, theirs = _values(model), _values(other)
    lost = [name for name, value in mine.items() if name not in theirs or not _same(value, theirs[name])]
    if lost:
        raise UserError(f"{task.name}: {', '.join(lost)} would be lost when the trained model is saved: keep all "
                        "that training changes in the state dict (buffers with persistent=True)")
    if inputs is not None and not _same_outputs(task, model.eval(), other.eval(), inputs):
        raise UserError(f"{task.name}: a saved model gives other outputs than the one that was trained: keep all "
                        "that training changes in parameters and buffers, not in other attributes")


def _load(model: nn.Module, weights: Mapping[str, Any], whose: str, task: Task, *, own: bool) -> None:
    """Load weights into a model; whatever its own code raises at that tells that they are not its."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and isinstance(weights.get(name), Tensor) and not _fits(weights[name], value):
            raise UserError(f"{whose} are not those of the model of {task.name!r}: {name} is "
                            f"{weights[name].dtype} there and {value.dtype} in the model, which cannot hold it: "
                            "convert it and save again")
    try:
        load_into(model, weights, own=own)
    except Exception as error:
        reason = misfit(weights, model) or " ".join(str(error).split())
        raise UserError(f"{whose} are not those of the model of {task.name!r}: {reason}") from error


def _fits(value: Tensor, own: Tensor) -> bool:
    """Return whether a value of one type is the same number in another, but for the rounding of real numbers."""
    if is_lazy(own) or value.dtype == own.dtype:
        return True
    if (value.is_floating_point(), value.is_complex()) != (own.is_floating_point(), own.is_complex()):
        return False
    there = value.to(own.dtype)
    if value.is_floating_point() or value.is_complex():
        return _same(value.isfinite(), there.isfinite())
    return torch.bool not in (value.dtype, own.dtype) and _same(value, there.to(value.dtype))


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, those outside the state dict included."""
    return {**dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False))}


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same numbers, those that are none included."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    a, b = (t.detach() if t.layout is torch.strided else t.detach().to_dense() for t in (a, b))
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _same_outputs(task: Task, model: nn.Module, other: nn.Module, inputs: Tree) -> bool:
    with torch.no_grad():
        outputs = []
        for each in (model, other):
            with seeded(0):
                outputs.append(task.outputs(each, mapped(torch.clone, inputs)))
    a, b = outputs
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return isinstance(a, Tensor) == isinstance(b, Tensor)
    rounding = 100 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
    scale = float(a.abs().max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0, atol=rounding * scale, equal_nan=True)
