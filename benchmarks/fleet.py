"""B15: many seeds of one network on one GPU as a fleet (`torch.func`), against one training after the other.

    python -m benchmarks B15                # needs a GPU
    python -m benchmarks B15 --device cpu   # a few seeds, to try it: nothing is kept
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from benchmarks.timing import Contender, interleave, rows
from optscope.engine.place import Place
from optscope.engine.plan import Plan
from optscope.engine.training import Training
from optscope.optim import SGD
from optscope.tasks.fresh import epoch_permutation, fresh_model, streams
from optscope.tasks.models import C2, MLP
from optscope.tasks.task import Data, InMemory, Split, Task
from optscope.vector import Layout

RULE = SGD(lr=0.01, momentum=0.9)
MOST = 1 / 8
"""What share of the time of one after the other the fleet may take."""


def alone(task: Task, plan: Plan, seeds: Sequence[int], place: Place) -> Callable[[], list[float]]:
    """Return the trainings, one after the other; what comes of them is read at the end of each."""
    def run() -> list[float]:
        found = []
        for seed in seeds:
            training = Training(task, RULE, plan, seed, place)
            training.advance(training.total)
            found.append(float(training.losses[-1]))
        return found
    return run


def together(task: Task, plan: Plan, seeds: Sequence[int], place: Place) -> Callable[[], list[float]]:
    """Return the same trainings as one, whose members lie on the first axis of the weights."""
    def run() -> list[float]:
        part = place.moved(task.data().train)
        models = [fresh_model(task, seed) for seed in seeds]
        network, layout = models[0].to(place.device).train(), Layout.of(dict(models[0].named_parameters()))
        weights = place.sent(torch.stack([layout.flatten([p.detach().cpu() for p in m.parameters()])
                                          for m in models]))

        def loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
            named = dict(zip(layout.names, layout.views(vector), strict=True))
            return cross_entropy(functional_call(network, named, (x,)), y)

        of_all, state = vmap(grad_and_value(loss)), RULE.init(weights, layout)
        values = torch.zeros(len(seeds))
        for epoch in range(plan.epochs or 0):
            order = place.sent(torch.stack([epoch_permutation(len(part), streams(seed)[1], epoch)
                                            for seed in seeds]))
            for step in range(plan.per_epoch(len(part))):
                some = order[:, step * plan.batch:(step + 1) * plan.batch]
                slopes, values = of_all(weights, part.inputs[some], part.targets[some])
                move, state = RULE.update(slopes, state, weights, layout)
                weights = weights + move
        found: list[float] = values.tolist()
        return found
    return run


def b15(device: str = "auto") -> dict[str, Any] | None:
    """Train 32 seeds of two networks on random images both ways; the last losses agree to rounding."""
    place = Place(device)
    if device == "auto" and not place.accelerated:
        print("B15 needs a GPU, and there is none here; --device cpu tries it with a few seeds")
        return None
    members, epochs = (32, 5) if place.accelerated else (4, 1)
    works = {"small MLP": MLP((784, 64, 10)), "small CNN": C2()}
    found, ratio = [], {}
    for name, model in works.items():
        torch.manual_seed(0)
        part = Split(torch.rand(1280, 1, 28, 28), torch.randint(10, (1280,)))
        task, plan = Task(name, model, InMemory(Data(part, part, part))), Plan(epochs, 64)
        seeds = range(1, members + 1)
        contenders = [Contender(f"{who}, {members} seeds of a {name}", "", [round(x, 3) for x in run()], run)
                      for who, run in (("fleet", together(task, plan, seeds, place)),
                                       ("one after the other", alone(task, plan, seeds, place)))]
        mine, theirs = (torch.tensor(each.answer) for each in contenders)
        assert torch.allclose(mine, theirs, atol=2e-3), (name, mine, theirs)
        times = interleave(contenders, rounds=3, clock=time.perf_counter)  # each waits for its losses
        found += rows(contenders, times)
        ratio[f"{name}, the fleet by one after the other"] = times.ratio(contenders[0].who, contenders[1].who)
    return {"bar": "B15", "work": f"{members} seeds of two networks on {place.numerics().get('device', 'the CPU')}",
            "rows": found, "ratio": ratio, "limit": dict.fromkeys(ratio if place.accelerated else (), MOST)}
