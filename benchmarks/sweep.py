"""B9: 32 trainings, eight learning rates on four seeds, from the shell's prompt to the last number.

The rival is the loop that people write: a DataLoader that shuffles, `loss.item()` at every step, torch's SGD with
momentum; one training after the other with torch's own number of threads, and two at a time by joblib. Ours is a
comparison whose arms are the rates, with records on disk. Each tests what it trained on 2,000 images. Times are of
whole commands, their imports and all their processes included: CPU-seconds, and the clock's on the same machine.
A ResNet-8 takes every second rate, 16 trainings: about ten minutes for the three ways where nothing else runs.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SEEDS = (1, 2, 3, 4)
DATA = Path(__file__).parents[1] / "src" / "optscope" / "data" / "fashion_mnist.npz"
EPOCHS, BATCH, IMAGES, TESTED = 2, 128, 8_000, 2_000
MODELS = ("linear", "mlp", "cnn", "resnet-8")
LIMITS = {"linear": (1.8, 3.5), "mlp": (1.4, 2.2), "cnn": (1.6, 2.2), "resnet-8": (1.35, 1.6)}
"""How many times less CPU, and less of the clock, ours may take than the loop one after the other."""
AGREE = 2.0
"""Within how many points the three ways' best mean accuracies are, which see other batches and other starts, or
within four standard errors over seeds: one loop on two threads and on one left a ResNet-8 4.5 points apart."""
ROUNDS = 1


def rates(name: str) -> tuple[float, ...]:
    """Return the learning rates of a model's sweep."""
    return RATES[1::2] if name == "resnet-8" else RATES


def model(name: str) -> Any:
    """Return a factory of the model."""
    from optscope.tasks.models import MLP, ResNet, StridedCNN

    return {"linear": MLP((784, 10)), "mlp": MLP((784, 256, 10)), "cnn": StridedCNN(widths=(16, 32)),
            "resnet-8": ResNet(8, channels=1)}[name]


def loop(name: str, lr: float, seed: int) -> float:
    """Train as people do, and return the accuracy in percent."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    with np.load(DATA) as arrays:
        images, tested = (torch.from_numpy(arrays[f"{part}_images"][:n, None].astype(np.float32) / 255)
                          for part, n in (("train", IMAGES), ("test", TESTED)))
        labels, known = (torch.from_numpy(arrays[f"{part}_labels"][:n].astype(np.int64))
                         for part, n in (("train", IMAGES), ("test", TESTED)))
    torch.manual_seed(seed)
    net = model(name)()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for _ in range(EPOCHS):
        total = 0.0
        for x, y in DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
    with torch.no_grad():
        net.eval()
        return 100 * float((net(tested).argmax(1) == known).double().mean())


def one_by_one(name: str) -> list[float]:
    """Return all accuracies, rates outermost."""
    return [loop(name, lr, seed) for lr in rates(name) for seed in SEEDS]


def by_joblib(name: str) -> list[float]:
    """Return the same of two processes."""
    from joblib import Parallel, delayed

    return list(Parallel(2)(delayed(loop)(name, lr, seed) for lr in rates(name) for seed in SEEDS))


def ours(name: str) -> list[float]:
    """Return the same of a comparison, all of whose records are in a folder."""
    from optscope.engine.execute import Local
    from optscope.engine.plan import Plan
    from optscope.engine.store import Store
    from optscope.optim import SGD
    from optscope.probes.accuracy import Accuracy
    from optscope.protocol.comparison import Arm, Comparison
    from optscope.protocol.events import Quiet
    from optscope.protocol.session import run_experiments
    from optscope.tasks.images import FashionMNIST
    from optscope.tasks.task import Task

    arms = tuple(Arm(f"{lr:g}", SGD(lr=lr, momentum=0.9)) for lr in rates(name))
    task = Task(name, model(name), FashionMNIST(IMAGES, 500, TESTED))
    sweep = Comparison("sweep", task, arms, Plan(EPOCHS, BATCH), (Accuracy(),), SEEDS, moments=1)
    with tempfile.TemporaryDirectory() as folder:
        records = run_experiments([sweep], Store(Path(folder)), Local(), Quiet()).records
    return [float(value) for arm in arms for value in records.values(arm.name, "accuracy")]


WAYS = {"optscope": ours, "loop, one by one": one_by_one, "loop, joblib of 2": by_joblib}


def b9() -> Mapping[str, Any]:
    """Return what the sweeps take of the processor and of the clock, by each way."""
    found: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    limits: dict[str, float] = {}
    versions = dict.fromkeys(WAYS, f"torch {metadata.version('torch')}") | {
        "optscope": metadata.version("optscope"), "loop, joblib of 2": f"joblib {metadata.version('joblib')}"}
    for name in MODELS:
        seen = _turns(name)
        medians = {way: [statistics.median(each[k] for each in times) for k in (0, 1)]
                   for way, times in seen.items()}
        best = {way: times[0][2] for way, times in seen.items()}
        apart = max(best.values()) - min(best.values())
        assert apart < max(AGREE, 4 * max(each[0][3] for each in seen.values())), f"they learn otherwise: {best}"
        found += [{"who": f"{name}: {way}", "version": versions[way], "answer": f"best mean {best[way]:.1f} %",
                   "median_s": cpu, "counts": {"clock [s]": round(clock, 1)}}
                  for way, (cpu, clock) in medians.items()]
        for k, kind in enumerate(("CPU", "clock")):
            ratios[f"{name}, {kind}"] = medians["optscope"][k] / medians["loop, one by one"][k]
            limits[f"{name}, {kind}"] = round(1 / LIMITS[name][k], 2)
    return {"bar": "B9", "work": "32 trainings (ResNet-8: 16) from prompt to last number, CPU-s of all processes",
            "rows": found, "ratio": ratios, "limit": limits}


def _turns(name: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return what each way took, in turns."""
    seen: dict[str, list[tuple[float, float, float, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, times in seen.items():
            times.append(_command(way, name))
    return seen


def _command(way: str, name: str) -> tuple[float, float, float, float]:
    """Return the CPU-seconds and the clock's of a command, and its best mean accuracy with its standard error."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "benchmarks.sweep", way, name], env=environment, check=True,
                          stdout=subprocess.PIPE, text=True)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{name}, {way}: {cpu:.1f} CPU-s, {clock:.1f} s by the clock, {done.stdout.strip()}", flush=True)
    mean, error = map(float, done.stdout.split())
    return cpu, clock, mean, error


if __name__ == "__main__":
    accuracies = WAYS[sys.argv[1]](sys.argv[2])
    of_rates = [accuracies[i:i + len(SEEDS)] for i in range(0, len(accuracies), len(SEEDS))]
    of_best = max(of_rates, key=statistics.fmean)
    print(statistics.fmean(of_best), statistics.stdev(of_best) / len(SEEDS) ** 0.5)
