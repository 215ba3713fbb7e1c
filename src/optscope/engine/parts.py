"""Parts of a batch, whose gradients are taken apart: what else they change than how many examples fit at once."""

from __future__ import annotations

import torch

from optscope.engine.place import Place
from optscope.engine.plan import Plan
from optscope.engine.seat import OWN
from optscope.errors import UserError
from optscope.tasks.fresh import fresh_model, seeded
from optscope.tasks.mean_loss import parts_change
from optscope.tasks.task import Split, Task

SEED = 0
MOST = 16
"""At most so many examples of two parts are compared, for outputs may be large."""


def check_buffers(task: Task, batch: Split, place: Place) -> None:
    """Raise unless a model in training keeps the same of every rank's part of a batch.

    Raises:
        UserError: naming the buffer that differs, as the running statistics of batch norm do.
    """
    kept = []
    for rank in range(min(place.ranks, len(batch))):
        model = fresh_model(task, SEED).train()
        part = place.moved(batch.take(torch.arange(rank, len(batch), place.ranks, device="cpu")))
        with seeded(SEED), torch.no_grad():
            task.outputs(model, part.inputs)
        kept.append(dict(model.named_buffers()))
    for name, first in kept[0].items():
        if any(not torch.equal(first, other[name]) for other in kept):
            raise UserError(f"{task.name}: {place.ranks} ranks would differ in the buffer {name} of its model; "
                            f"{OWN}")


def said_of_parts(task: Task, batch: Split, plan: Plan, place: Place) -> list[str]:
    """Say of a loss whose gradient is not the mean of its parts' that it is trained by that mean."""
    size = min(plan.micro_batch or -(-len(batch) // place.ranks), MOST)
    first = place.moved(batch.first(2 * size))
    if len(first) == size or len(task.objectives) > 1:
        return []
    model = fresh_model(task, SEED).train()
    with seeded(SEED), torch.no_grad():
        outputs = torch.cat([task.outputs(model, part.inputs) for part in first.split(size)])
    change = parts_change(task.loss, outputs, task.seen(first), [size, len(first) - size])
    said = (f"{task.name}: the gradient of {len(first)} examples and the mean of its parts' differ by {change:.1%}"
            ", as where a loss has class weights or ignored labels: the mean is what every arm is trained by.")
    return [said] if change else []
