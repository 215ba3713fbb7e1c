"""Every example's own gradient, by its length and its share of the mean, from one ordinary pass over a batch.

Hooks keep what each layer sees and the slopes of the loss in what it gives; `layer_gradients` says what follows
of single examples. No gradient of one is made. Layers must see two rows of two examples, whose outputs are those
that they have among others, and what the layers saw of all must add up to the gradient that the backward pass gave:
where it does not, or a layer has no rule, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.probes.at_weights import AtWeights, check_depends, grads, seen
from optscope.probes.hessian import CACHED
from optscope.probes.layer_gradients import RULES, Call, NoRuleError, Use, squares, uses
from optscope.probes.layers import known
from optscope.tasks.task import Loss
from optscope.tasks.tree import Batch

KEPT = 2**28
"""Bytes of what layers saw that are kept for the second look; beyond, the passes are made again."""

APART = 1e-3
"""How far what the layers saw may be from the gradient, relative to the lengths of both: rounding is far below."""


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass over some examples: outputs, the mean loss's gradients, what the layers saw."""

    outputs: Tensor
    gradients: Mapping[str, Tensor]
    uses: Mapping[str, Sequence[Use]]

    def squares(self) -> dict[str, Tensor]:
        """Return the squared lengths of the examples' gradients, `(n,)` for each weight that was used."""
        return {name: squares(found) for name, found in self.uses.items()}

    def along(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the products of the examples' gradients with a direction, `(n,)` for each weight that was used."""
        return {name: torch.stack([use.product(direction[name]) for use in found]).sum(0)
                for name, found in self.uses.items()}


@dataclass(frozen=True)
class Lengths:
    """|g_i|² and g_i·G of the examples' gradients g_i, `(n,)` of float64, and |G|² of their mean G `()`."""

    squares: Tensor
    along: Tensor
    mean: Tensor


def lengths(at: AtWeights, loss: Loss, batch: Batch, look: Callable[[Tensor, Batch], None]) -> Lengths:
    """Return how long the examples' gradients are, and how far they go along their mean.

    The loss must be a mean over the examples. `look` is shown the outputs of all of them, some at a time.

    Raises:
        NoRuleError: for trained weights that are not those of layers in `RULES`, or that are used elsewhere too,
            and for a model whose layers do not have the examples on the first axis of what they see.
        UserError: when the loss does not depend on the trained weights.
    """
    layers, n = trained_layers(at), len(batch)
    few, each = first_seen(at, layers, batch.first(2))
    parts = list(batch.split(max(1, min(n, int(CACHED / each)))))
    keep = each * n <= KEPT
    made = passed(at, layers, loss, parts[0])
    if len(parts[0]) > 1:
        check_rows(few, made.outputs[:2])
    mean = {name: torch.zeros_like(gradient) for name, gradient in made.gradients.items()}
    found: list[dict[str, Tensor]] = []
    kept = []
    for number, part in enumerate(parts):
        made = passed(at, layers, loss, part) if number else made
        for name, gradient in made.gradients.items():
            mean[name].add_(gradient, alpha=len(part) / n)
        look(made.outputs, part)
        found.append(made.squares())
        kept += [made] if keep else []
    again: Iterable[Pass] = kept if keep else (passed(at, layers, loss, part) for part in parts)
    square = _by_weight(found, mean)
    along = _by_weight([made.along(mean) for made in again], mean)
    total = torch.stack([torch.linalg.vector_norm(g) for g in mean.values()]).double().square()
    most = max(APART, 8 * torch.finfo(few.dtype).eps) * (square.mean(1) * total).sqrt()
    for name, wrong in zip(mean, to_floats(*((along.mean(1) - total).abs() > most).double()), strict=True):
        if wrong:
            raise NoRuleError(f"the gradient of {name!r} does not follow from what its layer sees of the examples")
    return Lengths(square.sum(0), along.sum(0), total.sum())


def _by_weight(parts: Sequence[Mapping[str, Tensor]], names: Iterable[str]) -> Tensor:
    """Return the numbers of all examples for each weight, `(weights, n)`, 0 for one that nothing uses."""
    blanks = [next(iter(part.values())) for part in parts]
    return torch.stack([torch.cat([part.get(name, torch.zeros_like(blank)) for part, blank in
                                   zip(parts, blanks, strict=True)]) for name in names]).double()


def check_rows(few: Tensor, same: Tensor) -> None:
    """Raise NoRuleError unless the first examples alone have the outputs that they have among others."""
    if not bool(((few - same).abs() <= max(APART, 8 * torch.finfo(few.dtype).eps) * few.abs().max()).all()):
        raise NoRuleError("the outputs of an example depend on the others")


Layers = Sequence[tuple[nn.Module, type[nn.Module], Mapping[str, str]]]
"""Modules with trained weights, the kinds they are of, and the model's names of the weights by their own."""


def trained_layers(at: AtWeights) -> Layers:
    """Return the modules that hold the trained weights.

    Raises:
        NoRuleError: where one is none of `RULES`.
    """
    names = {id(weight): name for name, weight in at.weights.items()}
    found = []
    with at.held():
        for path, module in at.model.named_modules():
            own = {own: names[id(p)] for own, p in module._parameters.items() if id(p) in names}
            if not own:
                continue
            try:
                kind = known(module, path, tuple(RULES))
            except UserError as error:
                raise NoRuleError(f"the module {path or 'at the top'!r} has hooks or methods of its own") from error
            if kind is None or not own.keys() <= {"weight", "bias"}:
                raise NoRuleError(f"no rule is known for the {type(module).__name__} at {path or 'the top'!r}")
            found.append((module, kind, own))
    return found


def first_seen(at: AtWeights, layers: Layers, few: Batch) -> tuple[Tensor, float]:
    """Return the outputs of a few examples, and how many bytes the layers see and give of one.

    Few are another number than the places that a layer may see first: those it sees then are no examples.

    Raises:
        NoRuleError: where a layer sees another number of rows than there are examples.
    """
    size = 0

    def weigh(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        nonlocal size
        for tensor in (*given, out):
            if not isinstance(tensor, Tensor) or not given or len(tensor) != len(few):
                raise NoRuleError(f"{type(module).__name__} does not see one row an example")
            size += tensor.numel() * tensor.element_size()

    with ExitStack() as stack:
        for module, _, _ in layers:
            stack.callback(module.register_forward_hook(weigh).remove)
        stack.enter_context(at.held())
        stack.enter_context(torch.no_grad())
        outputs = at.outputs(few.inputs)
    return outputs, max(1.0, size / len(few))


def passed(at: AtWeights, layers: Layers, loss: Loss, batch: Batch) -> Pass:
    """Return what a forward and backward pass over a batch, taken as in training, leaves to be seen."""
    outputs, calls = layer_calls(at, layers, loss, batch)
    return _gathered(at, layers, len(batch), outputs, calls)


Calls = Sequence[tuple[int, Tensor, Sequence[Tensor]]]
"""Which layer was called, what it saw, and the slopes of the loss in what it gave, if it has any."""


def layer_calls(at: AtWeights, layers: Layers, loss: Loss, batch: Batch) -> tuple[Tensor, Calls]:
    """Return outputs and the layers' calls of a forward and backward pass; the weights hold their gradients.

    Raises:
        UserError: when the loss does not depend on the weights.
    """
    calls: list[tuple[int, Tensor, list[Tensor]]] = []

    def look(number: int) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            if out.requires_grad:
                slopes: list[Tensor] = []
                calls.append((number, given[0].detach(), slopes))
                out.register_hook(slopes.append)
        return hook

    for weight in at.weights.values():
        weight.grad = None
    with ExitStack() as stack:
        for number, (module, _, _) in enumerate(layers):
            stack.callback(module.register_forward_hook(look(number)).remove)
        stack.enter_context(at.held())
        stack.enter_context(grads())
        outputs = at.outputs(batch.inputs)
        value = loss(outputs, seen(loss, batch))
        check_depends(value)
        value.backward()
    return outputs.detach(), calls


def _gathered(at: AtWeights, layers: Layers, n: int, outputs: Tensor, calls: Calls) -> Pass:
    """Return a pass from the calls of its layers."""
    found: dict[str, list[Use]] = {}
    for number, x, slopes in calls:
        if not slopes:
            continue
        layer, kind, own = layers[number]
        if len(slopes) > 1 or len(x) != n or len(slopes[0]) != n:
            raise NoRuleError(f"{kind.__name__} does not see one row an example")
        for short, use in uses(kind, Call(layer, x, slopes[0] * n)):
            if short in own:
                found.setdefault(own[short], []).append(use)
    gradients = {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in at.weights.items()}
    for name, weight in at.weights.items():
        if weight.grad is not None and name not in found:
            raise NoRuleError(f"{name!r} is used by no layer's own call")
        weight.grad = None
    wide = {name: g.to(torch.promote_types(g.dtype, torch.float32)) for name, g in gradients.items()}
    return Pass(outputs, wide, found)
