"""Names and seeds in a sentence: lists of them that are read as they were meant."""

from __future__ import annotations

from collections.abc import Iterable


def listed(words: Iterable[str], last: str = "") -> str:
    """Return words in a row, parted by commas, or by semicolons where one of them holds a comma itself.

    `last` is the word that stands before the last of them instead.

    >>> listed(["Adam", "SGD"]), listed(["Adam", "SGD, lr 0.1"])
    ('Adam, SGD', 'Adam; SGD, lr 0.1')
    >>> listed(["Adam"], "or"), listed(["Adam", "SGD", "Lion"], "or"), listed(["SGD, lr 0.1", "SGD", "Lion"], "and")
    ('Adam', 'Adam, SGD or Lion', 'SGD, lr 0.1; SGD and Lion')
    """
    found = list(words)
    comma = "; " if any("," in word for word in found) else ", "
    if last and len(found) > 1:
        return f"{comma.join(found[:-1])} {last} {found[-1]}"
    return comma.join(found)


def seeds_said(seeds: Iterable[int], most: int = 4) -> str:
    """Return which seeds these are, neighbours as a range; of more than `most` ranges the first and the last.

    >>> seeds_said([3, 1, 2, 7]), seeds_said([1]), seeds_said(range(0, 20, 2))
    ('seeds 1–3, 7', 'seed 1', 'seeds 0, 2, 4, …, 18')
    """
    ranges: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    words = [f"{low}" if low == high else f"{low}–{high}" for low, high in ranges]
    shown = words if len(words) <= most else [*words[:most - 1], "…", words[-1]]
    one = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"seed{'' if one else 's'} {', '.join(shown)}" if words else ""
