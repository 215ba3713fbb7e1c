"""The contract of an executor: work goes in, and what becomes of it comes out, as it happens."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optscope.engine.work import Work


@dataclass(frozen=True)
class Begun:
    """The work of that id was begun, for the `attempt`-th time in this command."""

    id: str
    attempt: int = 1


@dataclass(frozen=True)
class Look:
    """What a probe saw during the training of that id, after `step` steps: metrics that are one number, by name."""

    id: str
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """How the work of that id ended: "ok", "diverged", "failed" (with the reason) or "lost" (its worker died)."""

    id: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    tries: int = 1


Report = Begun | Look | Outcome


class Executor(Protocol):
    """Does pieces of work in any order, and reports of them as they come: one outcome of each, the last word on it.

    When and whether it tells of the beginning, and of what is seen on the way, is its own choice.
    """

    def run(self, works: Sequence[Work], folder: Path) -> Generator[Report, None, None]:
        """Do every piece of work in its folder below `folder`; closed early, it leaves nothing running."""
