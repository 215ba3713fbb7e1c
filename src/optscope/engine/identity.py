"""What makes two runs the same: everything that changes bits, as it is loaded here, written out and hashed."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import importlib
import json
import os
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy

from optscope.engine.bytecode import Block, block, is_dunder, is_full
from optscope.engine.once import once
from optscope.engine.origin import attributes, environment, home, is_place, loaded, of_class, origin, own, versions
from optscope.tasks.content import content, script
from optscope.tasks.examples import Examples

_BARE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_BY_NAME = frozenset({"getattr", "globals", "vars", "eval", "exec", "import_module", "__import__", "__dict__"})


def digest(value: object) -> str:
    """Return 16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(value: object) -> Any:
    """Return a JSON value that is equal exactly when two things behave alike, as far as can be seen.

    Numbers and texts count as they are, arrays and tensors by their content, functions and classes of the user and
    of optscope by what they do and by all that they name, as it is loaded now; those of libraries by name and
    version; dataclasses by their fields, models by their modules and values, other objects by what pickle would
    make them from. Where a file lies does not count: of an absolute path only the last part does.

    >>> describe(lambda x: x + 1) == describe(lambda x: x + 1)  # by what it does
    True
    """
    account = Account()
    return [account.of(value), account.settled()]


@functools.cache
def source_digest(*modules: str) -> str:
    """Return a digest of what these modules do, and all of this package's or the user's that they name.

    It is blind to comments, docstrings, layout and the words of errors. Libraries are not followed.

    >>> source_digest("optscope.vector") == source_digest("optscope.vector")
    True
    """
    account = Account()
    found = [account.module(importlib.import_module(name), frozenset()) for name in modules]
    return digest([found, account.settled()])


