"""What is searched: a rule's hyperparameters by name, each over a range or some values."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optscope.errors import UserError, nearest
from optscope.optim.foreign import Foreign
from optscope.optim.rule import Rule
from optscope.optim.schedules import Decayed


class Span(ABC):
    """Where one hyperparameter is searched."""

    @abstractmethod
    def at(self, fraction: float) -> Any:
        """Return the value a fraction in [0, 1) of the way through."""


def _typed(value: float) -> float:
    return float(f"{value:.4g}")  # a number one can type again


@dataclass(frozen=True)
class Log(Span):
    """A range searched evenly in the logarithm, 0 < low < high.

    Raises:
        UserError: unless 0 < low < high, both finite.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise UserError(f"a range needs 0 < low < high; got low={self.low!r}, high={self.high!r}")

    def at(self, fraction: float) -> float:
        """Return the value a fraction of the way from low to high."""
        return _typed(math.exp(math.log(self.low) + fraction * (math.log(self.high) - math.log(self.low))))


@dataclass(frozen=True)
class Uniform(Span):
    """A range searched evenly, low < high.

    Raises:
        UserError: unless low < high, both finite.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise UserError(f"a range needs low < high; got low={self.low!r}, high={self.high!r}")

    def at(self, fraction: float) -> float:
        """Return the value a fraction of the way from low to high."""
        return _typed(self.low + fraction * (self.high - self.low))


@dataclass(frozen=True, init=False)
class Choice(Span):
    """These values, numbers or not: `Choice(0.9, 0.95)`, `Choice(Cosine(), StepDecay())`.

    Raises:
        UserError: without values, or when two are the same.
    """

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if not values or any(value in values[:i] for i, value in enumerate(values)):
            raise UserError(f"a choice needs different values, at least one; got {values}")
        object.__setattr__(self, "values", values)

    def at(self, fraction: float) -> Any:
        """Return the value in whose equal part the fraction lies."""
        return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]


def half_decades(low: float, high: float) -> tuple[float, ...]:
    """Return all of 1, 3, 10, 30, ... and their like below 1, from low to high, both included.

    >>> half_decades(1e-3, 0.1)
    (0.001, 0.003, 0.01, 0.03, 0.1)

    Raises:
        UserError: unless 0 < low <= high, with such a number between them.
    """
    if not 0 < low <= high < math.inf:
        raise UserError(f"half-decades need 0 < low <= high; got {low!r} and {high!r}")
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    every = (float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 3))
    found = tuple(value for value in every if low <= value <= high)
    if not found:
        raise UserError(f"no half-decade (1, 3, 10, 30, ...) lies between {low!r} and {high!r}")
    return found


@dataclass(frozen=True, init=False)
class Space:
    """Where hyperparameters are searched, by name; those of held rules have dots. A sequence is a `Choice`.

    Names are what `Rule.with_` takes. A schedule is one of `Scheduled`: `Space(lr=..., schedule=Choice(Cosine(),
    Cosine(warmup=0.1)))` searches `Scheduled(rule, Cosine(), steps)`, under a plan without one.

    >>> space = Space(**{"lr": (0.01, 0.1), "direction.momentum": Uniform(0.5, 0.9)})
    >>> space.names, space.rates
    (('lr', 'direction.momentum'), ('lr',))

    Raises:
        UserError: when nothing is searched, or what is given is no range and no values.
    """

    spans: tuple[tuple[str, Span], ...]

    def __init__(self, **spans: Span | Sequence[Any]) -> None:
        if not spans:
            raise UserError("a space needs a hyperparameter, such as Space(lr=Log(1e-3, 1.0)); got none")
        wrong = [f"{name}={span!r}" for name, span in spans.items()
                 if not isinstance(span, Span) and (isinstance(span, str) or not isinstance(span, Sequence))]
        if wrong:
            raise UserError(f"a space needs ranges or values, such as lr=Log(1e-3, 1.0) or lr=(0.01, 0.1); "
                            f"got {wrong[0]}")
        object.__setattr__(self, "spans", tuple(
            (name, span if isinstance(span, Span) else Choice(*span)) for name, span in spans.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """What is searched."""
        return tuple(name for name, _ in self.spans)

    @property
    def rates(self) -> tuple[str, ...]:
        """Those of its names that are learning rates."""
        return tuple(name for name in self.names if name.rpartition(".")[2] == "lr")

    def at(self, rule: Rule, values: Sequence[Any]) -> Rule:
        """Return the rule with these values, in the order of the names.

        Raises:
            UserError: when the rule has no such hyperparameter, or decays weights twice.
        """
        for name in self.names:
            check_has(rule, name)
        changed = rule.with_(**dict(zip(self.names, values, strict=True)))
        check_decay(changed)
        return changed


def hyperparameters(rule: Rule) -> tuple[str, ...]:
    """Return what may be searched of a rule: its hyperparameters, then those of rules it holds, with dots.

    >>> from optscope.optim import SGD, Decayed
    >>> hyperparameters(Decayed(SGD(lr=0.1), decay=0.01))
    ('decay', 'lr', 'rule.lr', 'rule.momentum', 'rule.nesterov')
    """
    parts: dict[str, Any] = dict(getattr(rule, "by_name", {}))
    own = [] if parts else [f.name for f in dataclasses.fields(rule)]
    for name in own:
        if isinstance(getattr(rule, name), Rule):
            parts[name] = getattr(rule, name)
    plain = [name for name in own if name not in parts]
    inner = [f"{part}.{name}" for part, held in parts.items() for name in hyperparameters(held)]
    return tuple(dict.fromkeys((*plain, "lr", *inner)))


def check_has(rule: Rule, name: str) -> None:
    """Raise unless a rule has a hyperparameter of that name, or is an optimiser of other authors, who know.

    Raises:
        UserError: with the nearest name there is.
    """
    if not rule.foreign and name not in hyperparameters(rule):
        raise UserError(f'{rule!r} has no "{name}" to search; {nearest(name, hyperparameters(rule))}')


def value_of(rule: Rule, name: str) -> Any:
    """Return a hyperparameter, by its name with dots.

    >>> from optscope.optim import SGD, Decayed
    >>> value_of(Decayed(SGD(lr=0.1), decay=0.01), "rule.lr")
    0.1
    """
    found: Any = rule
    for part in name.split("."):
        named = getattr(found, "by_name", {})
        found = named[part] if part in named else getattr(found, part)
    return found


def check_decay(rule: Rule) -> None:
    """Raise where weights decay twice: L2 regularisation around a rule that decays weights itself.

    Raises:
        UserError: with both decays.
    """
    for outer in rule.walk():
        if isinstance(outer, Decayed) and outer.decay:
            for inner in outer.rule.walk():
                twice = (dict(inner.options).get("weight_decay") if isinstance(inner, Foreign)
                         else getattr(inner, "decay", 0.0))
                if twice:
                    raise UserError(f"weights decay twice in {rule!r}, by {outer.decay} and by {twice} in "
                                    f"{type(inner).__name__}: keep one, and write 0 for the other")
