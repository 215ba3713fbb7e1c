"""Compiled networks: `torch.compile` for training alone; who looks at a model sees it as its author wrote it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from optscope.engine.place import Place
from optscope.engine.side import Side
from optscope.errors import UserError, first_words
from optscope.tasks.fresh import seeded
from optscope.tasks.task import Task
from optscope.tasks.tree import Batch
from optscope.tasks.unchanged import unchanged


class Compiled:
    """The players' networks, compiled and tried on one batch, if the place asks for that.

    `failed` says why they are not, where the place would have it and goes on without.

    Raises:
        UserError: with the reason, when it fails and the place does not go on without.
    """

    def __init__(self, task: Task, model: nn.Module, sides: Sequence[Side], first: Batch, place: Place) -> None:
        self.failed = ""
        self._calls: dict[nn.Module, Any] = {}
        if not place.compile:
            return
        torch._dynamo.reset()  # what is compiled for others counts towards a limit, beyond which it is not
        try:
            before = graphs()
            networks = [side.objective.network(model) for side in sides]
            self._calls = {network: compiled(network) for network in networks}
            with self.on(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, when it loads its compiler and looks at tensors
                _try(task, model, sides, first, place)
            if graphs() == before:
                raise UserError("it finds nothing to compile in it")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler's errors have no common kind
            why = str(error) if isinstance(error, UserError) else first_words(error)
            self.failed = f"torch.compile does not take the model ({why})"
            self._calls = {}
            if place.compile != "try":
                raise UserError(f'{task.name}: {self.failed}: give compile="try", which goes on without, or '
                                "compile=False") from error

    @contextmanager
    def on(self) -> Iterator[None]:
        """Have the networks called as they were compiled."""
        for network, call in self._calls.items():
            network._compiled_call_impl = call
        try:
            yield
        finally:
            for network in self._calls:
                network._compiled_call_impl = None


def check_taken(task: Task, model: nn.Module, sides: Sequence[Side], first: Batch, place: Place) -> None:
    """Raise unless model and loss take the numbers that a place makes of a batch, if those are not their own.

    Raises:
        UserError: with the reason.
    """
    if not place.numbers:
        return
    try:
        _try(task, model, sides, first, place)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the author chose to raise
        raise UserError(f"{task.name}: model and loss do not take Place({place.numbers}): "
                        f"{first_words(error)}; give {place.numbers.partition('=')[0]}=None, which leaves numbers "
                        "what they are") from error


def _try(task: Task, model: nn.Module, sides: Sequence[Side], first: Batch, place: Place) -> None:
    """Take every player's gradient once, and leave the model as it was."""
    latent = task.draw_latent(len(first), torch.Generator().manual_seed(0))
    with unchanged(model), seeded(0):
        for side in sides:
            side.try_gradient(model, first, None if latent is None else place.sent(latent))


def compiled(network: nn.Module) -> Callable[..., Any]:
    """Return the compiled call of a network, its hooks included.

    The call is a function of ours, for the compiler begins at frames that are not torch's own:
    `nn.Sequential(...).compile()` compiles nothing, and does not say so.
    """
    def call(*inputs: Any, **named: Any) -> Any:
        return network._call_impl(*inputs, **named)  # what calling it does when it is not compiled
    return torch.compile(call, dynamic=False)


def graphs() -> int:
    """Return how many graphs have been compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
