"""B1, B2: the top eigenvalue of a ResNet-8's Hessian, certified, and followed while it trains.

The rivals: `pip install pyhessian hessian-eigenthings`, and without their dependencies (one needs torchvision)
`pip install --no-deps curvlinops-for-pytorch backpack-for-pytorch einops einconv linear_operator jaxtyping
wadler-lindig opt-einsum`.
"""

from __future__ import annotations

import copy
import importlib
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.timing import Contender, interleave, rows
from optscope.optim import SGD, Adam
from optscope.probes.curvature import PreconditionedSharpness, TopEigenvalues
from optscope.probes.hessian import Hessian
from optscope.probes.lanczos import largest
from optscope.probes.probe import Memory
from optscope.tasks.images import FashionMNIST
from optscope.tasks.models import ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Split, Task

TASK = Task("fashion-mnist", ResNet(depth=8, channels=1), FashionMNIST())
SIZES, TRAINED = (128, 512), 100
MOST_PRODUCTS = 7

Find = Callable[[nn.Module, Split], tuple[float, int]]
"""From a model and examples to the top eigenvalue and the products it took."""


def pyhessian(model: nn.Module, part: Split) -> tuple[float, int]:
    """Run PyHessian's power iteration as it comes: a relative change of 1e-3, at most 100 iterations."""
    module = importlib.import_module("pyhessian.hessian")  # the package's own name for it is the class inside
    product, count = module.hessian_vector_product, 0

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return product(*args)

    module.hessian_vector_product = counted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls backward(create_graph=True)
            found = module.hessian(model, cross_entropy, data=(part.inputs, part.targets), cuda=False)
            return float(found.eigenvalues()[0][0]), count
    finally:
        module.hessian_vector_product = product
        model.zero_grad()


def eigsh(model: nn.Module, part: Split) -> tuple[float, int]:
    """Run scipy's eigsh to 1e-3 on the Hessian of curvlinops."""
    import curvlinops
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import eigsh as arpack

    data = [(part.inputs, part.targets)]
    matrix = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), data,
                                              check_deterministic=False)
    inner, count = matrix.to_scipy(), 0

    def counted(v: Any) -> Any:
        nonlocal count
        count += 1
        return inner @ v

    start = np.random.default_rng(0).standard_normal(inner.shape[0]).astype(np.float32)
    top = arpack(LinearOperator(inner.shape, matvec=counted, dtype=np.float32), 1, which="LA", tol=1e-3, v0=start,
                 return_eigenvectors=False)
    return float(top[0]), count


def eigenthings(model: nn.Module, part: Split) -> tuple[float, int]:
    """Run the Lanczos of hessian-eigenthings with its default settings for one eigenvalue."""
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    matrix = HessianOperator(model, [(part.inputs, part.targets)], supervised_loss(cross_entropy))
    found = lanczos(matrix, k=1, seed=0)
    return float(found.eigenvalues[0]), int(found.iterations)


RIVALS: dict[str, tuple[str, Find]] = {
    "PyHessian": ("PyHessian", pyhessian),
    "eigsh on curvlinops": ("curvlinops-for-pytorch", eigsh),
    "hessian-eigenthings lanczos(k=1)": ("hessian-eigenthings", eigenthings),
}


def trained(steps: int) -> nn.Module:
    """Return a ResNet-8 after some steps of SGD with momentum."""
    torch.manual_seed(0)
    model = TASK.model()
    optimizer = SGD(lr=0.05, momentum=0.9).optimizer(model.parameters())
    train_steps(model, optimizer, steps, batch=128)
    return model.eval()


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, batch: int, seed: int = 0) -> None:
    """Train on random batches."""
    train, noise = TASK.data().train, torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        rows_ = torch.randint(len(train), (batch,), generator=noise)
        optimizer.zero_grad()
        cross_entropy(model(train.inputs[rows_]), train.targets[rows_]).backward()
        optimizer.step()


def answer(value: float, truth: float) -> str:
    """Return a value with its true relative error."""
    return f"{value:.6g}, {abs(value - truth) / truth:.1e} from the truth"


