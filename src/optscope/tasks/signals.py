"""Three-frequency regression: rules on fresh batches, each drawn as a 2x2 covariance, and a finite task.

A batch of n signals enters the gradient of the squared error only through the sample covariance C of its two
filled frequencies, and nC is Wishart. Drawing C itself (Bartlett: three numbers) instead of the n signals
gives exactly the same process. The rules see the gradient in the coordinates of space, D C Dᵀ(w - w*): those
are the coordinates of pixels, and sign-like rules depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.optim.rule import Rule
from optscope.tasks.task import Data, Split, Task
from optscope.theory.three_frequency import BASIS, PAPER, Array, Problem, adversarial_risk, standard_risk
from optscope.vector import Layout

CHUNK = 1024
"""Steps drawn at a time. Always whole chunks, so that a longer run begins like a shorter one."""


@dataclass(frozen=True, eq=False)
class ThreeFrequency:
    """The regression as a stream of batches; `batch=None` gives the population gradient.

    `basis` `(3, 3)` are the coordinates the rules work in: column k is frequency k. The default is space (D);
    with the identity the rules work on the frequencies themselves.

    Raises:
        UserError: when `batch` is not None or a whole number >= 2, or `basis` is not orthonormal.
    """

    problem: Problem = PAPER
    batch: int | None = 5000
    basis: Array = field(default_factory=lambda: BASIS)

    def __post_init__(self) -> None:
        if self.batch is not None and (not isinstance(self.batch, int) or self.batch < 2):
            raise UserError("ThreeFrequency: batch must be a whole number >= 2, or None for the population; "
                            f"got {self.batch!r}")
        if self.basis.shape != (3, 3) or not np.allclose(self.basis.T @ self.basis, np.eye(3)):
            raise UserError("ThreeFrequency: basis must be an orthonormal (3, 3) array, one column a "
                            f"frequency; got {self.basis!r}")

    def hessians(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Yield for ever, step by step, the Hessian of the batch loss in `basis`, `(members, 3, 3)` float64.

        The gradient is the Hessian times w - w*. Member i draws from a generator of its own, seeded by
        `seeds[i]`, so its batches depend neither on the other members nor on the rule.
        """
        filled = self.basis[:, :2]
        turn = np.kron(filled, filled).T  # vec(C) @ turn = vec(filled C filledᵀ)
        generators = [np.random.default_rng(seed) for seed in seeds]
        while True:
            drawn = np.stack([self.covariances(generator, CHUNK) for generator in generators], axis=1)
            turned = (drawn.reshape(-1, 4) @ turn).reshape(CHUNK, len(seeds), 3, 3)
            yield from torch.from_numpy(turned).unbind()

    def covariances(self, generator: np.random.Generator, n: int) -> Array:
        """Return `n` independent sample covariances of (x̃₀, x̃₁), `(n, 2, 2)`.

        C = S T Tᵀ S / batch with S = diag(s₀, s₁) and Bartlett's lower-triangular T: T₀₀² ~ χ²(batch),
        T₁₁² ~ χ²(batch - 1), T₁₀ ~ N(0, 1). Without a batch, C is the true covariance.
        """
        if self.batch is None:
            return np.broadcast_to(np.diag(self.problem.variances[:2]), (n, 2, 2))
        first = generator.chisquare(self.batch, n)
        second = generator.chisquare(self.batch - 1, n)
        below = generator.standard_normal(n)
        cross = below * np.sqrt(first)
        square = np.stack([first, cross, cross, below**2 + second], axis=-1).reshape(n, 2, 2)
        return np.asarray(square * np.outer(self.problem.s[:2], self.problem.s[:2]) / self.batch)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Weights in frequency space, `(checkpoints, seeds, 3)`, after `steps` `(checkpoints,)` steps.

    The first checkpoint is the start, the last the end. A run that diverges goes on as inf and nan.
    """

    problem: Problem
    seeds: tuple[int, ...]
    steps: np.ndarray[tuple[int], np.dtype[np.int64]]
    weights: Array

    @property
    def final(self) -> Array:
        """The weights after the last step, `(seeds, 3)`."""
        return np.asarray(self.weights[-1])

    @property
    def errors(self) -> Array:
        """|w̃ - w̃*|, `(checkpoints, seeds, 3)`."""
        return np.asarray(np.abs(self.weights - self.problem.target))

    def standard_risk(self) -> Array:
        """Return R_s at every checkpoint, `(checkpoints, seeds)`."""
        with np.errstate(over="ignore", invalid="ignore"):
            return standard_risk(self.problem, self.weights)

    def adversarial_risk(self, eps: float = 2**0.5) -> Array:
        """Return R_a for the l2 radius `eps` at every checkpoint, `(checkpoints, seeds)`."""
        with np.errstate(over="ignore", invalid="ignore"):
            return adversarial_risk(self.problem, self.weights, eps)


def simulate(rule: Rule, problem: Problem, steps: int, seeds: Sequence[int], *, batch: int | None = 5000,
             checkpoints: int = 200, basis: Array = BASIS) -> Trajectory:
    """Run `rule` for `steps` steps on a fresh batch each, all seeds at once, in float64.

    Seeds are the members of the leading axis; rules that share a seed see the same batches. `checkpoints` is
    how many steps to record: 0 and log-spaced ones from 1 to the last (fewer when they coincide).

    Raises:
        UserError: when `steps`, `seeds`, `checkpoints`, `batch` or `basis` make no sense.

    >>> from optscope.optim import SGD
    >>> run = simulate(SGD(lr=0.01), Problem(), steps=100, seeds=(0, 1), checkpoints=4)
    >>> run.steps.tolist(), run.weights.shape
    ([0, 1, 10, 100], (4, 2, 3))
    """
    if steps < 1 or checkpoints < 3:
        raise UserError("simulate: expected steps >= 1 and checkpoints >= 3; "
                        f"got {steps!r} and {checkpoints!r}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"simulate: seeds must be distinct whole numbers >= 0, one a run; got {seeds!r}")
    regression = ThreeFrequency(problem, batch, basis)
    layout = Layout(("weight",), (torch.Size([3]),))
    target = torch.from_numpy(basis @ problem.target).repeat(len(seeds), 1)
    params = torch.from_numpy(basis @ problem.start).repeat(len(seeds), 1)
    due = np.unique([0, *np.geomspace(1, steps, checkpoints - 1).round().astype(np.int64)])
    kept, recorded = [params], frozenset(due.tolist())
    with torch.no_grad():
        state = rule.init(params, layout)
        for step, hessian in zip(range(1, steps + 1), regression.hessians(seeds), strict=False):
            grad = torch.bmm(hessian, (params - target).unsqueeze(-1)).squeeze(-1)
            change, state = rule.update(grad, state, params, layout)
            params = params + change
            if step in recorded:
                kept.append(params)
    return Trajectory(problem, tuple(seeds), due, torch.stack(kept).numpy() @ basis)


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ½ mean (outputs - targets)², whose Hessian for a linear model is the sample covariance."""
    return nn.functional.mse_loss(outputs, targets) / 2


