"""Curvature as a symmetric operator on flat vectors: Hessian and Gauss-Newton products, never a matrix.

The graph of the gradient is built once and kept; each product is one more backward pass through it. Examples are
split into chunks whose activations stay in a processor's cache, which makes convolutional products faster, and
graphs that would not fit the memory allowed are built again for every product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optscope.errors import UserError, nearest
from optscope.optim.preconditioner import Preconditioner
from optscope.probes.at_weights import AtWeights, Call, Chunk, check_depends, chunks, grad, grads, seen
from optscope.tasks.mean_loss import check_mean
from optscope.tasks.task import Loss
from optscope.tasks.tree import Batch, Tree, called
from optscope.vector import Layout

CACHED = 32 * 2**20
"""Bytes of activations that one chunk of examples may save: about a last-level cache."""

GRAPH = 2
"""How many times the activations of a forward pass the graph of a gradient keeps, at most."""


SKEW = 0.05
"""How far products of a true second derivative may be from symmetric: rounding is far below, a lost term above."""


class SymmetricOperator(ABC):
    """A symmetric matrix A known by its products: `operator(v)` is A v for `v` of shape `(P,)`.

    `layout` says which layers the vectors hold; `products` counts the products made.
    """

    def __init__(self, layout: Layout, like: Tensor) -> None:
        self.layout = layout
        self.dtype, self.device = like.dtype, like.device
        self.products = 0

    @property
    def size(self) -> int:
        """P, the number of rows."""
        return self.layout.size

    def __call__(self, vector: Tensor) -> Tensor:
        """Return A v, a new vector `(P,)`, and count the product.

        Raises:
            UserError: when `vector` does not have shape `(P,)`.
        """
        if vector.shape != (self.size,):
            raise UserError(f"this operator multiplies vectors of shape ({self.size},); got {tuple(vector.shape)}")
        self.products += 1
        return self._product(vector)

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor:
        """Return A v."""


class Preconditioned(SymmetricOperator):
    """The operator P^(-1/2) A P^(-1/2) + C for a preconditioner P and its shift C.

    Without C its eigenvalues are those of P^(-1) A: the curvature as a rule with steps P^(-1) g meets it
    (Cohen et al. 2022, arXiv 2207.14484).
    """

    def __init__(self, operator: SymmetricOperator, preconditioner: Preconditioner) -> None:
        super().__init__(operator.layout, torch.empty(0, dtype=operator.dtype, device=operator.device))
        self._operator, self._held = operator, preconditioner

    def _product(self, vector: Tensor) -> Tensor:
        return self._held.root(self._operator(self._held.root(vector))) + self._held.shift * vector


class _Graph(ABC):
    """The kept graph of one chunk of examples, whose weight in the mean loss is n_chunk / n."""

    @abstractmethod
    def gradient(self) -> list[Tensor]:
        """Return this chunk's part of the gradient, one tensor a layer."""

    @abstractmethod
    def product(self, vectors: Sequence[Tensor], rows: Sequence[int]) -> Iterable[Tensor]:
        """Return this chunk's part of A v for the block of the layers `rows`."""


class HessianGraph(_Graph):
    """That of a gradient, of which each product is a backward pass."""

    def __init__(self, outputs: Tensor, told: Any, loss: Loss, share: float, weights: list[Tensor]) -> None:
        self._weights = weights
        self._gradient = grad([share * loss(outputs, told)], weights, None, create_graph=True)

    def gradient(self) -> list[Tensor]:
        """Return the gradient, one tensor a weight."""
        return [g.detach() for g in self._gradient]

    def product(self, vectors: Sequence[Tensor], rows: Sequence[int]) -> Iterable[Tensor]:
        """Return what the block of `rows` makes of vectors."""
        curved = [(self._gradient[i], v) for i, v in zip(rows, vectors, strict=True)
                  if self._gradient[i].requires_grad]
        return grad([g for g, _ in curved], [self._weights[i] for i in rows], [v for _, v in curved])


