"""Which probes a person means: by name, as they are usual for a task or else by default, or by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from optscope.errors import UserError
from optscope.probes.catalog import kind_named
from optscope.probes.needs import Needing, lacking
from optscope.probes.probe import Probe
from optscope.protocol.kits import with_defaults
from optscope.tasks.task import Task


def meant(said: Sequence[str | Probe], usual: Sequence[Probe], task: Task, *, live: bool) -> tuple[Probe, ...]:
    """Return the probes that are meant, each once, of a task whose optimiser is at hand if it is `live`.

    Raises:
        UserError: when there is none of a name, or one does not fit the task.
    """
    return tuple(dict.fromkeys(probe for each in said for probe in _one(each, usual, task, live)))


def _one(said: str | Probe, usual: Sequence[Probe], task: Task, live: bool) -> Sequence[Probe]:
    kind = type(said) if isinstance(said, Probe) else kind_named(said)
    why = ("it looks at the optimiser that trains a model, and a saved model has none: record the training with "
           "optscope.Recorder" if "live optimiser" in kind.needs and not live else
           lacking(cast(Needing, said if isinstance(said, Probe) else kind), task))
    if why:
        raise UserError(f"{kind.__name__} does not fit {task.name}: {why}")
    if isinstance(said, Probe):
        return [said]
    return [probe for probe in usual if type(probe) is kind] or [with_defaults(kind)]
