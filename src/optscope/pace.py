"""How fast runs end of late, and how long the rest takes at that rate."""

from __future__ import annotations

from collections.abc import Sequence

LATE = 32
"""So many ends the rate is taken over: what others do to the machine shows soon, and single runs do not."""


def rate(ends: Sequence[float], start: float, now: float) -> float:
    """Return how many runs a second ended of late.

    Of the last k <= 32 it is k / (now − t), with t the end before them, or `start`. The time since the
    last end counts, so that the rate falls while nothing ends. 0 before the first, and where a clock was set
    back.

    >>> rate([2.0, 4.0], 0.0, 5.0)
    0.4
    """
    late = ends[-LATE:]
    since = ends[-LATE - 1] if len(ends) > LATE else start
    return len(late) / (now - since) if now > since else 0.0


def about(seconds: float) -> str:
    """Return a time as roughly as it is foretold.

    >>> [about(each) for each in (0.2, 34.0, 80.0, 250.0, 10_000.0)]
    ['1 s', '34 s', '80 s', '4 min', '2.8 h']
    """
    if seconds < 90:
        return f"{max(1, float(f'{seconds:.2g}')):.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"


def outlook(each: float, rest: int) -> str:
    """Return a rate in runs a second and the time that `rest` runs take at it, in words.

    >>> outlook(0.5, 45), outlook(0.002, 30)
    ('30 runs/min, 1.5 min left', '7.2 runs/h, 4.2 h left')
    """
    if not each:
        return "no rate yet"
    left, slow = rest / each, each < 1 / 60
    runs = f"{each * 3600:.2g} runs/h" if slow else f"{each * 60:.0f} runs/min"
    return f"{runs}, {left / 3600:.1f} h left" if left > 5400 else f"{runs}, {left / 60:.1f} min left"
