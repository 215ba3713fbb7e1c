"""What makes two runs the same: everything that changes bits, written out and hashed."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import platform
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

THREADS = 1
"""Threads a run uses: part of its identity, for another number gives other bits."""

_ROOT = Path(__file__).parent.parent
_STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()


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
    """Return a digest of modules and of all they import that is this package's or the user's own.

    It is blind to comments, docstrings, layout and the words of errors. Libraries are not followed.

    >>> code("optscope.vector") == code("optscope.vector")
    True
    """
    found: dict[str, str] = {}
    waiting = [(name, _root_of(name)) for name in modules]
    while waiting:
        name, root = waiting.pop()
        path = _file_of(name, root)
        if name not in found and path is not None:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting.extend((each, root) for each in _imports(tree, package))
            found[name] = _bare(tree)
    return digest(sorted(found.items()))


def _root_of(module: str) -> Path | None:
    """Return the folder from which a loaded module, and so what lies beside it, is imported."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    return path.parents[module.count(".") + (path.name == "__init__.py")]


def _file_of(module: str, root: Path | None) -> Path | None:
    """Return the source of a module, or None for libraries and what has no source."""
    if module == "optscope":  # its names are loaded when used: importing it says nothing about which
        return None
    if module == "__main__":
        file = getattr(sys.modules[module], "__file__", None)
        candidates = [Path(file).resolve()] if file else []
    else:
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names:
            return None
        known = [_ROOT.parent] if top == "optscope" else [*([root] if root else []), *map(Path, sys.path)]
        bases = [folder.joinpath(*module.split(".")) for folder in known]
        candidates = [c for b in bases for c in (b.with_name(f"{b.name}.py"), b / "__init__.py")]
    path = next((c for c in candidates if c.is_file()), None)
    return None if path is None or (_is_library(path) and not module.startswith("optscope.")) else path


def _is_library(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(_STDLIB)


def _imports(tree: ast.Module, package: str) -> list[str]:
    """Return the modules that code in `package` imports; `from a import b` may mean the module a.b."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.extend([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return [name.strip(".") for name in found if name]


def _bare(tree: ast.Module) -> str:
    """Return a syntax tree as text, without docstrings and without what UserErrors say."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and body and ast.get_docstring(node):
            node.body = body[1:]
        if (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
                and isinstance(node.exc.func, ast.Name) and node.exc.func.id == "UserError"):
            node.exc.args = []
    return ast.dump(tree)


def describe(value: object) -> Any:
    """Return a JSON value that is equal exactly when two things behave alike, as far as can be seen.

    Tensors count by their content; functions and classes of users by the source of their module and of what
    it imports (by bytecode where there is none), functions also by their defaults and what they close over;
    those of libraries by name and version; dataclasses by their fields; other objects by their attributes.
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
    """Return a function's or class's name and, if it is a user's, the code of its module and what it binds."""
    module = thing.__module__ or ""
    name, top = f"{module}:{thing.__qualname__}", module.partition(".")[0]
    if top == "optscope" or (top in sys.stdlib_module_names and top != "__main__"):
        return name
    loaded = sys.modules.get(top)
    file = getattr(loaded, "__file__", None)
    if file is not None and _is_library(Path(file).resolve()) and top != "__main__":
        return [name, str(getattr(loaded, "__version__", ""))]
    bound = [getattr(thing, part, None) for part in ("__defaults__", "__kwdefaults__")]
    cells = [describe(cell.cell_contents) for cell in getattr(thing, "__closure__", None) or ()]
    unwritten = None if _is_written(thing) else _bytecode(thing, set())
    return [name, code(module), unwritten, describe(bound), cells]


def _functions(thing: Any) -> dict[str, types.FunctionType]:
    """Return a function itself, or those in the body of a class, by name."""
    members = vars(thing).items() if isinstance(thing, type) else [("", thing)]
    plain = ((name, getattr(v, "__func__", getattr(v, "fget", v))) for name, v in members)
    return {name: f for name, f in plain if isinstance(f, types.FunctionType)}


def _is_written(thing: Any) -> bool:
    """Return whether the source of a function or class is in a file (not so in a notebook or after `exec`)."""
    functions = _functions(thing).values()
    module = sys.modules.get(thing.__module__ or "")
    in_module = getattr(module, "__file__", None) is not None
    return in_module and (not functions or any(Path(f.__code__.co_filename).is_file() for f in functions))


def _bytecode(thing: Any, seen: set[int]) -> Any:
    """Return what a function or class without source does: its bytecode, and that of the globals it names."""
    if id(thing) in seen:
        return "again"
    seen.add(id(thing))
    bases = getattr(thing, "__bases__", ())
    found: list[Any] = [[_bytecode(base, seen) for base in bases if not _foreign(base)]]
    for name, function in sorted(_functions(thing).items()):
        globals_ = [function.__globals__.get(n) for n in _names(function.__code__)]
        found.append([name, _constants(function.__code__), describe(function.__defaults__),
                      describe(function.__kwdefaults__),
                      [describe(g) if isinstance(g, (bool, int, float, str, Tensor)) else _bytecode(g, seen)
                       for g in globals_ if isinstance(g, (bool, int, float, str, Tensor))
                       or (isinstance(g, (type, types.FunctionType)) and not _foreign(g))]])
    if isinstance(thing, type):
        found.append([[n, describe(v)] for n, v in sorted(vars(thing).items())
                      if not n.startswith("__") and isinstance(v, (bool, int, float, str, tuple, Tensor))])
    return found


def _foreign(thing: Any) -> bool:
    """Return whether a function or class comes from a file, and so is no part of what was typed in."""
    return thing.__module__ == "builtins" or _is_written(thing)


def _constants(block: types.CodeType) -> list[Any]:
    def plain(c: object) -> Any:
        if isinstance(c, types.CodeType):
            return _constants(c)
        return repr(sorted(c, key=str) if isinstance(c, frozenset) else c)  # sets have no order of their own
    return [block.co_code.hex(), [plain(c) for c in block.co_consts], list(block.co_names)]


def _names(block: types.CodeType) -> list[str]:
    nested = [n for c in block.co_consts if isinstance(c, types.CodeType) for n in _names(c)]
    return [*block.co_names, *nested]
