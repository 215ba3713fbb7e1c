"""What makes two runs the same: everything that changes bits, written out and hashed."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import platform
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

THREADS = 1
"""Threads a run uses: part of its identity, for another number gives other bits."""

_ROOT = Path(__file__).parent.parent


def digest(value: object) -> str:
    """Return 16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def numerics() -> dict[str, str | int]:
    """Return what fixes floating-point results besides the program: library, processor, threads, dtype."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(), "threads": THREADS, "dtype": str(torch.get_default_dtype())}


@functools.cache
def code(*modules: str) -> str:
    """Return a digest of modules of this package and of all they import from it.

    It is blind to comments, docstrings and layout.

    >>> code("optscope.vector") == code("optscope.vector")
    True
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if name not in found and path is not None:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found[name] = _bare(tree)
            waiting.extend(_imports(tree))
    return digest(sorted(found.items()))


def _file_of(module: str) -> Path | None:
    base = _ROOT.parent.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((c for c in candidates if module.startswith("optscope") and c.is_file()), None)


def _imports(tree: ast.Module) -> list[str]:
    """Return the modules a syntax tree imports; `from a import b` may mean the module a.b."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.extend([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return found


def _bare(tree: ast.Module) -> str:
    """Return a syntax tree without docstrings, as text."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and body and ast.get_docstring(node):
            node.body = body[1:]
    return ast.dump(tree)


def describe(value: object) -> Any:
    """Return a JSON value that is equal exactly when two things behave alike, as far as can be seen.

    Tensors count by their content; functions and classes of others by their source; functions also by what
    they close over; frozen dataclasses by their fields; other objects by their attributes.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Tensor):
        value = value.detach().contiguous().cpu().numpy()
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return ["array", str(value.dtype), list(value.shape), content]
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [describe(v) for v in value]
        return items if isinstance(value, (list, tuple)) else sorted(items, key=str)
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return _describe_code(value)
    if isinstance(value, types.MethodType):
        return [describe(value.__self__), value.__name__]
    if isinstance(value, functools.partial):
        return ["partial", describe(value.func), describe(value.args), describe(value.keywords)]
    if isinstance(value, nn.Module):
        settings = {name: v for name, v in vars(value).items() if not name.startswith("_")}
        children = {name: describe(child) for name, child in value.named_children()}
        return [describe(type(value)), describe(settings), children, describe(value.state_dict())]
    if dataclasses.is_dataclass(value):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [describe(type(value)), fields]
    return [describe(type(value)), describe(vars(value)) if hasattr(value, "__dict__") else repr(value)]


def _describe_code(thing: Any) -> Any:
    name = f"{thing.__module__}:{thing.__qualname__}"
    top = (thing.__module__ or "").partition(".")[0]
    if top in ("torch", "numpy", "optscope") or (top in sys.stdlib_module_names and top != "__main__"):
        return name
    try:
        source = inspect.getsource(thing)
    except (OSError, TypeError):
        source = ""
    closure = [describe(cell.cell_contents) for cell in getattr(thing, "__closure__", None) or ()]
    return [name, source, closure]
