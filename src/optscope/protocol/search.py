"""How a space is searched: by combinations of values, or at points drawn in advance; and how a search goes on."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from optscope.errors import UserError
from optscope.optim.players import Players
from optscope.optim.rule import Rule
from optscope.protocol.space import Choice, Space, Span, value_of

HALF_DECADE = math.sqrt(10)
Scored = Sequence[tuple[Rule, float]]
"""Rules that were tried and their criterion, lower is better; infinite where a run diverged."""


@dataclass(frozen=True)
class Search(ABC):
    """A way to draw candidates of a rule before anything is trained, and to go on from what they gave."""

    space: Space

    @abstractmethod
    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the rules to be tried."""

    def at_edge(self, rule: Rule, tried: Sequence[Rule] = ()) -> bool:
        """Return whether a learning rate is the smallest or largest of those tried: by default, the candidates."""
        return bool(self.edges(rule, tried or self.candidates(rule)))

    def edges(self, rule: Rule, tried: Sequence[Rule]) -> dict[str, int]:
        """Return which learning rates of a rule lie at an end of those tried: −1 the smallest, 1 the largest."""
        found = {}
        for name in self.space.rates:
            # A class may make another rate of what it is given, so rates are compared as rules tell them.
            rates, mine = _rates(tried, name), value_of(rule, name)
            if len(rates) > 1 and mine in (rates[0], rates[-1]):
                found[name] = 1 if mine == rates[-1] else -1
        return found

    def further(self, scored: Scored, count: int) -> list[Rule]:
        """Return `count` more candidates: beyond the best one's learning rate, or beside it.

        Where it lies at an edge the range goes on by its own ratio (half a decade, where points are drawn); all
        learning rates at an edge move together. Elsewhere the gaps beside the best rate are halved, that of the
        better neighbour first.
        """
        best, tried = best_of(scored), [rule for rule, _ in scored]
        edges = self.edges(best, tried)
        found: list[Rule] = []
        for _ in range(count):
            moved = ({name: self._beyond(_rates(tried, name), side) for name, side in edges.items()} if edges
                     else self._beside(best, scored, tried))
            found.append(best.with_(**moved))
            tried.append(found[-1])
        return found

    def _beyond(self, rates: list[float], side: int) -> float:
        """Return the next rate: of 1, 3, 10 and of 1, 2, 4 alike what their pattern says, 30 and 8."""
        outward = rates if side > 0 else rates[::-1]
        ratio = outward[-1] / outward[-3] if len(outward) > 2 else (outward[-1] / outward[-2]) ** 2
        return float(f"{outward[-2] * ratio:.4g}")

    def _beside(self, best: Rule, scored: Scored, tried: Sequence[Rule]) -> dict[str, float]:
        """Return the geometric middle of a gap beside the best rate: of the neighbour that did better."""
        name = self.space.rates[0]
        rates, mine = _rates(tried, name), value_of(best, name)
        if len(rates) < 2:
            return {name: float(f"{mine * HALF_DECADE:.4g}")}

        def order(rate: float) -> tuple[bool, float]:
            known = [score for rule, score in scored if value_of(rule, name) == rate]
            return not known, min(known, default=math.inf)
        at = rates.index(mine)
        neighbour = min((rates[i] for i in (at - 1, at + 1) if 0 <= i < len(rates)), key=order)
        return {name: float(f"{math.sqrt(mine * neighbour):.4g}")}


def best_of(scored: Scored) -> Rule:
    """Return the rule with the best criterion; of equals (all may have diverged) that of the smallest rate."""
    return min(scored, key=lambda each: (each[1], float(each[0].lr)))[0]  # type: ignore[arg-type]


def _rates(rules: Sequence[Rule], name: str) -> list[float]:
    return sorted({value_of(rule, name) for rule in rules})


@dataclass(frozen=True, init=False)
class Grid(Search):
    """These learning rates, or every combination of a space's values.

    >>> from optscope.optim import SGD
    >>> Grid((0.1, 0.3)).candidates(SGD(lr=1.0))
    [SGD(lr=0.1), SGD(lr=0.3)]
    >>> len(Grid(Space(lr=(0.1, 0.3), momentum=(0.0, 0.9, 0.99))).candidates(SGD(lr=1.0)))
    6

    Raises:
        UserError: when a hyperparameter has no value, one twice, or a range instead.
    """

    def __init__(self, values: Sequence[float] | Space) -> None:
        if not isinstance(values, Space):
            if not values or len(set(values)) != len(values):
                raise UserError(f"Grid: lr must hold different learning rates, at least one; got {values}")
            values = Space(lr=values)
        for name, span in values.spans:
            if not isinstance(span, Choice):
                raise UserError(f"a grid needs values, and {name} has the range {span!r}: write "
                                f"{name}=half_decades(low, high), or draw points with Halton or Random")
        object.__setattr__(self, "space", values)

    @property
    def _values(self) -> list[tuple[Any, ...]]:
        return [span.values for _, span in self.space.spans if isinstance(span, Choice)]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each hyperparameter has."""
        return tuple(map(len, self._values))

    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the rule with each combination."""
        return [self.space.at(rule, point) for point in itertools.product(*self._values)]


