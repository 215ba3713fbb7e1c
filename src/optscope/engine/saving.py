"""Where a call saves the trainings inside it, so that after a kill they go on from there to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from optscope.engine.observed import Advancing, Observed
from optscope.engine.run_folder import RunFolder

T = TypeVar("T", bound=Advancing)


class Saving:
    """The folder of a call, in which the state of its training is written every `every` seconds.

    A function that takes a parameter `saving` gets its call's. `owner` is the call's id. What cannot be saved is
    said in `unsaved`, and after a kill begins anew.
    """

    def __init__(self, folder: RunFolder, owner: str, every: float = 60.0) -> None:
        self._folder, self._owner, self._every = folder, owner, every
        self._done = 0
        self.unsaved = ""

    def advanced(self, make: Callable[[], T]) -> T:
        """Return what `make` makes, advanced to its end: from where an earlier process left it, if one did."""
        observed = Observed(make, {}, self._folder, f"{self._owner} {self._done}", self._every)
        found = observed.run()
        self._folder.drop_state()
        self._done += 1
        self.unsaved = self.unsaved or observed.unsaved
        return found
