"""Finding the executor that a user means: processes here, a Dask scheduler, or what their function returns."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor as Pool
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from optscope.engine.execute import Local
from optscope.engine.executor import Executor
from optscope.engine.futures import Futures
from optscope.engine.place import Place
from optscope.errors import UserError, first_words
from optscope.protocol.resolve import named_at

DASK = "dask://"


@contextmanager
def executor_at(place: str | None, slots: int, devices: Sequence[str]) -> Iterator[Executor]:
    """Give the executor at "dask://HOST:PORT", or what the function at "file.py:NAME" returns, or processes here.

    Such a function returns an executor of `concurrent.futures`, whose workers are processes, a client of Dask, or
    one of ours. The pool is shut down at the end. `slots` and `devices` are for processes here.

    Raises:
        UserError: when nobody answers there, it is no executor, or slots or several devices are given beside it.
    """
    if place is None:
        yield Local(slots, tuple(devices))
        return
    if slots or len(devices) > 1:
        raise UserError("--slots and several devices are for processes on this machine; got them beside --executor "
                        f"{place}: leave them out, and start as many workers as you want there")
    found = _scheduler(place) if place.startswith(DASK) else _made(place)
    with ExitStack() as ended:
        dask = sys.modules.get("distributed")
        if dask is not None and isinstance(found, dask.Client):
            found = of_client(ended.enter_context(found))
        elif isinstance(found, Pool):
            found = Futures(found)
        if isinstance(found, Futures):
            ended.enter_context(found.pool)
        elif not callable(getattr(found, "run", None)):
            raise UserError(f"{place} must be a function that returns a concurrent.futures.Executor, a client of "
                            f"Dask, or an executor of optscope's; got {type(found).__name__}")
        yield found


def _made(place: str) -> Any:
    """Return what the function at a place returns.

    Raises:
        UserError: when there is none, or it stops.
    """
    if ":" not in place:
        raise UserError(f'an executor is "dask://HOST:PORT" or "my_cluster.py:NAME"; got "{place}"')
    found = named_at(place)
    try:
        return found() if callable(found) else found
    except UserError:
        raise
    except Exception as error:  # of the user's code
        raise UserError(f"{place} stopped with {first_words(error)}") from error


def _scheduler(place: str) -> Any:
    """Return a client of the Dask scheduler at a place.

    Raises:
        UserError: when Dask is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(f'{place} needs Dask ({error}): pip install "optscope[cluster]"') from error
    try:
        return Client(f"tcp://{place.removeprefix(DASK)}")
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {place} ({first_words(error)}): start one there with "
                        "dask scheduler") from error


def of_client(client: Any) -> Futures:
    """Return the executor whose runs a Dask client's workers do, with the resources that those have told of."""
    return Futures(client.get_executor(pure=False), partial(_resources, client), partial(_kept_there, client))


def _resources(client: Any, place: Place) -> Mapping[str, Any]:
    """Return what a run at a place asks of a worker, as far as any worker has told of it: cores as CPU, one GPU."""
    client.wait_for_workers(1)
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    declared = {name for worker in workers for name in worker["resources"]}
    wanted = {"CPU": place.threads * place.ranks, "GPU": place.ranks * place.accelerated}
    return {"resources": {name: count for name, count in wanted.items() if count and name in declared}}


def _kept_there(client: Any, content: bytes) -> Any:
    """Return a handle of bytes that every worker fetches once; the scheduler makes them anew when one dies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is much to send
        return client.submit(bytes, content)
