"""Whatever a user's own code raises becomes one sentence that says whose code it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from optscope.errors import UserError


@contextmanager
def blaming(owner: str, what: str) -> Iterator[None]:
    """Say of an error that it comes from `what` of `owner`, such as the model of a task.

    Raises:
        UserError: with the kind and the first line of the error; one that is a sentence already stays.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the author chose to raise
        raise UserError(f"{owner}: {what} stopped with {first_words(error)}") from error


def first_words(error: Exception) -> str:
    r"""Return an error's kind and the first line of its words.

    >>> first_words(ValueError("no\nfurther"))
    'ValueError: no'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
