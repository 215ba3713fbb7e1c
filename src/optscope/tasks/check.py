"""One look at a task before anything is trained: whether it does what a comparison needs."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.errors import UserError, nearest
from optscope.tasks.check_game import check_game
from optscope.tasks.check_inputs import check_data
from optscope.tasks.check_loss import check_loss, value_of
from optscope.tasks.check_model import check_factory, check_outputs, forward
from optscope.tasks.fresh import seeded
from optscope.tasks.kinds import BATCH, IGNORED, KINDS, Kind, counted, portion
from optscope.tasks.task import DataAtHand, Split, Task
from optscope.tasks.tree import leaves


@singledispatch
def check_task(task: Task) -> None:
    """Raise unless the task can be trained and measured.

    Its data load, the same each time; inputs and targets are finite, inputs inside the bounds and float (whole
    numbers will do where there are no bounds); the model is a new one each time, a function of the seed, with
    parameters; in eval mode its outputs are a function of each example alone, finite for every example of every
    part; labels lie within the classes, and regression targets are shaped like the outputs, or hold another number
    of values that the loss makes sense of; the loss is one finite number, a function of outputs and targets, that
    can move the parameters and depends on no others.

    Raises:
        UserError: naming the first of these that is not so.
    """
    if task.kind not in KINDS:
        raise UserError(f'{task.name}: kind must be one of {", ".join(KINDS)} (which stands for every other loss); '
                        f'got "{task.kind}", {nearest(str(task.kind).lower(), KINDS)}')
    if not callable(task.loss):
        raise UserError(f"{task.name}: loss must be a function loss(outputs, targets) or None; got {task.loss!r}: "
                        "a loss that the model computes itself from the targets is the usual one of its kind, so "
                        "leave loss out")
    if not (task.output is None or isinstance(task.output, str) or callable(task.output)):
        raise UserError(f'{task.name}: output must be the name of a field, as "logits" or "0", or a function of '
                        f"what the model returns; got {task.output!r}")
    data = check_data(task)
    model = check_factory(task.name, "the model", task.model)
    with seeded(0):
        outputs = check_outputs(task, model, data.train)
        _check_parts(task, model, data)
        check_loss(task, model, data.train, outputs)


check_task.register(check_game)


def _check_parts(task: Task, model: nn.Module, data: DataAtHand) -> None:
    """Send every part through the model as probes do, and look at its targets and its loss."""
    kind = KINDS[task.kind]
    for name, part in vars(data).items():
        one = forward(task, model, part.first(1).inputs, name)
        if task.kind == "classification":
            _check_labels(task, name, part, one)
        elif kind.pairs is None:
            _check_shape(task, model, name, part, one)
        elif not kind.fits(tuple(one.shape), part.targets):
            raise UserError(f"{task.name}: {task.kind} needs {kind.needs}; got outputs of shape "
                            f"{tuple(one.shape[1:])} an example and {name} targets {tuple(part.targets.shape)} of "
                            f"{part.targets.dtype}")
        if kind.dense:
            _check_many(task, kind, model, name, part, portion(one))
        else:
            outputs = torch.cat([forward(task, model, batch.inputs, name) for batch in part.split(BATCH)])
            value_of(task, model, outputs, part)
    labels = data.train.targets
    if task.kind == "classification" and bool((labels == labels[0]).all()):
        raise UserError(_one_class(task, int(labels[0])))


def _one_class(task: Task, label: int) -> str:
    return (f"{task.name}: all labels of the train part are {label}, so there is nothing to learn: give examples "
            "of two classes or more")


def _check_many(task: Task, kind: Kind, model: nn.Module, name: str, part: Split, size: int) -> None:
    """Look at examples with many labels each, `size` at a time: all outputs at once may be too many."""
    assert kind.pairs is not None
    found: set[int] = set()
    for batch in part.split(size):
        outputs = forward(task, model, batch.inputs, name)
        logits, labels = counted(*kind.pairs(outputs, batch.targets))
        if not len(labels):
            continue
        low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
        if kind.exact and bool(((batch.targets != 0) & (batch.targets != 1)).any()):
            raise UserError(f"{task.name}: targets of {task.kind} must be 0 or 1, one for each label; the {name} "
                            f"part's reach from {float(batch.targets.min()):g} to {float(batch.targets.max()):g}")
        if low < 0 or high >= classes:
            raise UserError(f"{task.name}: labels must lie in 0 … {classes - 1} (the model has {classes} outputs), "
                            f"or be {IGNORED} where they do not count; the {name} part's reach from {low} to "
                            f"{high}")
        found |= {low, high}
        value_of(task, model, outputs, batch)
    if not found:
        raise UserError(f"{task.name}: no label of the {name} part counts; those of {IGNORED} do not")
    if name == "train" and len(found) == 1:
        raise UserError(_one_class(task, found.pop()))


def _check_labels(task: Task, name: str, part: Split, outputs: Tensor) -> None:
    labels, kind = part.targets, KINDS["classification"]
    if not kind.fits(tuple(outputs.shape), labels):
        others = [other for other, each in KINDS.items() if each.pairs and each.fits(tuple(outputs.shape), labels)]
        also = f'kind="{others[0]}" or ' if others else ""
        raise UserError(f"{task.name}: classification needs outputs (batch, classes) and whole-number labels "
                        f"(batch,); got outputs of shape {tuple(outputs.shape[1:])} an example and {name} labels "
                        f'{tuple(labels.shape)} of {labels.dtype}: mend them, or give {also}kind="regression"')
    low, high, classes = int(labels.min()), int(labels.max()), outputs.shape[1]
    if low < 0 or high >= classes:
        one = (': give an output for each class, or for one logit kind="regression" and labels as floats, shaped '
               "like the outputs" if classes == 1 else ": subtract 1" if (low, high) == (1, classes) else "")
        raise UserError(f"{task.name}: labels must lie in 0 … {classes - 1} (the model has {classes} "
                        f"output{'s' * (classes > 1)}); the {name} part's reach from {low} to {high}{one}")


def _check_shape(task: Task, model: nn.Module, name: str, part: Split, outputs: Tensor) -> None:
    """Raise where the loss would broadcast by mistake: targets and outputs of as many numbers, shaped otherwise.

    Other numbers are a matter of the loss: labels of pixels, quantiles of one target, times with a mark. Only
    torch's own losses of differences, which warn of them, want one target an output. Targets that are several
    tensors are a matter of the loss too.
    """
    targets, expected = part.targets, (len(part), *outputs.shape[1:])
    if not isinstance(targets, Tensor):
        if task.loss is functional.mse_loss:
            raise UserError(f"{task.name}: the targets have the leaves {', '.join(leaves(targets))}, of which the "
                            "mean squared error makes nothing: give one tensor, or a loss, a function of outputs "
                            "and these")
        return
    mistaken = targets.numel() == math.prod(expected) or task.loss is functional.mse_loss
    if not mistaken:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with suppress(Exception):  # whatever it refuses is said when its value is taken
                task.judged(model, outputs, part.first(1))
        mistaken = any("target size" in str(each.message) for each in said)
    if targets.shape != expected and mistaken:
        raise UserError(f"{task.name}: regression needs targets shaped like the outputs {expected}; the {name} "
                        f"part's are {tuple(targets.shape)}, which broadcasts or fails in the loss: "
                        "reshape one of them, for example with .unsqueeze(1)")
