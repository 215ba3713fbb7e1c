"""The one error a user is meant to read: a sentence with what was expected, what came, what to write."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM})
"""What a disk that is full, read-only or not ours says: nothing more can be kept there."""


class UserError(ValueError):
    """Something the user can mend. The command prints its sentence and exits with 2."""


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ' did you mean "x"?' for the nearest of `words`, or their list when none is near.

    >>> nearest("adm", ["adam", "sgd"])
    'did you mean "adam"?'
    >>> nearest("lion", ["adam", "sgd"])
    'there are: adam, sgd'
    """
    known = list(words)
    close = difflib.get_close_matches(word, known, n=1)
    return f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(known)}"


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
