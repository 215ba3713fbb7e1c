"""B13: the gradient noise scale of a batch of 256, and what intervals over examples and over parts are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from benchmarks.timing import Contender, interleave, rows
from optscope.evidence.stats import Interval
from optscope.optim import SGD
from optscope.probes.at_weights import AtWeights
from optscope.probes.gradient_noise import CONFIDENCE, DescentSplit, GradientNoise
from optscope.probes.jackknife import Array, example_values, positive_interval, pseudo_values, signal_and_noise
from optscope.probes.per_example import lengths, passed, trained_layers
from optscope.tasks.images import FashionMNIST
from optscope.tasks.models import MLP, ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from optscope.tasks.tree import Batch

BATCH, BATCHES, PARTS = 256, 60, 8


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


def check(name: str, ours: float, exact: float) -> str:
    """Return a value with that of single gradients; raise when they are not the same."""
    if not abs(ours - exact) <= 1e-4 * abs(exact) + 1e-7:
        raise AssertionError(f"{name}: {ours:g} is not {exact:g}, that of single gradients")
    return f"{name} {ours:.6g}, of single gradients {exact:.6g}"


def drawn(make: Callable[[], nn.Module], steps: int = 100) -> dict[str, dict[str, float]]:
    """Return spread, coverage and median width of tr Σ over batches, by interval, for a network after some steps.

    Batches are drawn with replacement, so that the truth is that of all examples.
    """
    train, drawing = FashionMNIST()().train, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        batch = train.take(torch.randint(len(train), (64,), generator=drawing))
        optimizer.zero_grad()
        functional.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimizer.step()
    at = AtWeights(model.eval())

    def single(batch: Batch) -> Array:
        found = lengths(at, functional.cross_entropy, batch, lambda outputs, part: None)
        return example_values(found.squares.numpy(), found.along.numpy(), float(found.mean))[:, 1]

    def cut(batch: Batch) -> Array:
        g = torch.stack([at.gradient(functional.cross_entropy, part) for part in batch.split(BATCH // PARTS)])
        return pseudo_values(signal_and_noise, (g @ g.T).double().numpy())[:, 1] * (BATCH // PARTS)

    everyone = lengths(at, functional.cross_entropy, train.first(None), lambda outputs, part: None)
    truth = float(everyone.squares.mean() - everyone.mean)
    batches = [train.take(torch.randint(len(train), (BATCH,), generator=drawing)) for _ in range(BATCHES)]
    return {name: worth((positive_interval(values(batch), CONFIDENCE) for batch in batches), truth)
            for name, values in (("examples", single), (f"{PARTS} parts", cut))}


def worth(intervals: Iterable[Interval], truth: float) -> dict[str, float]:
    """Return the spread of estimates, the share of intervals that hold the truth, and their median width."""
    found = np.array([(i.estimate, i.low, i.high) for i in intervals])
    return {"truth": truth, "spread": float(found[:, 0].std(ddof=1)),
            "covered": float(((found[:, 1] <= truth) & (truth <= found[:, 2])).mean()),
            "width": float(np.median(found[:, 2] - found[:, 1]))}


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
    values = scale(snapshot).values
    answer = "; ".join(check(metric, values[metric], exact)
                       for metric, exact in (("gradient square", square), ("gradient noise", noise)))
    ours, at, batch, loss = version("optscope"), AtWeights(model), Batch(x, y), functional.cross_entropy
    layers = trained_layers(at)
    return [
        Contender(f"one gradient, {name}", torch.__version__, "", lambda: one_gradient(model, x, y)),
        Contender(f"per-sample gradients by vmap, {name}", torch.__version__,
                  f"gradient square {square:.4g}, gradient noise {noise:.4g}", lambda: by_vmap(model, x, y)),
        Contender(f"the pass and single lengths, {name}", ours, "",
                  lambda: passed(at, layers, loss, batch).squares()),
        Contender(f"lengths and products, all an interval needs, {name}", ours, "",
                  lambda: lengths(at, loss, batch, lambda outputs, part: None)),
        Contender(f"optscope {scale!r}, {name}", ours, answer, lambda: scale(snapshot)),
        Contender(f"optscope {split!r}, {name}", ours, str(split(snapshot).values), lambda: split(snapshot),
                  {"Hessian products": split.parts - 1}),
    ]


def b13(rounds: int = 7) -> dict[str, Any]:
    """Measure the noise scale against one gradient of the same batch, for two networks."""
    networks: dict[str, Callable[[], nn.Module]] = {"MLP": MLP(), "ResNet-8": ResNet(8, channels=1)}
    found = {name: contenders(name, make) for name, make in networks.items()}
    everyone = [contender for some in found.values() for contender in some]
    times = interleave(everyone, rounds=rounds, warm_up=1)
    limits = {"the pass": 1.05, "lengths": 1.4, "optscope GradientNoise": 1.4, "optscope DescentSplit": 6.0}
    return {
        "bar": "B13",
        "work": f"gradient noise scale from one batch of {BATCH} images of 28x28, MLP and ResNet-8",
        "rows": rows(everyone, times),
        "intervals of the noise over batches of the MLP": drawn(MLP()),
        "ratio": {contender.who: times.ratio(contender.who, some[0].who)
                  for some in found.values() for contender in some[1:]},
        "limit": {contender.who: most for some in found.values() for contender in some
                  for name, most in limits.items() if contender.who.startswith(name)},
    }
