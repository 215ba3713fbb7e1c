"""Players: one rule for each side of a game, as one rule on the vector of all their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from optscope.errors import UserError, nearest
from optscope.optim.rule import Hyper, Rule, State
from optscope.vector import Layer, Layout


@dataclass(frozen=True, repr=False, init=False)
class Players(Rule):
    """Give every player of a game a rule of its own: `Players(generator=Adam(lr=1e-3), discriminator=SGD(lr=0.1))`.

    Each sees only its own gradient and weights, so no norm runs over two players. As one rule on the vector of
    all weights it makes the step of a simultaneous game; a layer belongs to the player its name starts with,
    as in "generator.0.weight".

    `lr` is the geometric mean of the players' rates, and `with_(lr=...)` keeps their ratios;
    `with_(generator=...)` gives a player another rule.

    >>> from optscope.optim import SGD
    >>> Players(generator=SGD(lr=0.1), discriminator=SGD(lr=0.4)).with_(lr=0.1)
    Players(discriminator=SGD(lr=0.2), generator=SGD(lr=0.05))

    Raises:
        UserError: without a player, or when something that is given is no rule.
    """

    rules: tuple[tuple[str, Rule], ...] = field(default=())

    def __init__(self, **rules: Rule) -> None:
        wrong = [f"{name}={rule!r}" for name, rule in rules.items() if not isinstance(rule, Rule)]
        if wrong or not rules:
            raise UserError("Players: give one rule a player, such as Players(generator=Adam(lr=1e-3), "
                            f"discriminator=Adam(lr=1e-3)); got {wrong[0] if wrong else 'none'}")
        object.__setattr__(self, "rules", tuple(sorted(rules.items())))

    @property
    def by_name(self) -> Mapping[str, Rule]:
        """The rules by player."""
        return dict(self.rules)

    def by_player(self, players: Sequence[str]) -> Mapping[str, Rule]:
        """Return the rule of each player.

        Raises:
            UserError: naming the player without a rule, or the rule without a player; or when it is no game.
        """
        if list(players) == [""]:
            raise UserError(f"it is no game, and is trained by one rule; got {self!r}")
        self.check_players(players)
        return self.by_name

    @property
    def lr(self) -> Hyper:
        """The geometric mean of the players' rates: one number, or one a member."""
        rates = [rule.lr for _, rule in self.rules]
        members = max((len(rate) for rate in rates if isinstance(rate, tuple)), default=0)
        if not members:
            return _mean(rates)
        return tuple(_mean([rate[i] if isinstance(rate, tuple) else rate for rate in rates])
                     for i in range(members))

    def with_(self, **changes: Any) -> Self:
        """Return the same players changed: other rules, (`lr`) all rates scaled to that mean, or "player.lr".

        Raises:
            UserError: when there is no player of that name.
        """
        rules = dict(self.rules)
        if "lr" in changes:
            factor = changes.pop("lr") / self.lr
            rules = {name: rule.with_(lr=float(f"{rule.lr * factor:.6g}")) for name, rule in rules.items()}
        for path, value in changes.items():
            name, _, rest = path.partition(".")
            if name not in rules:
                raise UserError(f"there is no player {name!r}; {nearest(name, rules)}")
            rules[name] = rules[name].with_(**{rest: value}) if rest else value
        return type(self)(**rules)

    def check_players(self, names: Iterable[str]) -> None:
        """Raise unless there is a rule for exactly these players.

        Raises:
            UserError: naming the player without a rule, or the rule without a player.
        """
        known = list(names)
        for name, _ in self.rules:
            if name not in known:
                raise UserError(f'Players has a rule for "{name}", who does not play this game; '
                                f"{nearest(name, known)}")
        for name in known:
            if name not in self.by_name:
                raise UserError(f'the player "{name}" has no rule; write Players(..., {name}=...)')

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the states of all players by name."""
        parts = players_of(layout)
        self.check_players(parts)
        return {name: rule.init(params[..., parts[name][0]], parts[name][1]) for name, rule in self.rules}

    def held(self) -> Iterator[Rule]:
        """Yield the players' rules."""
        yield from self.by_name.values()

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return every player's own step, side by side, and all new states."""
        return self.scaled_update(grad, state, params, layout, 1.0)

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return every player's own step at `scale` times its rate, side by side, and all new states."""
        step, states = torch.empty_like(params), {}
        for name, (where, inner) in players_of(layout).items():
            step[..., where], states[name] = self.by_name[name].scaled_update(
                grad[..., where], state[name], params[..., where], inner, scale)
        return step, states

    def optimizer(self, params: Iterable[Any]) -> NoReturn:
        """Raise: every player has an optimiser of its own.

        Raises:
            UserError: always.
        """
        raise UserError("Players are several rules and make no single optimiser: train a Game with them, or take "
                        "each player's, players.by_name[NAME].optimizer(...)")

    def optimizer_of(self, model: nn.Module, steps: int | None = None) -> NoReturn:
        """Raise: every player has an optimiser of its own.

        Raises:
            UserError: always.
        """
        self.optimizer(model.parameters())

    def __repr__(self) -> str:
        return f"Players({', '.join(f'{name}={rule!r}' for name, rule in self.rules)})"


def players_of(layout: Layout) -> dict[str, tuple[slice, Layout]]:
    """Return where each player's weights lie in the vector, and their layout without the player's name.

    Raises:
        UserError: when a player's layers do not follow each other.
    """
    found: dict[str, tuple[int, int, list[Layer]]] = {}
    start = 0
    for layer, size in zip(layout.layers, layout.sizes, strict=True):
        player, _, name = layer.name.partition(".")
        first, end, layers = found.get(player, (start, start, []))
        if end != start:
            raise UserError(f'the layers of a player must follow each other; "{layer.name}" stands apart')
        found[player] = first, start + size, [*layers, layer._replace(name=name)]
        start += size
    return {player: (slice(first, end), Layout.of_layers(layers)) for player, (first, end, layers) in found.items()}


def _mean(rates: Iterable[Hyper]) -> float:
    logs = [math.log(float(rate)) for rate in rates]  # type: ignore[arg-type]
    return float(f"{math.exp(math.fsum(logs) / len(logs)):.6g}")
