"""Attacks look for a wrongly classified input near a right one; what they find is proof, what they miss is not.

The final `run` checks, freezes the model and cuts the work into batches; authors write `search`. Images leave a
batch as soon as they are fooled, so an attack costs what its survivors cost. The models' accuracy under any attack
is an upper bound on their robust accuracy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from optscope.devices import convolves_fast, to_floats
from optscope.errors import UserError
from optscope.probes.accuracy import named
from optscope.probes.attack_losses import AttackLoss, CrossEntropy
from optscope.probes.dense import Dense, by_graph, dense
from optscope.probes.perturbation import Ball, Bounds, ball_of, check_box, check_movable, per_example, standing
from optscope.probes.still import frozen

Search = Callable[["Batch"], Tensor]
Moved = Callable[[Tensor, Tensor], Tensor]
"""`outputs(x, where)`: a model's outputs for the examples at `where` `(m,)`, the moved part of which is `x`."""

SOME = 8
"""Inputs of which a model is asked whether it is what it seems."""

LOOK = 16
"""Steps between two looks at who is done, where a look is a wait: in between, they are computed in vain."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images under attack: their balls, with `inputs` `(n, ...)` as centres, and their labels `(n,)`.

    `outputs(x, where)` is the model at points `x` of the examples `where` `(n,)`: it may take along more of each
    example than is attacked. Of a `stack` of dense layers that is all, the stack is asked instead.
    """

    outputs: Moved
    where: Tensor
    ball: Ball
    labels: Tensor
    generator: torch.Generator
    stack: Dense | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Tensor:
        """The clean images."""
        return self.ball.centre

    def take(self, where: Tensor) -> Batch:
        """Return the images at `where`, indices or a mask."""
        return replace(self, where=self.where[where], ball=self.ball.take(where), labels=self.labels[where])

    def step(self, x: Tensor, direction: Tensor, length: float | Tensor) -> Tensor:
        """Return `x` moved by `length` (in radii) along `direction` of norm 1, brought back into the balls."""
        return self.ball.project(torch.addcmul(x, direction, length * self.ball.eps))

    def logits(self, x: Tensor) -> Tensor:
        """Return the model's logits `(n, C)` without a gradient."""
        if self.stack is not None:
            return self.stack.outputs(x)
        with torch.no_grad():
            return self.outputs(x, self.where)

    def fooled(self, x: Tensor) -> Tensor:
        """Return which of `x` are classified wrongly, `(n,)`."""
        return named(self.logits(x)) != self.labels

    def ascent(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return at `x` which are fooled `(n,)`, the losses `(n,)` and their gradients `(n, ...)`.

        What is not finite leads nowhere: such a gradient counts as 0, and a loss that is nan as the lowest.

        Raises:
            UserError: when no gradient reaches the inputs.
        """
        if self.stack is not None:
            logits, losses, gradient = self.stack.graded(x, loss)
        else:
            logits, losses, gradient = by_graph(lambda x: self.outputs(x, self.where), x, loss)
        if gradient is None:
            raise UserError("an attack by gradients needs a model that passes them to its inputs; this one "
                            "computes without, or makes whole numbers of them: attack it by RandomSearch()")
        return named(logits) != self.labels, lowest(losses), gradient


def lowest(losses: Tensor) -> Tensor:
    """Return losses with -inf for nan, so that any other is above it."""
    return losses.nan_to_num(-torch.inf, torch.inf, -torch.inf)


@dataclass(frozen=True, repr=False)
class Attack(ABC):
    """A way to look for adversarial inputs. Fields are its settings, `repr` (changed fields only) its identity."""

    @abstractmethod
    def search(self, batch: Batch) -> Tensor:
        """Return one point of its ball for each image: a fooling one where one was found.

        The model of `batch` is in eval mode with frozen parameters, and is right on all images.
        """

    @abstractmethod
    def longer(self, times: int) -> Attack:
        """Return the same attack with `times` the steps: what it finds more, this one missed."""

    @final
    def run(self, model: nn.Module, inputs: Tensor, targets: Tensor, eps: float | Tensor, norm: str = "linf",
            bounds: Bounds = (0.0, 1.0), generator: torch.Generator | None = None, *,
            outputs: Moved | None = None) -> Tensor:
        """Return one input in the ball around each of `inputs` `(n, ...)`: a fooling one where one was found.

        `eps` is one radius, or one an image `(n,)`. Images that are classified wrongly as they are come back as
        they are. The model is attacked in eval mode; its mode and its parameters' flags are restored. Of one that
        takes more than these inputs, or returns more than logits, `outputs(x, where)` gives the logits of the
        examples at `where`, with `x` for their inputs (`Subject.moved`).

        Raises:
            UserError: inputs of whole numbers, unknown norm, bounds that are not two numbers, a radius that is
                not positive, a model without one logit a class, labels outside its classes.
        """
        check_movable(inputs, type(self).__name__)
        check_box(bounds)
        radii = torch.as_tensor(eps, dtype=inputs.dtype, device=inputs.device).expand(len(inputs)).contiguous()
        sound = bool((torch.isfinite(radii) & (radii > 0)).all()) if isinstance(eps, Tensor) else 0 < eps < math.inf
        if not sound:
            raise UserError(f"the radius of an attack must be a finite number above 0; got {eps!r}")
        with frozen(model) as still:
            at = outputs or (lambda x, where: still(x))
            every = torch.arange(len(inputs), device=inputs.device)
            with torch.no_grad():
                check_logits(at(inputs[:1], every[:1]), targets)
            laid, size = laid_out(still, at, inputs)
            balls = ball_of(norm)(laid, per_example(radii, inputs), bounds)
            stack = dense(still, inputs[:SOME]) if outputs is None else None
            whole = Batch(at, every, balls, targets, generator or torch.Generator().manual_seed(0), stack)
            found = inputs.clone()
            for where in every.split(size):
                part = whole.take(where)
                right = places(~part.fooled(part.inputs))
                if len(right):
                    found[where[right]] = self.search(part.take(right))
        return found

    def __repr__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


def laid_out(model: nn.Module, outputs: Moved, inputs: Tensor) -> tuple[Tensor, int]:
    """Return the inputs in the memory format, and the batch size, in which a model's gradient is fastest.

    Convolutions run 1.2 to 1.5 times as fast on channels-last images, and in batches whose activations stay in
    cache. Models that need the ordinary format (they call `view`) get it.
    """
    if inputs.dim() != 4 or not convolves_fast(model):
        return inputs, 512
    laid = inputs.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            outputs(laid[:2], torch.arange(len(laid[:2]), device=laid.device))
    except RuntimeError:
        return inputs, 128
    return laid, 128


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise UserError unless the logits of one input are one a class, and the labels are among the classes."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise UserError("an attack needs a classifier with one logit a class, of shape (n, C) with C >= 2; "
                        f"the model returns shape {tuple(logits.shape)} for one input: give two logits to a "
                        "problem with two classes")
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise UserError("an attack needs labels of shape (n,) and type int64, one class number an image; "
                        f"got shape {tuple(labels.shape)} and type {labels.dtype}")
    (low, high), classes = map(int, to_floats(*torch.aminmax(labels))), logits.shape[1]
    if low < 0 or high >= classes:
        raise UserError(f"labels must be class numbers from 0 to {classes - 1}, as the model has {classes} logits; "
                        f"they reach from {low} to {high}")


def in_turn(batch: Batch, searches: Iterable[Search]) -> Tensor:
    """Return what several searches find, each on the images that those before it did not fool."""
    found = batch.inputs.clone()
    left = torch.arange(len(found), device=found.device)
    for turn, search in enumerate(searches):
        if turn > 0:
            left = left[places(~batch.take(left).fooled(found[left]))]
        if len(left) == 0:
            break
        found[left] = search(batch.take(left))
    return found


def places(mask: Tensor) -> Tensor:
    """Return where a mask `(n,)` is true."""
    return mask.nonzero().squeeze(1)


def worth_leaving(done: Tensor, step: int) -> Tensor | None:
    """Return the places of those who are not done if enough are, an eighth, to pay for the copying, else None.

    A CPU is asked at every step; another device, for which that is a wait, at one of `LOOK`.
    """
    if done.device.type != "cpu" and (step + 1) % LOOK:
        return None
    stay = places(~done)
    return stay if 8 * (len(done) - len(stay)) >= len(done) else None


def ascend(batch: Batch, start: Tensor, loss: AttackLoss, steps: int, length: float) -> Tensor:
    """Return the first fooling iterate of x <- P(x + length * eps * u), else the last one; u is steepest ascent."""
    x, found, left = start, start.clone(), torch.arange(len(start), device=start.device)
    done = torch.zeros_like(batch.labels, dtype=torch.bool)
    for step in range(steps):
        fooled, _, gradient = batch.ascent(x, partial(loss, labels=batch.labels))
        done |= fooled
        if (stay := worth_leaving(done, step)) is not None:
            found[left] = x
            batch, x, gradient, left, done = batch.take(stay), x[stay], gradient[stay], left[stay], done[stay]
            if len(left) == 0:
                return found
        # Who is done stays: a step in which all of a batch move costs less than one that picks out who does.
        x = standing(done, x, batch.ball.climb(x, gradient, length))
    found[left] = x
    return found


@final
@dataclass(frozen=True, repr=False)
class FGSM(Attack):
    """One step of full length: x + eps * sign(g), or eps * g / |g| in the l2 ball. arXiv 1412.6572, section 4."""

    loss: AttackLoss = CrossEntropy()  # noqa: RUF009 - frozen

    def search(self, batch: Batch) -> Tensor:
        """Return the end of the step."""
        return ascend(batch, batch.inputs, self.loss, steps=1, length=1.0)

    def longer(self, times: int) -> BIM:
        """Return `times` steps of the same length in all."""
        return BIM(times, self.loss)


@final
@dataclass(frozen=True, repr=False)
class BIM(Attack):
    """Steps of length eps / steps from the image itself, so that what fools early lies near it.

    The basic iterative method of arXiv 1607.02533, section 2.2.

    Raises:
        UserError: unless steps is a whole number >= 1.
    """

    steps: int = 10
    loss: AttackLoss = CrossEntropy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        check_counts(self, "steps")

    def search(self, batch: Batch) -> Tensor:
        """Return the first fooling iterate of each image, else its last one."""
        return ascend(batch, batch.inputs, self.loss, self.steps, 1 / self.steps)

    def longer(self, times: int) -> BIM:
        """Return the attack with `times` the steps."""
        return replace(self, steps=times * self.steps)


@final
@dataclass(frozen=True, repr=False)
class PGD(Attack):
    """Projected gradient ascent from random starts, with steps of length 2.5 eps / steps.

    x <- P(x + eta * u), u the steepest direction. arXiv 1706.06083, section 2; the factor 2.5, which lets an
    iterate cross the ball, is that of its appendix.

    Raises:
        UserError: unless steps and restarts are whole numbers >= 1.
    """

    steps: int = 20
    restarts: int = 1
    loss: AttackLoss = CrossEntropy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        check_counts(self, "steps", "restarts")

    def search(self, batch: Batch) -> Tensor:
        """Return the first fooling iterate of each image, else its last one."""
        return in_turn(batch, [self._once] * self.restarts)

    def longer(self, times: int) -> PGD:
        """Return the attack with `times` the steps."""
        return replace(self, steps=times * self.steps)

    def _once(self, batch: Batch) -> Tensor:
        return ascend(batch, batch.ball.sample(batch.generator), self.loss, self.steps, 2.5 / self.steps)


def check_counts(owner: object, *names: str) -> None:
    """Raise UserError unless the fields `names` of a settings object are whole numbers of at least 1."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{type(owner).__name__}: {name} must be a whole number of at least 1; got {value!r}")
