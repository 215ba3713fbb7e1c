"""What a model holds, remembered and put back: whoever looks at it leaves every bit and every attribute as it was.

The model itself is looked at, not a copy: not everything can be copied (locks, cached activations), and a copy is
another model where hooks and methods close over the first.
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OURS = frozenset({"builtins", "types", "collections", "functools", "argparse", "random"})
"""Modules of the standard library whose objects hold a user's values; the others look after themselves."""

ATOMS = (str, bytes, bool, int, float, complex, type(None), type, types.ModuleType, types.BuiltinFunctionType,
         torch.dtype, torch.device, torch.Size)


@contextmanager
def unchanged(*things: object) -> Iterator[None]:
    """Leave models, losses, optimisers and what they hold as they were, whatever is done to them meanwhile.

    Put back are the bits of every tensor and array that can be reached through attributes, containers, hooks and
    closures, which storage each tensor has, its gradient and whether it needs one; attributes, containers and
    closures' variables; train and eval modes; generators of random numbers; torch's default dtype. That takes as
    much memory again as the tensors take, and a walk over the objects. Out of reach are variables of modules and
    of classes, and what only compiled code holds.
    """
    dtype = torch.get_default_dtype()
    back = list(_memories(things))
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        for put_back in back:
            put_back()


def _memories(things: Iterable[object]) -> Iterator[Callable[[], None]]:
    """Walk over all that can be reached, and yield what puts each of it back."""
    seen: dict[int, object] = {}  # the objects themselves, so that none dies and hands its id on
    storages: set[int] = set()
    todo = list(things)
    while todo:
        thing = todo.pop()
        if isinstance(thing, ATOMS) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor):
            yield from _tensor(thing, storages)
            todo.append(thing.grad if thing.is_leaf else None)
        elif isinstance(thing, dict):
            yield partial(_refill, thing, list(thing.items()), thing.items, thing.update)
            todo += thing.values()
        elif isinstance(thing, (list, deque)):
            yield partial(_refill, thing, list(thing), thing.__iter__, thing.extend)
            todo += thing
        elif isinstance(thing, set):
            yield partial(_refill, thing, list(thing), thing.__iter__, thing.update)
            todo += thing
        elif isinstance(thing, (tuple, frozenset)):
            todo += thing
        elif isinstance(thing, types.FunctionType):
            cells = [c for c in thing.__closure__ or () if _full(c)]
            yield from (partial(setattr, cell, "cell_contents", cell.cell_contents) for cell in cells)
            todo += [*(cell.cell_contents for cell in cells), thing.__defaults__, thing.__kwdefaults__]
        elif isinstance(thing, types.MethodType):
            todo += [thing.__self__, thing.__func__]
        elif isinstance(thing, partial):
            todo += [thing.func, thing.args, thing.keywords]
        else:
            yield from _object(thing)
        todo += _attributes(thing)


def _tensor(tensor: Tensor, storages: set[int]) -> Iterator[Callable[[], None]]:
    """Yield what puts back where a tensor lies, its gradient, and the bits of its storage."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return
    where = tensor.detach()
    if tensor.is_leaf:
        needs, grad = tensor.requires_grad, tensor.grad

        def put_back() -> None:
            if tensor.layout is torch.strided and _place(tensor) != _place(where):
                tensor.data = where
            if tensor.requires_grad != needs:
                tensor.requires_grad_(needs)
            if tensor.grad is not grad:
                tensor.grad = grad

        yield put_back
    if tensor.layout is torch.strided and not tensor.data_ptr():  # empty, or a tensor that wraps others
        yield partial(_recopy, tensor, where.clone())
    elif tensor.layout is torch.strided:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages.add(storage.data_ptr())
            yield partial(_rewrite, storage, storage.clone())


def _recopy(tensor: Tensor, before: Tensor) -> None:
    """Put numbers back, past autograd."""
    tensor.data.copy_(before)


def _rewrite(storage: torch.UntypedStorage, before: torch.UntypedStorage) -> None:
    """Put bytes back where others are now, past autograd; what nobody wrote to may be read-only memory.

    That is so on a CPU alone: to look whether an accelerator's bytes are others would be to wait for it.
    """
    if storage.nbytes() != before.nbytes():
        storage.resize_(before.nbytes())
    now, then = (torch.empty(0, dtype=torch.uint8, device=each.device).set_(each) for each in (storage, before))
    if storage.device.type != "cpu" or not torch.equal(now, then):
        storage.copy_(before)


def _place(tensor: Tensor) -> tuple[int, torch.dtype, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _refill(container: Any, items: list[Any], now: Callable[[], Iterable[Any]],
            fill: Callable[[list[Any]], None]) -> None:
    """Put the items back into a container whose items are others now."""
    found = list(now())
    if len(found) == len(items) and all(map(_same, found, items)):
        return
    container.clear()
    fill(items)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):  # the items of a dictionary are made anew each time
        return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
    return a is b


def _full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable without a value yet
        return False


def _object(thing: Any) -> Iterator[Callable[[], None]]:
    """Yield what puts back an array, a generator of random numbers, or the class and mode of an object."""
    if isinstance(thing, np.ndarray):
        if thing.flags.writeable and not isinstance(thing, np.memmap):  # a file, which may not fit into memory
            yield partial(np.copyto, thing, thing.copy())
    elif isinstance(thing, torch.Generator):
        yield partial(torch.Generator.set_state, thing, thing.get_state())  # type: ignore[misc]
    elif isinstance(thing, np.random.Generator):
        yield partial(setattr, thing.bit_generator, "state", thing.bit_generator.state)
    elif isinstance(thing, np.random.RandomState):
        yield partial(thing.set_state, thing.get_state())
    elif isinstance(thing, random.Random):
        yield partial(thing.setstate, thing.getstate())
    elif isinstance(thing, nn.Module):
        kind, mode = type(thing), thing.training

        def put_back() -> None:
            if type(thing) is not kind:
                thing.__class__ = kind
            if thing.training != mode:
                thing.training = mode

        yield put_back
    own: Any = type(thing)
    for name in _slots(own):
        if hasattr(thing, name):
            yield partial(object.__setattr__, thing, name, getattr(thing, name))


@lru_cache(1024)
def _ours(kind: Any) -> bool:
    root = kind.__module__.partition(".")[0]
    return not kind.__module__.startswith("torch._") and (root not in sys.stdlib_module_names or root in OURS)


@lru_cache(1024)
def _slots(kind: Any) -> tuple[str, ...]:
    """Return the names of a class's slots that hold a user's values."""
    named = [vars(each).get("__slots__", ()) for each in kind.__mro__] if _ours(kind) else []
    return tuple(name for names in named for name in ((names,) if isinstance(names, str) else names)
                 if name not in ("__dict__", "__weakref__"))


def _attributes(thing: Any) -> list[Any]:
    """Return what an object's attributes hold: the values in slots, and their dictionary."""
    kind: Any = type(thing)
    found = [getattr(thing, name, None) for name in _slots(kind)]
    if _ours(kind) and isinstance(own := getattr(thing, "__dict__", None), dict):
        found.append(own)
    if isinstance(thing, nn.Module):  # of a compiled module they are no attributes, or its attributes are torch's
        found += [*thing.parameters(recurse=False), *thing.buffers(recurse=False), *thing.children()]
    return found
