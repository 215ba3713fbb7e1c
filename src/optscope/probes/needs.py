"""What probes need of a task, in words; one that lacks it is told so in a sentence, before anything is measured.

A probe declares its needs (`Probe.needs`). `missing` checks them where it is taken, and `fitting` asks which probes
of a list a task has a use for: nobody asks what type a task is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, TypeVar

from torch import Tensor

from optscope.tasks.examples import Examples
from optscope.tasks.task import Task
from optscope.tasks.tree import Batch, leaves

Need = Literal["one network", "labels", "float input", "images", "second derivative", "players", "generator",
               "live optimiser"]


def _one_network(task: Task, batch: Batch) -> str:
    players = _players(task)
    return "" if len(players) == 1 else (f"a game is not one model but {len(players)} ({', '.join(players)}): "
                                         "measure it by probes of games, such as Coverage")


def _labels(task: Task, batch: Batch) -> str:
    targets = batch.targets
    if task.kind == "classification" and isinstance(targets, Tensor) and targets.dim() == 1 and not (
            targets.is_floating_point() or targets.is_complex()):
        return ""
    one = f"{targets.dtype} targets {tuple(targets.shape)}" if isinstance(targets, Tensor) else (
        f"targets of several leaves ({', '.join(leaves(targets))})")
    return ("it needs a classification task with logits (n, classes) and class numbers (n,); the "
            f'{task.kind} task {task.name!r} has {one}: give one label an example, and kind="classification"')


def _float_input(task: Task, batch: Batch) -> str:
    found = leaves(batch.inputs)
    path = task.perturbed(batch.inputs)
    if path is not None and path in found and found[path].is_floating_point():
        return ""
    if path is not None:
        got = found[path].dtype if path in found else f"no leaf {path!r}, but {', '.join(found)}"
        return f'inputs must be floating point to have a slope; perturb="{path}" names {got}'
    floating = [each for each, leaf in found.items() if leaf.is_floating_point()]
    if floating:
        return (f"it moves one leaf of the inputs, and {', '.join(floating)} are floating point: write "
                f'perturb="{floating[0]}" in the task')
    return ("inputs must be floating point to have a slope; got "
            f"{', '.join(sorted({str(leaf.dtype) for leaf in found.values()}))}: hand over numbers, such as "
            "embeddings in place of ids")


def _images(task: Task, batch: Batch) -> str:
    lacking = _float_input(task, batch)
    if lacking:
        return lacking
    leaf = leaves(batch.inputs)[task.perturbed(batch.inputs) or ""]
    return "" if leaf.dim() in (3, 4) else (
        "frequencies need images (n, height, width) or (n, channels, height, width); got inputs "
        f"{tuple(leaf.shape)}: reshape them in the data and flatten in the model")


def _several_players(task: Task, batch: Batch) -> str:
    return "" if len(_players(task)) > 1 else (
        f"it needs a game; {task.name} is none: measure TopEigenvalues instead")


def _generator(task: Task, batch: Batch) -> str:
    return "" if "generator" in _players(task) else (
        f'only a game with a player "generator" generates; {task.name} is none: make one by '
        "optscope.tasks.gan.gan")


def _players(task: Task) -> list[str]:
    return [objective.player for objective in task.objectives]


NEEDS: Mapping[Need, Callable[[Task, Batch], str]] = {
    "one network": _one_network, "labels": _labels, "float input": _float_input, "images": _images,
    # A matter of every operation of model and loss: torch says where it is taken, and `at_weights.grad` says it on.
    "second derivative": lambda task, batch: "",
    "players": _several_players, "generator": _generator,
    "live optimiser": lambda task, batch: ""}  # a matter of the snapshot, of which the reading says what it lacks
"""For each need a function that says in a sentence what a task and its examples lack of it, "" if nothing."""


class Needing(Protocol):
    """What has needs: a probe."""

    needs: ClassVar[tuple[Need, ...]]

    @property
    def split(self) -> Literal["train", "validation", "test"]:
        """The part of the data that it looks at."""


Some = TypeVar("Some", bound=Needing)


def missing(needs: Sequence[Need], task: Task, batch: Batch) -> str:
    """Return a sentence that says which need a task and its examples lack, the first of them; "" if none."""
    return next(filter(None, (NEEDS[need](task, batch) for need in needs)), "")


def fitting(probes: Iterable[Some], task: Task) -> tuple[Some, ...]:
    """Return the probes whose needs a task meets, in their order."""
    return tuple(probe for probe in probes if not lacking(probe, task))


def lacking(probe: Needing, task: Task) -> str:
    """Return a sentence that says what a task lacks that a probe needs; "" if nothing."""
    part: Examples = getattr(task.data(), probe.split)
    return missing(probe.needs, task, part.first(1))
