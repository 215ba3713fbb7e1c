"""One look at a game before it is played: whether its networks, latent vectors and losses do what a play needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.tasks.check_inputs import check_inputs, check_same
from optscope.tasks.game import Game, Player

BATCH = 8


def check_game(game: Game) -> None:
    """Raise unless the game can be played and measured.

    Its data load, the same each time, finite and inside the bounds; every player's network is a new one each time
    and has parameters; latent vectors are finite, as many as asked for, and a function of their generator; every
    loss is one finite number that reaches all weights of its player; and a "generator" makes things shaped like the
    real ones.

    Raises:
        UserError: naming the first of these that is not so.
    """
    data = game.data()
    for name, part in vars(data).items():
        check_inputs(game, name, part)
    check_same(game, data, game.data())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {player.name: _network(game, player) for player in game.players}
        latent = _latent(game)
        real = data.train.inputs[:BATCH]
        if "generator" in networks:
            _check_made(game, networks["generator"], latent, real)
        for player in game.players:
            _check_loss(game, player, networks, real, latent[:len(real)])


def _network(game: Game, player: Player) -> nn.Module:
    network = player.model()
    if not isinstance(network, nn.Module):
        raise UserError(f"{game.name}: the {player.name}'s model() must return a torch.nn.Module; "
                        f"got {type(network).__name__}")
    if not any(p.requires_grad for p in network.parameters()):
        raise UserError(f"{game.name}: the {player.name} has no parameters to train; "
                        "register its tensors as nn.Parameter")
    if not {id(p) for p in network.parameters()}.isdisjoint(id(p) for p in player.model().parameters()):
        raise UserError(f"{game.name}: the {player.name}'s model() must return a new model each time: "
                        "build every layer inside it")
    return network.train()


def _latent(game: Game) -> Tensor:
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
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{game.name}: the generator refused latent vectors of shape {tuple(latent.shape)}: "
                        f"{str(error).splitlines()[0]}") from error
    if made.shape[1:] != real.shape[1:]:
        raise UserError(f"{game.name}: the generator must make things shaped like the real ones, "
                        f"{tuple(real.shape[1:])}; it makes {tuple(made.shape[1:])}")


def _check_loss(game: Game, player: Player, networks: dict[str, nn.Module], real: Tensor, latent: Tensor) -> None:
    params = [p for p in networks[player.name].parameters() if p.requires_grad]
    try:
        loss = player.loss(networks, real, latent)
        reached = torch.autograd.grad(loss, params, allow_unused=True) if loss.numel() == 1 else ()
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{game.name}: the {player.name}'s loss stopped with {type(error).__name__}: "
                        f"{str(error).splitlines()[0]}") from error
    if loss.dim() != 0:
        raise UserError(f"{game.name}: the {player.name}'s loss must be one number (a tensor of shape ()); got "
                        f"{tuple(loss.shape)}: take its mean over the batch")
    if not bool(torch.isfinite(loss)):
        raise UserError(f"{game.name}: the {player.name}'s loss is {float(loss.detach())} for fresh networks; "
                        "it must be finite")
    if any(grad is None for grad in reached):
        raise UserError(f"{game.name}: the {player.name}'s loss does not depend on all of its own parameters; "
                        "leave out layers that are not used")
