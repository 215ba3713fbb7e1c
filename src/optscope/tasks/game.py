"""A game: several players, each with its own network and its own loss, which the others' networks enter too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NoReturn, Protocol, Self

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.tasks.objective import Objective
from optscope.tasks.task import KindName, Loss, Task
from optscope.tasks.trained_loss import Factory
from optscope.tasks.tree import Batch

Callables = Mapping[str, Callable[..., Tensor]]
"""The players' networks by name; calling one gives its outputs."""


class PlayerLoss(Protocol):
    """What a player minimises, a mean over the batch: it sees all networks, real examples and latent vectors."""

    def __call__(self, networks: Callables, real: Tensor, latent: Tensor) -> Tensor:
        """Return one number."""


@dataclass(frozen=True)
class Player:
    """One side of a game: its network, its loss, and how many steps it makes each round.

    Raises:
        UserError: when the name is no word (it is a keyword of `Players`), or steps is no whole number >= 1.
    """

    name: str
    model: Callable[[], nn.Module]
    loss: PlayerLoss
    steps: int = 1

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise UserError(f'a player needs a name that is one word, such as "generator"; got {self.name!r}')
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UserError(f"{self.name}: steps must be a whole number >= 1; got {self.steps!r}")


@dataclass(frozen=True)
class Normal:
    """Latent vectors of independent standard normal numbers, `(n, size)`."""

    size: int = 8

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` of them."""
        return torch.randn(n, self.size, generator=generator, device="cpu")


class Networks(nn.ModuleDict):
    """The networks of a game at one table, by player; as a whole it predicts nothing.

    Raises:
        UserError: when it is called like a network.
    """

    def forward(self, inputs: Tensor) -> NoReturn:
        """Raise: a probe of one model cannot measure a game.

        Raises:
            UserError: always.
        """
        raise UserError(f"a game is not one model but {len(self)} ({', '.join(self)}): measure it by probes of "
                        "games, such as Coverage")


@dataclass(frozen=True)
class Seats:
    """The factory of a game's networks, made in the order of the players."""

    players: tuple[Player, ...]

    def __call__(self) -> Networks:
        """Return fresh networks."""
        return Networks({player.name: player.model() for player in self.players})


def no_single_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Raise: a game has one loss a player.

    Raises:
        UserError: always.
    """
    raise UserError("a game has one loss a player and no loss of its own: measure it by probes of games")


@dataclass(frozen=True)
class Game(Task):
    """A task for several players. `data` holds what is real, and targets that only probes may look at.

    In a round every player makes its `steps`, in the order of `players`. With `order="alternating"` each sees the
    others' newest weights, and fresh latent vectors at every step; with "simultaneous" all gradients are taken at
    the same weights, on the same batch, before anyone moves. `latent(n, generator)` draws a batch of latent
    vectors, for training and for measuring.

    Raises:
        UserError: with fewer than two players, two of one name, or several steps a round in a simultaneous game.
    """

    model: Callable[[], nn.Module] = field(init=False)
    loss: Loss = field(init=False, default_factory=lambda: no_single_loss)
    kind: KindName = field(init=False, default="game")
    players: tuple[Player, ...] = field(kw_only=True)
    latent: Callable[[int, torch.Generator], Tensor] = field(default_factory=Normal, kw_only=True)
    order: Literal["alternating", "simultaneous"] = field(default="alternating", kw_only=True)

    def __post_init__(self) -> None:
        names = [player.name for player in self.players]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(f"{self.name}: a game needs two players or more, of different names; "
                            f"got {', '.join(names) or 'none'}")
        if self.order not in ("alternating", "simultaneous"):
            raise UserError(f'{self.name}: order must be "alternating" or "simultaneous"; got {self.order!r}')
        busy = [player for player in self.players if player.steps > 1]
        if self.order == "simultaneous" and busy:
            raise UserError(f'{self.name}: in a simultaneous game everyone makes one step a round; {busy[0].name} '
                            f'makes {busy[0].steps}: write order="alternating"')
        object.__setattr__(self, "model", Seats(self.players))

    @property
    def parts(self) -> tuple[object, ...]:
        """What a game is made of, besides its rule: every player's network and loss, data, latent vectors."""
        sides = (part for player in self.players for part in (player.model, player.loss))
        return (*sides, self.data, self.latent, self.augment)

    @property
    def losses(self) -> tuple[Any, ...]:
        """Every player's loss."""
        return tuple(player.loss for player in self.players)

    def remade(self, model: Callable[[Factory], Factory], loss: Callable[[Any], Any]) -> Self:
        """Return the game with what `model` makes of every player's factory, and `loss` of every player's loss."""
        return replace(self, players=tuple(replace(player, model=model(player.model), loss=loss(player.loss))
                                           for player in self.players))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Who minimises what."""
        return tuple(Objective(player.name, partial(_loss_of, player), player.steps) for player in self.players)

    @property
    def simultaneous(self) -> bool:
        """Whether all players take their gradients at the same weights, before anyone moves."""
        return self.order == "simultaneous"

    def draw_latent(self, n: int, generator: torch.Generator) -> Tensor:
        """Return latent vectors for a batch of `n`."""
        return self.latent(n, generator)


def _loss_of(player: Player, model: nn.Module, batch: Batch, latent: Tensor) -> Tensor:
    return player.loss(dict(model.named_children()), batch.inputs, latent)
