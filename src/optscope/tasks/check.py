"""One look at a task before anything is trained: whether it does what a comparison needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.tasks.task import Split, Task


def check_task(task: Task) -> None:
    """Raise unless the task can be trained and measured.

    Its data load; inputs are finite, inside the bounds and float; the model has parameters, gives the same
    output twice in eval mode, and a batch of outputs; labels lie within the classes; the loss is one finite
    number that reaches the parameters.

    Raises:
        UserError: naming the first of these that is not so.
    """
    data = task.data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.model()
        if not isinstance(model, nn.Module):
            raise UserError(f"{task.name}: model() must return a torch.nn.Module; got {type(model).__name__}")
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError(f"{task.name}: the model has no parameters to train; "
                            "register its tensors as nn.Parameter")
        for name, part in vars(data).items():
            _check_inputs(task, name, part)
        batch = data.train.first(8)
        outputs = _eval_outputs(task, model, batch)
        if task.kind == "classification":
            for name, part in vars(data).items():
                _check_labels(task, name, part, outputs)
        _check_loss(task, model.train(), batch)


def _check_inputs(task: Task, name: str, part: Split) -> None:
    if not part.inputs.is_floating_point():
        raise UserError(f"{task.name}: inputs must be floating point; the {name} part's are "
                        f"{part.inputs.dtype}: convert them, for example with .float() / 255")
    if not bool(torch.isfinite(part.inputs).all()):
        raise UserError(f"{task.name}: the {name} part's inputs hold nan or inf; clean them first")
    low, high = float(part.inputs.min()), float(part.inputs.max())
    if task.bounds and name != "train" and (low < task.bounds[0] or high > task.bounds[1]):
        raise UserError(f"{task.name}: inputs must lie in the bounds {task.bounds}; the {name} part's reach "
                        f"from {low:g} to {high:g}: put normalisation inside the model, or give other bounds "
                        "(None for unbounded)")


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
        raise UserError(f"{task.name}: the loss of a fresh model is {float(loss)}; it must be finite")
    if not loss.requires_grad:
        raise UserError(f"{task.name}: the loss does not depend on the model's parameters; "
                        "compute it from the outputs without .detach() or .item()")