@dataclass(frozen=True, init=False)
class PlayerGrid(Grid):
    """Every combination of the players' learning rates, for `Players`.

    >>> from optscope.optim import SGD, Players
    >>> rule = Players(generator=SGD(lr=1.0), discriminator=SGD(lr=1.0))
    >>> [each.lr for each in PlayerGrid(generator=(0.1, 0.4), discriminator=(0.1,)).candidates(rule)]
    [0.1, 0.2]

    Raises:
        UserError: when a player has no rate, or one twice.
    """

    def __init__(self, **rates: tuple[float, ...]) -> None:
        for name, values in rates.items():
            if not values or len(set(values)) != len(values):
                raise UserError(f"PlayerGrid: {name} needs different learning rates, at least one; got {values}")
        super().__init__(Space(**{f"{name}.lr": values for name, values in sorted(rates.items())}))

    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the players' rules with each combination of rates.

        Raises:
            UserError: when the rule is no `Players`.
        """
        if not isinstance(rule, Players):
            raise UserError(f"PlayerGrid searches the rates of Players; got {rule!r}: use Grid")
        rule.check_players([name.rpartition(".")[0] for name in self.space.names])
        return super().candidates(rule)


@dataclass(frozen=True, init=False)
class Thinned(Search):
    """So many of the candidates of another search, evenly spread: a short search that a whole one goes on from.

    >>> from optscope.optim import SGD
    >>> [rule.lr for rule in Thinned(Grid((0.01, 0.03, 0.1, 0.3, 1.0, 3.0)), 3).candidates(SGD(lr=1.0))]
    [0.01, 0.1, 1.0]
    """

    whole: Search
    count: int

    def __init__(self, whole: Search, count: int) -> None:
        for name, value in (("space", whole.space), ("whole", whole), ("count", count)):
            object.__setattr__(self, name, value)

    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the candidate in the middle of each of `count` equal parts."""
        every = self.whole.candidates(rule)
        n, k = len(every), min(self.count, len(every))
        return [every[((2 * i + 1) * n - k) // (2 * k)] for i in range(k)]

    def _beyond(self, rates: list[float], side: int) -> float:
        return self.whole._beyond(rates, side)  # gaps of drawn points are no pattern, of a few of them neither


@dataclass(frozen=True, init=False)
class Drawn(Search):
    """Points of a space drawn in advance: trial i is a function of (seed, i), so a larger budget only adds trials.

    A range by itself is one of the learning rate.

    Raises:
        UserError: unless trials is a whole number >= 1.
    """

    trials: int
    seed: int

    def __init__(self, trials: int, space: Space | Span, seed: int = 0) -> None:
        if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
            raise UserError(f"{type(self).__name__}: trials must be a whole number >= 1; got {trials!r}")
        for name, value in (("space", space if isinstance(space, Space) else Space(lr=space)), ("trials", trials),
                            ("seed", seed)):
            object.__setattr__(self, name, value)

    @abstractmethod
    def points(self) -> NDArray[np.float64]:
        """Return the points, `(trials, hyperparameters)`, in [0, 1)."""

    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the rule at each point."""
        spans: list[Any] = [span for _, span in self.space.spans]
        return [self.space.at(rule, [span.at(float(x)) for span, x in zip(spans, point, strict=True)])
                for point in self.points()]

    def _beyond(self, rates: list[float], side: int) -> float:
        return float(f"{rates[-1] * HALF_DECADE if side > 0 else rates[0] / HALF_DECADE:.4g}")


@dataclass(frozen=True, init=False)
class Halton(Drawn):
    """The first `trials` points of a scrambled Halton sequence. Owen 2017, arXiv 1706.02808.

    >>> from optscope.optim import SGD
    >>> from optscope.protocol.space import Log
    >>> [rule.lr for rule in Halton(3, Log(0.01, 1.0)).candidates(SGD(lr=1.0))]
    [0.2597, 0.02597, 0.8212]
    """

    def points(self) -> NDArray[np.float64]:
        """Return the sequence's beginning."""
        sequence = scipy.stats.qmc.Halton(len(self.space.spans), scramble=True, rng=self.seed)
        return np.asarray(sequence.random(self.trials))


@dataclass(frozen=True, init=False)
class Random(Drawn):
    """Points drawn independently. Bergstra & Bengio 2012, JMLR 13, 281-305.

    >>> from optscope.optim import SGD
    >>> from optscope.protocol.space import Log
    >>> few, more = (Random(n, Log(0.01, 1.0)).candidates(SGD(lr=1.0)) for n in (2, 5))
    >>> more[:2] == few
    True
    """

    def points(self) -> NDArray[np.float64]:
        """Return one point a trial, each from a generator of its own."""
        return np.array([np.random.default_rng([self.seed, i]).random(len(self.space.spans))
                         for i in range(self.trials)])
