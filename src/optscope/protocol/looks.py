"""Looks: moments, declared before any run, at which claims may be decided; what is then open gets more seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from optscope.errors import UserError
from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.halves import halves, on_halves
from optscope.evidence.level import ALPHA, at_level
from optscope.evidence.records import Records
from optscope.protocol.comparison import Comparison, Experiment, Job

MOST = 3
"""More looks than that nobody is told of: each takes from the level of the others."""


@dataclass(frozen=True)
class Looks:
    """When some claims of a study are tested, on how many seeds, and what runs on them.

    `seeds` are what each look adds; at each, claims that are still open are tested on all seeds so far, and only if
    one stays open the next look's seeds are run. A look spends the share of the level that its seeds are of all:

        α_k = 5 % · n_k / Σ n

    so that a claim is decided wrongly in Σ α_k = 5 % of cases at most, whatever its test (Bonferroni's inequality).
    `on` is the comparison of the study, by its name, whose `arms` (all without) are trained on these seeds, with
    the learning rates that it chose; or what returns the experiment on seeds. Seeds on which claims were judged
    before, at the whole level, have spent it: they must not be among these.

    Raises:
        UserError: without claims, for one look or more than three, or seeds that are no different whole numbers.
    """

    claims: tuple[str, ...]
    seeds: tuple[tuple[int, ...], ...]
    on: str | Callable[[tuple[int, ...]], Experiment]
    arms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        each = [seed for added in self.seeds for seed in added]
        if not self.claims or not 1 < len(self.seeds) <= MOST or not all(self.seeds) or len(set(each)) < len(each):
            raise UserError(f"looks need a claim or more, and two or {MOST} of them, each with new seeds; got "
                            f"{self.claims} and {self.seeds}")

    @property
    def name(self) -> str:
        """What is run for the looks is filed under this name, so that other claims and figures do not see it."""
        return f"{self._experiment} at looks"

    @property
    def _experiment(self) -> str:
        return self.on if isinstance(self.on, str) else self.on(self.seeds[0]).name

    @property
    def levels(self) -> list[float]:
        """The level of each look."""
        total = sum(map(len, self.seeds))
        return [ALPHA * len(added) / total for added in self.seeds]

    def records(self, records: Records, look: int) -> Records:
        """Return records as claims see them at a look: of its experiment, the seeds up to then alone."""
        seeds = {seed for added in self.seeds[:look + 1] for seed in added}
        own = self._experiment
        return Records([*(row for row in records if row.experiment != own),
                        *(replace(row, experiment=own)
                          for row in records.where(experiment=self.name) if row.seed in seeds)])

    def taken(self, records: Records) -> int:
        """Return how many looks there are records for."""
        rows = records.where(experiment=self.name)
        there = set.intersection(*({row.seed for row in (rows.where(arm=arm) if arm else rows)}
                                   for arm in self.arms or ("",)))
        return next((k for k, added in enumerate(self.seeds) if not there.issuperset(added)), len(self.seeds))

    def judge(self, claim: Claim, records: Records, scale: Scale, looks: int = MOST) -> Verdict | None:
        """Return the verdict of the look that decides a claim, else of the last of `looks`; None before any."""
        verdict = None
        for look in range(min(looks, self.taken(records))):
            seen = self.records(records, look)
            with at_level(self.levels[look]):
                found = on_halves(claim, seen, halves(seen), scale)
            pairs = sum(map(len, self.seeds[:look + 1]))
            verdict = replace(found, note=f"{found.note} Look {look + 1} of {len(self.seeds)}: {pairs} of "
                              f"{sum(map(len, self.seeds))} seeds, at a level of {100 * self.levels[look]:.3g} %.")
            if found.outcome != "undecided":
                break
        return verdict


@dataclass(frozen=True)
class Looking:
    """The experiment of some looks: it names the runs of the next while a claim is open."""

    looks: Looks
    claims: tuple[Claim, ...]
    scale: Scale
    comparison: Comparison | None = None

    @property
    def name(self) -> str:
        """What its records are filed under."""
        return self.looks.name

    def jobs(self, records: Records) -> list[Job]:
        """Return the runs of every look that is due, or was: the runs of one that decided stay named."""
        named: list[Job] = []
        for look, seeds in enumerate(self.looks.seeds):
            if look and (self.looks.taken(records) < look or not self._open(records, look)):
                break
            named += self._on(seeds, records)
        return named

    def _open(self, records: Records, looks: int) -> bool:
        verdicts = [self.looks.judge(claim, records, self.scale, looks) for claim in self.claims]
        return any(verdict is None or verdict.outcome == "undecided" for verdict in verdicts)

    def _on(self, seeds: tuple[int, ...], records: Records) -> list[Job]:
        base: Experiment | None = self.comparison
        if self.comparison is not None:
            base = replace(self.comparison, seeds=seeds, twin_seeds=())
        elif not isinstance(self.looks.on, str):
            base = self.looks.on(seeds)
        found = base.jobs(records) if base is not None else []
        wanted = {*self.looks.arms, ""} if self.looks.arms else {job.use.arm for job in found}
        return [replace(job, use=replace(job.use, experiment=self.name)) for job in found
                if job.use.phase == "final" and job.use.arm in wanted]
