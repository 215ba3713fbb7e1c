"""The one error a user is meant to read: a sentence with what was expected, what came, what to write."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

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
