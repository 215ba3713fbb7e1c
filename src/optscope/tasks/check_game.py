"""One look at a game before it is played: whether its networks, latent vectors and losses do what a play needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optscope.errors import UserError, blaming, first_words
from optscope.tasks.check_inputs import check_data
from optscope.tasks.check_loss import check_leaves, check_number, check_slope
from optscope.tasks.check_model import check_factory
from optscope.tasks.fresh import seeded
from optscope.tasks.game import Game, Player

BATCH = 8


def check_game(game: Game) -> None:
    """Raise unless the game can be played and measured.

    Its data load, the same each time, finite and inside the bounds; every player's network is a new one each time,
    a function of the seed, and has parameters; latent vectors are finite, as many as asked for, and a function of
    their generator; every loss is one finite number that reaches all weights of its player, can move them, and
    depends on no weights but the players'; and a "generator" makes things shaped like the real ones.

    Raises:
        UserError: naming the first of these that is not so.
    """
    data = check_data(game)
    networks = {player.name: check_factory(game.name, f"the {player.name}", player.model).train()
                for player in game.players}
    with seeded(0):
        latent = _latent(game)
        real = data.train.first(BATCH).inputs
        if "generator" in networks:
            _check_made(game, networks["generator"], latent, real)
        for player in game.players:
            _check_loss(game, player, networks, real, latent[:len(real)])


def _latent(game: Game) -> Tensor:
    with blaming(game.name, f"latent({BATCH}, generator)"):
        drawn = [game.latent(BATCH, torch.Generator().manual_seed(0)) for _ in range(2)]
    if len(drawn[0]) != BATCH:
        raise UserError(f"{game.name}: latent({BATCH}, generator) must return {BATCH} vectors; "
                        f"got shape {tuple(drawn[0].shape)}")
    if not bool(torch.isfinite(drawn[0]).all()):
        raise UserError(f"{game.name}: latent(n, generator) gave nan or inf; it must draw finite numbers")
    if not torch.equal(*drawn):
        raise UserError(f"{game.name}: latent(n, generator) must draw from the generator it is given alone, such "
                        "as torch.randn(n, 8, generator=generator)")
    return drawn[0]


def _check_made(game: Game, generator: nn.Module, latent: Tensor, real: Tensor) -> None:
    try:
        made = generator(latent)
    except Exception as error:  # whatever the author chose to raise
        raise UserError(f"{game.name}: the generator refused latent vectors of shape {tuple(latent.shape)}: "
                        f"{first_words(error)}") from error
    got = tuple(made.shape[1:]) if isinstance(made, Tensor) else type(made).__name__
    if got != tuple(real.shape[1:]):
        raise UserError(f"{game.name}: the generator must make things shaped like the real ones, "
                        f"{tuple(real.shape[1:])}; it makes {got}")


def _check_loss(game: Game, player: Player, networks: dict[str, nn.Module], real: Tensor, latent: Tensor) -> None:
    named = {name: p for name, p in networks[player.name].named_parameters() if p.requires_grad}
    whose = f"the {player.name}'s loss"
    with blaming(game.name, whose):
        loss = player.loss(networks, real.clone(), latent.clone())
    check_number(game.name, whose, loss)
    with blaming(game.name, whose):
        reached = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    if any(grad is None for grad in reached):
        raise UserError(f"{game.name}: {whose} does not depend on all of its own parameters; "
                        "leave out layers that are not used")
    check_slope(game.name, whose, dict(zip(named, reached, strict=True)))
    check_leaves(game.name, loss, nn.ModuleDict(networks))