def b1(sizes: tuple[int, ...] = SIZES, rounds: int = 1) -> dict[str, Any]:
    """Find the top eigenvalue on 128 and 512 images: ours certified to 1e-3, rivals as they come."""
    model, train = trained(TRAINED), TASK.data().train
    contenders, ours = [], {}
    for n in sizes:
        part = train.first(n)
        twin = copy.deepcopy(model).double()
        truth = float(largest(Hessian(twin, cross_entropy, part.inputs.double(), part.targets), rel=1e-7).values[0])
        probe = TopEigenvalues(examples=n)

        def certify(probe: TopEigenvalues = probe) -> Any:
            return probe(Snapshot(copy.deepcopy(model), TASK))  # a copy: nothing to start from but the gradient

        reading = certify()
        value, error = reading.values["sharpness"], reading.values["sharpness error"]
        products = int(reading.arrays["products"])
        if not (abs(value - truth) <= error <= 1e-3 * value and products <= MOST_PRODUCTS):
            raise AssertionError(f"{n} images: {value} +- {error} in {products} products; the truth is {truth}")
        ours[n] = f"optscope, {n} images"
        printed = f"{answer(value, truth)}, printed {error / value:.1e}"
        contenders.append(Contender(ours[n], version("optscope"), printed, certify, {"products": products}))
        for name, (package, find) in RIVALS.items():
            found, count = find(copy.deepcopy(model), part)
            contenders.append(Contender(f"{name}, {n} images", version(package), answer(found, truth),
                                        lambda find=find, part=part: find(copy.deepcopy(model), part),
                                        {"products": count}))
    times = interleave(contenders, rounds=rounds, warm_up=0)
    return {"bar": "B1", "work": f"top Hessian eigenvalue of a ResNet-8 after {TRAINED} steps on Fashion-MNIST",
            "rows": rows(contenders, times),
            "ratio": {f"{name}, {n} images": times.ratio(ours[n], f"{name}, {n} images")
                      for n in sizes for name in RIVALS}}


def b2(steps: int = 200, every: int = 20, batch: int = 256, examples: int = 64) -> dict[str, Any]:
    """Follow the sharpness and Adam's preconditioned one over a training, and weigh it against the training.

    The true value is known of the plain one alone: the error told is its.
    """
    torch.manual_seed(0)
    model = TASK.model()
    optimizer = Adam(lr=1e-3).optimizer(model.parameters())
    probes = [kind(examples=examples, rel=0.05, margin=2.0) for kind in (TopEigenvalues, PreconditionedSharpness)]
    memories: list[Memory] = [{}, {}]
    plain = tracking = rival = 0.0
    products, worst = [], 0.0
    part = TASK.data().train.first(examples)
    for step in range(every, steps + 1, every):
        start = time.process_time()
        train_steps(model, optimizer, every, batch, seed=step)
        plain += time.process_time() - start
        snapshot = Snapshot(model, TASK, step=step, rule=Adam(lr=1e-3), optimizer=optimizer)
        start = time.process_time()
        readings = [probe(snapshot, memory) for probe, memory in zip(probes, memories, strict=True)]
        memories = [reading.memory for reading in readings]
        tracking += time.process_time() - start
        products.append(sum(int(r.arrays["products"]) for r in readings))
        fresh = replace(snapshot, model=copy.deepcopy(model), optimizer=None)
        truth = TopEigenvalues(examples=examples, rel=1e-4)(fresh).values["sharpness"]
        worst = max(worst, abs(readings[0].values["sharpness"] - truth) / truth)
        start = time.process_time()
        pyhessian(copy.deepcopy(model), part)
        rival += time.process_time() - start
    if worst > 0.05:
        raise AssertionError(f"a sharpness that was followed is {worst:.1%} from the truth")
    ours = {"products a reading": float(np.mean(products)), "of plain training": (plain + tracking) / plain}
    return {
        "bar": "B2",
        "work": f"{steps} steps of Adam on a ResNet-8, batch {batch}; every {every} steps the top eigenvalue "
                f"of the Hessian and of the preconditioned one on {examples} images",
        "rows": [
            {"who": "plain training", "version": torch.__version__, "answer": "", "median_s": plain, "counts": {}},
            {"who": "optscope, both eigenvalues", "version": version("optscope"),
             "answer": f"the plain one at most {worst:.1e} from the truth", "median_s": plain + tracking,
             "counts": ours},
            {"who": "PyHessian in the loop, the plain one alone", "version": version("PyHessian"), "answer": "",
             "median_s": plain + rival, "counts": {"of plain training": (plain + rival) / plain}},
        ],
        "ratio": {"plain training": (plain + tracking) / plain}, "limit": {"plain training": 1.2},
    }
