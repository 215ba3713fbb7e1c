"""A claim is a sentence with a test on records; a verdict is what the test found. A claim never measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from optscope.evidence.level import level
from optscope.evidence.records import Records

Outcome = Literal["holds", "fails", "undecided"]
Scale = Literal["smoke", "desk", "long", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "desk", "long", "paper")


@dataclass(frozen=True)
class Verdict:
    """What a test found: the outcome, the effect with its interval (95 %), n, p, the test's name, and one sentence.

    Numbers that a test has no use for are nan. `p` is that of `test`, corrected where its name says so. The claim
    is that the effect, in `unit`, lies between `least` and `most`: one of them is infinite where there is one
    bound, both where the test knows none. `said` is the outcome in a word of the claim's own, where it has one.
    The p is one of `tests` that were corrected together; `parts` are the verdicts that this one combines. It was
    tested at `level`, 5 % but where looks share that, and its interval leaves out as much. `halves` are the
    verdicts on either half of the seeds.
    """

    outcome: Outcome
    note: str
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    p: float = math.nan
    test: str = ""
    least: float = -math.inf
    most: float = math.inf
    unit: str = ""
    said: str = ""
    tests: int = 1
    parts: tuple[Verdict, ...] = ()
    level: float = field(default_factory=level)
    halves: tuple[Verdict, ...] = ()

    @property
    def word(self) -> str:
        """The outcome as it is read."""
        return self.said or self.outcome

    @property
    def measured(self) -> bool:
        """Whether there is an effect, or was one of a part: what is undecided without one had nothing to go by."""
        return not math.isnan(self.effect) or any(part.measured for part in self.parts)


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper (or of ours), where it stands, and the test that decides it.

    `scale` is the smallest scale at which the test means something: below it a test that does not hold is
    `undecided`. `falsified` says what result would refute the claim.
    """

    id: str
    text: str
    source: str
    test: Callable[[Records], Verdict]
    falsified: str
    scale: Scale = "desk"

    def judge(self, records: Records, scale: Scale) -> Verdict:
        """Return the verdict on records that were made at `scale`."""
        verdict = self.test(records)
        if SCALES.index(scale) < SCALES.index(self.scale) and verdict.outcome != "undecided":
            return replace(verdict, outcome="undecided",
                           note=f"{verdict.note} Too small a scale to judge: {self.scale} is needed.")
        return verdict
