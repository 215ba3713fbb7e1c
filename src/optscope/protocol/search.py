"""Where a rule's nuisance hyperparameters are searched: a grid, or points drawn in advance."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from scipy.stats import qmc

from optscope.errors import UserError
from optscope.optim.players import Players
from optscope.optim.rule import Rule


class Search(ABC):
    """A way to draw candidates of a rule before anything is trained."""

    @abstractmethod
    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the rules to be tried."""

    @abstractmethod
    def at_edge(self, rule: Rule) -> bool:
        """Return whether a candidate's learning rate lies at the edge of what is searched."""


@dataclass(frozen=True)
class Grid(Search):
    """These learning rates.

    Raises:
        UserError: when there is none, or one stands twice.
    """

    lr: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.lr or len(set(self.lr)) != len(self.lr):
            raise UserError(f"Grid: lr must hold different learning rates, at least one; got {self.lr}")

    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the rule with each learning rate."""
        return [rule.with_(lr=lr) for lr in self.lr]

    def at_edge(self, rule: Rule) -> bool:
        """Return whether the rule's learning rate is that of the grid's smallest or largest."""
        # A class may make another rate of what it is given, so rates are compared as rules tell them.
        tried = [candidate.lr for candidate in self.candidates(rule)]
        return len(tried) > 1 and rule.lr in (min(tried), max(tried))


@dataclass(frozen=True, init=False)
class PlayerGrid(Search):
    """Every combination of the players' learning rates, for `Players`.

    >>> from optscope.optim import SGD, Players
    >>> rule = Players(generator=SGD(lr=1.0), discriminator=SGD(lr=1.0))
    >>> [each.lr for each in PlayerGrid(generator=(0.1, 0.4), discriminator=(0.1,)).candidates(rule)]
    [0.1, 0.2]

    Raises:
        UserError: when a player has no rate, or one twice.
    """

    rates: tuple[tuple[str, tuple[float, ...]], ...]

    def __init__(self, **rates: tuple[float, ...]) -> None:
        for name, values in rates.items():
            if not values or len(set(values)) != len(values):
                raise UserError(f"PlayerGrid: {name} needs different learning rates, at least one; got {values}")
        object.__setattr__(self, "rates", tuple(sorted(rates.items())))

    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the players' rules with each combination of rates."""
        if not isinstance(rule, Players):
            raise UserError(f"PlayerGrid searches the rates of Players; got {rule!r}: use Grid")
        names = [name for name, _ in self.rates]
        rule.check_players(names)
        return [rule.with_(**{name: rule.by_name[name].with_(lr=lr) for name, lr in zip(names, point, strict=True)})
                for point in itertools.product(*(values for _, values in self.rates))]

    def at_edge(self, rule: Rule) -> bool:
        """Return whether some player's rate is the smallest or largest of those tried for it."""
        rules = rule.by_name if isinstance(rule, Players) else {}
        return any(len(values) > 1 and rules[name].lr in (min(values), max(values)) for name, values in self.rates)


@dataclass(frozen=True)
class Log:
    """A range searched evenly in the logarithm, 0 < low < high."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise UserError(f"a range needs 0 < low < high; got low={self.low!r}, high={self.high!r}")

    def at(self, fraction: float) -> float:
        """Return the value a fraction of the way from low to high."""
        value = math.exp(math.log(self.low) + fraction * (math.log(self.high) - math.log(self.low)))
        return float(f"{value:.4g}")  # a rate one can type again


@dataclass(frozen=True)
class Halton(Search):
    """The first `trials` points of a scrambled Halton sequence over ranges: `lr`, and others by name.

    Trial i is a function of (seed, i) alone, so a larger budget only adds trials. Owen 2017, arXiv
    1706.02808.

    >>> from optscope.optim import SGD
    >>> [rule.lr for rule in Halton(3, Log(0.01, 1.0)).candidates(SGD(lr=1.0))]
    [0.2597, 0.02597, 0.8212]
    """

    trials: int
    lr: Log
    others: tuple[tuple[str, Log], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.trials, bool) or not isinstance(self.trials, int) or self.trials < 1:
            raise UserError(f"Halton: trials must be a whole number >= 1; got {self.trials!r}")

    def candidates(self, rule: Rule) -> list[Rule]:
        """Return the rule at each point."""
        ranges: dict[str, Log] = {"lr": self.lr, **dict(self.others)}
        points = qmc.Halton(len(ranges), scramble=True, rng=self.seed).random(self.trials)
        named: list[dict[str, Any]] = [
            {name: span.at(float(x)) for (name, span), x in zip(ranges.items(), point, strict=True)}
            for point in points]
        return [rule.with_(**values) for values in named]

    def at_edge(self, rule: Rule) -> bool:
        """Return whether the learning rate is the smallest or largest of those tried."""
        tried = [candidate.lr for candidate in self.candidates(rule)]
        return self.trials > 1 and rule.lr in (min(tried), max(tried))
