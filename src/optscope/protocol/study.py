"""A study is one paper as data: its question, its experiments at every scale, its claims, its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError, nearest
from optscope.evidence.claims import SCALES, Claim, Scale, Verdict
from optscope.evidence.halves import halves, on_halves
from optscope.evidence.picture import Figure
from optscope.evidence.records import Records
from optscope.protocol.comparison import Comparison, Experiment
from optscope.protocol.looks import Looking, Looks
from optscope.protocol.twice import Twice

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Paper:
    """The paper a study is about."""

    title: str
    authors: str
    venue: str
    arxiv: str


@dataclass(frozen=True)
class Gap:
    """One thing that differs from the paper: what it is, the paper's setting, ours, and what closing it costs.

    Raises:
        UserError: when one of them says nothing.
    """

    differs: str
    paper: str
    ours: str
    costs: str

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if not text.strip():
                raise UserError(f"Gap: {name} must say something; got {text!r} in {self}")


@dataclass(frozen=True)
class Study:
    """A paper's question and what it takes to answer it.

    `reproduced` and `left_out` say in a few sentences what is done here, what is not, and why; a line of `left_out`
    is a point of its own. `gaps` put the paper's settings beside ours, and `costs` gives the expected time of each
    scale. `pictures` turns records (and arrays, as `Results` names them) into figures; `claims` are judged on the
    same records. Claims whose ids share the first word are a family: `families` says in a few words what each is
    about. `looks` say, by scale, of which claims more seeds are run while they are undecided; `twice` are numbers
    that are found in two ways; `shown` says of a family how the names of the pictures begin that show it; `answers`
    names the families that answer the question, a line each.

    Raises:
        UserError: when a family has no words, or words have no family; when a claim of looks is unknown, or in two.
    """

    name: str
    paper: Paper
    question: str
    reproduced: str
    left_out: str
    experiments: Callable[[Scale], Sequence[Experiment]]
    claims: tuple[Claim, ...]
    pictures: Callable[[Records, Arrays], list[Figure]]
    families: Mapping[str, str]
    costs: Mapping[Scale, str] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    looks: Mapping[Scale, tuple[Looks, ...]] = field(default_factory=dict)
    twice: tuple[Twice, ...] = ()
    shown: Mapping[str, Sequence[str]] = field(default_factory=dict)
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        there = {claim.id.partition(" ")[0] for claim in self.claims}
        if there != set(self.families):
            raise UserError(f"{self.name}: families must say what {', '.join(sorted(there))} are about, no more; "
                            f"got {', '.join(sorted(self.families)) or 'nothing'}")
        for what, given in (("shown", self.shown), ("answers", self.answers)):
            if not set(given) <= there:
                raise UserError(f"{self.name}: {what} must be of {', '.join(sorted(there))}; got "
                                f"{', '.join(sorted(set(given) - there))}")
        ids = {claim.id for claim in self.claims}
        for scale, looks in self.looks.items():
            named = [claim for each in looks for claim in each.claims]
            for claim in named:
                if claim not in ids or named.count(claim) > 1:
                    raise UserError(f"{self.name}: looks at {scale} name claims of the study, each once; "
                                    f"got {claim}")

    def looking(self, scale: Scale, comparisons: Sequence[Comparison]) -> list[Looking]:
        """Return what is run for looks, on comparisons as they are done."""
        by_name = {comparison.name: comparison for comparison in comparisons}
        return [Looking(each, tuple(claim for claim in self.claims if claim.id in each.claims), scale,
                        by_name[each.on] if isinstance(each.on, str) else None)
                for each in self.looks.get(scale, ())]

    def looks_at(self, claim: Claim, scale: Scale) -> Looks | None:
        """Return the looks of a claim, where it has some."""
        return next((each for each in self.looks.get(scale, ()) if claim.id in each.claims), None)

    def judge(self, records: Records, scale: Scale) -> list[tuple[Claim, Verdict]]:
        """Return every claim with its verdict at a scale, and with those on either half of the seeds.

        A claim with looks has the verdict of its looks, where they were taken.
        """
        parts, found = halves(records), []
        for claim in self.claims:
            looks = self.looks_at(claim, scale)
            verdict = looks.judge(claim, records, scale) if looks else None
            found.append((claim, verdict or on_halves(claim, records, parts, scale)))
        return found


def check_scale(scale: str, study: Study) -> Scale:
    """Return `scale` if the study has it.

    Raises:
        UserError: naming the scales there are.
    """
    for known in SCALES:
        if known == scale and known in study.costs:
            return known
    raise UserError(f'no scale "{scale}" in {study.name}; {nearest(scale, study.costs)}')
