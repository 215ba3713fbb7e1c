"""One look at a model before anything is trained: it is new each time, and a function of its inputs alone."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optscope.errors import UserError, blaming, first_words
from optscope.tasks.fresh import seeded
from optscope.tasks.task import Split, Task
from optscope.tasks.tree import Batch, Tree, leaves, mapped, shown

FEW = 8
"""How many examples the first looks take."""


def check_factory(owner: str, who: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model, if it can be trained, and is made anew each time, the same whenever the seed is the same.

    `who` is what the sentences call it: "the model", "the generator".

    Raises:
        UserError: naming what is not so.
    """
    model, again = _made(owner, who, make), _made(owner, who, make)
    if not {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in again.parameters()):
        raise UserError(f"{owner}: {_maker(who)} must return a new model each time; two calls gave the same "
                        "parameters: build every layer inside it, or one run goes on where another ended")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"{owner}: {who} has no parameters to train; register its tensors as nn.Parameter")
    if _shapes(model) != _shapes(again):
        raise UserError(f"{owner}: {who} has other parameters each time it is made; they must have the same names "
                        "and shapes, for trained weights are loaded into a new model")
    others = dict(again.named_parameters())
    for name, p in model.named_parameters():
        if not bool(torch.isfinite(p).all()):
            raise UserError(f"{owner}: the parameter {name} of a fresh model is not finite: initialise it")
        if not torch.equal(p, others[name]):
            raise UserError(f"{owner}: {who} has other weights, such as {name}, when it is made again from the "
                            "same seed: draw them from the global generators of torch, NumPy or random, which "
                            "every run seeds, and from no generator of its own")
    return model


def _made(owner: str, who: str, make: Callable[[], nn.Module]) -> nn.Module:
    with seeded(0), blaming(owner, _maker(who)):
        model = make()
    if not isinstance(model, nn.Module):
        raise UserError(f"{owner}: {_maker(who)} must return a torch.nn.Module; got {type(model).__name__}")
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(p):
            raise UserError(f"{owner}: {name} of {who} has no shape before a first batch: give the sizes, or call "
                            "the model on a batch inside model(), which draws the weights of lazy layers")
        if p.device.type != "cpu":
            raise UserError(f'{owner}: {name} of {who} lies on the device "{p.device}"; models are trained on the '
                            "CPU: make it there")
    return model


def _maker(who: str) -> str:
    return "model()" if who == "the model" else f"{who}'s model()"


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, p.shape) for name, p in (*model.named_parameters(), *model.named_buffers())]


def check_outputs(task: Task, model: nn.Module, part: Split) -> Tensor:
    """Return the outputs of some examples in eval mode, if they are what probes take them for.

    They are one tensor of floats, a row an example; the same again, and the same alone or in other company, up to
    rounding; and they depend on the inputs.

    Raises:
        UserError: naming what is not so.
    """
    batch = part.first(FEW)
    model.eval()
    first = forward(task, model, batch.inputs)
    if not torch.equal(first, forward(task, model, batch.inputs)):
        raise UserError(f"{task.name}: two passes of the same inputs differ in eval mode; "
                        "make dropout and the like depend on self.training")
    _check_company(task, model, batch, first)
    _check_heeded(task, model, batch.inputs, first)
    return first


def _check_company(task: Task, model: nn.Module, batch: Batch, outputs: Tensor) -> None:
    """Raise when an example's output is another one in a smaller batch: the last alone, the first two."""
    scale, eps = float(outputs.abs().max()), torch.finfo(outputs.dtype).eps
    for some in (slice(-1, None), slice(2)):
        expected, alone = outputs[some], forward(task, model, batch.mapped(operator.itemgetter(some)).inputs)
        n = len(alone)
        if alone.shape != expected.shape:
            raise UserError(f"{task.name}: a batch of {len(batch)} gives outputs {tuple(outputs.shape)}, one of "
                            f"{n} gives {tuple(alone.shape)}: name the axis in .squeeze(-1), .flatten(1) and the "
                            "like")
        if float((alone - expected).abs().max()) > eps**0.5 * scale:
            raise UserError(f"{task.name}: in eval mode an example's output depends on the others in its batch, so "
                            "no accuracy is one number: norm, softmax and flatten along the axes of one example "
                            "(BatchNorm with its running statistics)")


def _check_heeded(task: Task, model: nn.Module, inputs: Tree, outputs: Tensor) -> None:
    """Raise when the inputs have no say: neither now nor at other weights, for a head may start at zero."""
    if len(outputs) == 1 or all(map(_alike, leaves(inputs).values())) or not _alike(outputs):
        return
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]
    with torch.no_grad(), seeded(0):
        for p in params:
            p.add_(0.1 * torch.randn_like(p))
        moved = forward(task, model, inputs)
        for p, old in zip(params, before, strict=True):
            p.copy_(old)
    if _alike(moved):
        raise UserError(f"{task.name}: the model's outputs are the same for all inputs, so nothing can be learned "
                        "from them: see that forward uses its argument")


def _alike(rows: Tensor) -> bool:
    return bool((rows == rows[:1]).all())


def forward(task: Task, model: nn.Module, inputs: Tree, part: str = "train") -> Tensor:
    """Return the outputs of a batch, if they are a tensor of finite floats with a row an example.

    Raises:
        UserError: naming the part of the data, and what came.
    """
    try:
        with torch.no_grad():
            outputs = task.outputs(model, mapped(torch.clone, inputs))
            outputs = outputs.clone() if isinstance(outputs, Tensor) else outputs  # it may be a view of a weight
    except UserError as error:
        raise UserError(f"{task.name}: {error}") from error
    except Exception as error:  # whatever the author chose to raise
        raise UserError(f"{task.name}: the model refused a batch of inputs {shown(inputs)}, from the {part} part: "
                        f"{first_words(error)}") from error
    n = len(Batch(inputs, ()))
    if not isinstance(outputs, Tensor):
        raise UserError(f"{task.name}: output= must give one tensor with a row for every input; got "
                        f"{type(outputs).__name__}")
    if outputs.dim() == 0 or len(outputs) != n:
        raise UserError(f"{task.name}: the model must return one tensor with a row for every input; got "
                        f"{tuple(outputs.shape)} for {n} of them: name the axis in .squeeze(-1), "
                        ".flatten(1) and the like")
    if not outputs.is_floating_point():
        raise UserError(f"{task.name}: the model must return floats, such as logits; got {outputs.dtype}")
    bad = (~torch.isfinite(outputs.flatten(1) if outputs.dim() > 1 else outputs[:, None])).any(1).nonzero()
    if len(bad):
        raise UserError(f"{task.name}: a fresh model's outputs for {len(bad)} of {len(outputs)} inputs of the "
                        f"{part} part are not finite: look for divisions by 0, logarithms and roots in it, and "
                        "at its buffers")
    return outputs
