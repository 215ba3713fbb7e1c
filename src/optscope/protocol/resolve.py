"""Finding what a user means: one of our tasks by name, or anything of theirs by file or module."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import cloudpickle

from optscope.engine.origin import users_folders
from optscope.errors import UserError, nearest
from optscope.tasks.catalog import TASKS, task_named
from optscope.tasks.task import UNNAMED, Task

_left: list[Path] = []  # folders that a user's file has moved out of: names given in the same command lie there


def task_at(place: str) -> Task:
    """Return the task called `place`, or at "file.py:NAME" or "module:NAME" (or made by a function there).

    The user's file is run.

    Raises:
        UserError: naming what is missing.
    """
    if ":" not in place:
        if place.endswith(".py"):
            raise UserError(f'which task of {place}? write "{place}:NAME"')
        if place not in TASKS:
            raise UserError(f'no task "{place}"; {nearest(place, TASKS)} (or "my_task.py:NAME" for your own)')
        return task_named(place)
    found = named_at(place)
    if callable(found) and not isinstance(found, Task):
        with _blaming(place):
            found = found()
    if not isinstance(found, Task):
        raise UserError(f"{place} must be an optscope Task, or a function that returns one; "
                        f"got {type(found).__name__}: make one with Task.from_tensors(model, train, test)")
    return found if found.name != UNNAMED else replace(found, name=_name_of(place))


def _name_of(place: str) -> str:
    """Return what a task that was given no name is called.

    >>> _name_of("data/wine.py:task"), _name_of("data/wine.py:red"), _name_of("shop.wine:task")
    ('wine', 'red', 'wine')
    """
    source, _, name = place.rpartition(":")
    return name if name != UNNAMED else Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]


def named_at(place: str) -> Any:
    """Return what is called NAME at "file.py:NAME" or "module:NAME"; the user's file is run.

    Raises:
        UserError: naming what is missing.
    """
    source, _, name = place.rpartition(":")
    module = _load_file(Path(source)) if source.endswith(".py") else _import(source)
    found = getattr(module, name, None)
    if found is None:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f'{source} has no "{name}"; {nearest(name, public)}')
    return found


@contextmanager
def _blaming(source: str) -> Iterator[None]:
    """Say that whatever is raised, an early exit too, comes from the user's own code."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{source} stopped with {type(error).__name__}: {error}") from error


def _import(name: str) -> ModuleType:
    advice = 'write "my_task.py:NAME" or "package.module:NAME"'
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f'"{name}" is no name of a module; {advice}')
    sys.path.insert(0, str(Path.cwd()))
    with _blaming(name):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UserError(f'no module "{name}" could be imported ({error}); {advice}') from error


class _AsSaved(SourceFileLoader):
    """Reads a file itself: Python knows outdated compiled code by size and second of saving alone."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile what the file says now."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _load_file(path: Path) -> ModuleType:
    path = next((each for each in (path, *(folder / path for folder in _left)) if each.is_file()), path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    said, path, folder = str(path), path.absolute(), Path.cwd()
    package, root = _package_of(path)
    name = ".".join([*package, path.stem.replace(".", "_")])
    if name in sys.modules and name not in cloudpickle.list_registry_pickle_by_value():
        raise UserError(f"{said} has the name of a module that is in use; call it my_{path.name}")
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsSaved(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _blaming(said):
        if package:
            importlib.import_module(".".join(package))
        sys.modules[name] = module
        cloudpickle.register_pickle_by_value(module)  # workers need not find the file again
        spec.loader.exec_module(module)
    _step_back(root, set(sys.modules) - before - {name})
    if Path.cwd() != folder:
        _left.append(folder)
    return module


def _package_of(path: Path) -> tuple[list[str], Path]:
    """Return the packages in which a file's relative imports look, and the folder that holds the first of them."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError):
        return [], path.parent  # running it says what is wrong
    levels = [node.level for node in nodes if isinstance(node, ast.ImportFrom)]
    root, package = path.parent, list[str]()
    while len(package) < max(levels, default=0) or (package and (root / "__init__.py").is_file()):
        package, root = [root.name, *package], root.parent
    top = package[0] if package else ""
    known = getattr(sys.modules.get(top), "__path__", [])
    taken = top in sys.modules and str(root / top) not in map(str, known)
    if package and (taken or top in sys.stdlib_module_names or any("." in part or not part for part in package)):
        raise UserError(f'{path.name} imports "from .", so its folder must have a name that can be imported and '
                        f'is not in use; got "{top}": rename it, or write "import helper"')
    return package, root


def _step_back(root: Path, loaded: set[str]) -> None:
    """Let libraries go before the user's folder again: a file there may have the name of what torch imports later.

    Raises:
        UserError: when the user's file has imported such a one: other processes would find the library.
    """
    sys.path.remove(str(root))
    for name in loaded:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and Path(file).is_relative_to(root) and "." not in name and _is_a_library(name, root):
            raise UserError(f"{file} has the name of a library, which other processes would import in its place: "
                            f"call it my_{name}.py")
    sys.path.append(str(root))
    users_folders.set(users_folders.get() | {str(root)})


def _is_a_library(name: str, root: Path) -> bool:
    """Return whether others would find a module of that name elsewhere than in the user's folder."""
    found = importlib.machinery.PathFinder.find_spec(name, sys.path)
    elsewhere = found is not None and found.origin is not None and not Path(found.origin).is_relative_to(root)
    return elsewhere or name in sys.stdlib_module_names
