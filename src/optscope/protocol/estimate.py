"""How long a comparison takes, foretold from the time of its steps and from what probes cost in steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optscope.engine.execute import Local
from optscope.engine.executor import Executor
from optscope.pace import about
from optscope.probes.catalog import PROBES
from optscope.probes.probe import Probe
from optscope.probes.robust import RobustAccuracy
from optscope.protocol.comparison import TWINS, Comparison

COST_BATCH, COST_EXAMPLES = 128, 1000
"""How many examples the steps have that probes' costs are told in, and how many attacks then look at."""
BUSY = 0.01
"""Seconds from which on a step's time is taken to be that of its examples."""
START = 3.0
"""Seconds in which a process starts and has loaded torch."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of all trainings in one process, those of the first, and how many go on at once (None: unknown)."""

    work: float
    first: float
    processes: int | None

    @property
    def seconds(self) -> float:
        """How long it takes, if every process has a core of its own."""
        return START + self.work / (self.processes or 1)

    def __str__(self) -> str:
        """Say it before the work starts; where the folder holds some of the runs it takes less."""
        if self.processes is None:
            return f"about {about(self.work)} of one process"
        return (f"{self.processes} process{'es' * (self.processes != 1)}, about {about(self.seconds)}; "
                f"first result in {about(START + self.first)}")


def estimated(comparison: Comparison, step: Mapping[str, float], executor: Executor) -> Estimate:
    """Return how long a comparison takes, from the seconds of a step of each arm.

    A training is its steps and the probes that it is measured by; a search that is widened takes longer. Probes
    cost what `optscope.probes.catalog` says, in the shortest step of all arms.
    """
    arms = {arm.name: arm for arm in comparison.arms}
    examples = comparison.task.data().train.size
    steps, shorter = (plan.total(examples) for plan in (comparison.plan, comparison.tuning_plan or comparison.plan))
    least = min(step[arm.name] / arm.rule.evaluations for arm in comparison.arms)
    unit = least * max(1.0, COST_BATCH / comparison.plan.batch) if least > BUSY else least

    def cost(*probes: Probe) -> float:
        return unit * sum(_steps_of(probe, comparison) for probe in probes)
    tuned = {name: shorter * step[name] + cost(comparison.validation) for name in arms}
    measured = cost(*comparison.probes, *comparison.described)
    final = {name: steps * step[name] + measured + cost(*comparison.at_end)
             + comparison.moments * cost(comparison.validation, *comparison.watched) for name in arms}
    trials = {name: len(arm.candidates()) * len(comparison.tuning_seeds) for name, arm in arms.items()}
    twins = {name: len(TWINS) * len(comparison.twin_seeds) * (name not in comparison.single) for name in arms}
    work = sum(trials[name] * tuned[name] + len(comparison.seeds) * final[name]
               + twins[name] * (steps * step[name] + measured) for name in arms)
    first = min((tuned if any(trials.values()) else final).values())
    return Estimate(work, first, executor.processes(comparison.place) if isinstance(executor, Local) else None)


def _steps_of(probe: Probe, comparison: Comparison) -> float:
    """Return how many steps a probe costs: a cost that nobody measured counts for none."""
    known = PROBES.get(type(probe).__name__)
    share = (min(probe.examples or COST_EXAMPLES, len(comparison.task.data().test)) / COST_EXAMPLES
             if isinstance(probe, RobustAccuracy) else 1.0)
    return share * (known.cost or 0.0) if known else 0.0
