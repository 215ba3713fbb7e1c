"""One look at a task's data before anything is trained, whether it is learned by one model or played for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from optscope.errors import UserError, blaming
from optscope.tasks.task import Data, Split, Task

KNOWN = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8,
         torch.int16, torch.int32, torch.int64)
"""The types that torch can order, pick from and compare."""
APART = 5.0
"""Parts that differ by this factor were probably not prepared alike."""


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
        _check_alike(task, name, part, data.train)
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
        _check_values(task, name, what, values)
    if task.kind == "classification":
        _check_class_numbers(task, name, part.targets)
    if task.bounds is None or name == "train":
        return
    low, high = float(part.inputs.min()), float(part.inputs.max())
    if low < task.bounds[0] or high > task.bounds[1]:
        raise UserError(f"{task.name}: inputs must lie in the bounds {task.bounds}; the {name} part's reach "
                        f"from {low:g} to {high:g}: put normalisation inside the model, or give other bounds "
                        "(None for unbounded)")


def _check_alike(task: Task, name: str, part: Split, train: Split) -> None:
    """Raise unless a part has the axes and types of the training part; the model decides about their lengths."""
    for what, one, other in (("inputs", train.inputs, part.inputs), ("targets", train.targets, part.targets)):
        if one.dim() != other.dim() or one.is_floating_point() != other.is_floating_point():
            raise UserError(f"{task.name}: the parts must be alike; the train part's {what} are {tuple(one.shape)} "
                            f"of {one.dtype}, the {name} part's {tuple(other.shape)} of {other.dtype}: prepare all "
                            "three by the same function")


def _check_values(task: Task, name: str, what: str, values: Tensor) -> None:
    if values.dtype not in KNOWN:
        raise UserError(f"{task.name}: the {name} part's {what} are {values.dtype}, which is neither measured nor "
                        "compared here: " + (
                            "write torch.view_as_real(...) and join the pairs again inside the model"
                            if values.is_complex() else "write .float()"))
    finite = torch.isfinite(values).flatten(1).all(1) if values.dim() > 1 else torch.isfinite(values)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten()
        raise UserError(f"{task.name}: the {name} part's {what} hold nan or inf in {len(bad)} of {len(finite)} "
                        f"examples, first at index {int(bad[0])} of that part; clean them first")


def _check_class_numbers(task: Task, name: str, labels: Tensor) -> None:
    """Raise where targets hold classes in another form than one whole number an example."""
    wide = labels.dim() > 1 and labels.flatten(1).shape[1] > 1
    if labels.dim() == 2 and wide and bool(((labels == 0) | (labels == 1)).all() & (labels.sum(1) == 1).all()):
        advice = "they are one-hot: write .argmax(1)"
    elif labels.dim() > 1 and not wide and not labels.is_floating_point():
        advice = "write .flatten()"
    elif labels.is_floating_point() and not wide and bool((labels == labels.round()).all()):
        advice = 'write .flatten().long() and give the model an output a class, or give kind="regression"'
    else:
        return
    raise UserError(f"{task.name}: classification needs whole-number labels (n,); the {name} part's are "
                    f"{tuple(labels.shape)} of {labels.dtype}: {advice}")


def overlap(data: Data) -> list[str]:
    """Return a sentence for each part of which more than one example in a hundred is in the training part too.

    Examples are the same when inputs and targets agree to the bit.
    """
    known, found = set(_rows(data.train)), []
    for name, use in (("validation", "chosen on"), ("test", "judged by")):
        part: Split = getattr(data, name)
        shared = sum(row in known for row in _rows(part))
        if shared > len(part) / 100:
            found.append(f"{shared} of the {len(part)} {name} examples are training examples too: what is {use} "
                         "them says little of new data.")
    return found


def scales(data: Data) -> list[str]:
    """Return a sentence for each part whose inputs lie on another scale than those of the training part.

    The scale is the mean distance from the mean of all training inputs; `APART` times as much or as little is told.
    Token ids and other whole numbers have none.
    """
    inputs, found = data.train.inputs, []
    middle = inputs.double().mean()
    usual = _spread(inputs, middle)
    if not inputs.is_floating_point() or not usual:
        return []
    for name in ("validation", "test"):
        ratio = float(_spread(getattr(data, name).inputs, middle) / usual)
        if ratio >= APART or ratio <= 1 / APART:
            found.append(f"the {name} part's inputs lie {ratio:.3g} times as far from the training inputs' mean as "
                         "these do: prepare all parts by the same function, with the training part's numbers.")
    return found


def _spread(inputs: Tensor, middle: Tensor) -> Tensor:
    return (inputs.double() - middle).abs().mean()


def _rows(part: Split) -> Iterator[bytes]:
    """Yield a digest of each example."""
    columns = (part.inputs, part.targets)
    flat = [values.reshape(len(part), -1).view(torch.uint8).numpy() for values in columns]
    for rows in zip(*flat, strict=True):
        yield hashlib.blake2b(b"".join(row.tobytes() for row in rows), digest_size=16).digest()


def _check_same(task: Task, name: str, part: Split, again: Split) -> None:
    if not (torch.equal(part.inputs, again.inputs) and torch.equal(part.targets, again.targets)):
        raise UserError(f"{task.name}: data() must return the same tensors each time; the {name} part differs "
                        "between two calls: draw with a torch.Generator().manual_seed(0) made inside it")
