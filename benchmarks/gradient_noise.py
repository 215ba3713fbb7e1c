"""B13: the gradient noise scale of a batch of 256."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from benchmarks.timing import Contender, interleave, rows
from optscope.optim import SGD
from optscope.probes.gradient_noise import DescentSplit, GradientNoise
from optscope.tasks.images import FashionMNIST
from optscope.tasks.models import MLP, ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

BATCH, SHUFFLES = 256, 30


def one_gradient(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the gradient of the batch, which training needs anyway."""
    loss = functional.cross_entropy(model(x), y)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def by_vmap(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the unbiased |G|² and tr Σ from every example's own gradient, as one writes it with torch.func."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    found = vmap(grad(loss), (None, 0, 0))(weights, x, y)
    g = torch.cat([part.flatten(1) for part in found.values()], dim=1)
    mean = g.mean(0)
    noise = float((g - mean).square().sum()) / (len(g) - 1)
    return float(mean.square().sum()) - noise / len(g), noise


def check(name: str, ours: list[float], exact: float) -> str:
    """Return how near the mean over shuffles is to the value it must have; raise when it is not."""
    values = torch.tensor(ours, dtype=torch.float64)
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    if not abs(mean - exact) <= 4 * error + 1e-5 * abs(exact):
        raise AssertionError(f"{name}: mean {mean:g} of {len(values)} shuffles is not {exact:g} within {error:g}")
    return f"{name} {mean:.4g} ± {error:.1g} over {len(values)} shuffles, per-sample {exact:.4g}"


def contenders(name: str, make: Callable[[], nn.Module]) -> list[Contender]:
    """Return the baseline, the rival and ours for one network, once their answers agree."""
    data = FashionMNIST()()
    torch.manual_seed(0)
    model = make().eval()
    task = Task(name, make, lambda: data)
    x, y = data.train.inputs[:BATCH], data.train.targets[:BATCH]
    scale, split = GradientNoise(examples=BATCH), DescentSplit(examples=BATCH, batch=128)
    snapshot = Snapshot(model, task, rule=SGD(lr=0.1))
    square, noise = by_vmap(model, x, y)
    shuffles = [scale(Snapshot(model, task, seed)).values for seed in range(SHUFFLES)]
    answer = "; ".join(check(metric, [v[metric] for v in shuffles], exact)
                       for metric, exact in (("gradient square", square), ("gradient noise", noise)))
    ours = version("optscope")
    return [
        Contender(f"one gradient, {name}", torch.__version__, "", lambda: one_gradient(model, x, y)),
        Contender(f"per-sample gradients by vmap, {name}", torch.__version__,
                  f"gradient square {square:.4g}, gradient noise {noise:.4g}", lambda: by_vmap(model, x, y)),
        Contender(f"optscope {scale!r}, {name}", ours, answer, lambda: scale(snapshot), {"parts": scale.parts}),
        Contender(f"optscope {split!r}, {name}", ours, str(split(snapshot).values), lambda: split(snapshot),
                  {"Hessian products": split.parts - 1}),
    ]


def b13(rounds: int = 7) -> dict[str, Any]:
    """Measure the noise scale against one gradient of the same batch, for two networks."""
    networks: dict[str, Callable[[], nn.Module]] = {"MLP": MLP(), "ResNet-8": ResNet(8, channels=1)}
    found = {name: contenders(name, make) for name, make in networks.items()}
    everyone = [contender for four in found.values() for contender in four]
    times = interleave(everyone, rounds=rounds, warm_up=2)
    ours = [contender.who for four in found.values() for contender in four if "GradientNoise" in contender.who]
    return {
        "bar": "B13",
        "work": f"gradient noise scale from one batch of {BATCH} images of 28x28, MLP and ResNet-8",
        "rows": rows(everyone, times),
        "ratio": {contender.who: times.ratio(contender.who, four[0].who)
                  for four in found.values() for contender in four[1:]},
        "limit": dict.fromkeys(ours, 1.3),
    }
