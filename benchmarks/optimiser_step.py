"""B8: one optimiser step on ten million parameters.

The rival: `pip install optscope[zoo]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.timing import Contender, interleave, rows
from optscope.optim import SGD, Adam, Graft, NormalizedSGD, RMSProp, Rule, SignSGD

TENSORS, SHAPE = 20, (700, 714)
LR = 1e-3
FUSED = "torch Adam, fused"
TOLERANCE = 1e-6

Make = Callable[[Sequence[nn.Parameter]], Any]


class NormalisedByHand:
    """Normalised descent with lr 1 as one writes it: a norm, then a scaled step."""

    def __init__(self, params: Sequence[nn.Parameter], per: str) -> None:
        self.params, self.per = params, per

    @torch.no_grad()
    def step(self) -> None:
        grads = [cast(Tensor, p.grad) for p in self.params]
        norms = [grad.norm() for grad in grads]
        if self.per == "model":
            norms = [torch.stack(norms).norm()] * len(norms)
        for p, grad, norm in zip(self.params, grads, norms, strict=True):
            p.sub_(grad / norm)


class GraftedByHand:
    """Grafting as one writes it over two torch optimisers: step, measure, put back, step, rescale."""

    def __init__(self, params: Sequence[nn.Parameter], per: str) -> None:
        self.params, self.per = params, per
        self.magnitude = torch.optim.Adam(params, lr=LR)
        self.direction = torch.optim.SGD(params, lr=1.0)

    @torch.no_grad()
    def step(self) -> None:
        before = [p.clone() for p in self.params]
        self.magnitude.step()
        lengths = [(p - b).norm() for p, b in zip(self.params, before, strict=True)]
        for p, b in zip(self.params, before, strict=True):
            p.copy_(b)
        self.direction.step()
        steps = [p - b for p, b in zip(self.params, before, strict=True)]
        norms = [step.norm() for step in steps]
        if self.per == "model":
            lengths = [torch.stack(lengths).norm()] * len(steps)
            norms = [torch.stack(norms).norm()] * len(steps)
        for p, b, step, length, norm in zip(self.params, before, steps, lengths, norms, strict=True):
            p.copy_(b + step * (length / norm))


def rivals() -> dict[str, Make]:
    """Return what a user has without this package; torch's fused Adam comes last, next to ours."""
    import pytorch_optimizer as zoo

    return {
        "torch SGD, loop": lambda p: torch.optim.SGD(p, lr=LR, foreach=False),
        "torch SGD, foreach": lambda p: torch.optim.SGD(p, lr=LR, foreach=True),
        "torch SGD, fused": lambda p: torch.optim.SGD(p, lr=LR, fused=True),
        "torch RMSprop, loop": lambda p: torch.optim.RMSprop(p, lr=LR, foreach=False),
        "pytorch-optimizer SignSGD": lambda p: zoo.SignSGD(p, lr=LR, momentum=0.0),
        "pytorch-optimizer Lion": lambda p: zoo.Lion(p, lr=LR),
        "normalised by hand, layer": lambda p: NormalisedByHand(p, "layer"),
        "normalised by hand, model": lambda p: NormalisedByHand(p, "model"),
        "two torch optimisers, layer": lambda p: GraftedByHand(p, "layer"),
        "two torch optimisers, model": lambda p: GraftedByHand(p, "model"),
        "torch Adam, loop": lambda p: torch.optim.Adam(p, lr=LR, foreach=False),
        "torch Adam, foreach": lambda p: torch.optim.Adam(p, lr=LR, foreach=True),
        FUSED: lambda p: torch.optim.Adam(p, lr=LR, fused=True),
    }


# Ours, the rival it must equal, and the most it may cost in steps of torch's fused Adam (None: not promised).
OURS: list[tuple[Rule, str, float | None]] = [
    (Adam(lr=LR), "torch Adam, loop", 1.05),
    (SGD(lr=LR), "torch SGD, loop", None),
    (SignSGD(lr=LR), "pytorch-optimizer SignSGD", 1.5),
    (NormalizedSGD(lr=1.0), "normalised by hand, layer", 1.5),
    (NormalizedSGD(lr=1.0, per="model"), "normalised by hand, model", 1.5),
    (RMSProp(lr=LR), "torch RMSprop, loop", None),
    (Graft(Adam(lr=LR), SGD(lr=1.0)), "two torch optimisers, layer", 5.0),
    (Graft(Adam(lr=LR), SGD(lr=1.0), per="model"), "two torch optimisers, model", 5.0),
]


def parameters() -> list[nn.Parameter]:
    """Return ten million weights in tensors of half a million."""
    noise = torch.Generator().manual_seed(0)
    return [nn.Parameter(0.02 * torch.randn(SHAPE, generator=noise)) for _ in range(TENSORS)]


def after_three_steps(make: Make) -> list[Tensor]:
    """Return the weights that three steps leave, each on gradients of its own."""
    params, noise = parameters(), torch.Generator().manual_seed(1)
    optimizer = make(params)
    for _ in range(3):
        for i, p in enumerate(params):
            p.grad = torch.randn(SHAPE, generator=noise).mul_(1 + i)
        optimizer.step()
    return [p.detach() for p in params]


def distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the largest difference of any weight."""
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


def agreement(rule: Rule, twin: str, make_twin: Make) -> str:
    """Return in words how near a rule is to its twin after three steps; raise if that is not near enough."""
    theirs = after_three_steps(make_twin)
    error = distance(after_three_steps(rule.optimizer), theirs)
    moved = distance(theirs, [p.detach() for p in parameters()])
    if not error <= TOLERANCE < 1e-3 * moved:
        raise AssertionError(f"{rule!r} is {error:.1e} from {twin} after three steps that moved {moved:.1e}")
    return f"{error:.0e} from {twin}, three steps of {moved:.0e}"


def b8() -> dict[str, Any]:
    """Measure a step of ours and of the rivals, once ours are found equal to their twins."""
    others = rivals()
    answers = {rule: agreement(rule, twin, others[twin]) for rule, twin, _ in OURS}
    params = parameters()
    for p in params:
        p.grad = torch.randn_like(p)
    zoo, ours = version("pytorch-optimizer"), version("optscope")
    contenders = [Contender(name, zoo if name.startswith("pytorch-optimizer") else torch.__version__, "",
                            make(params).step) for name, make in others.items()]
    contenders += [Contender(f"optscope {rule!r}", ours, answer, rule.optimizer(params).step)
                   for rule, answer in answers.items()]
    times = interleave(contenders, rounds=15, warm_up=2)
    return {
        "bar": "B8",
        "work": f"one step on {TENSORS * math.prod(SHAPE):,} float32 parameters in {TENSORS} tensors; "
                "ratios to torch's fused Adam",
        "rows": rows(contenders, times),
        "ratio": {repr(rule): times.ratio(f"optscope {rule!r}", FUSED) for rule, _, _ in OURS},
        "limit": {repr(rule): limit for rule, _, limit in OURS if limit is not None},
    }
