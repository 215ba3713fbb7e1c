"""B20: one step of Muon, SOAP, Lion and schedule-free on ten million parameters in matrices, and what they keep.

The rival: `pip install optscope[zoo]`. torch.optim.Muon always makes its matrices orthogonal in bfloat16, which a
processor without instructions for it emulates: there it is timed on one matrix, and its loop in float32 besides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.optimiser_step import Make
from benchmarks.timing import Contender, interleave, rows
from optscope.optim import SGD, SOAP, Adam, AdamW, Graft, Lion, Muon, Rule, ScheduleFree

TENSORS, SHAPE = 20, (700, 714)
SMALL = 48, 48
"""Where answers are compared: square, for in the null space of a long gradient rounding chooses SOAP's basis."""
LR = 1e-3
FUSED = "torch AdamW, fused"


class MuonByHand:
    """torch.optim.Muon's loop, tensor by tensor, with its Newton-Schulz in float32."""

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self.params = params
        self.averages = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        for p, m in zip(self.params, self.averages, strict=True):
            grad = cast(Tensor, p.grad)
            m.lerp_(grad, 0.05)
            x = grad.lerp(m, 0.95)
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            x = x / x.norm().clamp(min=1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
            p.add_(x.T if tall else x, alpha=-LR * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def rivals() -> dict[str, Make]:
    """Return what a user has without this package."""
    import pytorch_optimizer as zoo

    return {
        FUSED: lambda p: torch.optim.AdamW(p, lr=LR, fused=True),
        "Muon by hand, float32": MuonByHand,
        "pytorch-optimizer SOAP": lambda p: zoo.SOAP(p, lr=LR, weight_decay=0.0),
        "pytorch-optimizer Lion": lambda p: zoo.Lion(p, lr=LR, weight_decay=0.0),
        "pytorch-optimizer ScheduleFreeAdamW": lambda p: zoo.ScheduleFreeAdamW(p, lr=LR, weight_decay=0.0),
    }


# Ours, the rival it must equal and how nearly (of the way of three steps), what it is measured against, and
# the most it may cost in units of that.
OURS: list[tuple[Rule, str, float, str, float]] = [
    (Muon(lr=LR), "Muon by hand, float32", 1e-3, "Muon by hand, float32", 0.7),
    (SOAP(lr=LR), "pytorch-optimizer SOAP", 1e-3, "pytorch-optimizer SOAP", 0.5),
    (Lion(lr=LR), "pytorch-optimizer Lion", 1e-6, FUSED, 1.1),
    (ScheduleFree(AdamW(lr=LR, beta1=0.0, decay=0.0)), "pytorch-optimizer ScheduleFreeAdamW", 1e-3, FUSED, 1.5),
    (Graft(Adam(lr=LR), SGD(lr=1.0)), "", 0.0, FUSED, 2.2),
]


def parameters(shape: tuple[int, int], tensors: int) -> list[nn.Parameter]:
    """Return weights in matrices of one shape."""
    noise = torch.Generator().manual_seed(0)
    return [nn.Parameter(0.02 * torch.randn(shape, generator=noise)) for _ in range(tensors)]


def after_three_steps(make: Make) -> Tensor:
    """Return the weights that three steps on small matrices leave, each on gradients of its own."""
    params, noise = parameters(SMALL, 3), torch.Generator().manual_seed(1)
    optimizer = make(params)
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(SMALL, generator=noise)
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in params])


def agreement(rule: Rule, twin: str, within: float, others: dict[str, Make]) -> str:
    """Return in words how near a rule is to its twin after three steps; raise if that is not near enough."""
    if not twin:
        return "its bar is B8's"
    theirs = after_three_steps(others[twin])
    moved = float((theirs - torch.cat([p.detach().reshape(-1) for p in parameters(SMALL, 3)])).norm())
    error = float((after_three_steps(rule.optimizer) - theirs).norm()) / moved
    if not error <= within:
        raise AssertionError(f"{rule!r} is {error:.1e} of its way from {twin} after three steps")
    return f"{error:.0e} of the way from {twin}"


def kept(optimizer: Any, params: Sequence[Tensor]) -> float:
    """Return the bytes of state a parameter."""
    tensors = {id(t): t for state in optimizer.state.values() for t in flat(state)}
    return sum(t.numel() * t.element_size() for t in tensors.values()) / sum(p.numel() for p in params)


def flat(value: Any) -> list[Tensor]:
    """Return all tensors in a nested state."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for each in inside for t in flat(each)]


def b20() -> dict[str, Any]:
    """Measure a step of ours and of the rivals, once ours are found near their twins."""
    others = rivals()
    answers = {rule: agreement(rule, twin, within, others) for rule, twin, within, _, _ in OURS}
    params = parameters(SHAPE, TENSORS)
    for p in params:
        p.grad = torch.randn_like(p)
    zoo, ours = version("pytorch-optimizer"), version("optscope")
    made = {name: make(params) for name, make in others.items()}
    made |= {f"optscope {rule!r}": rule.optimizer(params) for rule in answers}
    said = {f"optscope {rule!r}": answer for rule, answer in answers.items()}
    contenders = []
    for name, optimizer in made.items():
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        optimizer.step()
        counts = {"bytes a parameter": round(kept(optimizer, params), 1)} if hasattr(optimizer, "state") else {}
        version_of = zoo if name.startswith("pytorch-optimizer") else ours if name in said else torch.__version__
        contenders.append(Contender(name, version_of, said.get(name, ""), optimizer.step, counts))
    times = interleave(contenders, rounds=5, warm_up=1)
    found = rows(contenders, times)
    found.append(_torchs_muon(times.median(f"optscope {OURS[0][0]!r}") / TENSORS))
    return {
        "bar": "B20",
        "work": f"one step on {TENSORS * math.prod(SHAPE):,} float32 parameters in {TENSORS} matrices",
        "rows": found,
        "ratio": {repr(rule): times.ratio(f"optscope {rule!r}", rival) for rule, _, _, rival, _ in OURS},
        "limit": {repr(rule): limit for rule, _, _, _, limit in OURS},
    }


def _torchs_muon(ours: float) -> dict[str, Any]:
    """Return a row of torch's Muon on one matrix."""
    params = parameters(SHAPE, 1)
    params[0].grad = torch.randn_like(params[0])
    optimizer = torch.optim.Muon(params, lr=LR, weight_decay=0.0)
    start = time.process_time()
    optimizer.step()
    elapsed = time.process_time() - start
    return {"who": "torch Muon, bfloat16, one matrix", "version": torch.__version__,
            "answer": f"{elapsed / ours:.3g} times ours in float32, a matrix", "median_s": elapsed, "counts": {}}
