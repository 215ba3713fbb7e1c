"""One look at a task's data before anything is trained, whether it is learned by one model or played for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from optscope.errors import UserError, blaming
from optscope.tasks.content import octets
from optscope.tasks.examples import Examples
from optscope.tasks.kinds import KINDS
from optscope.tasks.task import Data, DataAtHand, Split, Task
from optscope.tasks.tree import leaf_name, leaves, pieces, same

KNOWN = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8,
         torch.int16, torch.int32, torch.int64)
"""The types that torch can order, pick from and compare."""
LOOKS = 512
"""How many examples of a training part that is not in memory are looked at."""
APART = 5.0
"""Parts that differ by this factor were probably not prepared alike."""


def check_data(task: Task) -> DataAtHand:
    """Return the data of a task, if they load, the same each time, are finite, and lie inside the bounds.

    Training inputs may leave the bounds, as filtered ones do. Of a training part that is not in memory some
    examples are looked at, and returned.

    Raises:
        UserError: naming the first of these that is not so.
    """
    _check_bounds(task)
    with blaming(task.name, "its data"):
        data, again = task.data(), task.data()
    for each in (data, again):
        parts = vars(each) if isinstance(each, Data) else {}
        if not parts or not all(isinstance(part, Examples) for part in parts.values()):
            raise UserError(f"{task.name}: data() must return Data(train, validation, test), each a Split of "
                            f"inputs and targets; got {type(each).__name__}: Task.from_tensors makes them")
        for name in ("validation", "test"):
            if not isinstance(parts[name], Split):
                raise UserError(f"{task.name}: the {name} part is measured again and again, and must be in memory: "
                                f"write Split.of(...), or of {type(parts[name]).__name__} "
                                "Split.of_batch(examples.first(n))")
    with blaming(task.name, "its data"):
        found, other = data.at_hand(LOOKS), again.at_hand(LOOKS)
    for name, part in vars(found).items():
        _check_alike(task, name, part, found.train)
        _check_part(task, name, part)
        _check_same(task, name, part, getattr(other, name))
    return found


def _check_bounds(task: Task) -> None:
    bounds = task.bounds
    numbers = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(
        isinstance(end, (int, float)) and math.isfinite(end) for end in bounds)
    if bounds is not None and not (numbers and bounds[0] < bounds[1]):
        raise UserError(f"{task.name}: bounds must be the lowest and the highest value that inputs may have, two "
                        f"finite numbers such as (0.0, 1.0), or None; got {bounds!r}")


def _check_part(task: Task, name: str, part: Split) -> None:
    path, values = _bounded(task, name, part)
    for what, tree in (("inputs", part.inputs), ("targets", part.targets)):
        for each, leaf in leaves(tree).items():
            _check_values(task, name, leaf_name(what, each), leaf)
    if isinstance(part.targets, Tensor):
        if task.kind == "classification":
            _check_class_numbers(task, name, part.targets)
    elif task.kind in KINDS and KINDS[task.kind].pairs is not None:
        raise UserError(f"{task.name}: the targets of {task.kind} are one tensor; the {name} part's are "
                        f'{", ".join(leaves(part.targets))}: give one of them, or kind="regression" and a loss of '
                        "them")
    if task.bounds is None or values is None or name == "train":
        return
    low, high = float(values.min()), float(values.max())
    if low < task.bounds[0] or high > task.bounds[1]:
        raise UserError(f"{task.name}: {leaf_name('inputs', path)} must lie in the bounds {task.bounds}; the "
                        f"{name} part's reach "
                        f"from {low:g} to {high:g}: put normalisation inside the model, or give other bounds "
                        "(None for unbounded)")


def _bounded(task: Task, name: str, part: Split) -> tuple[str, Tensor | None]:
    """Return the path and values of the leaf that attacks and noise act on; None, where no leaf is floating point.

    Raises:
        UserError: when it is not there, not floating point, or one of several and not named.
    """
    found = leaves(part.inputs)
    if task.perturb is not None and task.perturb not in found:
        there = f"{', '.join(found)}: name one of them" if "" not in found else "a bare tensor: leave perturb out"
        raise UserError(f'{task.name}: perturb="{task.perturb}" names no leaf of the inputs; the {name} part has '
                        f"{there}")
    path = task.perturbed(part.inputs)
    if path is None and "" in found and task.bounds is not None:
        raise UserError(f"{task.name}: inputs must be floating point where they have bounds; the {name} "
                        f"part's are {found[''].dtype}: for images in bytes write .float() / 255; "
                        "for token ids, and all that counts or names, bounds=None (attacks and noise are then not "
                        "measured)")
    floating = [each for each, leaf in found.items() if leaf.is_floating_point()]
    if path is None and floating and task.bounds is not None:
        raise UserError(f"{task.name}: bounds are of one leaf of the inputs, but {', '.join(floating)} are "
                        f'floating point: write perturb="{floating[0]}", or bounds=None (attacks and noise are '
                        "then not measured)")
    if path is not None and not found[path].is_floating_point():
        raise UserError(f'{task.name}: perturb="{path}" must name a leaf that is floating point; the {name} '
                        f"part\'s is {found[path].dtype}: " + (f'write perturb="{floating[0]}"' if floating else
                                                                "leave it out, with bounds=None"))
    if path is not None and task.bounds is not None and not found[path].numel():
        raise UserError(f"{task.name}: {leaf_name('inputs', path)} of the {name} part, of shape "
                        f"{tuple(found[path].shape)}, hold no number that could have bounds: name another leaf, "
                        "perturb=..., or give bounds=None (attacks and noise are then not measured)")
    return path or "", None if path is None else found[path]


def _check_alike(task: Task, name: str, part: Split, train: Split) -> None:
    """Raise unless a part has the axes and types of the training part; the model decides about their lengths."""
    for what, known, found in (("inputs", leaves(train.inputs), leaves(part.inputs)),
                               ("targets", leaves(train.targets), leaves(part.targets))):
        if known.keys() != found.keys():
            raise UserError(f"{task.name}: the parts must be alike; the train part's {what} have the leaves "
                            f"{', '.join(known)}, the {name} part's {', '.join(found)}: prepare all three by the "
                            "same function")
        for path, one in known.items():
            other = found[path]
            if one.dim() != other.dim() or one.is_floating_point() != other.is_floating_point():
                raise UserError(f"{task.name}: the parts must be alike; the train part's {leaf_name(what, path)} "
                                f"are {tuple(one.shape)} of {one.dtype}, the {name} part's {tuple(other.shape)} of "
                                f"{other.dtype}: prepare all three by the same function")


def _check_values(task: Task, name: str, what: str, values: Tensor) -> None:
    if values.dtype not in KNOWN:
        raise UserError(f"{task.name}: the {name} part's {what} are {values.dtype}, which is neither measured nor "
                        "compared here: " + (
                            "write torch.view_as_real(...) and join the pairs again inside the model"
                            if values.is_complex() else "write .float()"))
    finite = torch.cat(list(map(_finite, pieces(values))))
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten()
        raise UserError(f"{task.name}: the {name} part's {what} hold nan or inf in {len(bad)} of {len(finite)} "
                        f"examples, first at index {int(bad[0])} of that part; clean them first")


def _finite(values: Tensor) -> Tensor:
    """Return which examples are finite, `(n,)`: all are where their sum is, which takes a tenth of the time."""
    if values.is_floating_point() and math.isfinite(values.sum()):
        return torch.ones(len(values), dtype=torch.bool)
    return torch.isfinite(values).reshape(len(values), -1).all(1)


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

    Examples are the same when inputs and targets agree to the bit. Of a training part that is not in memory nobody
    knows.
    """
    if not isinstance(data.train, Split):
        return []
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
    found = []
    for path, inputs in leaves(data.at_hand(LOOKS).train.inputs).items():
        if not inputs.is_floating_point():
            continue
        middle = sum(float(part.sum(dtype=torch.float64)) for part in pieces(inputs)) / inputs.numel()
        usual = _spread(inputs, middle)
        for name in ("validation", "test") if usual else ():
            ratio = _spread(leaves(getattr(data, name).inputs)[path], middle) / usual
            if ratio >= APART or ratio <= 1 / APART:
                found.append(f"the {name} part's {leaf_name('inputs', path)} lie {ratio:.3g} times as far from the "
                             "training inputs' mean as these do: prepare all parts by the same function, with the "
                             "training part's numbers.")
    return found


def _spread(inputs: Tensor, middle: float) -> float:
    return sum(float((part - middle).abs().sum(dtype=torch.float64)) for part in pieces(inputs)) / inputs.numel()


def _rows(part: Split) -> Iterator[bytes]:
    """Yield a digest of each example."""
    columns = (*leaves(part.inputs).values(), *leaves(part.targets).values())
    flat = [octets(values).reshape(len(part), -1) for values in columns]
    for rows in zip(*flat, strict=True):
        yield hashlib.blake2b(b"".join(row.tobytes() for row in rows), digest_size=16).digest()


def _check_same(task: Task, name: str, part: Split, again: Split) -> None:
    if not (same(part.inputs, again.inputs) and same(part.targets, again.targets)):
        raise UserError(f"{task.name}: data() must return the same tensors each time; the {name} part differs "
                        "between two calls: draw with a torch.Generator().manual_seed(0) made inside it")