class Account:
    """A value written out: `of` returns what it is, with references to entries: functions, classes and globals.

    Each of these stands once, under its module and name, so that two accounts can be compared entry by entry. They
    are written one after the other, not where they are named: code that names code may be as deep as it likes.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self._labels: dict[int, str] = {}
        self._kept: list[object] = []  # so that ids stay their own
        self._open, self._changed, self._users = set[int](), set[str](), set[str]()
        self._tensors: dict[int, int] = {}
        self._within: list[tuple[str, frozenset[str]]] = []
        self._named_only: deque[tuple[str, Any]] = deque()

    def settled(self) -> dict[str, Any]:
        """Return the entries without what the functions themselves write to: a cache is no setting."""
        while self._named_only:
            label, thing = self._named_only.popleft()
            self.entries[label] = self._class(thing) if isinstance(thing, type) else self._function(thing)
        return {label: self._lasting(label, entry) for label, entry in self.entries.items()
                if label not in self._changed}

    def _lasting(self, label: str, entry: Any) -> Any:
        """Return the entry of a function or class without attributes that functions set."""
        if ":" not in label or not isinstance(entry, list):
            return entry
        if label.replace(":", ".") in self._changed:
            return [*entry[:-1], None]
        return [*entry[:-1], [held for held in entry[-1] if f".{held[0]}" not in self._changed]]

    def users(self, settled: Mapping[str, Any]) -> dict[str, str]:
        """Return a digest of every settled entry that is the user's."""
        return {label: digest(entry) for label, entry in settled.items() if label in self._users}

    def apart(self, value: object) -> Any:
        """Return what a value comes to if no tensor of it stands elsewhere, as in a list of models made before."""
        self._tensors = {}
        return self.of(value)

    def of(self, value: object) -> Any:
        """Return what a value comes to."""
        if value is None or isinstance(value, (bool, int)):
            return "this again" if value in self._open or value in self._labels else value  # an id, as torch sets
        if isinstance(value, str):
            return ["place", PurePath(value).name] if is_place(value) else value
        if isinstance(value, float):
            return float.hex(value)
        if isinstance(value, (bytes, bytearray)):
            return ["bytes", hashlib.sha256(value).hexdigest()]
        if isinstance(value, os.PathLike):
            return self.of(os.fspath(value))
        if isinstance(value, (Tensor, np.ndarray)):
            return once("content", value, lambda: content(value))
        if isinstance(value, types.ModuleType):
            return self.module(value, frozenset())
        if isinstance(value, (type, types.FunctionType)):
            return self._named(value)
        if isinstance(value, types.BuiltinFunctionType) and (
                value.__self__ is None or isinstance(value.__self__, types.ModuleType)):
            return self._builtin(value)
        if id(value) in self._open:
            return "this again"
        self._open.add(id(value))
        self._kept.append(value)
        try:
            return self._composed(value)
        finally:
            self._open.remove(id(value))

    def _composed(self, value: object) -> Any:
        """Return what something made of other values comes to."""
        if isinstance(value, (list, tuple)):
            return [self.of(v) for v in value]
        if isinstance(value, (set, frozenset)):
            return ["set", sorted((self.of(v) for v in value), key=json.dumps)]
        if isinstance(value, (dict, types.MappingProxyType)):
            return ["dict", [[self.of(k), self.of(v)] for k, v in list(value.items())]]  # it may grow meanwhile
        if isinstance(value, nn.Module):
            return self._model(value)
        if isinstance(value, (staticmethod, classmethod)):
            return [type(value).__name__, self.of(value.__func__)]
        if isinstance(value, property):
            return ["property", self.of((value.fget, value.fset, value.fdel))]
        if isinstance(value, functools.cached_property):
            return ["cached property", self.of(value.func)]
        if isinstance(value, functools._lru_cache_wrapper):
            return ["cached", self.of(value.__wrapped__)]
        if isinstance(value, Examples):
            return ["examples", self.of(value.source), once("digest", value, lambda: value.digest)]
        kind = type(value)
        silent = kind is type(os.environ) or kind.__module__ == "weakref"  # functions say which variables they read
        return [self.of(kind), None if silent else self._state(value)]

    def _state(self, value: object) -> Any:
        """Return what an object holds: its fields and attributes, or what pickle would make it from."""
        names = attributes(value)
        if names is not None:
            return {n: self.of(getattr(value, n)) for n in names}
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            parts = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception:  # a lock, an open file: nothing that could be sent to a worker either
            return getattr(value, "code", None) if isinstance(getattr(value, "code", None), str) else None
        if isinstance(parts, str):
            return parts
        return [self.of(list(part) if isinstance(part, Iterator) else part) for part in parts]

    def _model(self, model: nn.Module) -> Any:
        """Return a model's class, settings, values, hooks and children; a tensor that stands twice is one."""
        held = script(model) if isinstance(model, ScriptModule) else vars(model)
        settings = {n: self.of(v) for n, v in sorted(held.items()) if n not in _BARE}
        tensors = {}
        for name, tensor in (*model._parameters.items(), *model._buffers.items()):
            if tensor is not None and id(tensor) in self._tensors:
                tensors[name] = ["tensor", self._tensors[id(tensor)]]
            elif tensor is not None:
                self._tensors[id(tensor)] = len(self._tensors)
                self._kept.append(tensor)
                values = type(tensor).__name__ if is_lazy(tensor) else self.of(tensor)
                tensors[name] = [tensor.requires_grad, values]
        hooks = [self.of(list(vars(model)[kind].values())) for kind in _HOOKS if vars(model)[kind]]
        children = [[name, self.of(child)] for name, child in model._modules.items()]
        return [self.of(type(model)), getattr(model, "training", None), settings, tensors, hooks, children]

    def module(self, module: types.ModuleType, words: frozenset[str]) -> Any:
        """Return what code that says these words can take from a module: all of it, if it names nothing there."""
        name, members = module.__name__, vars(module)
        named = sorted(n for n in words if n in members and not is_dunder(n))
        if origin(name) == "library":  # what a user has put into a library is the user's
            put_in = [[n, self.of(members[n])] for n in named if origin(home(members[n])) == "user"]
            return ["library", name, versions(name.partition(".")[0]), put_in]
        if name == "optscope" or (named and not words & _BY_NAME):
            if (name, words) in self._within:
                return ["module", name]  # a module that imports its own package: all of it stands where this began
            self._within.append((name, words))
            found = [self._global(name, n, getattr(module, n), words) for n in named]
            self._within.pop()
            return ["module", name, found]
        label = f"module {name}"
        if label not in self.entries:
            self._enter(label, name)
            self.entries[label] = [self._global(name, n, members[n], frozenset()) for n in sorted(members)
                                   if not is_dunder(n) and not isinstance(members[n], types.ModuleType)
                                   and home(members[n]) in ("", name)]
        return label

    def _global(self, module: str, name: str, value: object, words: frozenset[str]) -> Any:
        """Return a reference to a global of a module: it has an entry of its own unless it is named elsewhere."""
        if isinstance(value, types.ModuleType):
            return [name, self.module(value, words)]
        if isinstance(value, (type, types.FunctionType)):
            return [name, self.of(value)]
        label = f"{module}.{name}"
        if label not in self.entries:
            self._enter(label, module)
            self.entries[label] = self.of(value)
        return label

    def _builtin(self, function: types.BuiltinFunctionType) -> Any:
        """Return the name of a compiled function and, if it is a user's, the content of its file."""
        module = getattr(function.__module__, "__name__", function.__module__) or ""  # psutil sets modules there
        file = getattr(loaded(module), "__file__", None) if module and origin(module) == "user" else None
        if file is not None and Path(file).is_file():
            return [f"{module}:{function.__qualname__}", hashlib.sha256(Path(file).read_bytes()).hexdigest()]
        return [f"{module}:{function.__qualname__}", versions(module.partition(".")[0])]

    def _named(self, thing: Any) -> Any:
        """Return a reference to the entry of a function or class."""
        if isinstance(thing, types.FunctionType) and getattr(thing, "hooked", False):
            thing = vars(thing)["__wrapped__"]  # torch wraps an optimiser's step when the first one is made
        if id(thing) in self._labels:
            return self._labels[id(thing)]
        place = home(thing)
        if origin(place) == "library":
            return self._of_library(thing, place)
        name = thing.__name__ if isinstance(thing, type) else thing.__qualname__  # as a worker knows it
        label = f"{place}:{name}"
        while label in self.entries:
            label += "'"
        self._labels[id(thing)] = label
        self._enter(label, place)
        self._kept.append(thing)
        self._named_only.append((label, thing))
        return label

    def _of_library(self, thing: Any, place: str) -> Any:
        """Return the name and version of what a library has made, what a user has put in, and what it holds."""
        version = versions(place.partition(".")[0])
        if isinstance(thing, type):
            label = f"{place}:{thing.__qualname__}"
            if label not in self.entries:
                self.entries[label] = None
                put_in, does = once("class", thing, lambda: of_class(thing, bool(version)))
                self.entries[label] = [version, [[kind, n, self.of(f)] for kind, n, f in put_in], does]
            return label
        if isinstance(getattr(thing, "registry", None), types.MappingProxyType):  # of functools.singledispatch
            return ["dispatch", self.of(thing.registry)]
        cells = [cell.cell_contents for cell in thing.__closure__ or () if is_full(cell)]
        return [f"{place}:{thing.__code__.co_qualname}", version, [self.of(c) for c in cells]]

    def _enter(self, label: str, module: str) -> None:
        """Open an entry before it is written, since what it names may name it."""
        self.entries[label] = None
        if origin(module) == "user":
            self._users.add(label)

    def _class(self, kind: type) -> Any:
        members = [(n, v) for n, v in own(kind)
                   if n != "_abc_impl" and not isinstance(v, types.MemberDescriptorType)]
        kept = [(n, v) for n, v in members
                if not is_dunder(n) or isinstance(v, (types.FunctionType, staticmethod, classmethod, property))]
        does, holds = list[Any](), list[Any]()
        for n, v in kept:
            (does if callable(v) or hasattr(v, "__get__") else holds).append([n, self.of(v)])
        return [[self.of(base) for base in kind.__bases__], does, holds]

    def _function(self, function: types.FunctionType) -> Any:
        said, names, place = block(function.__code__), function.__globals__, home(function)
        self._changed |= {name if name.startswith(".") else f"{place}.{name}" for name in said.changed}
        asked = names.keys() if said.names & {"globals", "eval", "exec"} else said.names & names.keys()
        found = [self._global(place, n, names[n], said.words) for n in sorted(asked) if not is_dunder(n)]
        free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        cells = [[n, self.of(cell.cell_contents)] for n, cell in free if n not in said.changed and is_full(cell)]
        extra = [[n, self.of(v)] for n, v in sorted(vars(function).items()) if n not in ("__wrapped__", "hooked")]
        return [said.digest, self.of(function.__defaults__), self.of(function.__kwdefaults__ or {}), cells, found,
                list(self._imported(said, names)), self.of(environment(said.words | said.names)), extra]

    def _imported(self, said: Block, names: Mapping[str, Any]) -> Iterator[Any]:
        """Yield what a function imports when it is called: names of the user's and our own modules."""
        package = str(names.get("__package__") or "")
        for name, level, taken in sorted(said.imports):
            above = package.split(".")[:len(package.split(".")) - level + 1] if level else []
            yield from self._taken(".".join([*above, *filter(None, [name])]), taken, said.words)
        if said.words & {"import_module", "__import__"}:
            for word in sorted(w for w in said.words if w.replace(".", "").isidentifier()):
                found = loaded(word)
                if found is not None and origin(word) == "user":
                    yield self.module(found, frozenset())

    def _taken(self, name: str, taken: Iterable[str], words: frozenset[str]) -> Iterator[Any]:
        module = loaded(name)
        if module is None:  # as if it were loaded: others may load it at any time
            yield ["library", name, versions(name.partition(".")[0]), []]
            return
        if not taken or "*" in taken or origin(name) == "library":
            yield self.module(module, words)
            return
        for each in taken:
            loaded(f"{name}.{each}")
            if hasattr(module, each):
                yield self._global(name, each, getattr(module, each), words)
