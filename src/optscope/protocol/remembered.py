"""What rehearsals found, kept in the output folder: the same arms on the same task are rehearsed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optscope.engine.identity import digest, source_digest
from optscope.engine.naming import named, named_task
from optscope.engine.numerics import numerics
from optscope.engine.place import CPU, Place
from optscope.engine.plan import Plan
from optscope.engine.rehearsal import Rehearsal, rehearse
from optscope.errors import UserError
from optscope.files import read_json, to_json, write_atomically
from optscope.optim.rule import Rule
from optscope.probes.probe import Probe
from optscope.tasks.task import Task

REHEARSED = "rehearsed.json"
"""The file of an output folder: what was found, by a digest of what was rehearsed and of the code that did it."""
PROGRAM = "optscope.engine.rehearsal"


class Remembered:
    """Rehearsals, of which those that a folder knows are not done again.

    A rehearsal is known by what its runs are named by (the task with its model and data, the rules, the plan, the
    probes, numerics and place), and by the code that rehearses: so what is known is what would be found. One that
    raises is not kept. A file that cannot be read counts as none.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / REHEARSED
        self._new: dict[str, Any] = {}
        try:
            self._known = dict(read_json(self._path))
        except (UserError, OSError, TypeError, ValueError):
            self._known = {}

    def rehearse(self, task: Task, rules: Mapping[str, Rule], plan: Plan, probes: Sequence[Probe],
                 watched: Sequence[Probe], around: Callable[[Rule], Rule] | None, place: Place = CPU) -> Rehearsal:
        """Return what `optscope.engine.rehearsal.rehearse` finds, or found before.

        Raises:
            UserError: as that does.
        """
        taken = [*probes, *watched]
        twins = [around(rule) for rule in rules.values()] if around else []
        parts = [named(part).digest for part in (plan, *rules.values(), *twins, *taken)]
        key = digest([task.name, named_task(task).digest, [*rules], parts, len(watched), numerics(place),
                      repr(place), source_digest(PROGRAM)])
        found = _unpacked(self._known.get(key), taken)
        if found is None:
            found = rehearse(task, rules, plan, probes, watched, around, place)
            self._new[key] = _packed(found, taken)
        return found

    def write(self) -> None:
        """Write what was found anew to the folder, which must be there.

        Raises:
            OSError: when it cannot be written.
        """
        if self._new:
            write_atomically(self._path, to_json(self._known | self._new))


def _packed(found: Rehearsal, taken: Sequence[Probe]) -> dict[str, Any]:
    """Return a rehearsal as JSON takes it; probes by their place among those that were taken."""
    return {"said": found.said, "single": found.single, "seconds": found.seconds,
            "silent": [[taken.index(probe), why] for probe, why in found.silent.items()],
            "broken": [[taken.index(probe), why] for probe, why in found.broken.items()]}


def _unpacked(held: Any, taken: Sequence[Probe]) -> Rehearsal | None:
    """Return the rehearsal that JSON tells of, or None where it tells of none."""
    try:
        return Rehearsal([str(each) for each in held["said"]],
                         {taken[i]: str(why) for i, why in held["silent"]},
                         {taken[i]: str(why) for i, why in held["broken"]},
                         {str(arm): str(why) for arm, why in held["single"].items()},
                         {str(arm): float(value) for arm, value in held["seconds"].items()})
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