class _GaussNewtonGraph(_Graph):
    """J^T B J with the Jacobian J of the outputs and the Hessian B of the loss in them.

    J v is itself a backward pass: J^T u is linear in u, so its derivative in the direction v is J v.
    """

    def __init__(self, outputs: Tensor, told: Any, loss: Loss, share: float, weights: list[Tensor]) -> None:
        self._weights, self._outputs = weights, outputs
        self._leaf = outputs.detach().requires_grad_()
        self._slope = grad([share * loss(self._leaf, told)], [self._leaf], None, create_graph=True)
        self._dummy = torch.zeros_like(outputs, requires_grad=True)
        self._pulled = grad([outputs], weights, [self._dummy], create_graph=True)

    def gradient(self) -> list[Tensor]:
        return grad([self._outputs], self._weights, [self._slope[0].detach()])

    def product(self, vectors: Sequence[Tensor], rows: Sequence[int]) -> Iterable[Tensor]:
        pushed = grad([self._pulled[i] for i in rows], [self._dummy], vectors)
        bent = grad(self._slope, [self._leaf], pushed)
        return grad([self._outputs], [self._weights[i] for i in rows], bent)


class _Curvature(SymmetricOperator):
    """What Hessian and Gauss-Newton share: copied parameters, chunks of examples, kept graphs."""

    _kind: type[HessianGraph] | type[_GaussNewtonGraph]

    def __init__(self, model: nn.Module, loss: Loss, inputs: Tree, targets: Any, *,
                 parameters: Collection[str] | None = None, training: bool = False,
                 memory: int = 2 * 2**30, call: Call = called) -> None:
        self._at, self._loss = AtWeights(model, parameters, training=training, call=call), loss
        batch = Batch(inputs, targets)
        self._weights = list(self._at.weights.values())
        super().__init__(self._at.layout, self._weights[0].detach().to(self._at.dtype))
        few = batch.first(8)
        each = self._saved_bytes(few) / len(few)
        size = len(batch) if training else max(1, int(CACHED / max(each, 1.0)))
        self._chunks = chunks(self._at, loss, batch, size)
        self._kept: list[_Graph] | None
        self._kept = [*map(self._graph, self._chunks)] if each * len(batch) * GRAPH <= memory else None

    def gradient(self) -> Tensor:
        """Return the gradient of the loss, `(P,)`."""
        with self._at.held():
            parts = [self._at.flatten(graph.gradient()) for graph in self._graphs()]
        return torch.stack(parts).sum(dim=0)

    def block(self, *layers: str) -> SymmetricOperator:
        """Return the diagonal block of some layers, which shares this operator's graphs.

        Raises:
            UserError: naming a layer that the model does not have.
        """
        for name in layers:
            if name not in self.layout.names:
                raise UserError(f"the model has no trained layer {name!r}; {nearest(name, self.layout.names)}")
        return _Block(self, tuple(name for name in self.layout.names if name in layers))

    def _product(self, vector: Tensor) -> Tensor:
        return self.block_product(vector, self.layout, range(len(self._weights)))

    def block_product(self, vector: Tensor, layout: Layout, rows: Sequence[int]) -> Tensor:
        """Return the product with the diagonal block of the layers at `rows`."""
        vectors = [v.to(self._weights[i].dtype) for i, v in zip(rows, layout.views(vector), strict=True)]
        total = torch.zeros_like(vector)
        with self._at.held():
            for graph in self._graphs():
                for part, piece in zip(layout.views(total), graph.product(vectors, rows), strict=True):
                    part += piece
        return total

    def _graphs(self) -> Iterable[_Graph]:
        return map(self._graph, self._chunks) if self._kept is None else self._kept

    def _graph(self, chunk: Chunk) -> _Graph:
        with self._at.held(), grads():
            return self._kind(self._at.outputs(chunk.batch.inputs), seen(self._loss, chunk.batch), self._loss,
                              chunk.share, self._weights)

    def _saved_bytes(self, batch: Batch) -> int:
        """Return what a forward pass saves for the backward, and look at model and loss on the way."""
        total = 0

        def weigh(saved: Tensor) -> Tensor:
            nonlocal total
            total += saved.numel() * saved.element_size()
            return saved.detach()

        with self._at.held(), grads():
            try:
                with torch.autograd.graph.saved_tensors_hooks(weigh, lambda saved: saved):
                    outputs = self._at.outputs(batch.inputs)
            except RuntimeError:  # torch.func inside a model bears no such hooks: nothing is known of its memory
                total, outputs = 0, self._at.outputs(batch.inputs)
            check_depends(outputs)
            value = self._loss(outputs, told := seen(self._loss, batch))
        check_mean(self._loss, outputs, told)
        if custom(value):
            self._check_custom(Chunk(batch, 1.0))
        return total

    def _check_custom(self, chunk: Chunk) -> None:
        """Raise unless functions of the user's own can be differentiated twice.

        Where they cannot, torch leaves terms out without a word (checkpointing with use_reentrant is such a
        function): then the gradient is not that of training, or products are not symmetric.
        """
        self._chunks, self._kept = [chunk], [self._graph(chunk)]
        gradient, plain = self.gradient(), self._at.gradient(self._loss, chunk.batch)
        drawn = torch.randn(4, self.size, generator=torch.Generator().manual_seed(0), device="cpu").to(plain)
        products = torch.stack([self._product(v) for v in drawn])
        square = drawn.double() @ products.double().T
        skew, size = float((square - square.T).abs().max()), float(products.norm(dim=1).max())
        # the products of a matrix without a symmetric part would be skew by about their own size
        if float((gradient - plain).norm()) > SKEW * float(plain.norm()) or skew > SKEW * size:
            raise UserError("curvature needs second derivatives, and those of a custom autograd function in this "
                            "model or its loss are wrong: its backward pass must be the derivative of its forward "
                            "pass, made of differentiable operations on ctx.saved_tensors")


