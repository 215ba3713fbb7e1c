"""Saved models that are measured alike: where they lie, what they are called, and which of them share a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optscope.engine.checkpoint import found_at
from optscope.engine.place import CPU, Place
from optscope.engine.rows import Use
from optscope.engine.run_folder import RunFolder
from optscope.engine.saved import Saved
from optscope.errors import UserError
from optscope.evidence.records import Metric, Records
from optscope.evidence.words import listed
from optscope.probes.geometry import FirstStep
from optscope.probes.probe import Probe
from optscope.protocol.compared import last_measured
from optscope.protocol.comparison import Job
from optscope.protocol.kits import kit_of
from optscope.protocol.meant import meant
from optscope.tasks.task import Task


@dataclass(frozen=True)
class Model:
    """One saved model: its arm, the seed of its training (0 where none is said), and how it is measured."""

    name: str
    seed: int
    work: Saved


@dataclass(frozen=True)
class Probing:
    """Saved models of one task, each measured by `probes`, of which differences are tested, and by `described`.

    Where they are `paired`, every arm has a model of every seed; else each model is an arm of its own.
    """

    name: str
    models: tuple[Model, ...]
    probes: tuple[Probe, ...]
    described: tuple[Probe, ...]
    paired: bool
    metrics: tuple[str, ...] = ()

    @property
    def arms(self) -> Sequence[Model]:
        """The first model of every arm, which has its name."""
        return list({model.name: model for model in reversed(self.models)}.values())[::-1]

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds of the models."""
        return sorted({model.seed for model in self.models})

    @property
    def taken(self) -> Sequence[Probe]:
        """Every probe that is taken."""
        return (*self.probes, *self.described)

    def jobs(self, records: Records) -> list[Job]:
        """Return a job a model."""
        return [Job(model.work, Use(self.name, model.name, "final", model.seed, "", model.work.id,
                                    model.work.readings)) for model in self.models]

    def measured(self, records: Records) -> tuple[list[Metric], Records]:
        """Return every metric of the models, checks apart, and the records."""
        return last_measured(self, (), records)


def probing_of(task: Task, paths: Sequence[Path], probes: Sequence[str | Probe], group: str, examples: int,
               place: Place = CPU) -> tuple[Probing, list[str]]:
    """Return the measurement of the models saved at some paths, and what is known of them beforehand.

    Every file is read once: what does not fit the task's model is said before anything is measured.

    Raises:
        UserError: naming the file that does not fit, the probe that does not, or what the group leaves open.
    """
    if not paths:
        raise UserError("a saved model is expected; got none: give a file of weights, or a folder with one")
    tested, described = _chosen(task, probes, examples)
    names = _grouped(paths, group) if group else [(name, 0) for name in _names(paths)]
    models, known = [], []
    for path, (name, seed) in zip(paths, names, strict=True):
        own = None if not group or RunFolder(path).has_result() else seed
        found = found_at(task, path, seed=own)
        models.append(Model(name, seed, Saved(task, path.absolute(), found.content, (*tested, *described), own,
                                              place)))
        if found.beside:
            known.append(f"{path} holds weights beside those of the model, which are left out: "
                         f"{listed(list(found.beside)[:3])}{' ...' if len(found.beside) > 3 else ''}.")
    return Probing(task.name, tuple(models), tested, described, bool(group)), known


def _chosen(task: Task, probes: Sequence[str | Probe],
            examples: int) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """Return the probes that models are compared by and those that describe them: the usual, or the chosen."""
    kit = kit_of(task)
    compared = kit.probes(task, examples)
    described = tuple(probe for probe in (*kit.describing(task, examples), *kit.curved(task))
                      if not isinstance(probe, FirstStep))  # of a rule, which is not saved
    if not probes:
        return compared, described
    return meant(probes, (*compared, *described), task, live=False), ()


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell all of them apart.

    >>> _names([Path("a/x.pt"), Path("b/x.pt")]), _names([Path("a/x.pt"), Path("b/y.pt")])
    (['a/x.pt', 'b/x.pt'], ['x.pt', 'y.pt'])

    Raises:
        UserError: when a path stands twice.
    """
    whole = [path.absolute() for path in paths]
    twice = next((path for path in paths if whole.count(path.absolute()) > 1), None)
    if twice is not None:
        raise UserError(f"each checkpoint stands once; got {twice} twice")
    ends = ([str(Path(*path.parts[-length:])) for path in whole]
            for length in range(1, max((len(path.parts) for path in whole), default=1) + 1))
    return next(names for names in ends if len(set(names)) == len(names))


def _grouped(paths: Sequence[Path], group: str) -> list[tuple[str, int]]:
    """Return the arm and the seed that each path says by a pattern for its end, such as "{arm}-{seed}.pt".

    >>> _grouped([Path("runs/adam-1.pt"), Path("runs/adam-2.pt")], "{arm}-{seed}.pt")
    [('adam', 1), ('adam', 2)]

    Raises:
        UserError: when the pattern does not say both, a path does not fit it, or an arm lacks a seed of others.
    """
    if sorted(re.findall(r"{(\w*)}", group)) != ["arm", "seed"]:
        raise UserError("a group says where the end of a path has the arm and the seed, such as "
                        f'"{{arm}}-{{seed}}.pt"; got {group!r}')
    pattern = re.escape(group).replace(r"\{arm\}", "(?P<arm>[^/]+)").replace(r"\{seed\}", "(?P<seed>[0-9]+)")
    found = []
    for path in paths:
        fit = re.fullmatch(f"(?:.*/)?{pattern}", path.as_posix())
        if fit is None:
            raise UserError(f"{path} does not end as the group {group} says")
        found.append((fit["arm"], int(fit["seed"])))
    arms, seeds = dict.fromkeys(arm for arm, _ in found), dict.fromkeys(seed for _, seed in found)
    twice = [each for each in dict.fromkeys(found) if found.count(each) > 1]
    lacking = [(arm, seed) for arm in arms for seed in seeds if (arm, seed) not in found]
    for what, pairs in (("more than one checkpoint of", twice), ("no checkpoint of", lacking)):
        if pairs:
            raise UserError(f"differences over seeds need every arm once on every seed; there is {what} "
                            f"{pairs[0][0]} with seed {pairs[0][1]}")
    return found
