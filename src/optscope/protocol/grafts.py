"""The arms of a graft matrix: every rule's step length on every rule's direction."""

from __future__ import annotations

from collections.abc import Sequence

from optscope.errors import UserError
from optscope.optim.graft import Graft
from optscope.optim.players import Players
from optscope.optim.rule import Rule
from optscope.optim.sign import Per
from optscope.protocol.comparison import Arm


def graft_name(magnitude: str, direction: str) -> str:
    """Return the name of the arm that steps as far as one rule, where another would go.

    >>> graft_name("Adam", "SGD"), graft_name("SGD", "SGD")
    ('Adam length × SGD direction', 'SGD')
    """
    return magnitude if magnitude == direction else f"{magnitude} length × {direction} direction"


def graft_arms(arms: Sequence[Arm], per: Per = "layer") -> tuple[Arm, ...]:
    """Return every arm's magnitude with every arm's direction; its rates are those of the magnitude.

    A rule grafted on itself is the rule. Rules of a game are grafted player by player.

    Raises:
        UserError: with fewer than two arms, or when a game's arm meets another.
    """
    if len(arms) < 2:
        raise UserError("a graft matrix needs two optimisers or more; "
                        f"got {', '.join(arm.name for arm in arms) or 'none'}")
    return tuple(Arm(graft_name(m.name, d.name), m.rule if m is d else _grafted(m.rule, d.rule, per), m.search,
                     m.task, {**m.factors, "length": m.name, "direction": d.name})
                 for m in arms for d in arms)


def _grafted(magnitude: Rule, direction: Rule, per: Per) -> Rule:
    if isinstance(magnitude, Players) and isinstance(direction, Players):
        direction.check_players(magnitude.by_name)
        return Players(**{name: Graft(rule, direction.by_name[name], per) for name, rule in magnitude.rules})
    if isinstance(magnitude, Players) or isinstance(direction, Players):
        raise UserError(f"rules of a game graft only on rules of a game; got {magnitude!r} and {direction!r}")
    return Graft(magnitude, direction, per)


def grafted_rules(arms: Sequence[Arm]) -> list[str]:
    """Return the names of the rules behind the arms of a graft matrix: its diagonal."""
    return [arm.name for arm in arms if arm.factors["length"] == arm.factors["direction"]]
