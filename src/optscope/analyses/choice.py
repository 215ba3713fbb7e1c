"""Which optimiser to take: a sentence or two that follow from the verdicts, by a rule that is fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optscope.analyses.findings import Finding, Place
from optscope.analyses.headline import lost
from optscope.evidence.level import ALPHA
from optscope.evidence.paired import FEWEST
from optscope.evidence.power import MOST, seeds_to_show, spread_of
from optscope.evidence.records import Records
from optscope.evidence.rounding_floor import rounding_floor
from optscope.evidence.verdicts import MISSING_MOST, greater, holm_corrected
from optscope.evidence.words import listed
from optscope.protocol.compared import Compared
from optscope.report.tables import number

RULE = ("whoever is shown to be better than the first optimiser in accuracy (the loss where there is none), and "
        "not equal within the margin, is taken, but for those shown to be worse than another of them (paired tests "
        "of all pairs, Holm-corrected); where nobody is, those shown to be equal are told apart by what else is "
        "shown, differences in points first and the largest of them first; a difference that rounding alone can "
        "make counts for nothing")
"""The rule of the choice."""
SHOWN = 3
"""So many qualities are named in a sentence."""
NO_CHOICE = "No choice follows."
"""What is said where nothing is shown, neither a difference nor equality: it is no reason to take the cheaper."""


@dataclass(frozen=True)
class Standing:
    """How an arm stands against the first: on what comes first, and what else is shown for either of the two."""

    arm: str
    equal: Finding | None
    differs: Finding | None
    gains: Sequence[Finding]
    losses: Sequence[Finding]

    @property
    def outcome(self) -> str:
        """Say "better", "worse", "equal" or "open"; "" where nothing comes first."""
        if self.equal is None or self.differs is None:
            return ""
        if self.equal.verdict.outcome == "holds":
            return "equal"
        if self.differs.verdict.outcome == "holds" and not self.drowned:
            return "better" if self.differs.lead == self.arm else "worse"
        return "open"

    @property
    def drowned(self) -> bool:
        """Whether a difference in what comes first is shown, and no more than rounding alone can make."""
        return self.differs is not None and self.differs.verdict.outcome == "holds" and self.differs.drowned

    @classmethod
    def of(cls, arm: str, found: Sequence[Finding]) -> Standing:
        """Return the standing of an arm among all findings."""
        mine = [f for f in found if f.arm == arm]
        equal = next((f for f in mine if not f.lead), None)
        rest = [f for f in mine if f.lead and not (equal and f.place == equal.place)]
        shown = sorted((f for f in rest if f.verdict.outcome == "holds" and not f.drowned), key=_weight)
        return cls(arm, equal, next((f for f in mine if f.lead and equal and f.place == equal.place), None),
                   [f for f in shown if f.lead == arm], [f for f in shown if f.lead != arm])


def choice(comparison: Compared, records: Records, found: Sequence[Finding]) -> str:
    """Return which optimiser to take and why, or that no difference matters, or that none is shown."""
    first, *others = [arm.name for arm in comparison.arms]
    gone = {arm: f"{bad} of {total} seeds" for arm in (first, *others)
            for bad, total in [lost(records, comparison, arm)] if bad > MISSING_MOST * total}
    if first in gone:
        return (f"No choice: {first}, which others are held against, diverged or failed on {gone[first]}: put "
                "another first.")
    kept = [arm for arm in others if arm not in gone]
    left = "".join(f" Leave {arm}: it diverged or failed on {seeds}." for arm, seeds in gone.items())
    if (n := len(comparison.seeds)) < FEWEST:
        return (f"No choice yet: {n} seed{'s' * (n != 1)} can show no difference, whatever the runs give; it takes "
                f"{FEWEST}, and more to show small ones.{left}")
    standings = [Standing.of(arm, found) for arm in kept]
    return (_chosen(comparison, records, found, standings) + left) if kept else f"Take {first}.{left}"


def _chosen(comparison: Compared, records: Records, found: Sequence[Finding],
            standings: Sequence[Standing]) -> str:
    """Return the choice between the first arm and those that were trained on enough of the seeds."""
    first = comparison.arms[0].name
    tests = sum(not math.isnan(f.verdict.p) for f in found)
    mine = records.where(experiment=comparison.name, phase=("final", "twin"))
    said = _Words(first, mine.where(phase="final"), len(comparison.seeds), tests)
    by = {outcome: [s for s in standings if s.outcome == outcome]
          for outcome in ("better", "equal", "", "open", "worse")}
    if by["better"]:
        return said.better(*_undominated(mine, by["better"]))
    if len(by["worse"]) == len(standings):
        return said.worse(by["worse"])
    peers = by["equal"] or by[""]
    sentences = [said.peers(peers)] if peers else []
    if by["open"]:
        sentences.append(said.open(by["open"], alone=not peers))
    return " ".join(sentences)


def _undominated(records: Records, arms: Sequence[Standing]) -> tuple[list[Standing], list[Standing]]:
    """Return the arms that are not shown to be worse than another of them in what comes first, and the others."""
    equal = arms[0].equal
    assert equal is not None, "who is better is so in what comes first"
    metric, at = equal.place.metric, equal.place.at
    pairs = [(a.arm, b.arm) for i, a in enumerate(arms) for b in arms[:i]]
    tested = holm_corrected([greater(*records.pairs(a, b, metric.name, at)) for a, b in pairs])
    ahead = "holds" if metric.better == "higher" else "fails"
    beaten = {b if verdict.outcome == ahead else a for (a, b), verdict in zip(pairs, tested, strict=True)
              if verdict.outcome != "undecided"
              and not rounding_floor(records, a, b, metric.name, at).covers(verdict.effect)}
    return [s for s in arms if s.arm not in beaten], [s for s in arms if s.arm in beaten]


@dataclass(frozen=True)
class _Words:
    """The sentences of a choice: of the first arm, the final records, so many seeds and so many tests."""

    first: str
    records: Records
    seeds: int
    tests: int

    def better(self, arms: Sequence[Standing], beaten: Sequence[Standing]) -> str:
        """Say that some are better than the first and than others that are so too, and what it is better in."""
        gaps = [s.differs for s in arms if s.differs]
        one = len(arms) == 1
        text = (f"Take {listed([s.arm for s in arms], 'or')}: {'its' if one else 'their'} {gaps[0].place.text} is "
                f"{_side(gaps[0])} than {self.first}'s ({self._size(gaps)})")
        text += f", and than {_row([f'that of {s.arm}' for s in beaten])}" if beaten and one else ""
        text += "." if one else "; between them no difference in it is shown."
        return text + _of_examples(gaps) + self._back([self.first], [s.losses for s in arms])

    def worse(self, arms: Sequence[Standing]) -> str:
        """Say that all others are worse than the first, and what they have before it."""
        gaps = [s.differs for s in arms if s.differs]
        text = (f"Take {self.first}: its {gaps[0].place.text} is {_side(gaps[0])} than "
                f"{listed(f'that of {s.arm} ({self._size([f])})' for s, f in zip(arms, gaps, strict=True))}.")
        return text + _of_examples(gaps) + self._back([s.arm for s in arms], [s.gains for s in arms])

    def peers(self, arms: Sequence[Standing]) -> str:
        """Say of those that are equal, or of which nothing comes first, what else tells them from the first."""
        equal = arms[0].equal
        margin = max((s.equal.margin for s in arms if s.equal), default=math.nan)
        unit = f" {equal.place.difference_unit}" if equal and equal.place.difference_unit else ""
        alike = f"{equal.place.text} is equal within {margin:.2g}{unit}" if equal else ""
        gainers = [s for s in arms if s.gains and not s.losses]
        losers = [s for s in arms if s.losses and not s.gains]
        torn = [s for s in arms if s.losses and s.gains]
        if gainers:
            each = "; ".join(f"{s.arm} is better than {self.first} in {self._amounts(s.gains)}" for s in gainers)
            text = f"Take {listed([s.arm for s in gainers], 'or')}: {f'{alike}, and ' if alike else ''}{each}."
            return "\n".join([text, *self._left(losers)])
        if len(losers) == len(arms):
            each = "; ".join(f"it is better than {s.arm} in {self._amounts(s.losses)}" for s in arms)
            return f"Take {self.first}: {f'{alike}, and ' if alike else ''}{each}."
        if torn or losers:
            kept = [s for s in arms if s not in losers]
            lines = [f"{s.arm} is better than {self.first} in {self._amounts(s.gains)}; {self.first} is better in "
                    f"{self._amounts(s.losses)}." for s in torn]
            return "\n".join([f"Choose between {_row([self.first, *(s.arm for s in kept)])} by "
                              f"{'what matters to you' if torn else 'cost'}{f': {alike}' if alike else ''}.",
                              *lines, *self._left(losers)])
        both = _row([self.first, *(s.arm for s in arms)])
        return (f"No difference between {both} matters: {alike}, and nothing else differs that {self.seeds} seeds "
                "can show. Take whichever is cheaper." if alike else
                f"No difference between {both} is shown by {self.seeds} seeds. {NO_CHOICE}")

    def _left(self, arms: Sequence[Standing]) -> list[str]:
        """Say of those that are shown to be worse in something, and better in nothing, that they may be left."""
        if not arms:
            return []
        back = self._back([self.first], [s.losses for s in arms])
        return [f"Leave {_row([s.arm for s in arms])}, shown to be better in nothing:"
                f"{back or f' {self.first} is better in something of each.'}"]

    def open(self, arms: Sequence[Standing], alone: bool) -> str:
        """Say of those that are neither shown equal nor different what would show it, and what else is shown."""
        names, gaps = listed(s.arm for s in arms), [s.differs for s in arms if s.differs]
        what = gaps[0].place.text + " that rounding alone cannot make" * any(s.drowned for s in arms)
        text = (f"No difference in {what} between {self.first} and {names} is shown, nor that they are equal"
                if alone else f"Of {names} neither a difference in {what} nor equality is shown")
        lacking = [s.arm for s in arms if self._lacks_pairs(s)]
        text += self._seeds_that_show([s for s in arms if not s.drowned and s.arm not in lacking])
        each = "each of " * (len(lacking) > 1)
        text += f"; {self.first} and {each}{listed(lacking)} have too few seeds in common" if lacking else ""
        text += "."
        apart = [f"{who} is better than {whom} in {self._amounts(found)}"
                 for s in arms for who, whom, found in ((s.arm, self.first, s.gains), (self.first, s.arm, s.losses))
                 if found]
        return "\n".join([text, *(f"{line}." for line in apart)]) if apart else text + f" {NO_CHOICE}" * alone

    def _lacks_pairs(self, standing: Standing) -> bool:
        """Return whether more pairs are missing than a test bears."""
        found, seeds = standing.differs, len(self.records.seeds(self.first, standing.arm))
        return found is not None and seeds - found.verdict.n > MISSING_MOST * seeds

    def _seeds_that_show(self, arms: Sequence[Standing]) -> str:
        """Say how many seeds would show a difference as large as the margin: not where rounding or gaps hide it."""
        equal = arms[0].equal if arms else None
        margin = max((s.equal.margin for s in arms if s.equal), default=math.nan)
        spreads = [spread_of(f.verdict.low, f.verdict.high, f.verdict.n) for s in arms if (f := s.differs)]
        if equal is None or not margin > 0 or not all(spread > 0 for spread in spreads):
            return ""
        needed = seeds_to_show(max(spreads), margin, ALPHA / max(1, self.tests))
        number = f"about {needed} seeds" if needed else f"more than {MOST} seeds"
        unit = f" {equal.place.difference_unit}" if equal.place.difference_unit else ""
        return f"; {number} would show one of {margin:.2g}{unit} in 4 of 5 cases"

    def _amounts(self, found: Sequence[Finding]) -> str:
        """Say by how much one is better in what is shown, at most so many of it."""
        return _row([f"{_called(f.place)} ({self._size([f])})" for f in found], SHOWN)

    def _back(self, who: Sequence[str], found: Sequence[Sequence[Finding]]) -> str:
        """Say what all of the other side are shown to be worse in."""
        shared = [f.place for f in found[0] if all(any(g.place == f.place for g in each) for each in found[1:])]
        sizes = [(place, [f for each in found for f in each if f.place == place]) for place in shared]
        said = _row([f"{_called(place)} ({self._size(each)})" for place, each in sizes], SHOWN) if sizes else ""
        return f" {_row(who)} {'are' if len(who) > 1 else 'is'} better in {said}." if said else ""

    def _size(self, found: Sequence[Finding]) -> str:
        """Say how large differences in one place are, from the least to the largest: points, or times, or means."""
        place, effects = found[0].place, [f.verdict.effect for f in found]
        if place.difference_unit == "points":
            return f"{_span(effects)} points"
        if place.metric.unit == "log10":
            return f"{_span([10**effect for effect in effects])} times {_side(found[0])}"
        return " against ".join(_span(means, 3) for means in zip(*map(self._means, found), strict=True))

    def _means(self, finding: Finding) -> tuple[float, float]:
        """Return the means of who leads and of the other, over the seeds that both have, as their difference is."""
        trail, place = self.first if finding.lead == finding.arm else finding.arm, finding.place
        pairs = np.array(self.records.pairs(finding.lead, trail, place.metric.name, place.at))
        ours, theirs = pairs[:, np.isfinite(pairs).all(axis=0)].mean(axis=1)
        return float(ours), float(theirs)


def _of_examples(gaps: Sequence[Finding]) -> str:
    """Say that the number of test examples takes back what is shown over seeds."""
    open_ = [f.examples.n for f in gaps if f.examples is not None and f.examples.low <= 0 <= f.examples.high]
    return f" It is shown for these {min(open_)} test examples; others may say otherwise." if open_ else ""


def _weight(finding: Finding) -> tuple[bool, float]:
    """Return where a finding stands in a sentence: before others in points, the largest first."""
    points = finding.place.difference_unit == "points"
    return not points, -abs(finding.verdict.effect) if points else 0.0


def _called(place: Place) -> str:
    """Return what a place is called where a number in brackets follows."""
    return place.metric.name + ("" if place.at is None else f" at {place.metric.axis} {place.at:g}")


def _side(finding: Finding) -> str:
    return "higher" if finding.place.metric.better == "higher" else "lower"


def _span(numbers: Sequence[float], digits: int = 2) -> str:
    """Return the least and the largest of some numbers, or the one that they print as.

    >>> _span([13.4, 4.96]), _span([3.62, 3.64]), _span([1.24e16])
    ('5 to 13', '3.6', '1.2e16')
    """
    ends = dict.fromkeys(number(end, digits) for end in (min(numbers), max(numbers)))
    return " to ".join(ends)


def _row(parts: Sequence[str], most: int | None = None) -> str:
    """Return parts of a sentence in a row, all or at most so many.

    >>> _row(["a", "b"], 3), _row(["a", "b", "c", "d"], 2)
    ('a and b', 'a, b and 2 more')
    """
    rest = len(parts[most:]) if most else 0
    return listed([*parts[:most], *([f"{rest} more"] if rest else [])], "and")
