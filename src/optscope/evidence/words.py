"""Names in a sentence: lists of them that are read as they were meant."""

from __future__ import annotations

from collections.abc import Iterable


def listed(words: Iterable[str]) -> str:
    """Return words in a row, parted by commas, or by semicolons where one of them holds a comma itself.

    >>> listed(["Adam", "SGD"]), listed(["Adam", "SGD, lr 0.1"])
    ('Adam, SGD', 'Adam; SGD, lr 0.1')
    """
    found = list(words)
    return ("; " if any("," in word for word in found) else ", ").join(found)
