"""One look at a loss before anything is trained: a mean that moves the model, and touches nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from optscope.errors import UserError, first_words
from optscope.tasks.mean_loss import check_mean
from optscope.tasks.task import Split, Task
from optscope.tasks.tree import Batch, leaves, mapped, same

SOME = 64
"""How many examples the loss is tried on."""


def check_loss(task: Task, model: nn.Module, part: Split, outputs: Tensor) -> None:
    """Raise unless the loss, in train mode, is one finite number whose gradient can train the model and only it.

    `outputs` are those in eval mode, whose shape they must have.

    Raises:
        UserError: naming what is not so.
    """
    batch = part.first(SOME)
    try:
        found = task.outputs(model.train(), mapped(torch.clone, batch.inputs))
    except UserError as error:
        raise UserError(f"{task.name}: in train mode {error}") from error
    if not isinstance(found, Tensor) or found.shape[1:] != outputs.shape[1:]:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{task.name}: the model returns {got} in train mode and outputs of shape "
                        f"{tuple(outputs.shape)} in eval mode; both must be one tensor of one shape an example")
    loss = value_of(task, model, found, batch)
    if not loss.requires_grad:
        raise UserError(f"{task.name}: the loss does not depend on the model's parameters; "
                        "compute it from the outputs, and these from the inputs, without .detach(), .item(), "
                        "torch.no_grad or a checkpoint with use_reentrant=True")
    check_leaves(task.name, loss, model)
    _check_slope(task, loss, model)
    try:
        check_mean(task.loss_in(model), found, task.seen(batch))
    except UserError as error:
        raise UserError(f"{task.name}: {error}") from error


def value_of(task: Task, model: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    """Return the loss of outputs, if it is one finite number, the same again, and leaves both as they were.

    Raises:
        UserError: naming what is not so.
    """
    before, given = outputs.detach().clone(), batch.copy() if task.seen(batch) is batch else Batch(
        batch.inputs, mapped(torch.clone, batch.targets))
    try:
        loss, again = (task.judged(model, outputs, batch) for _ in range(2))
    except UserError:
        raise
    except Exception as error:  # whatever the author chose to raise
        raise UserError(f"{task.name}: the loss refused the model's outputs {_kind(outputs)} and the targets "
                        f"{', '.join(_kind(each) for each in leaves(batch.targets).values())}: "
                        f"{first_words(error)}") from error
    check_number(task.name, "the loss", loss)
    for what, values, old in (("outputs", outputs.detach(), before), ("inputs", batch.inputs, given.inputs),
                              ("targets", batch.targets, given.targets)):
        if not same(values, old):
            raise UserError(f"{task.name}: the loss changes the {what} that it is given; compute with new tensors, "
                            "without methods that end in _")
    if not torch.allclose(loss.detach(), again.detach(), rtol=1e-4, atol=0):
        raise UserError(f"{task.name}: the loss of the same outputs and targets is {float(loss.detach()):g} and "
                        f"then {float(again.detach()):g}; it must be a function of them, that "
                        "neither draws nor remembers: what is random belongs into the model, in train mode")
    return loss


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"


def check_number(owner: str, whose: str, loss: Any) -> None:
    """Raise unless a loss is one finite real number, a tensor of shape ().

    Raises:
        UserError: saying what it is.
    """
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
        got = f"{tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"{owner}: {whose} must be one number (a floating-point tensor of shape ()); got {got}: "
                        "take its mean over the batch")
    if not bool(torch.isfinite(loss)):
        raise UserError(f"{owner}: {whose} of a fresh model is {float(loss.detach())}; it must be finite")


def check_leaves(owner: str, loss: Tensor, model: nn.Module) -> None:
    """Raise when a loss reaches trainable tensors that no optimiser would be given, and so never train.

    Raises:
        UserError: giving the shape of one.
    """
    known = {id(p) for p in model.parameters()}
    for leaf in _leaves(loss):
        if id(leaf) not in known:
            raise UserError(f"{owner}: the loss depends on a trainable tensor of shape {tuple(leaf.shape)} that is "
                            "no parameter of the model, so it would never be trained: put it into the model, as an "
                            "nn.Parameter or in an nn.ModuleList, or make it constant by .requires_grad_(False)")


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    todo, seen = [loss.grad_fn], set()
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [following for following, _ in node.next_functions]


def _check_slope(task: Task, loss: Tensor, model: nn.Module) -> None:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    check_slope(task.name, "the loss", {name: g for (name, _), g in zip(named, grads, strict=True)})


def check_slope(owner: str, whose: str, grads: dict[str, Tensor | None]) -> None:
    """Raise unless a loss has a finite gradient by the parameters named, and can move one of them.

    Raises:
        UserError: naming a parameter whose gradient is not finite, or saying that all are 0.
    """
    there = {name: g.to_dense() for name, g in grads.items() if g is not None}
    for name, g in there.items():
        if not bool(torch.isfinite(g).all()):
            raise UserError(f"{owner}: the gradient of {whose} by the parameter {name} is not finite in a fresh "
                            "model: look for roots and norms at 0, and divisions by 0")
    if not _any_nonzero(there.values()):
        raise UserError(f"{owner}: {whose} cannot move: in a fresh model its gradient by every parameter is "
                        "exactly 0, as that of the cross-entropy of a single output is (to predict one number is "
                        'kind="regression")')


def _any_nonzero(tensors: Iterable[Tensor]) -> bool:
    return any(bool(t.count_nonzero()) for t in tensors)
