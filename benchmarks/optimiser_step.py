"""B8: one optimiser step on ten million parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

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
        norms = [p.grad.norm() for p in self.params]
        whole = torch.stack(norms).norm()
        for p, norm in zip(self.params, norms, strict=True):
            p -= p.grad / (whole if self.per == "model" else norm)


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
    """Return what a user has without this package; the first of a kind is the twin ours must equal."""
    import pytorch_optimizer as zoo

    found: dict[str, Make] = {}
    for name, make in {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD}.items():
        found[f"torch {name}, loop"] = lambda p, make=make: make(p, lr=LR, foreach=False)
        found[f"torch {name}, foreach"] = lambda p, make=make: make(p, lr=LR, foreach=True)
        found[f"torch {name}, fused"] = lambda p, make=make: make(p, lr=LR, fused=True)
    return found | {
        "torch RMSprop, loop": lambda p: torch.optim.RMSprop(p, lr=LR, foreach=False),
        "pytorch-optimizer SignSGD": lambda p: zoo.SignSGD(p, lr=LR, momentum=0.0),
        "pytorch-optimizer Lion": lambda p: zoo.Lion(p, lr=LR),
        "normalised by hand, layer": lambda p: NormalisedByHand(p, "layer"),
        "normalised by hand, model": lambda p: NormalisedByHand(p, "model"),
        "two torch optimisers, layer": lambda p: GraftedByHand(p, "layer"),
        "two torch optimisers, model": lambda p: GraftedByHand(p, "model"),
    }


# Ours, the rival it must equal, and the most it may cost in steps of torch's fused Adam.
OURS: list[tuple[Rule, str, float]] = [
    (Adam(lr=LR), "torch Adam, loop", 1.05),
    (SGD(lr=LR), "torch SGD, loop", 1.05),
    (SignSGD(lr=LR), "pytorch-optimizer SignSGD", 1.5),
    (NormalizedSGD(lr=1.0), "normalised by hand, layer", 1.5),
    (NormalizedSGD(lr=1.0, per="model"), "normalised by hand, model", 1.5),
    (RMSProp(lr=LR), "torch RMSprop, loop", math.inf),
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


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest difference of any weight."""
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def b8() -> dict[str, Any]:
    """Measure a step of ours and of the rivals, once ours are found equal to their twins."""
    others = rivals()
    start = [p.detach() for p in parameters()]
    answers = {}
    for rule, twin, _ in OURS:
        theirs = after_three_steps(others[twin])
        error, moved = distance(after_three_steps(rule.optimizer), theirs), distance(theirs, start)
        if not error <= TOLERANCE < moved:
            raise AssertionError(f"{rule!r} is {error:.1e} from {twin} after three steps that moved {moved:.1e}")
        answers[rule] = f"within {error:.0e} of {twin} after 3 steps of {moved:.0e}"

    params = parameters()
    for p in params:
        p.grad = torch.randn_like(p)
    releases = {"torch": torch.__version__, "pytorch-optimizer": version("pytorch-optimizer")}
    contenders = [Contender(name, releases.get(name.split()[0], torch.__version__), "", make(params).step)
                  for name, make in others.items()]
    ours = version("optscope")
    contenders += [Contender(f"optscope {rule!r}", ours, answers[rule], rule.optimizer(params).step)
                   for rule, _, _ in OURS]
    times = interleave(contenders, rounds=9, warm_up=2)
    return {
        "bar": "B8",
        "work": f"one step on {TENSORS * math.prod(SHAPE):,} float32 parameters in {TENSORS} tensors",
        "rows": rows(contenders, times),
        "ratio": {repr(rule): times.ratio(f"optscope {rule!r}", FUSED) for rule, _, _ in OURS},
    }
