"""Whose a module is: optscope's own, a library's with its version, or the user's."""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Set
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Literal

from optscope.engine.bytecode import block
from optscope.engine.fork_server import ENVIRONMENT

Origin = Literal["own", "library", "user"]

users_folders: ContextVar[frozenset[str]] = ContextVar("users_folders", default=frozenset())
"""Folders that were put on the import path for a user's file: nothing of a library lies there."""

_STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()
_SETTLED = {"torch", "builtins"}  # torch's version stands among the numerics


def origin(module: str) -> Origin:
    """Return whose a module is, by where it was loaded from; a library in `site-packages` has a version.

    >>> origin("optscope.vector"), origin("torch.optim"), origin("__main__")
    ('own', 'library', 'user')
    """
    top = module.partition(".")[0]
    if top == "optscope":
        return "own"
    if top in ("__main__", ""):
        return "user" if top else "library"  # what has no module was not written in Python
    loaded = sys.modules.get(module, sys.modules.get(top))
    file = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", ())), None)
    if file is None:
        return "library" if loaded is not None and top in sys.builtin_module_names else _without_file(top)
    return "library" if _is_library(file, top) else "user"


def _without_file(top: str) -> Origin:
    """Return whose a module is that was sent by value, or is built into Python."""
    return "library" if top in sys.stdlib_module_names else "user"


@functools.cache
def _is_library(file: str, top: str) -> bool:
    place = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(place.parts):
        return top in _SETTLED or bool(versions(top))
    return place.is_relative_to(_STDLIB) or any(_unpacked(each, file) for each in _distributions().get(top, ()))


def _unpacked(distribution: metadata.Distribution, file: str) -> bool:
    """Return whether a file was unpacked of a wheel, in whatever folder or as a link into a cache.

    A source tree has no list of what was unpacked, and one that is linked into site-packages says it is editable.
    """
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    return (distribution.read_text("RECORD") is not None and not source.get("dir_info", {}).get("editable")
            and Path(file).is_relative_to(str(distribution.locate_file(""))))


@functools.cache
def versions(top: str) -> tuple[str, ...]:
    """Return the distributions that a library's package comes from, with version and, if it has one, commit."""
    if top in _SETTLED or top in sys.stdlib_module_names:
        return ()
    found = []
    for name in sorted({each.metadata["Name"] for each in _distributions().get(top, ())}):
        with contextlib.suppress(metadata.PackageNotFoundError):
            package = metadata.distribution(name)
            source = json.loads(package.read_text("direct_url.json") or "{}")
            commit = source.get("vcs_info", source.get("archive_info", {})).get("commit_id", "")
            found.append(f"{name} {package.version} {commit}".strip())
    return tuple(found)


@functools.cache
def _distributions() -> dict[str, list[metadata.Distribution]]:
    """Return who brings a package or module: what `metadata.packages_distributions` says, in a fifth of its time.

    That one makes an object of every file of every distribution, and reads the names of all.
    """
    found: dict[str, list[metadata.Distribution]] = {}
    for each in metadata.distributions():
        for top in (each.read_text("top_level.txt") or "").split() or _brought(each):
            found.setdefault(top, []).append(each)
    return found


def _brought(distribution: metadata.Distribution) -> set[str]:
    """Return the folders and modules that a distribution which names none has files of."""
    record = distribution.read_text("RECORD")
    lines = map(str, distribution.files or ()) if record is None else record.splitlines()
    parts = {tuple(line.lstrip('"').partition(",")[0].split("/", 1)[:2]) for line in lines}
    names = {first if rest else inspect.getmodulename(first) for first, *rest in parts}
    return {name for name in names if name and "." not in name}


def loaded(module: str) -> types.ModuleType | None:
    """Return a module that our or the user's code imports, or None if it cannot be had or is a library's."""
    if module not in sys.modules:
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or (top in sys.modules and origin(top) == "library"):
            return None
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(top)
            place = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
            if place and not _is_library(place, top):
                with contextlib.suppress(Exception):  # training finds out, where it matters
                    importlib.import_module(module)
    return sys.modules.get(module)


def home(thing: Any) -> str:
    """Return the module in which a function was written, or a class; "" for anything else."""
    if isinstance(thing, types.FunctionType):
        return str(thing.__globals__.get("__name__") or "")  # `wraps` copies the __module__ of another
    return str(thing.__module__ or "") if isinstance(thing, type) else ""


def attributes(value: Any) -> list[str] | None:
    """Return the names of an object's fields, attributes and slots, or None where only pickle knows them."""
    kind: Any = type(value)
    own = {name for each in kind.__mro__ for name in _listed(vars(each).get("__slots__", ()))}
    usual = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    if dataclasses.is_dataclass(value):
        own |= {f.name for f in dataclasses.fields(value)}
    elif not usual or kind in copyreg.dispatch_table or not (own or hasattr(value, "__dict__")):
        return None
    return [n for n in sorted(own.union(getattr(value, "__dict__", ())))
            if hasattr(value, n) and not isinstance(getattr(kind, n, None), functools.cached_property)]


def _listed(names: Any) -> Iterable[str]:
    return (names,) if isinstance(names, str) else names


def environment(words: Set[str]) -> list[tuple[str, str]]:
    """Return the variables of the environment that code which says these words can read by their names."""
    read = words if words & {"environ", "getenv"} else set()
    return [(word, os.environ[word]) for word in sorted(read)
            if word in os.environ and word not in ENVIRONMENT]


def functions_of(kind: type) -> dict[str, types.FunctionType]:
    """Return the functions in the body of a class, by name, unwrapped from what torch puts around them."""
    plain = ((n, getattr(v, "__func__", getattr(v, "fget", v))) for n, v in sorted(vars(kind).items()))
    return {n: vars(f)["__wrapped__"] if getattr(f, "hooked", False) else f for n, f in plain
            if isinstance(f, types.FunctionType)}


def own(kind: type) -> list[tuple[str, Any]]:
    """Return the members of a class without those of its bases that torch wraps in it when an optimiser is made."""
    def plain(member: Any) -> Any:
        return vars(member)["__wrapped__"] if getattr(member, "hooked", False) else member

    def repeats(name: str, member: Any) -> bool:
        theirs = next((vars(base)[name] for base in kind.__mro__[1:] if name in vars(base)), None)
        return member is not plain(member) and plain(member) is plain(theirs)

    return [(n, v) for n, v in sorted(vars(kind).items()) if not repeats(n, v)]


def of_class(kind: type, versioned: bool) -> tuple[list[Any], list[Any]]:
    """Return the functions that a user has put into a library's class or its bases, and what its own methods do."""
    methods = [(k, n, f) for k in kind.__mro__[:-1] for n, f in functions_of(k).items()]
    put_in = [(k.__qualname__, n, f) for k, n, f in methods
              if origin(home(k)) == "library" and origin(home(f)) == "user"]
    return put_in, [[n, block(f.__code__).digest] for k, n, f in methods if k is kind] if versioned else []


def is_place(text: str) -> bool:
    """Return whether a text says where a file lies."""
    return os.sep in text and "\n" not in text and PurePath(text).is_absolute()
