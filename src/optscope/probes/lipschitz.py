"""How fast a network can change with its input: a lower and an upper bound of its Lipschitz constant.

The lower bound is a slope that was seen between two inputs. The upper one multiplies the norms of the layers
as they really act (padding, stride, input size). The truth lies between, so neither is printed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.probes.attack import Moved
from optscope.probes.lipschitz_product import kernel_norm, pieces, product, runs
from optscope.probes.needs import Need
from optscope.probes.operator_norm import operator_norm
from optscope.probes.probe import Probe, Reading, Subject, check_outputs
from optscope.probes.smoothed import Smoothed
from optscope.tasks.trained_loss import ModelAndLoss
from optscope.tasks.tree import leaves
from optscope.tasks.unchanged import unchanged

Bounds = tuple[float, float] | None
Map = Callable[[Tensor], Tensor]
"""From inputs `(n, ...)` to outputs."""

SAMPLED = 2**17  # numbers in all random points: a few images, or many points of few axes, where they cover much
STARTED, FEWEST, MOST = 2**12, 16, 64  # numbers in, least and largest count of, the places that are climbed from
STRIDE = 0.03  # the length of a step uphill, in lengths of an input
REACH = (1.0, 0.3, 0.1, 0.03)  # of random steps


@dataclass(frozen=True, repr=False)
class Lipschitz(Probe):
    """Bound the Lipschitz constant of the map from an input to its outputs (logits), l2 to l2, as log10.

        L = sup_{x≠y} ‖f(x) - f(y)‖ / ‖x - y‖

    * "Lipschitz lower bound": the steepest slope seen, see `steepest_slope`; `climb` is its number of ascent steps.
    * "Lipschitz upper bound": the product of the layers' operator norms, each within a relative `tolerance` and
      wrong with probability 1e-9 at most, see `operator_norm`. Batch norm is folded, residual branches are
      added, an overlapping max pooling counts as √(windows a pixel).
    * "sqrt(kh kw) bound": √(kh·kw) times the spectral norm of each reshaped kernel: cruder, but a bound.
    * "paper's spectral product": the norms of the reshaped kernels alone, pooling counted as 1, as in the
      code of arXiv 2308.06703. It is no bound in either direction.

    Arrays: "operator norms" and "kernel norms" (reshaped), one a run of affine layers in the order of the
    model (branches before shortcuts). A constant network has L = 0 and log10 -inf.

    The products need a network made of known layers, see `pieces`. For any other, such as a module with a
    `forward` of its own, there is no upper bound: "Lipschitz lower bound" is all that a reading holds, and its
    `silence` says why. The same happens if a slope is seen that is steeper than the product.

    Raises:
        UserError: when inputs are whole numbers, or the model cannot be differentiated twice.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "float input", "second derivative")
    climb: int = 40
    tolerance: float = 1e-4
    examples: int | None = field(default=128, kw_only=True)

    def __post_init__(self) -> None:
        if self.climb < 0 or not 1e-8 <= self.tolerance < 1:
            raise UserError("Lipschitz: climb must be >= 0 and tolerance at least 1e-8 and below 1; "
                            f"got climb={self.climb!r}, tolerance={self.tolerance!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Four numbers on a log10 scale."""
        return (
            Metric("Lipschitz lower bound", "log10", "lower", "steepest slope seen: L is at least this"),
            Metric("Lipschitz upper bound", "log10", "lower", "product of exact operator norms: L is at most this"),
            Metric("sqrt(kh kw) bound", "log10", "neither", "a cruder upper bound, from the kernels alone"),
            Metric("paper's spectral product", "log10", "neither", "reshaped kernels; bounds nothing"),
        )

    def measure(self, subject: Subject) -> Reading:
        """Measure all four, or the lower bound alone where the model's structure is unknown."""
        check_outputs(subject)
        try:
            chain, _ = pieces(_alone(subject), subject.leaf[:1])
        except UserError as error:
            return self._lower_alone(self._lower(subject), str(error))
        norms = {run: operator_norm(nn.Sequential(*run.layers), run.shape, subject.generator, self.tolerance)
                 for run in runs(chain)}
        kernels = {run: kernel_norm(run, taps=False) for run in norms}
        values = {
            "Lipschitz lower bound": self._lower(subject),
            "Lipschitz upper bound": product(chain, lambda run: norms[run].upper),
            "sqrt(kh kw) bound": product(chain, lambda run: kernel_norm(run, taps=True)),
            "paper's spectral product": product(chain, kernels.__getitem__, pooling=False),
        }
        lower, upper = values["Lipschitz lower bound"], values["Lipschitz upper bound"]
        if lower > upper:
            return self._lower_alone(lower, f"a slope of {lower:.4g} was seen, and the norms of the layers multiply"
                                            f" to {upper:.4g}: the model does not compute what its layers do")
        return Reading({name: _log10(v) for name, v in values.items()},
                       {"operator norms": np.array([norm.lower for norm in norms.values()]),
                        "kernel norms": np.array(list(kernels.values()))})

    def _lower_alone(self, lower: float, reason: str) -> Reading:
        return Reading({"Lipschitz lower bound": _log10(lower)}, silence=f"there is no upper bound: {reason}")

    def _lower(self, subject: Subject) -> float:
        try:
            with sdpa_kernel(SDPBackend.MATH):  # of the attention kernels it alone has a second derivative
                return steepest_slope(subject.model, subject.leaf, subject.bounds, subject.generator, self.climb,
                                      subject.moved)
        except (RuntimeError, TypeError) as error:  # some operations have no second derivative, or no float64
            raise UserError(f"Lipschitz: the model must be twice differentiable and run in float64; "
                            f"torch said: {str(error).splitlines()[0]}") from error


def _alone(subject: Subject) -> nn.Module:
    """Return the network that makes the outputs of the moved part of the inputs, if that is all of these.

    Raises:
        UserError: when there are other inputs, or the outputs are read from what the network returns.
    """
    if not isinstance(subject.inputs, Tensor) or subject.task.output is not None:
        raise UserError("the product of norms needs a network from one tensor to one tensor; this one takes "
                        f"{', '.join(leaves(subject.inputs)) or 'a tensor'}, and returns more than its outputs")
    return subject.model.model if isinstance(subject.model, ModelAndLoss) else subject.model


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else -math.inf


def steepest_slope(model: nn.Module, inputs: Tensor, bounds: Bounds, generator: torch.Generator,
                   climb: int = 40, outputs: Moved | None = None) -> float:
    """Return the steepest slope found for a frozen model in eval mode, from `inputs` `(n, ...)`.

    Of a model that takes more than these, `outputs(x, where)` gives the outputs of the examples at `where` with `x`
    for their inputs: the rest of an example stays what it is, and random points are taken with examples in turn.

    The spectral norm of the Jacobian, ‖J(x)‖ = max_{‖u‖=1} ‖Jᵀu‖, is taken by power iteration at all inputs, and
    unless `climb` is 0 at random points of the `bounds` (or of the box that the inputs span). From the steepest of
    them x climbs for `climb` steps: along the gradient of ‖J‖, where that of a network that is linear in pieces is
    taken from its `Smoothed` self, and by random steps of several lengths; only what the model itself says counts.
    At last the slope across x ± h v, v the steepest direction, is taken in float64: this is a lower bound of L
    whatever autograd calls a derivative at a kink. Places without a finite derivative are passed over.

    Raises:
        UserError: when no slope that was seen is finite.
    """
    length = float(inputs.flatten(1).norm(dim=1).mean()) or 1.0
    size = inputs[0].numel()
    more = _sampled(inputs, bounds, min(SAMPLED // size, 2048), generator) if climb else inputs[:0]
    points = torch.cat([inputs, more])
    of = torch.arange(len(points), device=inputs.device) % len(inputs)

    def at(where: Tensor) -> Map:
        return model if outputs is None else lambda x: outputs(x, where)

    parts = [_jacobian_norm(at(where), x, _start(at(where), x, generator), rounds=4)
             for x, where in zip(points.split(128), of.split(128), strict=True)]
    norms, u, v = (torch.cat([part[i] for part in parts]) for i in range(3))
    first = norms.argsort(descending=True)[:min(max(STARTED // size, FEWEST), MOST)]
    best, there = _Best(points[first], norms[first], u[first], v[first]), at(of[first])
    x, u = best.place, best.u
    for step in range(climb):
        x = _inside(x + STRIDE * length * _uphill(there, x, u), bounds)
        u = best.consider(there, x, u)
        direction = _unit(torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device))
        best.consider(there, _inside(best.place + REACH[step % len(REACH)] * length * direction, bounds), best.u)
    return _across(model, there, best.place, best.along, 1e-4 * length, generator)


@dataclass
class _Best:
    """The steepest places so far `(n, ...)`, with ‖J‖ there, and its left and right singular vectors."""

    place: Tensor
    norm: Tensor
    u: Tensor
    along: Tensor

    def consider(self, model: Map, x: Tensor, u: Tensor) -> Tensor:
        """Take the places of `x` that are steeper, and return u there."""
        norm, u, v = _jacobian_norm(model, x, u, rounds=2)
        better = norm > self.norm
        self.place, self.along = (torch.where(_column(better, x), new, old)
                                  for new, old in ((x, self.place), (v, self.along)))
        self.u = torch.where(better.unsqueeze(1), u, self.u)
        self.norm = torch.maximum(norm, self.norm)
        return u


def _across(model: nn.Module, at: Map, place: Tensor, along: Tensor, step: float,
            generator: torch.Generator) -> float:
    """Return the steepest finite slope across `place` ± `step` in the directions `along`, in float64."""
    other = torch.randn(along.shape, generator=generator, dtype=torch.float64, device="cpu").to(along.device)
    known = along.flatten(1).isfinite().all(1)
    direction = _unit(torch.where(_column(known, along), along.double(), other))
    a, b = place.double() + step * direction, place.double() - step * direction
    with unchanged(model), torch.no_grad():  # for the moment it is the model itself that has double precision
        model.double()
        rise = _rows(at(a) - at(b)).norm(dim=1)
    slopes = rise / (a - b).flatten(1).norm(dim=1).clamp_min(1e-30)
    steepest = float(torch.where(slopes.isfinite(), slopes, -torch.inf).max())
    if math.isinf(steepest):
        raise UserError("Lipschitz: no slope of the model is finite where it was looked at: its outputs are nan or "
                        "inf around the inputs; look at divisions and roots in its forward")
    return steepest * (1 - 1e-8)  # less what rounding may have added


def _sampled(inputs: Tensor, bounds: Bounds, n: int, generator: torch.Generator) -> Tensor:
    """Return `n` points, uniform in the bounds, or in the box that the inputs span."""
    low, high = (inputs.amin(0), inputs.amax(0)) if bounds is None else bounds
    share = torch.rand((n, *inputs.shape[1:]), generator=generator, dtype=inputs.dtype, device="cpu")
    share = share.to(inputs.device)
    return low + (high - low) * share


def _inside(x: Tensor, bounds: Bounds) -> Tensor:
    return x if bounds is None else x.clamp(*bounds)


def _start(model: Map, x: Tensor, generator: torch.Generator) -> Tensor:
    with torch.no_grad():
        y = _rows(model(x))
    return _unit(torch.randn(y.shape, generator=generator, dtype=y.dtype, device="cpu").to(y.device))


@torch.enable_grad()
def _jacobian_norm(model: Map, x: Tensor, u: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ‖Jᵀu‖ `(n,)`, u `(n, outputs)` and Jᵀu `(n, ...)` after rounds of u <- J Jᵀu / ‖J Jᵀu‖.

    Where J is not finite, u stays and the norm is -1: below any that is one.
    """
    x = x.detach().requires_grad_()
    y = _rows(model(x))
    p = u.detach().clone().requires_grad_()
    # Jᵀp is linear in p, so its derivative is J, whatever p: taken at u it is the first round's Jᵀu as well.
    pulled = torch.autograd.grad(y, x, p, create_graph=True, allow_unused=True)[0] if y.requires_grad else None
    if pulled is None or not pulled.requires_grad:
        raise UserError("Lipschitz: the model passes no gradient to its inputs: it computes without, or rounds "
                        "them, and then a slope between two inputs says nothing")
    v = pulled.detach()
    for left in reversed(range(rounds)):
        image, = torch.autograd.grad(pulled, p, v, retain_graph=left > 0)
        u = torch.where(image.isfinite().all(1, keepdim=True), _unit(image), u)
        v, = torch.autograd.grad(y, x, u, retain_graph=left > 0)
    return v.flatten(1).norm(dim=1).nan_to_num(-1, -1), u, v


@torch.enable_grad()
def _uphill(model: Map, x: Tensor, u: Tensor) -> Tensor:
    """Return the unit direction `(n, ...)` in which ‖J(x)ᵀu‖ rises fastest, 0 where there is none."""
    x = x.detach().requires_grad_()
    with Smoothed():
        y = model(x)
    pulled, = torch.autograd.grad(_rows(y), x, u, create_graph=True)
    if not pulled.requires_grad:  # an affine model
        return torch.zeros_like(x)
    norm = torch.linalg.vector_norm(pulled.flatten(1), dim=1).sum()
    rise, = torch.autograd.grad(norm, x, materialize_grads=True)
    return _unit(rise.nan_to_num(0, 0, 0))


def _rows(outputs: Tensor) -> Tensor:
    """Return outputs as `(n, m)`; those of one number an example may be `(n,)`."""
    return outputs.reshape(len(outputs), -1)


def _unit(x: Tensor) -> Tensor:
    return x / _column(torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-30), x)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
