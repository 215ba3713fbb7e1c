"""A fair comparison: which runs it needs. Every arm is tuned alike, then trained afresh on shared seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from optscope.engine.once import looked_at_once
from optscope.engine.place import CPU, Place
from optscope.engine.plan import Plan
from optscope.engine.rows import Use
from optscope.engine.run import Call, Run
from optscope.engine.watch import Watch
from optscope.engine.work import Work
from optscope.errors import UserError, nearest
from optscope.evidence.records import NO_FACTORS, Direction, Factor, Metric, Phase, Records, check_factors
from optscope.optim.rounding import Rounded
from optscope.optim.rule import Rule
from optscope.probes.accuracy import Accuracy
from optscope.probes.probe import Probe
from optscope.protocol.compared import last_measured
from optscope.protocol.search import Search, best_of
from optscope.protocol.space import check_decay
from optscope.tasks.task import Task

VALIDATION = Accuracy(split="validation")
TWINS = (3, 5)
"""The divisors k of rounding twins (see `optscope.optim.rounding`)."""
MOST_ROUNDS = 8
"""How often a search may be widened: four decades beyond its end, or a gap in 2⁸ parts."""


@dataclass(frozen=True)
class Job:
    """A piece of work and the place that its numbers have in an experiment."""

    work: Work
    use: Use


class Experiment(Protocol):
    """Something that names its next jobs, given what is known; none when it is finished."""

    @property
    def name(self) -> str:
        """What its records are filed under."""

    def jobs(self, records: Records) -> list[Job]:
        """Return all jobs that can be named now, those that are done included."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    It holds a rule, how its learning rate is searched (None: it stands), and, where the data differ between
    arms, its own task. `factors` say what it varies, such as `{"keep": 30}`: each is a column of its records.

    Raises:
        UserError: when a factor has the name of another column, or is neither a number nor a word; or when weights
            decay twice.
    """

    name: str
    rule: Rule
    search: Search | None = None
    task: Task | None = None
    factors: Mapping[str, Factor] = field(default_factory=lambda: NO_FACTORS, hash=False)

    def __post_init__(self) -> None:
        check_factors(self.factors, f"the arm {self.name}")
        if self.search is None:
            check_decay(self.rule)

    def candidates(self) -> list[Rule]:
        """Return the rules to be tried for this arm; none when the rule stands."""
        return self.search.candidates(self.rule) if self.search else []


@dataclass(frozen=True)
class Criterion:
    """What rates are chosen by: a validation metric, its better direction, and the loss that parts equals."""

    metric: str = "loss"
    better: Direction = "lower"
    ties: str = ""


@dataclass(frozen=True)
class Comparison:
    """Arms on one task under one plan, tuned on some seeds and compared on others.

    The learning rate of each arm is the candidate with the best mean `criterion` at the end of training over
    `tuning_seeds`, which the `validation` probe measures; one with a diverged run counts as the worst, and of
    equals (all may have diverged) the smallest is taken. While that lies at an end of the rates tried for some arm,
    at most `widen` times, every tuned arm gets as many gradients more: those at an end for rates beyond it, others
    for rates beside their best (`Search.further`), so that budgets stay equal. Then every arm is trained on
    `seeds`, and `probes` measure the result (on the test part, if they do not say otherwise), and so do
    `described`, of which no difference is tested: what they find is shown. `watched` are taken during training, at
    as many `moments` as `validation`, with the live optimiser, and `at_end` once, after the last step. On
    `twin_seeds` every arm is trained and measured twice more, with its steps rounded otherwise: what then differs,
    rounding alone has done (arms in `single` have no such twins). Large models need not keep their weights: to add
    a probe then trains again. All runs are done at `place`. With `metrics` only differences in these are tested.
    With a `tuning_plan`, a shorter one, candidates are judged at the end of that, its whole schedule included.

    Raises:
        UserError: fewer than one arm, two arms of one name, two probes with a metric of one name, a criterion that
            validation does not measure, unequal budgets (in gradients: candidates times gradients a step), a
            search to be widened along no learning rate, seeds that serve twice, or a metric that is not measured
            or has no better direction.
    """

    name: str
    task: Task
    arms: tuple[Arm, ...]
    plan: Plan
    probes: tuple[Probe, ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...] = (1001,)
    criterion: Criterion = field(default_factory=Criterion)
    moments: int = 10
    watched: tuple[Probe, ...] = ()
    described: tuple[Probe, ...] = ()
    twin_seeds: tuple[int, ...] = ()
    single: tuple[str, ...] = ()
    keep_weights: bool = True
    validation: Probe = VALIDATION
    place: Place = CPU
    widen: int = 0
    at_end: tuple[Probe, ...] = ()
    metrics: tuple[str, ...] = ()
    tuning_plan: Plan | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        double = sorted({name for name in names if names.count(name) > 1})
        if double or not names:
            raise UserError(f"arms need different names, at least one; got {', '.join(double) or 'none'}"
                            + (" more than once" if double else ""))
        measured: dict[str, Probe] = {}
        for probe in self.taken:
            for metric in probe.metrics:
                if metric.name in measured:
                    raise UserError(f'two probes cannot both measure "{metric.name}", as {measured[metric.name]} '
                                    f"and {probe} do: their numbers would be mixed up; use two comparisons")
                measured[metric.name] = probe
        judged = [metric.name for metric in self.validation.metrics]
        if self.criterion.metric not in judged:
            raise UserError(f'the criterion "{self.criterion.metric}" is not measured by {self.validation!r}; '
                            f"{nearest(self.criterion.metric, judged)}")
        for field_name, seeds in (("seeds", self.seeds), ("tuning_seeds", self.tuning_seeds)):
            if not seeds or len(set(seeds)) != len(seeds):
                raise UserError(f"{field_name} must be different whole numbers, at least one; got {seeds}")
        if set(self.twin_seeds) - set(self.seeds):
            raise UserError(f"twins are compared with runs of their own seed: twin_seeds must be among the seeds; "
                            f"got {sorted(set(self.twin_seeds) - set(self.seeds))} beside {self.seeds}")
        if set(self.seeds) & set(self.tuning_seeds):
            both = sorted(set(self.seeds) & set(self.tuning_seeds))
            raise UserError(f"seeds that choose learning rates cannot also compare arms; got {both} in both")
        if isinstance(self.widen, bool) or not isinstance(self.widen, int) or not 0 <= self.widen <= MOST_ROUNDS:
            raise UserError(f"widen must be a whole number from 0 to {MOST_ROUNDS}; got {self.widen!r}")
        for arm in self.arms if self.widen else ():
            if arm.search and not arm.search.space.rates:
                raise UserError(f"a search goes on along learning rates, and {arm.name} searches only "
                                f'{", ".join(arm.search.space.names)}: add "lr" to its space, or give widen=0')
        judged = [metric.name for probe in self.probes for metric in probe.metrics if metric.better != "neither"]
        for name in self.metrics:
            if name not in judged:
                raise UserError(f'no difference can be tested in "{name}"; {nearest(name, judged)}')
        check_budgets(self.arms)

    @property
    def taken(self) -> tuple[Probe, ...]:
        """Every probe that is taken of the final runs, but for validation."""
        return (*self.probes, *self.described, *self.watched, *self.at_end)

    @property
    def watches(self) -> tuple[Watch, ...]:
        """What is taken of the final runs with the live optimiser, and when."""
        return (*(Watch(probe, self.moments) for probe in (self.validation, *self.watched)),
                *(Watch(probe, 1) for probe in self.at_end))

    @looked_at_once()
    def jobs(self, records: Records) -> list[Job]:
        """Return the tuning runs and, as soon as they are known, the final ones and their rounding twins."""
        mine, tried = records.where(experiment=self.name, phase="tune"), self._first()
        for left in range(self.widen, -1, -1):
            tuning = [self._job(arm, rule, "tune", seed) for arm in self.arms for rule in tried[arm.name]
                      for seed in self.tuning_seeds]
            # By the run, not by rule and seed: the folder may hold the same rules under another plan.
            known = mine.where(run={job.use.run for job in tuning})
            # Judged, or ended by itself: a run whose process died, or without a reading, says nothing.
            ended = {(row.arm, row.run) for row in known if row.status in ("diverged", "failed")
                     or (row.status == "ok" and row.metric == self.criterion.metric and row.step is None)}
            if {(job.use.arm, job.use.run) for job in tuning} - ended:
                return tuning
            if not (more := self._further(known, tried) if left else {}):
                break
            tried = {name: [*rules, *more.get(name, ())] for name, rules in tried.items()}
        chosen = self.chosen(known)
        final = [self._job(arm, chosen[arm.name], "final", seed) for seed in self.seeds for arm in self.arms]
        return tuning + final + [self._job(arm, Rounded(chosen[arm.name], k), "twin", seed)
                                 for seed in self.twin_seeds for arm in self.arms if arm.name not in self.single
                                 for k in TWINS]

    def _first(self) -> dict[str, list[Rule]]:
        return {arm.name: arm.candidates() for arm in self.arms}

    def _scored(self, records: Records, arm: Arm, tried: Sequence[Rule]) -> list[tuple[Rule, float]]:
        scores = [self.score(records, arm, rule) for rule in tried]
        if ties := self.criterion.ties:
            both = [(x, self._mean(records, arm, rule, ties, 1.0)) for rule, x in zip(tried, scores, strict=True)]
            order = sorted(set(both))  # only their order counts
            scores = [order.index(each) if math.isfinite(each[0]) else math.inf for each in both]
        return list(zip(tried, scores, strict=True))

    def _further(self, records: Records, tried: Mapping[str, list[Rule]]) -> dict[str, list[Rule]]:
        """Return what is tried next of every tuned arm: nothing, unless the best of some lies at an end."""
        tuned = [(arm, arm.search, self._scored(records, arm, tried[arm.name])) for arm in self.arms if arm.search]
        if not any(search.at_edge(best_of(scored), tried[arm.name]) for arm, search, scored in tuned):
            return {}
        gradients = math.lcm(*(arm.rule.evaluations for arm, _, _ in tuned))
        return {arm.name: search.further(scored, gradients // arm.rule.evaluations)
                for arm, search, scored in tuned}

    def rounds(self, records: Records) -> list[dict[str, list[Rule]]]:
        """Return what was tried of every arm, round by round: its candidates, then what widening added."""
        mine = records.where(experiment=self.name, phase="tune")
        known, tried = {(row.arm, row.rule) for row in mine}, self._first()
        found = [tried]
        for _ in range(self.widen if any(tried.values()) else 0):
            more = self._further(mine, tried)
            if not more or not all((name, repr(rule)) in known for name, rules in more.items() for rule in rules):
                break
            found.append(more)
            tried = {name: [*rules, *more.get(name, ())] for name, rules in tried.items()}
        return found

    def tried(self, records: Records) -> dict[str, list[Rule]]:
        """Return all that was tried of every arm; nothing of one that stands."""
        rounds = self.rounds(records)
        return {arm.name: [rule for each in rounds for rule in each.get(arm.name, ())] for arm in self.arms}

    def chosen(self, records: Records) -> dict[str, Rule]:
        """Return the rule of every arm, the best of those tried."""
        tried = self.tried(records)
        return {arm.name: best_of(self._scored(records, arm, tried[arm.name])) if arm.search else arm.rule
                for arm in self.arms}

    def at_edge(self, records: Records) -> list[str]:
        """Return the arms whose best learning rate lies at an end of those tried, or of which all diverged."""
        tried, chosen = self.tried(records), self.chosen(records)
        return [arm.name for arm in self.arms
                if arm.search and arm.search.at_edge(chosen[arm.name], tried[arm.name])]

    def score(self, records: Records, arm: Arm, rule: Rule) -> float:
        """Return a candidate's mean criterion over the tuning seeds, turned so that lower is better."""
        return self._mean(records, arm, rule, self.criterion.metric,
                          -1.0 if self.criterion.better == "higher" else 1.0)

    def _mean(self, records: Records, arm: Arm, rule: Rule, metric: str, sign: float) -> float:
        rows = records.where(experiment=self.name, phase="tune", arm=arm.name, rule=repr(rule), step=None,
                             metric=metric)
        values = {row.seed: sign * row.value for row in rows}
        if any(not math.isfinite(values.get(seed, math.nan)) for seed in self.tuning_seeds):
            return math.inf  # diverged or failed: it has no final validation metric, or an infinite one
        return statistics.fmean(values[seed] for seed in self.tuning_seeds)

    def measured(self, records: Records) -> tuple[list[Metric], Records]:
        """Return every metric of the trained models, checks of probes apart, and its final records.

        Metrics of `watched` probes and those `at_end` are of the last step: their records look like the others'.
        """
        return last_measured(self, (*self.watched, *self.at_end), records)

    def _job(self, arm: Arm, rule: Rule, phase: Phase, seed: int) -> Job:
        task = arm.task or self.task
        probes = (self.validation,) if phase == "tune" else (*self.probes, *self.described)
        watch = self.watches if phase == "final" else ()
        plan = self.tuning_plan or self.plan if phase == "tune" else self.plan
        run = Run(task, rule, plan, seed, probes, watch, self.keep_weights, place=self.place)
        use = Use(self.name, arm.name, phase, seed, repr(rule), run.id, run.readings, arm.factors)
        return Job(run, use)


