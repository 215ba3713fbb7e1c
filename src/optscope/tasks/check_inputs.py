"""One look at a task's data before anything is trained, whether it is learned by one model or played for."""

from __future__ import annotations

import math

import torch

from optscope.errors import UserError, blaming
from optscope.tasks.task import Data, Split, Task


def check_data(task: Task) -> Data:
    """Return the data of a task, if they load, the same each time, are finite, and lie inside the bounds.

    Training inputs may leave the bounds, as filtered ones do.

    Raises:
        UserError: naming the first of these that is not so.
    """
    _check_bounds(task)
    with blaming(task.name, "its data"):
        data, again = task.data(), task.data()
    for each in (data, again):
        parts = vars(each) if isinstance(each, Data) else {}
        if not parts or not all(isinstance(part, Split) for part in parts.values()):
            raise UserError(f"{task.name}: data() must return Data(train, validation, test), each a Split of "
                            f"inputs and targets; got {type(each).__name__}: Task.from_tensors makes them")
    for name, part in vars(data).items():
        _check_part(task, name, part)
        _check_same(task, name, part, getattr(again, name))
    return data


def _check_bounds(task: Task) -> None:
    bounds = task.bounds
    numbers = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(
        isinstance(end, (int, float)) and math.isfinite(end) for end in bounds)
    if bounds is not None and not (numbers and bounds[0] < bounds[1]):
        raise UserError(f"{task.name}: bounds must be the lowest and the highest value that inputs may have, two "
                        f"finite numbers such as (0.0, 1.0), or None; got {bounds!r}")


def _check_part(task: Task, name: str, part: Split) -> None:
    if task.bounds is not None and not part.inputs.is_floating_point():
        raise UserError(f"{task.name}: inputs must be floating point where they have bounds; the {name} "
                        f"part's are {part.inputs.dtype}: for images in bytes write .float() / 255; "
                        "for token ids, and all that counts or names, bounds=None (attacks and noise are then not "
                        "measured)")
    for what, values in (("inputs", part.inputs), ("targets", part.targets)):
        if not bool(torch.isfinite(values).all()):
            raise UserError(f"{task.name}: the {name} part's {what} hold nan or inf; clean them first")
    if task.bounds is None or name == "train":
        return
    low, high = float(part.inputs.min()), float(part.inputs.max())
    if low < task.bounds[0] or high > task.bounds[1]:
        raise UserError(f"{task.name}: inputs must lie in the bounds {task.bounds}; the {name} part's reach "
                        f"from {low:g} to {high:g}: put normalisation inside the model, or give other bounds "
                        "(None for unbounded)")


def _check_same(task: Task, name: str, part: Split, again: Split) -> None:
    if not (torch.equal(part.inputs, again.inputs) and torch.equal(part.targets, again.targets)):
        raise UserError(f"{task.name}: data() must return the same tensors each time; the {name} part differs "
                        "between two calls: draw with a torch.Generator().manual_seed(0) made inside it")