@dataclass(frozen=True)
class LinearModel:
    """x ↦ <w, x> without bias, started at the problem's w(0) = D w̃(0) whatever the seed."""

    problem: Problem = PAPER

    def __call__(self) -> nn.Module:
        """Return a fresh model."""
        model = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(BASIS @ self.problem.start))
        return model


@dataclass(frozen=True)
class Signals:
    """Signals `(n, 3)` in space, labels `(n, 1)`: 5000 to train on, 1000 each to validate and to test."""

    problem: Problem = PAPER

    def __call__(self) -> Data:
        """Draw the signals, always the same."""
        frequencies = np.random.default_rng(0).standard_normal((7000, 3)) * self.problem.s
        inputs = torch.from_numpy(frequencies @ BASIS.T).to(torch.get_default_dtype())
        labels = torch.from_numpy(frequencies @ self.problem.target).to(inputs.dtype).unsqueeze(-1)
        parts = zip(inputs.split([5000, 1000, 1000]), labels.split([5000, 1000, 1000]), strict=True)
        return Data(*(Split(x, y) for x, y in parts))


def three_frequency_task(problem: Problem = PAPER) -> Task:
    """Return the regression on a finite sample as a task for the trainer (inputs are not bounded).

    >>> task = three_frequency_task()
    >>> task.kind, len(task.data().train), sum(p.numel() for p in task.model().parameters())
    ('regression', 5000, 3)
    """
    return Task("three-frequency", LinearModel(problem), Signals(problem), half_squared_error, "regression",
                bounds=None)
