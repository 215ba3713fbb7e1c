"""Make the classifiers whose features judge generated grey images: `python scripts/train_features.py`.

Each is trained once on its training part and kept in half precision in `src/optscope/data`; a probe never trains.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.optim import AdamW, Cosine
from optscope.probes.accuracy import named, percent
from optscope.probes.embedding import classifier
from optscope.probes.probe import in_batches
from optscope.tasks.images import Digits, FashionMNIST
from optscope.tasks.task import Task

PLACE = Path(__file__).parents[1] / "src" / "optscope" / "data"
RECIPES = {"digits": (Digits(), Plan(60, 32, Cosine())),
           "fashion_mnist": (FashionMNIST(), Plan(15, 64, Cosine()))}


def main() -> None:
    """Train both and write them."""
    for name, (data, plan) in RECIPES.items():
        task = Task(name, lambda name=name: classifier(name), data)
        model = train(task, AdamW(lr=3e-3), plan, seed=0).snapshot.model.eval().half().float()
        test = data().test
        right = percent(named(in_batches(model, test.inputs)) == test.targets)
        print(f"{name}: {right:.1f} % of {len(test)} test images")
        weights = {key: value.half().contiguous() for key, value in model.state_dict().items()}
        save_file(weights, PLACE / f"features_{name}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
