"""The ready tasks, by the names that the command line knows."""

from __future__ import annotations

from collections.abc import Callable

from optscope.errors import UserError, nearest
from optscope.tasks.augment import FlipCrop
from optscope.tasks.images import CIFAR10, Digits, FashionMNIST
from optscope.tasks.models import C2, MLP, ResNet
from optscope.tasks.task import Task


def _fashion_mnist() -> Task:
    return Task("fashion-mnist", MLP(), FashionMNIST())


def _fashion_mnist_full() -> Task:
    return Task("fashion-mnist-full", C2(), FashionMNIST(55_000, 5_000, 10_000, embedded=False))


def _cifar10() -> Task:
    return Task("cifar10", ResNet(depth=8), CIFAR10(), augment=FlipCrop(pad=2))


def _digits() -> Task:
    return Task("digits", MLP((64, 128, 128, 10)), Digits())


def _three_frequency() -> Task:
    from optscope.tasks.signals import three_frequency_task

    return three_frequency_task()


TASKS: dict[str, Callable[[], Task]] = {
    "fashion-mnist": _fashion_mnist,
    "fashion-mnist-full": _fashion_mnist_full,
    "cifar10": _cifar10,
    "digits": _digits,
    "three-frequency": _three_frequency,
}


def task_named(name: str) -> Task:
    """Return the ready task of this name.

    >>> task_named("digits").model
    MLP(sizes=(64, 128, 128, 10))

    Raises:
        UserError: when there is none; it names the nearest.
    """
    if name not in TASKS:
        raise UserError(f'there is no task "{name}"; {nearest(name, TASKS)}')
    return TASKS[name]()
