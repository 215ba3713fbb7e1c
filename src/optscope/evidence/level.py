"""The level at which claims are tested: 5 %, or at each of several looks the share of it that is spent there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from optscope.errors import UserError

ALPHA = 0.05
"""How often, at most, a claim is decided wrongly."""
_spent = ContextVar("level", default=ALPHA)


def level() -> float:
    """Return the level that tests and intervals take where they are told none."""
    return _spent.get()


@contextmanager
def at_level(alpha: float) -> Iterator[None]:
    """Test, and draw intervals, at a level of `alpha`.

    >>> with at_level(0.01):
    ...     level()
    0.01

    Raises:
        UserError: unless 0 < alpha < 0.5.
    """
    if not 0 < alpha < 0.5:
        raise UserError(f"expected a level between 0 and 0.5, got {alpha}")
    before = _spent.set(alpha)
    try:
        yield
    finally:
        _spent.reset(before)