def custom(value: Tensor) -> bool:
    """Return whether the graph of a number holds an autograd function that is written in Python."""
    seen: set[Any] = set()
    todo: list[Any] = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [earlier for earlier, _ in node.next_functions]
    return any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in seen)


class Hessian(_Curvature):
    """The Hessian of the mean loss in the trained parameters of a model, H = (1/n) sum_i d^2 l_i / d theta^2.

    They are those that require a gradient, or those named by `parameters`: within a probe, where none does,
    `subject.trained`. The model is put in eval mode for it and left untouched; `training=True` keeps the mode it is
    in, so that batch normalisation uses the statistics of all examples, which then make one chunk. Graphs are kept
    up to `memory` bytes, and built again for each product beyond. Inputs and targets are trees, and the loss sees
    the targets or the batch, as in a `Task`; `call(model, inputs)` gives the outputs. Pearlmutter 1994,
    "Fast exact multiplication by the Hessian".

    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Linear(3, 1, bias=False), torch.eye(3)
    >>> H = Hessian(model, nn.functional.mse_loss, x, torch.zeros(3, 1))
    >>> H(torch.ones(3))
    tensor([0.6667, 0.6667, 0.6667])

    Raises:
        UserError: for a model without trained parameters, a loss that is no mean over its examples, or a layer or
            loss that torch cannot differentiate twice.
    """

    _kind = HessianGraph


class GaussNewton(_Curvature):
    """The generalised Gauss-Newton matrix G = (1/n) sum_i J_i^T B_i J_i: the Hessian without the model's bend.

    J_i is the Jacobian of the outputs in the parameters, B_i the Hessian of the loss in the outputs; G is
    positive semi-definite when the loss is convex in the outputs, and then equals the Fisher matrix for
    cross-entropy. Parameters of the loss itself have rows of zeros. Settings are those of `Hessian`. Schraudolph
    2002, "Fast curvature matrix-vector products for second-order gradient descent".
    """

    _kind = _GaussNewtonGraph


class _Block(SymmetricOperator):
    def __init__(self, whole: _Curvature, layers: Sequence[str]) -> None:
        self._rows = [whole.layout.names.index(name) for name in layers]
        layout = Layout(tuple(layers), tuple(whole.layout.shapes[i] for i in self._rows))
        super().__init__(layout, torch.empty(0, dtype=whole.dtype, device=whole.device))
        self._whole = whole

    def _product(self, vector: Tensor) -> Tensor:
        return self._whole.block_product(vector, self.layout, self._rows)
