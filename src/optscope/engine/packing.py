"""How work goes to another process of this machine: user's modules by value, data in memory as files."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

from optscope.engine.data_files import DataFiles
from optscope.errors import DISK_ERRORS, UserError


def _remade(thing: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return how another process gets a lock of its own, and a weak reference to its own copy.

    Users have locks in modules and in `cached_property`, and weak references in `singledispatch`.
    """
    if isinstance(thing, weakref.ref):
        return weakref.ref, (set() if thing() is None else thing(),)  # that set is gone at once, too
    if isinstance(thing, _LOCKS):
        return (threading.Lock if isinstance(thing, _LOCKS[0]) else threading.RLock), ()
    return type(thing), (list(thing.items()) if hasattr(thing, "items") else list(thing),)


_LOCKS = type(threading.Lock()), type(threading.RLock())
_REMADE: dict[type, Any] = dict.fromkeys((*_LOCKS, weakref.ref, weakref.WeakKeyDictionary,
                                         weakref.WeakValueDictionary, weakref.WeakSet), _remade)


def packed(things: object, data: DataFiles) -> bytes:
    """Return what another process makes them from: user's modules go along by value, data in memory as files.

    Raises:
        UserError: when that cannot be, as of open files.
        OSError: when data cannot be written.
    """
    from loky.backend.reduction import dumps

    try:
        return bytes(dumps(things, _REMADE | data.reducers))
    except Exception as error:
        if isinstance(error, OSError) and is_of_disk(error, data.folder):
            raise
        raise UserError(f"the task, an optimiser or a probe cannot be sent to another process ({error}): give "
                        "functions and dataclasses that make models and data, not open files") from error


def is_of_disk(error: OSError, folder: Path) -> bool:
    """Return whether the folder of the runs cannot be written any more."""
    return (error.errno in DISK_ERRORS and isinstance(error.filename, str)
            and Path(error.filename).is_relative_to(folder))
