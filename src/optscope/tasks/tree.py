"""Data are trees: a tensor, or a tuple or mapping of trees, all of whose leaves have one row an example."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optscope.errors import UserError

Tree = Tensor | tuple["Tree", ...] | Mapping[str, "Tree"]
"""A tensor, a tuple of trees, or a mapping of trees by name."""


def leaves(tree: Tree) -> dict[str, Tensor]:
    """Return the tensors of a tree by their dotted paths; a bare tensor's path is "".

    >>> list(leaves({"ids": torch.zeros(2), "pair": (torch.zeros(2), torch.zeros(2))}))
    ['ids', 'pair.0', 'pair.1']
    """
    return dict(_walk(tree, ()))


def _walk(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, (Mapping, tuple)):
        named = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for name, part in named:
            yield from _walk(part, (*path, str(name)))
    else:
        yield ".".join(path), tree


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a tree of the same shape: tuples stay tuples, mappings become dictionaries, leaves `function(leaf)`.

    >>> mapped(len, {"ids": torch.zeros(2), "pair": (torch.zeros(2),)})
    {'ids': 2, 'pair': (2,)}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {name: mapped(function, part) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(mapped(function, part) for part in tree)
    return function(tree)


def filled(tree: Tree, values: Iterable[Any]) -> Any:
    """Return a tree of this shape whose leaves are `values`, in the order of `leaves`."""
    following = iter(values)
    return mapped(lambda _: next(following), tree)


def replaced(tree: Tree, path: str, leaf: Tensor) -> Tree:
    """Return a tree in which the leaf at a path is another.

    >>> replaced({"x": torch.zeros(2), "y": torch.ones(1)}, "x", torch.ones(1))
    {'x': tensor([1.]), 'y': tensor([1.])}
    """
    found: Tree = filled(tree, {**leaves(tree), path: leaf}.values())
    return found


def called(model: Callable[..., Any], inputs: Tree) -> Any:
    """Return what a model makes of inputs: `model(x)`, of a tuple `model(*x)`, of a mapping `model(**x)`."""
    if isinstance(inputs, Tensor):  # first, for it is the usual case and asked in every step
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def leaf_name(what: str, path: str) -> str:
    """Return how sentences call a leaf.

    >>> leaf_name("inputs", ""), leaf_name("inputs", "mask")
    ('inputs', 'inputs "mask"')
    """
    return f'{what} "{path}"' if path else what


def shown(tree: Tree) -> str:
    """Return the shapes and types of a tree's leaves for a sentence.

    >>> shown(torch.zeros(2, 3)), shown({"ids": torch.zeros(2, 3).long()})
    ('of shape (2, 3) and type torch.float32', '"ids" of shape (2, 3) and type torch.int64')
    """
    return ", ".join((f'"{path}" ' if path else "") + f"of shape {tuple(leaf.shape)} and type {leaf.dtype}"
                     for path, leaf in leaves(tree).items())


def pieces(leaf: Tensor, numbers: int = 2**18) -> tuple[Tensor, ...]:
    """Return the examples of a leaf in parts of about so many numbers, in its memory: what is made of one is small.

    >>> [len(part) for part in pieces(torch.zeros(5, 3), 6)]
    [2, 2, 1]
    """
    found: tuple[Tensor, ...] = leaf.split(max(1, numbers * len(leaf) // max(1, leaf.numel())))
    return found


def same(tree: Tree, other: Tree) -> bool:
    """Return whether two trees have the same leaves, equal to the bit."""
    one, two = leaves(tree), leaves(other)
    return one.keys() == two.keys() and all(torch.equal(leaf, two[path]) for path, leaf in one.items())


@dataclass(frozen=True)
class Batch:
    """Some examples: inputs and targets, trees whose leaves all have one row an example.

    Nothing is checked here, for a batch is made in every step; `Split` checks. Both are a `Tree`; who knows that a
    task has bare tensors may use them as such.
    """

    inputs: Any
    targets: Any

    def __len__(self) -> int:
        """Return the number of examples."""
        tree = self.inputs
        return len(tree if isinstance(tree, Tensor) else next(iter(leaves(tree).values())))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch of `function(leaf)`."""
        return Batch(mapped(function, self.inputs), mapped(function, self.targets))

    def take(self, index: Tensor) -> Batch:
        """Return copies of the examples at `index`, whole numbers `(k,)`."""
        inputs, targets = self.inputs, self.targets
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):  # the usual step, some microseconds faster
            return Batch(inputs.index_select(0, index), targets.index_select(0, index))
        return self.mapped(lambda leaf: leaf.index_select(0, index))

    def first(self, n: int | None) -> Batch:
        """Return the first `n` examples (all when `n` is None); they share memory with these."""
        return self if n is None else self.mapped(lambda leaf: leaf[:n])

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the examples `size` at a time, the rest last; they share memory with these."""
        for start in range(0, len(self), size):
            yield self._rows(start, start + size)

    def _rows(self, start: int, stop: int) -> Batch:
        return self.mapped(lambda leaf: leaf[start:stop])

    def to(self, device: str | torch.device) -> Batch:
        """Return the batch on a device."""
        return self.mapped(lambda leaf: leaf.to(device))

    def copy(self) -> Batch:
        """Return the batch in memory of its own."""
        return self.mapped(torch.clone)


def joined(batches: Sequence[Batch]) -> Batch:
    """Return the examples of several batches as one.

    >>> len(joined([Batch(torch.zeros(2), {"a": torch.zeros(2)}), Batch(torch.zeros(1), {"a": torch.zeros(1)})]))
    3
    """
    def together(trees: Sequence[Tree]) -> Tree:
        columns = zip(*(leaves(tree).values() for tree in trees), strict=True)
        found: Tree = filled(trees[0], map(torch.cat, columns))
        return found

    return Batch(together([batch.inputs for batch in batches]), together([batch.targets for batch in batches]))


def sees_batch(loss: Callable[..., Any]) -> bool:
    """Return whether a loss takes the batch, inputs and all: its second parameter is called "batch".

    >>> sees_batch(torch.nn.functional.mse_loss), sees_batch(lambda outputs, batch: outputs.mean())
    (False, True)
    """
    try:
        parameters = list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters)
    except (TypeError, ValueError):  # of compiled functions
        return False
    return parameters[1:2] == ["batch"]


def output_of(found: Any, output: str | Callable[[Any], Tensor] | None) -> Any:
    """Return the outputs in what a model returned: a tensor as it is, else its `.logits`, or what `output` says.

    `output` names a field by attribute, key or place in a tuple, or is a function of what was returned.

    Raises:
        UserError: when there is no such field; it names those there are.
    """
    if output is None and isinstance(found, Tensor):
        return found
    if callable(output):
        return output(found)
    name = "logits" if output is None else output
    if isinstance(found, Mapping) and name in found:  # Hugging Face's outputs are mappings without their Nones
        return found[name]
    if isinstance(found, tuple) and name.isdecimal() and int(name) < len(found):
        return found[int(name)]
    if not isinstance(found, (Tensor, Mapping)) and getattr(found, name, None) is not None:
        return getattr(found, name)
    raise UserError(_no_field(found, output))


def _no_field(found: Any, output: str | None) -> str:
    fields = [name for name, value in _fields(found) if isinstance(value, Tensor)]
    there = (f'; it has {", ".join(fields)}: write output="{fields[0]}", or output= a function of what is returned'
             if fields else ": return the tensor in it, for example .logits")
    if output is None:
        return f"the model must return one tensor with a row for every input; got {type(found).__name__}{there}"
    return f'what the model returns, {type(found).__name__}, has no field "{output}"{there}'


def _fields(found: Any) -> list[tuple[str, Any]]:
    if isinstance(found, Mapping):
        return [(str(name), value) for name, value in found.items()]
    if isinstance(found, tuple):
        names = getattr(found, "_fields", map(str, range(len(found))))
        return list(zip(names, found, strict=True))
    return list(getattr(found, "__dict__", {}).items())
