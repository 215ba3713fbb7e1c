"""Looking at a thing once: what a command names its runs by stays the same while it lasts."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

_memory: ContextVar[dict[tuple[str, int], tuple[weakref.ref[Any], Any]] | None] = ContextVar("memory", default=None)


@contextlib.contextmanager
def looked_at_once() -> Iterator[None]:
    """Within it whatever is asked `once` is looked at once, tensors among it: what changes meanwhile is not seen.

    So a comparison keeps the names of its runs while it lasts, and large data are hashed once.
    """
    token = _memory.set({} if _memory.get() is None else _memory.get())
    try:
        yield
    finally:
        _memory.reset(token)


def once(what: str, thing: object, find: Callable[[], Any]) -> Any:
    """Return `find()`, or within `looked_at_once` what it said of this very thing before."""
    memory = _memory.get()
    if memory is None:
        return find()
    known, found = memory.get((what, id(thing)), (None, None))
    if known is None or known() is not thing:  # an id may be another's by now
        found = find()
        with contextlib.suppress(TypeError):  # what cannot be referred to weakly is looked at again
            memory[what, id(thing)] = weakref.ref(thing), found
    return found
