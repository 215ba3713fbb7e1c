"""What the next step is made of: the shares that gradient, signs, whitening and memory explain, and its rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from optscope.devices import to_numpy
from optscope.evidence.records import Metric
from optscope.optim.rates import set_mode
from optscope.probes.at_weights import AtWeights, mean_gradient
from optscope.probes.geometry import BATCH
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject, check_examples, portion_of
from optscope.probes.singular import ranks, singular_values, spectra
from optscope.tasks.unchanged import unchanged

PARTS = ("gradient", "sign", "whitening", "memory")


@dataclass(frozen=True, repr=False)
class StepAnatomy(Probe):
    """Measure what the live optimiser's next step is made of.

        explained by d = Σ_l ⟨s_l, d_l⟩²/‖d_l‖² / Σ_l ‖s_l‖²        in percent, over layers l

    s is the step that the optimiser, with its state, would make from the gradient g of the mean loss over the
    examples; d is g; sign(g); g's whitening U Vᵀ of its singular vectors (of a kernel as a matrix; of vectors
    g itself); and "memory", the step that it would make from a gradient of 0: momentum and decay. As these
    are not orthogonal their shares do not add up: "explained by all four" is that of the best combination in
    each layer. SGD's first step is all gradient, SignSGD's all sign, Muon's all whitening as nearly as its
    polynomial is. The step's "stable rank" and "effective rank" are those of `Geometry`, in percent of the
    full rank, means over matrices and kernels.

    It needs the live optimiser: `Watch(StepAnatomy())`. Nothing is read without one, and no memory of a rule
    that takes several gradients. Arrays: "layers" and for each "layer shares" of the four, "matrices" and
    their "stable ranks", and of each the step's "singular values of NAME", descending. The measure is ours.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "live optimiser")
    examples: int | None = field(default=256, kw_only=True)
    split: Literal["train", "validation", "test"] = field(default="train", kw_only=True)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Four shares, that of all together, and two ranks."""
        along = "the gradient", "its signs", "its polar factor", "a step without gradient"
        shares = [Metric(f"explained by {part}", "%", "neither", f"of the step squared, along {said}")
                  for part, said in zip(PARTS, along, strict=True)]
        return (*shares, Metric("explained by all four", "%", "neither", "by their best mix, layer by layer"),
                Metric("step stable rank", "%", "neither", "of the full rank, mean over matrices and kernels"),
                Metric("step effective rank", "%", "neither", "exp(entropy of σ/Σσ), otherwise as stable rank"))

    def measure(self, subject: Subject) -> Reading:
        """Let the optimiser make its step from the gradient, and from none, and undo both.

        Raises:
            UserError: when outputs are not finite, or the loss is no mean.
        """
        optimizer = subject.snapshot.optimizer
        if optimizer is None:
            return Reading({}, silence="there is no live optimiser: take it during training, Watch(StepAnatomy())")
        check_examples(subject)
        names = [name for name, _ in subject.model.named_parameters() if name in subject.trained]
        step, grads = _stepped(subject, optimizer, names, partial(_gradients, subject))
        if not any(bool(part.any()) for part in step):
            return Reading({}, silence="the next step changes no weight")
        rule: Any = getattr(optimizer, "rule", None)
        still = rule is not None and rule.asks
        nothing = [torch.zeros_like(g) for g in grads]
        memory = nothing if still else _stepped(subject, optimizer, names, lambda: nothing)[0]
        found = torch.stack([_shares(s, g, m) for s, g, m in zip(step, grads, memory, strict=True)])
        squares = torch.stack([s.square().sum() for s in step])
        totals = to_numpy(100 * (found * squares.unsqueeze(1)).sum(0) / squares.sum())
        values = {f"explained by {name}": float(value)
                  for name, value in zip((*PARTS, "all four"), totals, strict=True)
                  if not (still and name == "memory")}
        matrices = [(name, s.flatten(1)) for name, s in zip(names, step, strict=True) if s.dim() > 1]
        full = np.array([min(s.shape) for _, s in matrices])
        singular = [singular_values(s).cpu() for _, s in matrices]
        pairs = np.array([ranks(part) for part in singular]).reshape(-1, 2)
        if len(matrices):
            stable, effective = 100 * pairs.T / full
            values |= {"step stable rank": float(stable.mean()), "step effective rank": float(effective.mean())}
        return Reading(values, {"layers": np.array(names), "layer shares": to_numpy(100 * found[:, :4]),
                                "matrices": np.array([name for name, _ in matrices]), "stable ranks": pairs[:, 0],
                                **spectra([name for name, _ in matrices], singular)})


def _gradients(subject: Subject) -> list[Tensor]:
    """Return the mean loss's gradient at the model's weights, layer by layer."""
    at = AtWeights(subject.model, subject.trained, call=subject.task.outputs)
    return at.layout.views(mean_gradient(at, subject.loss, subject.batch, min(BATCH, portion_of(subject))))


def _stepped(subject: Subject, optimizer: torch.optim.Optimizer, names: list[str],
             gradients: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the steps by and the gradients of layers, in float64, and leave model and optimiser as they were."""
    named = dict(subject.model.named_parameters())
    params = [named[name] for name in names]

    def give() -> Tensor:
        for p, g in zip(params, gradients(), strict=True):
            p.grad = g.to(p.dtype).clone()
        return torch.zeros((), device=subject.device)

    with unchanged(subject.model, optimizer), torch.no_grad():
        set_mode(optimizer, "train")
        before = [p.detach().clone() for p in params]
        with torch.enable_grad():
            give()
        grads = [p.grad.double() for p in params if p.grad is not None]
        optimizer.step(partial(give))  # type: ignore[arg-type]
        return [(p - b).double() for p, b in zip(params, before, strict=True)], grads


def _shares(step: Tensor, grad: Tensor, memory: Tensor) -> Tensor:
    """Return which shares of a layer's squared step lie along the four directions, and in all of them, `(5,)`."""
    along = torch.stack([d.flatten() for d in (grad, grad.sign(), whitened(grad), memory)])
    lengths = torch.linalg.vector_norm(along, dim=1, keepdim=True)
    units = torch.where(lengths > 0, along / lengths, torch.zeros_like(along))
    unit = step.flatten() / torch.linalg.vector_norm(step).clamp(min=torch.finfo(step.dtype).tiny)
    single = (units @ unit).square()
    left = unit - units.T @ (torch.linalg.pinv(units.T, rtol=1e-9) @ unit)
    return torch.cat([single, (unit.square().sum() - left.square().sum()).reshape(1)])


def whitened(layer: Tensor) -> Tensor:
    """Return U Vᵀ of a matrix or kernel with the singular vectors U and V, and a vector as it is.

    >>> whitened(torch.diag(torch.tensor([3.0, 0.5]))).round()
    tensor([[1., 0.],
            [0., 1.]])
    """
    if layer.dim() < 2:
        return layer
    u, s, vh = torch.linalg.svd(layer.flatten(1), full_matrices=False)
    kept = (s > s.max() * torch.finfo(s.dtype).eps * max(layer.shape)).to(s.dtype)
    found: Tensor = ((u * kept) @ vh).view_as(layer)
    return found
