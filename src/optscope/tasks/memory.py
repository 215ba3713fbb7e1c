"""How much memory is free, so that data which cannot fit are refused before they are read."""

from __future__ import annotations

import os
from pathlib import Path

from optscope.errors import UserError

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Return how many bytes new data may take: what the system has left, or less where its container has less.

    Where the system does not say what is left (macOS), all its memory counts as free.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, _left_to_the_container(free))


def _left_to_the_container(otherwise: int) -> int:
    """Return the limit of the control group less what it uses; files that it can drop again do not count."""
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return otherwise
    return max(0, limit - used + int(stat.get("inactive_file", 0)))


def check_fits(each: float, examples: int, free: int) -> None:
    """Raise unless `examples` of `each` bytes fit twice into `free` bytes: splitting and handing on make copies.

    Raises:
        UserError: saying how many examples would fit.
    """
    if 2 * each * examples > free:
        raise UserError(f"{examples} examples of {each / 1e3:.3g} kB take {each * examples / 1e9:.3g} GB, and as "
                        f"much again while they are split and handed on, but of memory {free / 1e9:.3g} GB are "
                        f"free: give at most {int(free / (2 * each))}, by torch.utils.data.Subset(data, range(n))")
