"""Finding the executor that a user means: processes here, a Dask scheduler, or what their function returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor as Pool
from contextlib import contextmanager
from typing import Any

from optscope.engine.execute import Local
from optscope.engine.executor import Executor
from optscope.engine.futures import Futures
from optscope.errors import UserError, first_words
from optscope.protocol.resolve import named_at

DASK = "dask://"


@contextmanager
def executor_at(place: str | None, slots: int, devices: Sequence[str]) -> Iterator[Executor]:
    """Give the executor at "dask://HOST:PORT", or what the function at "file.py:NAME" returns, or processes here.

    Such a function returns an executor of `concurrent.futures`, whose workers are processes that see the output
    folder by the same path, or one of ours. The pool is shut down at the end. `slots` and `devices` are for
    processes here.

    Raises:
        UserError: when nobody answers there, it is no executor, or slots or several devices are given beside it.
    """
    if place is None:
        yield Local(slots, tuple(devices))
        return
    if slots or len(devices) > 1:
        raise UserError("--slots and several devices are for processes on this machine; got them beside --executor "
                        f"{place}: leave them out, and start as many workers as you want there")
    if place.startswith(DASK):
        with _scheduler(place) as client, client.get_executor() as pool:
            yield Futures(pool)
        return
    if ":" not in place:
        raise UserError(f'an executor is "dask://HOST:PORT" or "my_cluster.py:NAME"; got "{place}"')
    found = named_at(place)
    try:
        found = found() if callable(found) else found
    except UserError:
        raise
    except Exception as error:  # of the user's code
        raise UserError(f"{place} stopped with {first_words(error)}") from error
    if isinstance(found, Pool):
        with found:
            yield Futures(found)
    elif callable(getattr(found, "run", None)):
        yield found
    else:
        raise UserError(f"{place} must be a function that returns a concurrent.futures.Executor, or an executor of "
                        f"optscope's; got {type(found).__name__}")


@contextmanager
def _scheduler(place: str) -> Iterator[Any]:
    """Give a client of the Dask scheduler at a place.

    Raises:
        UserError: when Dask is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(f'{place} needs Dask ({error}): pip install "optscope[cluster]"') from error
    try:
        client = Client(f"tcp://{place.removeprefix(DASK)}")
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {place} ({first_words(error)}): start one there with "
                        "dask scheduler") from error
    with client:
        yield client
