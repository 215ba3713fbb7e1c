"""Finding what a user means: one of our tasks by name, or anything of theirs by file or module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from optscope.errors import UserError, nearest
from optscope.tasks.catalog import TASKS, task_named
from optscope.tasks.task import Task


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
    return found


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


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no file {path}")
    if path.stem in sys.modules and path.stem not in cloudpickle.list_registry_pickle_by_value():
        raise UserError(f"{path} has the name of a module that is in use; call it my_{path.name}")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    cloudpickle.register_pickle_by_value(module)  # workers need not find the file again
    with _blaming(str(path)):
        spec.loader.exec_module(module)
    return module
