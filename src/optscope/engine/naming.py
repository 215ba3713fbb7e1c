"""What a run is named by: its parts as they are loaded, and what the user's task makes of them, model and data."""

from __future__ import annotations

import pickle
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from optscope.engine.identity import Account, digest
from optscope.engine.once import once
from optscope.engine.origin import origin
from optscope.errors import UserError
from optscope.tasks.fresh import fresh_model, seeded
from optscope.tasks.task import Data, InMemory, Split, Task

_MODEL, _DATA = "its fresh model", "its data"
_agreed: set[tuple[str, str]] = set()
_own: dict[bytes, Named] = {}


@dataclass(frozen=True)
class Named:
    """A part's digest, and a digest of each thing in it that is the user's: functions, globals, model, data."""

    digest: str
    users: Mapping[str, str]


@dataclass(frozen=True)
class _Stopped:
    """What stands for a model or data that cannot be made: the run itself will say so."""

    reason: str


def named(part: object) -> Named:
    """Return the name of a rule, a plan, a probe or a function."""
    return cast(Named, once("part", part, lambda: _written(part)))


def named_here(part: object) -> Named:
    """Return the name of a part as this process, a worker, would give it: equal ones are looked at once.

    That is, if nothing in them is the user's: what libraries and this package have loaded stays as it is.
    """
    try:
        content = pickle.dumps(part)
    except Exception:  # there is something of the user's
        return named(part)
    found = _own.get(content) or named(part)
    if own_digest(found):
        _own[content] = found
    return found


def named_task(task: Task) -> Named:
    """Return the name of a task: what it is made of, and the model (from seed 0) and the data that it makes.

    Our own models and public data are known by their settings; those of users may depend on files, on the
    environment and on the time of day.
    """
    return cast(Named, once("task", task, lambda: _looked_at(task, named)[0]))


def load(task: Task) -> Data:
    """Return the data of a task: the same in every process, also when they are drawn by a global generator."""
    with seeded(0):
        return task.data()


def task_here(task: Task, known: bool) -> tuple[Named, Data | None]:
    """Return a task's name as this process would give it, and its data, if they had to be looked at.

    Data in memory are not: they were sent by value. Functions that read others are looked at, and keep their
    places: two of one name are told apart by them. Of a task whose code is `known` only what it makes is named.
    """
    if isinstance(task.data, InMemory):
        return _looked_at(replace(task, data=partial(_nothing, *_sources(task.data))), named_here, known)[0], None
    return _looked_at(task, named_here, known)


def own_digest(found: Named) -> str:
    """Return the digest of a part in which nothing is the user's, or "".

    Code that Python generates for named tuples lies in modules of its own, and counts as nobody's.
    """
    return "" if any(not label.startswith("namedtuple_") for label in found.users) else found.digest


def other_source() -> UserError:
    """Return what is said where optscope's source does other things than where the work was named."""
    return UserError(f"the source of optscope in {Path(__file__).parent.parent} on {platform.node()} was edited "
                     "during this command, or is another version's: run it again, so that all runs are made by the "
                     "same program")


def check_same(name: str, here: Iterable[Named], users: Mapping[str, str]) -> None:
    """Compare what is loaded here with what a piece of work was named by.

    What has been found the same stays loaded, and is no more looked at: objects that count calls or keep a log
    change while they are used. The model and the data are made anew, and looked at each time.

    Raises:
        UserError: naming what is not the same.
    """
    found = {label: each for part in here for label, each in part.users.items()}
    changed = sorted(label for label, each in users.items()
                     if found.get(label, each) != each and (label, each) not in _agreed and not _was_sent(label))
    if changed:
        raise UserError(f"{name}: {' and '.join(changed[:3])} changed after this command began, or differs from "
                        "process to process: set it where it is defined, draw random numbers from torch's, NumPy's "
                        "or Python's global generator, and run the command again")
    agree({label: users[label] for label in users.keys() & found.keys()})


def agreed(users: Mapping[str, str]) -> bool:
    """Return whether all code that work is named by was found the same here: it needs no second look."""
    return all((label, each) in _agreed or label in (_MODEL, _DATA) for label, each in users.items())


def agree(users: Mapping[str, str]) -> None:
    """Note that this process has loaded what work is named by, whatever becomes of it in use."""
    _agreed.update((label, each) for label, each in users.items() if label not in (_MODEL, _DATA))


def _was_sent(label: str) -> bool:
    """Return whether it came by value with the work, as it was when that was sent."""
    module = label.partition(":")[0] if ":" in label else label.rpartition(".")[0]
    return module != "" and (module == "__main__" or module not in sys.modules)


def _nothing(*sources: object) -> Data:
    raise AssertionError


def _sources(data: InMemory) -> list[object]:
    return [part.source for part in vars(data.parts).values() if not isinstance(part, Split)]


def _looked_at(task: Task, look: Callable[[object], Named], known: bool = False) -> tuple[Named, Data | None]:
    """Return the name of a task, and its data if they had to be looked at; `look` names its parts.

    Of a task whose code is known, the name says only what it makes.
    """
    made: dict[str, object] = {}
    if not _is_settled(task.model, look):
        made[_MODEL] = _tried(lambda: fresh_model(task, 0))
    if not (isinstance(task.data, InMemory) or _is_settled(task.data, look)):
        made[_DATA] = _tried(lambda: load(task))
    data = made.get(_DATA)
    # The task itself comes after they were made: code that keeps what it read once has done so.
    found = _written(task, made, known) if made else Named("", {}) if known else look(task)
    return found, data if isinstance(data, Data) else None


def _written(part: object, made: Mapping[str, object] | None = None, known: bool = False) -> Named:
    account = Account()
    found = {name: account.apart(thing) for name, thing in {"": part, **(made or {})}.items()}
    settled = {} if known else account.settled()
    users = account.users(settled) | {name: digest(found[name]) for name in made or {}
                               if not isinstance((made or {})[name], _Stopped)}
    return Named(digest([found, settled]), users)


def _tried(make: Callable[[], object]) -> object:
    try:
        return make()
    except Exception as error:
        return _Stopped(type(error).__name__)


def _is_settled(make: Any, look: Callable[[object], Named]) -> bool:
    """Return whether a model or data are known by their settings: ours are, but those that read a user's file."""
    home = getattr(make, "__module__", None) or type(make).__module__
    return origin(home) == "own" and not getattr(make, "reads_a_users_file", False) and own_digest(look(make)) != ""
