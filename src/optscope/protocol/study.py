"""A study is one paper as data: its question, its experiments at every scale, its claims, its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError, nearest
from optscope.evidence.claims import SCALES, Claim, Scale, Verdict
from optscope.evidence.columns import read_csv
from optscope.evidence.picture import Figure
from optscope.evidence.records import Factor, Record, Records
from optscope.protocol.comparison import Experiment

Arrays = Mapping[str, NDArray[np.generic]]
Before = Callable[[str, str, str], tuple[str, str, Mapping[str, Factor]]]


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
    about. `before_factors` reads the rows of reports of 0.1, written before factors: of an experiment, an arm and a
    metric it returns arm, metric and factors.

    Raises:
        UserError: when a family has no words, or words have no family.
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
    before_factors: Before | None = None
    gaps: tuple[Gap, ...] = ()

    def __post_init__(self) -> None:
        there = {claim.id.partition(" ")[0] for claim in self.claims}
        if there != set(self.families):
            raise UserError(f"{self.name}: families must say what {', '.join(sorted(there))} are about, no more; "
                            f"got {', '.join(sorted(self.families)) or 'nothing'}")

    def read(self, path: str | Path) -> Records:
        """Return the records of a report's summary.csv, of this version or written before factors.

        Raises:
            UserError: when that is not such a file.
        """
        records = read_csv(path)
        if self.before_factors is None or records.factors():
            return records
        places = dict.fromkeys((row.experiment, row.arm, row.metric) for row in records)
        now = {place: self.before_factors(*place) for place in places}

        def renamed(row: Record) -> Record:
            arm, metric, factors = now[row.experiment, row.arm, row.metric]
            return replace(row, arm=arm, metric=metric, factors=factors)
        return Records(map(renamed, records))

    def judge(self, records: Records, scale: Scale) -> list[tuple[Claim, Verdict]]:
        """Return every claim with its verdict at a scale."""
        return [(claim, claim.judge(records, scale)) for claim in self.claims]


def check_scale(scale: str, study: Study) -> Scale:
    """Return `scale` if the study has it.

    Raises:
        UserError: naming the scales there are.
    """
    for known in SCALES:
        if known == scale and known in study.costs:
            return known
    raise UserError(f'no scale "{scale}" in {study.name}; {nearest(scale, study.costs)}')
