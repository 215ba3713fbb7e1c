"""B16: what a step of training costs beside the model's own work, against the leanest loop one can write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.timing import Contender, interleave, rows
from optscope.engine.plan import Plan
from optscope.engine.training import Training
from optscope.optim import SGD
from optscope.tasks.fresh import epoch_permutation, fresh_model, streams
from optscope.tasks.models import C2, MLP, ResNet
from optscope.tasks.task import Data, InMemory, Split, Task

LR, SEED, BATCH = 0.01, 1, 64
MOST = 15e-6
"""Seconds a step may cost beside the loop's."""


def by_hand(task: Task, plan: Plan) -> Callable[[], float]:
    """Return a loop without anything that could be left out: the last loss is read once, at its end."""
    def run() -> float:
        part, order = task.data().train, streams(SEED)[1]
        model = fresh_model(task, SEED)
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        form = torch.channels_last if convolves else torch.contiguous_format
        model.to(memory_format=form).train()  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, fused=True)
        for epoch in range(plan.epochs):
            permutation = epoch_permutation(len(part), order, epoch)
            for place in range(plan.per_epoch(len(part))):
                some = permutation[place * plan.batch:(place + 1) * plan.batch]
                x, y = part.inputs.index_select(0, some), part.targets.index_select(0, some)
                if x.dim() == 4:
                    x = x.contiguous(memory_format=form)
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
        return float(loss.detach())
    return run


def ours(task: Task, plan: Plan) -> Callable[[], float]:
    """Return the same by `Training`."""
    def run() -> float:
        training = Training(task, SGD(lr=LR), plan, SEED)
        training.advance(training.total)
        return float(training.losses[-1])
    return run


def b16() -> dict[str, Any]:
    """Train four models on random images by both loops; the last losses agree to rounding."""
    works = {"linear model": (MLP((784, 10)), (1, 28, 28), 6400, 20),
             "small MLP": (MLP((784, 64, 10)), (1, 28, 28), 6400, 20),
             "small CNN": (C2(), (1, 28, 28), 1280, 1), "ResNet-8": (ResNet(8), (3, 32, 32), 640, 1)}
    found, ratio = [], {}
    for name, (model, shape, examples, epochs) in works.items():
        torch.manual_seed(0)
        part = Split(torch.rand(examples, *shape), torch.randint(10, (examples,)))
        task, plan = Task(name, model, InMemory(Data(part, part, part))), Plan(epochs, BATCH)
        steps = plan.total(examples)
        contenders = [Contender(f"{who}, {name}", "", run(), run) for who, run in
                      (("Training", ours(task, plan)), ("by hand", by_hand(task, plan)))]
        mine, theirs = (float(each.answer) for each in contenders)  # type: ignore[arg-type]
        assert abs(mine - theirs) < 1e-4 * abs(theirs), (name, mine, theirs)
        times = interleave(contenders)
        found += rows(contenders, times)
        a, b = (times.median(each.who) for each in contenders)
        ratio[f"{name}, times by hand"] = times.ratio(contenders[0].who, contenders[1].who)
        if steps > 1000:  # of shorter trainings what is done once would be most of it
            ratio[f"{name}, us a step beside the loop"] = (a - b) / steps * 1e6
    limits = {name: 1e6 * MOST for name in ratio if "beside" in name}
    return {"bar": "B16", "work": f"SGD steps of {BATCH} images", "rows": found, "ratio": ratio, "limit": limits}
