"""One look at a task's data before anything is trained, whether it is learned by one model or played for."""

from __future__ import annotations

import torch

from optscope.errors import UserError
from optscope.tasks.task import Data, Split, Task


def check_inputs(task: Task, name: str, part: Split) -> None:
    """Raise unless a part's inputs and targets are finite, and its inputs floats inside the bounds."""
    if task.bounds is not None and not part.inputs.is_floating_point():
        raise UserError(f"{task.name}: inputs must be floating point; the {name} part's are "
                        f"{part.inputs.dtype}: convert them, for example with .float() / 255")
    for what, values in (("inputs", part.inputs), ("targets", part.targets)):
        if not bool(torch.isfinite(values).all()):
            raise UserError(f"{task.name}: the {name} part's {what} hold nan or inf; clean them first")
    low, high = float(part.inputs.min()), float(part.inputs.max())
    if task.bounds and name != "train" and (low < task.bounds[0] or high > task.bounds[1]):
        raise UserError(f"{task.name}: inputs must lie in the bounds {task.bounds}; the {name} part's reach "
                        f"from {low:g} to {high:g}: put normalisation inside the model, or give other bounds "
                        "(None for unbounded)")


def check_same(task: Task, data: Data, again: Data) -> None:
    """Raise unless two calls of data() gave the same tensors."""
    for name, part in vars(data).items():
        other: Split = getattr(again, name)
        if not (torch.equal(part.inputs, other.inputs) and torch.equal(part.targets, other.targets)):
            raise UserError(f"{task.name}: data() must return the same tensors each time; the {name} part differs "
                            "between two calls: draw with a torch.Generator().manual_seed(0) made inside it")
