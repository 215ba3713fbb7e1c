"""A model as one flat vector: where each parameter tensor (a "layer") lies in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """A parameter tensor of a model: its name and shape, what kind it is, and the class of the module that owns it.

    Kinds are "matrix", "convolution", "embedding", "head", "norm", "bias" and "other" (`optscope.optim.kinds`).
    """

    name: str
    shape: torch.Size
    kind: str
    owner: str = ""

    @classmethod
    def plain(cls, name: str, shape: torch.Size) -> Layer:
        """Return what is known of a tensor without its model: two axes make a matrix, more a convolution."""
        return cls(name, shape, "other" if len(shape) < 2 else "matrix" if len(shape) == 2 else "convolution")


@dataclass(frozen=True)
class Layout:
    """The names and shapes of the parameter tensors that make up a vector of `size` numbers.

    Every parameter tensor counts as one layer. Vectors have shape `(..., P)` with `P = size`: leading axes
    hold independent members (seeds, learning rates), and everything here acts on the last axis only. `kinds` and
    `owners` are those of `Layer`; without a model, kinds are read from the shapes.

    >>> layout = Layout(("w", "b"), (torch.Size([2, 3]), torch.Size([3])))
    >>> layout.size, layout.sizes
    (9, (6, 3))
    >>> layout.norms(torch.ones(9)).square().round()
    tensor([6., 3.])
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    kinds: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        plain = [Layer.plain(*each) for each in zip(self.names, self.shapes, strict=True)]
        if not self.kinds:
            object.__setattr__(self, "kinds", tuple(layer.kind for layer in plain))
        if not self.owners:
            object.__setattr__(self, "owners", tuple(layer.owner for layer in plain))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> Layout:
        """Return the layout of named tensors, or of unnamed ones, which are called "0", "1", ..."""
        if not isinstance(tensors, Mapping):
            tensors = {str(i): t for i, t in enumerate(tensors)}
        return cls(tuple(tensors), tuple(t.shape for t in tensors.values()))

    @classmethod
    def of_layers(cls, layers: Iterable[Layer]) -> Layout:
        """Return the layout of layers, in their order."""
        each = list(layers)
        return cls(*(tuple(column) for column in zip(*each, strict=True))) if each else cls((), ())

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What is known of each layer."""
        return tuple(map(Layer, self.names, self.shapes, self.kinds, self.owners))

    def take(self, indices: Iterable[int]) -> Layout:
        """Return the layout of some of the layers, by their numbers."""
        layers = self.layers
        return Layout.of_layers(layers[i] for i in indices)

    def columns(self, indices: Iterable[int], device: torch.device | None = None) -> Tensor:
        """Return where the numbers of some layers lie in the vector, layer by layer, `(p,)`."""
        starts = [0, *itertools.accumulate(self.sizes)]
        return torch.cat([torch.arange(starts[i], starts[i + 1], device=device) for i in indices])

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers each layer holds."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """How many numbers the whole vector holds, P."""
        return sum(self.sizes)

    @property
    def modules(self) -> tuple[int, ...]:
        """The number of each layer's module: layers whose names agree up to the last dot share one.

        >>> Layout(("0.weight", "0.bias", "2.weight"), (torch.Size([2]),) * 3).modules
        (0, 0, 1)
        """
        owners = [name.rpartition(".")[0] for name in self.names]
        numbers = {owner: i for i, owner in enumerate(dict.fromkeys(owners))}
        return tuple(numbers[owner] for owner in owners)

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the layers joined into one new vector `(P,)`."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return each layer of `vector` `(..., P)` as a view of shape `(..., *shape)`."""
        parts = vector.split(self.sizes, dim=-1)
        return [part.view(vector.shape[:-1] + shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def norms(self, vector: Tensor) -> Tensor:
        """Return the l2 norm of each layer, `(..., L)`."""
        parts = vector.split(self.sizes, dim=-1)
        return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in parts], dim=-1)

    def spread(self, values: Tensor) -> Tensor:
        """Repeat one value a layer, `(..., L)`, over that layer's numbers: `(..., P)`."""
        counts = torch.tensor(self.sizes, device=values.device)
        return values.repeat_interleave(counts, dim=-1, output_size=self.size)
