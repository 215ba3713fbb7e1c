"""A fleet: many plays of one small game at once, its members (seeds, learning rates) on a leading axis.

For networks so small that calling them costs more than computing them, this is several times faster than one play
after the other (`Training`), and gives the same numbers to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from optscope.engine.deal import Deal
from optscope.engine.plan import Plan
from optscope.errors import UserError
from optscope.optim.players import Players
from optscope.tasks.fresh import fresh_model, seeded
from optscope.tasks.game import Game
from optscope.vector import Layout

Vectors = Mapping[str, Tensor]
"""Each player's weights, `(members, P)`."""


def unwatched(rounds: int, vectors: Vectors) -> None:
    """Watch nothing."""


def play_members(game: Game, rule: Players, plan: Plan, seeds: Sequence[int], *,
                 watch: Callable[[int, Vectors], None] = unwatched, at: Collection[int] = ()) -> dict[str, Tensor]:
    """Play one game a member and return every player's final weights, `(members, P)`.

    Member i plays from `seeds[i]`; hyperparameters that are tuples have one value a member. Members of one seed
    start at the same weights and see the same examples and latent vectors. `watch` gets the weights after the
    rounds in `at`. A member that diverges goes on as nan.

    Raises:
        UserError: when a network has buffers (batch normalisation), a player's loss draws random numbers or
            differentiates (a gradient penalty), the rule is not for these players, or there is no member.
    """
    if not seeds:
        raise UserError("a fleet needs one seed or more; got none")
    rule.check_players(player.name for player in game.players)
    distinct = list(dict.fromkeys(seeds))
    tables = [fresh_model(game, seed) for seed in distinct]
    if any(True for _ in tables[0].buffers()):
        raise UserError(f"{game.name}: networks of a fleet must have no buffers, as batch normalisation has: use "
                        "train, one member at a time")
    member = torch.tensor([distinct.index(seed) for seed in seeds], device="cpu")
    deals = [Deal(game, plan, seed) for seed in distinct]
    networks = dict(copy.deepcopy(tables[0]).named_children())
    _check_losses(game, networks, deals[0].part.first(plan.batch).inputs)
    layouts = {name: Layout.of(dict(network.named_parameters())) for name, network in networks.items()}
    vectors = {name: torch.stack([_flat(table.get_submodule(name), layout) for table in tables])[member]
               for name, layout in layouts.items()}
    states = {name: rule.by_name[name].init(vectors[name], layout) for name, layout in layouts.items()}

    def step(name: str, real: Tensor, latent: Tensor, factor: float) -> Tensor:
        own = vectors[name].requires_grad_()
        losses = vmap(_loss_of(game, name, networks, layouts))({**vectors, name: own}, real, latent)
        (grad,) = torch.autograd.grad(losses.sum(), own)
        own = own.detach()
        change, states[name] = rule.by_name[name].scaled_update(grad, states[name], own, layouts[name], factor)
        vectors[name] = own
        return own + change

    total = deals[0].total
    with seeded(distinct[0]):
        for round_ in range(total):
            if round_ in at:
                watch(round_, vectors)
            factor = plan.schedule(round_ / total)
            if game.order == "simultaneous":
                real, latent = _dealt(deals, member, round_, 0)
                vectors.update({name: step(name, real, latent, factor) for name in layouts})
                continue
            for player in game.players:
                for number in range(player.steps):
                    vectors[player.name] = step(player.name, *_dealt(deals, member, round_, number), factor)
    if total in at:
        watch(total, vectors)
    return vectors


def _check_losses(game: Game, networks: Mapping[str, nn.Module], real: Tensor) -> None:
    """Raise unless every player's loss can be computed for many members at once: one batch is tried, alone first.

    Random numbers that torch does not draw cannot be seen; all members would get the same.
    """
    latent = game.latent(len(real), torch.Generator().manual_seed(0))
    for player in game.players:
        with seeded(0):
            alone = player.loss(networks, real, latent)
        if alone.dim():
            raise UserError(f"{game.name}: the loss of the {player.name} must be one number; got shape "
                            f"{tuple(alone.shape)}: take its mean")
        try:
            with torch.no_grad():
                vmap(partial(player.loss, networks))(real.unsqueeze(0), latent.unsqueeze(0))
        except RuntimeError as error:
            reason = str(error).partition(". ")[0].partition("\n")[0]
            raise UserError(f"{game.name}: the loss of the {player.name} cannot be computed for all members of a "
                            "fleet at once, as one that draws random numbers or takes gradients (WGANGP) cannot: "
                            f"use train, one member at a time (torch says: {reason})") from error


def _flat(network: nn.Module, layout: Layout) -> Tensor:
    return layout.flatten([p.detach() for p in network.parameters()])


def _dealt(deals: Sequence[Deal], member: Tensor, round_: int, step: int) -> tuple[Tensor, Tensor]:
    real = torch.stack([deal.batch(round_, step).inputs for deal in deals])
    latent = torch.stack([cast(Tensor, deal.latent()) for deal in deals])
    return real.index_select(0, member), latent.index_select(0, member)


def _loss_of(game: Game, name: str, networks: Mapping[str, nn.Module],
             layouts: Mapping[str, Layout]) -> Callable[[Vectors, Tensor, Tensor], Tensor]:
    player = next(player for player in game.players if player.name == name)

    def loss(vectors: Vectors, real: Tensor, latent: Tensor) -> Tensor:
        return player.loss({other: called(networks[other], layouts[other], vectors[other]) for other in layouts},
                           real, latent)
    return loss


def called(network: nn.Module, layout: Layout, vector: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a network as a function, with the weights of a vector `(P,)`."""
    weights = dict(zip(layout.names, layout.views(vector), strict=True))

    def forward(inputs: Tensor) -> Tensor:
        out: Tensor = functional_call(network, weights, (inputs,))
        return out
    return forward


def outputs(game: Game, player: str, vectors: Vectors, inputs: Tensor) -> Tensor:
    """Return what every member's network of a player makes of the same inputs, `(members, n, ...)`."""
    network = dict(game.model().named_children())[player]
    layout = Layout.of(dict(network.named_parameters()))
    with torch.no_grad():
        out: Tensor = vmap(lambda vector: called(network, layout, vector)(inputs))(vectors[player])
    return out
