"""One look at a task before anything is trained: whether it does what a comparison needs."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.errors import UserError, nearest
from optscope.tasks.check_game import check_game
from optscope.tasks.check_inputs import check_data
from optscope.tasks.check_loss import check_loss, value_of
from optscope.tasks.check_model import check_factory, check_outputs, forward
from optscope.tasks.fresh import seeded
from optscope.tasks.game import Game
from optscope.tasks.task import Data, Split, Task

KINDS = ("classification", "regression")
BATCH = 512
"""As many examples as probes hand to a model at once."""


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
    if isinstance(task, Game):
        check_game(task)
        return
    if task.kind not in KINDS:
        raise UserError(f'{task.name}: kind must be "classification" or "regression" (which stands for every other '
                        "loss, as of several labels an example); got "
                        f'"{task.kind}", {nearest(str(task.kind).lower(), KINDS)}')
    data = check_data(task)
    model = check_factory(task.name, "the model", task.model)
    with seeded(0):
        outputs = check_outputs(task.name, model, data.train)
        _check_parts(task, model, data)
        check_loss(task, model, data.train, outputs)


def _check_parts(task: Task, model: nn.Module, data: Data) -> None:
    """Send every part through the model as probes do, and look at its targets and its loss."""
    check_targets = _check_labels if task.kind == "classification" else _check_shape
    for name, part in vars(data).items():
        check_targets(task, name, part, forward(task.name, model, part.inputs[:1], name))
        outputs = torch.cat([forward(task.name, model, x, name) for x in part.inputs.split(BATCH)])
        value_of(task, outputs, part.targets)
    labels = data.train.targets
    if task.kind == "classification" and bool((labels == labels[0]).all()):
        raise UserError(f"{task.name}: all labels of the train part are {int(labels[0])}, so there is nothing to "
                        "learn: give examples of two classes or more")


def _check_labels(task: Task, name: str, part: Split, outputs: Tensor) -> None:
    labels = part.targets
    if labels.is_floating_point() or labels.dim() != 1 or outputs.dim() != 2:
        raise UserError(f"{task.name}: classification needs outputs (batch, classes) and whole-number labels "
                        f"(batch,); got outputs of shape {tuple(outputs.shape[1:])} an example and {name} labels "
                        f'{tuple(labels.shape)} of {labels.dtype}: mend them, or give kind="regression"')
    low, high, classes = int(labels.min()), int(labels.max()), outputs.shape[1]
    if low < 0 or high >= classes:
        one = (': give an output for each class, or for one logit kind="regression" and labels as floats, shaped '
               "like the outputs" if classes == 1 else ": subtract 1" if (low, high) == (1, classes) else "")
        raise UserError(f"{task.name}: labels must lie in 0 … {classes - 1} (the model has {classes} "
                        f"output{'s' * (classes > 1)}); the {name} part's reach from {low} to {high}{one}")


def _check_shape(task: Task, name: str, part: Split, outputs: Tensor) -> None:
    """Raise where the loss would broadcast by mistake: targets and outputs of as many numbers, shaped otherwise.

    Other numbers are a matter of the loss: labels of pixels, quantiles of one target, times with a mark. Only
    torch's own losses of differences, which warn of them, want one target an output.
    """
    targets, expected = part.targets, (len(part), *outputs.shape[1:])
    mistaken = targets.numel() == math.prod(expected) or task.loss is functional.mse_loss
    if not mistaken:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with suppress(Exception):  # whatever it refuses is said when its value is taken
                task.loss(outputs, targets[:1])
        mistaken = any("target size" in str(each.message) for each in said)
    if targets.shape != expected and mistaken:
        raise UserError(f"{task.name}: regression needs targets shaped like the outputs {expected}; the {name} "
                        f"part's are {tuple(targets.shape)}, which broadcasts or fails in the loss: "
                        "reshape one of them, for example with .unsqueeze(1)")
