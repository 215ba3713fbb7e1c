"""The comparison a user gets who says little: ready arms, every probe that fits the task, paired seeds."""

from __future__ import annotations

from collections.abc import Sequence

from optscope.errors import UserError
from optscope.evidence.words import listed
from optscope.protocol.arms import arm_named
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.grafts import crossed, graft_arms
from optscope.protocol.kits import kit_of
from optscope.protocol.settings import Settings
from optscope.tasks.task import Task

FIRST_TUNING_SEED = 1001
"""Seeds that choose learning rates start here; those that compare arms start at 1."""


def comparison_of(task: Task, settings: Settings, arms: Sequence[Arm] = ()) -> Comparison:
    """Return the comparison that settings describe; `arms` take the place of the settings' optimisers.

    Raises:
        UserError: when there are fewer than two arms, or no optimiser of a name.
    """
    chosen = tuple(arms) or arms_of(settings)
    if len(chosen) < 2:
        raise UserError(f"a comparison needs two optimisers or more; got {chosen[0].name} alone: add another, "
                        'for example "sgd" or "adam"')
    if isinstance(settings.graft, str):
        chosen = graft_arms(crossed(chosen), settings.graft)
    kit, seeds = kit_of(task), tuple(range(1, settings.seeds + 1))
    criterion, validation = kit.judge(task)
    return Comparison(task.name, task, tuple(kit.arm(arm, task) for arm in chosen),
                      settings.plan, kit.probes(task, settings.examples),
                      seeds, tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + settings.tuning_seeds)),
                      criterion, watched=kit.watched(chosen), described=kit.describing(task, settings.examples),
                      twin_seeds=seeds[:settings.twin_seeds] if kit.twins else (), validation=validation,
                      place=settings.place, widen=settings.widen, at_end=kit.at_end())


def question(comparison: Comparison) -> str:
    """Return what such a comparison asks."""
    first, *others = [arm.name for arm in comparison.arms]
    asked = kit_of(comparison.task).asked(comparison.task, comparison.probes)
    return f"{listed(others)} against {first}: at learning rates chosen alike on clean validation data, {asked}"


def arms_of(settings: Settings) -> tuple[Arm, ...]:
    """Return the arms that settings name, with what they say of the search, or the usual learning rates."""
    return tuple(arm_named(name, said.lr, said.space, settings.trials)
                 for name, said in settings.optimisers.items())
