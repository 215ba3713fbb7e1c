"""One look at a task before anything is trained: whether it does what a comparison needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.tasks.check_game import check_game
from optscope.tasks.check_inputs import check_inputs, check_same
from optscope.tasks.game import Game
from optscope.tasks.task import Split, Task


def check_task(task: Task) -> None:
    """Raise unless the task can be trained and measured.

    Its data load, the same each time; inputs and targets are finite, inputs inside the bounds and float (whole
    numbers will do where there are no bounds); the model is a new one each time, has parameters, gives the same
    output twice in eval mode, and a batch of outputs; labels lie within the classes, and regression targets
    are shaped like the outputs; the loss is one finite number that reaches the parameters.

    Raises:
        UserError: naming the first of these that is not so.
    """
    if isinstance(task, Game):
        check_game(task)
        return
    data = task.data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.model()
        if not isinstance(model, nn.Module):
            raise UserError(f"{task.name}: model() must return a torch.nn.Module; got {type(model).__name__}")
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError(f"{task.name}: the model has no parameters to train; "
                            "register its tensors as nn.Parameter")
        if not {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in task.model().parameters()):
            raise UserError(f"{task.name}: model() must return a new model each time; two calls gave the same "
                            "parameters: build every layer inside it, or one run goes on where another ended")
        for name, part in vars(data).items():
            check_inputs(task, name, part)
        check_same(task, data, task.data())
        batch = data.train.first(8)
        outputs = _eval_outputs(task, model, batch)
        check_targets = _check_labels if task.kind == "classification" else _check_shape
        for name, part in vars(data).items():
            check_targets(task, name, part, outputs)
        _check_loss(task, model.train(), batch)


def _eval_outputs(task: Task, model: nn.Module, batch: Split) -> Tensor:
    model.eval()
    try:
        with torch.no_grad():
            first, second = model(batch.inputs), model(batch.inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{task.name}: the model refused a batch of inputs of shape "
                        f"{tuple(batch.inputs.shape)}: {str(error).splitlines()[0]}") from error
    if not isinstance(first, Tensor) or len(first) != len(batch):
        raise UserError(f"{task.name}: the model must return one tensor with a row for every input; got "
                        f"{tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__}")
    if not torch.equal(first, second):
        raise UserError(f"{task.name}: two passes of the same inputs differ in eval mode; "
                        "make dropout and the like depend on self.training")
    return first


def _check_labels(task: Task, name: str, part: Split, outputs: Tensor) -> None:
    labels = part.targets
    if labels.is_floating_point() or labels.dim() != 1 or outputs.dim() != 2:
        raise UserError(f"{task.name}: classification needs outputs (batch, classes) and whole-number labels "
                        f"(batch,); got outputs {tuple(outputs.shape)} and labels {tuple(labels.shape)} of "
                        f'{labels.dtype}: mend them, or give kind="regression"')
    low, high, classes = int(labels.min()), int(labels.max()), outputs.shape[1]
    if low < 0 or high >= classes:
        raise UserError(f"{task.name}: labels must lie in 0 … {classes - 1} (the model has {classes} "
                        f"outputs); the {name} part's reach from {low} to {high}")


def _check_shape(task: Task, name: str, part: Split, outputs: Tensor) -> None:
    targets, expected = part.targets, (len(part), *outputs.shape[1:])
    # Whole numbers may be labels in several places, as of pixels: those have one axis less than the outputs.
    labels = not targets.is_floating_point() and targets.numel() < math.prod(expected)
    if targets.shape != expected and not labels:
        raise UserError(f"{task.name}: regression needs targets shaped like the outputs {expected}; the {name} "
                        f"part's are {tuple(targets.shape)}, which broadcasts or fails in the loss: "
                        "reshape one of them, for example with .unsqueeze(1)")


def _check_loss(task: Task, model: nn.Module, batch: Split) -> None:
    try:
        loss = task.loss(model(batch.inputs), batch.targets)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{task.name}: the loss refused the model's outputs and the targets: "
                        f"{str(error).splitlines()[0]}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.dim() != 0:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"{task.name}: the loss must be one number (a tensor of shape ()); got {shape}: "
                        "take its mean over the batch")
    if not bool(torch.isfinite(loss)):
        raise UserError(f"{task.name}: the loss of a fresh model is {float(loss.detach())}; it must be finite")
    if not loss.requires_grad:
        raise UserError(f"{task.name}: the loss does not depend on the model's parameters; "
                        "compute it from the outputs without .detach() or .item()")
