"""Keywords under the names they had at first: they are taken, and the new ones are told."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def formerly(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keywords by former names, given as former="present".

    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     formerly(engine="executor")(lambda *, executor: executor)(engine=1)
    1
    """
    def around(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*positional: P.args, **given: P.kwargs) -> R:
            keywords: dict[str, Any] = dict(given)
            for former in names.keys() & keywords.keys():
                warnings.warn(f"{former}= is called {names[former]}= now", DeprecationWarning, stacklevel=2)
                keywords[names[former]] = keywords.pop(former)
            return function(*positional, **keywords)
        return call
    return around