def check_budgets(arms: Sequence[Arm]) -> None:
    """Raise unless all tuned arms may take as many gradients: candidates times gradients a step.

    Raises:
        UserError: with the budgets, and how many learning rates would be right.
    """
    tuned = {arm.name: (len(arm.candidates()), arm.rule.evaluations) for arm in arms if arm.search}
    budgets = {name: trials * gradients for name, (trials, gradients) in tuned.items()}
    if len(set(budgets.values())) <= 1:
        return
    if all(gradients == 1 for _, gradients in tuned.values()):
        raise UserError(f"every tuned arm needs the same number of trials; got {budgets}: give each as many "
                        "learning rates")
    got = ", ".join(f"{name} {trials} × {gradients}" for name, (trials, gradients) in tuned.items())
    unit = math.lcm(*(gradients for _, gradients in tuned.values()))
    most = -(-max(budgets.values()) // unit) * unit
    asked = ", ".join(f"{name} {most // gradients}" for name, (_, gradients) in tuned.items())
    raise UserError(f"every tuned arm needs the same budget, trials × gradients a step; got {got}: give as many "
                    f"learning rates as make them equal, such as {asked}")


@dataclass(frozen=True)
class Calls:
    """An experiment without training: calls whose rows name their own arms and seeds."""

    name: str
    calls: Sequence[Call]

    @looked_at_once()
    def jobs(self, records: Records) -> list[Job]:
        """Return one job a call."""
        return [Job(c, Use(self.name, "", "final", 0, "", c.id, (), c.factors)) for c in self.calls]
