"""What a user can get wrong about a game: one sentence before anything is played."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from optscope.engine.plan import Plan
from optscope.errors import UserError
from optscope.evidence.records import Records
from optscope.optim import SGD, Players
from optscope.probes.modes import Modes
from optscope.protocol.comparison import Arm, Comparison, Criterion
from optscope.protocol.search import PlayerGrid
from optscope.tasks.check import check_task
from optscope.tasks.game import Game, Normal
from optscope.tasks.gan import WGANGP, gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Ring

GOOD = gan("ring", Perceptron((8, 8, 2)), Perceptron((2, 8, 1)), Ring(), bounds=None)
ONE = Perceptron((8, 8, 2))()
RULE = Players(generator=SGD(lr=1.0), discriminator=SGD(lr=1.0))


LOOSE = nn.Parameter(torch.ones(()))


class Pair(nn.Linear):
    """A generator of two things."""

    def __init__(self):
        super().__init__(8, 2)

    def forward(self, latent):
        return super().forward(latent), latent


def with_player(index, **changes):
    players = list(GOOD.players)
    players[index] = replace(players[index], **changes)
    return Game("ring", Ring(), bounds=None, players=tuple(players))


def scattered(n, generator):
    return torch.randn(n, 8)


def nothing(networks, real, latent):
    return torch.zeros(())


def every_example(networks, real, latent):
    return networks["discriminator"](real).squeeze(1)


def infinite(networks, real, latent):
    return networks["discriminator"](real).mean() / 0.0


@pytest.mark.parametrize("game", [GOOD, replace(GOOD, order="simultaneous"),
                                  gan("w", Perceptron((8, 8, 2)), Perceptron((2, 8, 1)), Ring(), losses=WGANGP(),
                                      bounds=None, critic_steps=5)], ids=lambda game: game.name)
def test_good_games_pass(game):
    before = torch.get_rng_state()
    check_task(game)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: with_player(0, model=nn.Flatten), "the discriminator has no parameters to train"),
    (lambda: with_player(1, model=lambda: ONE), "generator's model.. must return a new model each time"),
    (lambda: with_player(1, model=lambda: 3), "must return a torch.nn.Module; got int"),
    (lambda: with_player(1, model=Perceptron((8, 8, 3))), r"shaped like the real ones, \(2,\); it makes \(3,\)"),
    (lambda: with_player(1, model=Pair), "it makes tuple"),
    (lambda: with_player(0, model=lambda: nn.LazyLinear(1)), "weight of the discriminator has no shape"),
    (lambda: with_player(0, loss=lambda networks, real, latent: 0 * networks["discriminator"](real).mean()),
     "the discriminator's loss cannot move"),
    (lambda: with_player(0, loss=lambda networks, real, latent: LOOSE * networks["discriminator"](real).mean()),
     "no parameter of the model"),
    (lambda: with_player(1, model=Perceptron((7, 8, 2))), r"refused latent vectors of shape \(8, 8\)"),
    (lambda: with_player(0, model=Perceptron((3, 8, 1))), "the discriminator's loss stopped with RuntimeError"),
    (lambda: with_player(0, loss=every_example), r"must be one number .*; got \(8,\)"),
    (lambda: with_player(0, loss=infinite), "loss of a fresh model is (inf|-inf|nan)"),
    (lambda: with_player(1, loss=every_example), "must be one number|does not depend"),
    (lambda: replace(GOOD, latent=scattered), "from the generator it is given alone"),
    (lambda: replace(GOOD, latent=lambda n, g: torch.zeros(1, 8)), r"must return 8 vectors; got shape \(1, 8\)"),
    (lambda: replace(GOOD, latent=lambda n, g: torch.full((n, 8), torch.nan)), "gave nan or inf"),
    (lambda: replace(GOOD, bounds=(0.0, 1.0)), "must lie in the bounds"),
])
def test_bad_games_are_named(make, words):
    with pytest.raises(UserError, match=words):
        check_task(make())


@pytest.mark.parametrize(("call", "words"), [
    (lambda: PlayerGrid(generator=()), "generator needs different learning rates"),
    (lambda: PlayerGrid(generator=(0.1,)).candidates(SGD(lr=1.0)), "use Grid"),
    (lambda: PlayerGrid(critic=(0.1,)).candidates(RULE), "does not play this game"),
    (lambda: Comparison("x", GOOD, (Arm("a", RULE),), Plan(), (Modes(Ring()),), (1, 2), validation=Modes(Ring())),
     'the criterion "loss" is not measured by Modes'),
])
def test_bad_searches(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_player_grids_try_every_pair_and_know_their_edges():
    grid = PlayerGrid(generator=(0.1, 0.2, 0.4), discriminator=(1.0, 2.0, 4.0))
    tried = grid.candidates(RULE)
    assert len({repr(rule) for rule in tried}) == 9
    middle = Players(generator=SGD(lr=0.2), discriminator=SGD(lr=2.0))
    assert [grid.at_edge(rule) for rule in tried].count(False) == 1
    assert not grid.at_edge(middle)
    assert Normal(3)(2, torch.Generator()).shape == (2, 3)
    comparison = Comparison("x", GOOD, (Arm("a", RULE, grid),), Plan(), (Modes(Ring()),), (1, 2),
                            validation=Modes(Ring()), criterion=Criterion("missed mass"))
    assert len(comparison.jobs(Records())) == 9
