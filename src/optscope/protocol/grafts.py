"""The arms of a graft matrix: every rule's step length on every rule's direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optscope.errors import UserError
from optscope.optim.graft import Graft
from optscope.optim.players import Players
from optscope.optim.rule import Rule
from optscope.optim.sign import Per
from optscope.protocol.comparison import Arm
from optscope.protocol.search import Drawn, Grid, Search
from optscope.protocol.space import Choice, Space


def graft_name(magnitude: str, direction: str) -> str:
    """Return the name of the arm that steps as far as one rule, where another would go.

    >>> graft_name("Adam", "SGD"), graft_name("SGD", "SGD")
    ('Adam length × SGD direction', 'SGD')
    """
    return magnitude if magnitude == direction else f"{magnitude} length × {direction} direction"


def graft_arms(arms: Sequence[Arm], per: Per = "layer") -> tuple[Arm, ...]:
    """Return every arm's magnitude with every arm's direction; it is searched as the magnitude is, at its cost.

    Lengths are taken `per` layer, module or model. A rule grafted on itself is the rule. Rules of a game are
    grafted player by player. Where a direction takes more gradients a step (SAM), as many fewer points are tried:
    the middle of a grid's rates.

    Raises:
        UserError: with fewer than two arms, or when a game's arm meets another.
    """
    if len(arms) < 2:
        raise UserError("a graft matrix needs two optimisers or more; "
                        f"got {', '.join(arm.name for arm in arms) or 'none'}")
    return tuple(_arm(m, d, per) for m in arms for d in arms)


def crossed(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that a matrix is made of: all but grafts of two of the others, which it holds anyway.

    >>> from optscope.optim import SGD, Adam
    >>> ready = Arm("graft", Graft(Adam(lr=0.001), SGD(lr=1.0)))
    >>> [arm.name for arm in crossed([Arm("SGD", SGD(lr=0.1)), Arm("Adam", Adam(lr=0.01)), ready])]
    ['SGD', 'Adam']
    >>> [arm.name for arm in crossed([Arm("SGD", SGD(lr=0.1)), ready])]
    ['SGD', 'graft']
    """
    def there(part: Rule) -> bool:
        return any(arm.rule.with_(lr=1.0) == part.with_(lr=1.0) for arm in arms)
    return [arm for arm in arms if not (isinstance(arm.rule, Graft) and there(arm.rule.magnitude)
                                        and there(arm.rule.direction))]


def _arm(magnitude: Arm, direction: Arm, per: Per) -> Arm:
    factors = {**magnitude.factors, "length": magnitude.name, "direction": direction.name}
    if magnitude is direction:
        return replace(magnitude, factors=factors)
    rule = _grafted(magnitude.rule, direction.rule, per)
    return Arm(graft_name(magnitude.name, direction.name), rule, _search(magnitude, rule), magnitude.task, factors)


def _search(magnitude: Arm, rule: Rule) -> Search | None:
    """Return how a graft is searched: what a space names is its magnitude's, and the cost is the same."""
    search, tried = magnitude.search, len(magnitude.candidates())
    if not isinstance(search, (Grid, Drawn)):
        return search
    spans = {_inside(name, rule): span for name, span in search.space.spans}
    count = max(1, tried * magnitude.rule.evaluations // rule.evaluations)
    if count == tried and tuple(spans) == search.space.names:
        return search
    if isinstance(search, Drawn):
        return type(search)(count, Space(**spans), search.seed)
    for name, span in spans.items() if len(spans) == 1 else ():
        if isinstance(span, Choice):
            first = (tried - count) // 2
            spans[name] = Choice(*sorted(span.values)[first:first + count])
    return Grid(Space(**spans))


def _inside(name: str, rule: Rule) -> str:
    """Return what a graft calls a hyperparameter of its magnitude; its rate is its magnitude's."""
    player, dot, rest = name.partition(".") if isinstance(rule, Players) else ("", "", name)
    return name if rest in ("lr", "") else f"{player}{dot}magnitude.{rest}"


def _grafted(magnitude: Rule, direction: Rule, per: Per) -> Rule:
    if isinstance(magnitude, Players) and isinstance(direction, Players):
        direction.check_players(magnitude.by_name)
        return Players(**{name: Graft(rule, direction.by_name[name], per) for name, rule in magnitude.rules})
    if isinstance(magnitude, Players) or isinstance(direction, Players):
        raise UserError(f"rules of a game graft only on rules of a game; got {magnitude!r} and {direction!r}")
    return Graft(magnitude, direction, per)


def grafted_per(arms: Sequence[Arm]) -> Per:
    """Return over what the arms of a graft matrix take lengths."""
    return next(rule.per for arm in arms if arm.factors["length"] != arm.factors["direction"]
                for rule in arm.rule.walk() if isinstance(rule, Graft))


def grafted_rules(arms: Sequence[Arm]) -> list[str]:
    """Return the names of the rules behind the arms of a graft matrix: its diagonal."""
    return [arm.name for arm in arms if arm.factors["length"] == arm.factors["direction"]]
