"""Former names: they are taken for one minor version more, and the new ones are told."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from optscope.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")


def told(former: str, now: str, last: str, depth: int) -> None:
    """Warn of a former name, whose last version is `last`; `depth` calls above this one it was used."""
    warnings.warn(f"{former} is called {now} now: {last} is the last version that knows the former name",
                  DeprecationWarning, stacklevel=depth + 1)


def formerly(last: str, **names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keywords by former names, given as former="present", until the version `last`.

    A call that says both names is refused: which was meant cannot be known.

    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     formerly("0.1", engine="executor")(lambda *, executor: executor)(engine=1)
    1
    """
    def around(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*positional: P.args, **given: P.kwargs) -> R:
            keywords: dict[str, Any] = dict(given)
            for former in names.keys() & keywords.keys():
                if names[former] in keywords:
                    raise UserError(f"{former}= is the former name of {names[former]}=; "
                                    "got both, write the latter alone")
                told(f"{former}=", f"{names[former]}=", last, depth=2)
                keywords[names[former]] = keywords.pop(former)
            return function(*positional, **keywords)
        return call
    return around
