"""The comparison a user gets who says little: ready arms, usual probes that fit the task, paired seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from optscope.errors import UserError, nearest
from optscope.evidence.paired import FEWEST
from optscope.evidence.words import listed
from optscope.probes.catalog import kind_named
from optscope.probes.needs import lacking
from optscope.probes.probe import Probe
from optscope.protocol.arms import arm_named, label_of
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.grafts import crossed, graft_arms
from optscope.protocol.kits import kit_of, with_defaults
from optscope.protocol.search import Thinned
from optscope.protocol.settings import Settings
from optscope.tasks.task import Task

FOR_TUNING = range(1001, 2001)
"""Seeds that choose learning rates, the first of them first. None ever compares arms, however many do."""


def comparison_of(task: Task, settings: Settings, arms: Sequence[Arm] = ()) -> Comparison:
    """Return the comparison that settings describe; `arms` take the place of the settings' optimisers.

    Raises:
        UserError: when there are fewer than two arms, no optimiser, probe or metric of a name, or nothing to test.
    """
    settings, chosen = settings.extent, tuple(arms) or arms_of(settings)
    if len(chosen) < 2:
        raise UserError(f"a comparison needs two optimisers or more; got {chosen[0].name} alone: add another, "
                        'for example "sgd" or "adam"')
    if settings.baseline is not None:
        chosen = _led(chosen, settings.baseline)
    if isinstance(settings.graft, str):
        chosen = graft_arms(crossed(chosen), settings.graft)
    if settings.quick:
        chosen = thinned(chosen)
    kit, seeds = kit_of(task), compared_seeds(settings.seeds)
    criterion, validation = kit.judge(task)
    probes, described, watched, at_end = _wanted(settings.probes, (
        kit.probes(task, settings.examples), kit.describing(task, settings.examples), kit.watched(chosen),
        kit.at_end()), task)
    return Comparison(task.name, task, tuple(kit.arm(arm, task) for arm in chosen), settings.plan, probes, seeds,
                      tuple(FOR_TUNING[:settings.tuning_seeds]), criterion, watched=watched, described=described,
                      twin_seeds=seeds[:settings.twin_seeds] if kit.twins else (), validation=validation,
                      place=settings.place, widen=settings.widen, at_end=at_end,
                      metrics=tuple(settings.metrics or ()))


def compared_seeds(count: int) -> tuple[int, ...]:
    """Return the first so many seeds that compare arms: 1, 2, 3, ... without those that are kept for tuning.

    More of them are the fewer and others, so that a comparison that grows repeats no run and chooses as before.

    >>> compared_seeds(3), compared_seeds(1001)[-2:]
    ((1, 2, 3), (1000, 2001))
    """
    return tuple(islice((seed for seed in itertools.count(1) if seed not in FOR_TUNING), count))


def question(comparison: Comparison) -> str:
    """Return what such a comparison asks."""
    first, *others = [arm.name for arm in comparison.arms]
    asked = kit_of(comparison.task).asked(comparison.task, comparison.probes)
    return (f"{listed(others, 'and')} against {first}: at learning rates chosen alike on clean validation data, "
            f"{asked}")


def arms_of(settings: Settings) -> tuple[Arm, ...]:
    """Return the arms that settings name, with what they say of the search, or the usual learning rates."""
    return tuple(arm_named(name, said.lr, said.space, settings.trials)
                 for name, said in settings.optimisers.items())


def thinned(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Return arms that search among half of their candidates, or a few more where budgets would not be equal."""
    tuned = [arm for arm in arms if arm.search]
    unit = math.lcm(*(arm.rule.evaluations for arm in tuned))
    half = max((len(arm.candidates()) * arm.rule.evaluations for arm in tuned), default=0) / 2
    budget = unit * max(1, math.ceil(half / unit))
    return tuple(replace(arm, search=Thinned(arm.search, budget // arm.rule.evaluations)) if arm.search else arm
                 for arm in arms)


def looked_quickly(comparison: Comparison) -> str:
    """Return what a quick look cannot show, and what goes on from it."""
    trials = max(len(arm.candidates()) for arm in comparison.arms)
    return (f"{comparison.name}: this is a quick look: {len(comparison.seeds)} seeds and {trials} candidates an "
            f"optimiser. Fewer than {FEWEST} seeds can show no difference, a better learning rate may lie between "
            "those that are tried, and what rounding alone does is not measured; the same without quick goes on "
            "from these runs.")


def _led(arms: Sequence[Arm], name: str) -> tuple[Arm, ...]:
    """Return arms with the one of a name first."""
    names = [arm.name for arm in arms]
    label = name if name in names else label_of(name)
    if label not in names:
        raise UserError(f'the baseline "{name}" is none of the optimisers; {nearest(name, names)}')
    return tuple(sorted(arms, key=lambda arm: arm.name != label))


def _wanted(wanted: Sequence[str | Probe] | None, usual: Sequence[tuple[Probe, ...]],
            task: Task) -> Sequence[tuple[Probe, ...]]:
    """Return the probes that are wanted, each where it is usual; others are compared, or watch if they have to."""
    if wanted is None:
        return usual
    kinds = [type(each) if isinstance(each, Probe) else kind_named(each) for each in wanted]
    given = [each for each in wanted if isinstance(each, Probe)]
    named = [kind for kind, each in zip(kinds, wanted, strict=True) if isinstance(each, str)]
    known = {type(probe) for probes in usual for probe in probes}
    given += [with_defaults(kind) for kind in named if kind not in known]
    for probe in given:
        if why := lacking(probe, task):
            raise UserError(f"{type(probe).__name__} does not fit {task.name}: {why}")
    tested, described, watched, at_end = (tuple(p for p in probes if type(p) in named) for probes in usual)
    live = tuple(probe for probe in given if "live optimiser" in probe.needs)
    tested += tuple(probe for probe in given if probe not in live)
    if all(metric.better == "neither" for probe in tested for metric in probe.metrics):
        raise UserError("no difference can be tested by the probes that were chosen, which say of nothing that "
                        f"more is better or worse; got {listed(kind.__name__ for kind in kinds)}: add Accuracy")
    return tested, described, (*watched, *live), at_end
