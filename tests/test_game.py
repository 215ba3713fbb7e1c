"""Games: their loop against the one a user would write, pairing, orders of play, fleets, losses, and bad input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from optscope.engine.deal import Deal
from optscope.engine.fleet import outputs, play_members
from optscope.engine.plan import Plan
from optscope.engine.rows import Use
from optscope.engine.run import Run
from optscope.engine.run_folder import RunFolder
from optscope.engine.store import Store
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.optim import SGD, Adam, Graft, NormalizedSGD, Players, StepDecay
from optscope.probes.accuracy import Accuracy
from optscope.probes.lipschitz import Lipschitz
from optscope.tasks.fresh import epoch_permutation, fresh_model
from optscope.tasks.game import Game, Normal, Player
from optscope.tasks.gan import WGANGP, NonSaturating, PenalisedCritic, Saturating, gan
from optscope.tasks.gan_models import DCDiscriminator, DCGenerator, Perceptron, ResDiscriminator, ResGenerator
from optscope.tasks.mixtures import Lattice, Ring
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Data, Split

RULE = Players(generator=Adam(lr=2e-3, beta1=0.5), discriminator=SGD(lr=0.1))


@dataclass(frozen=True)
class Points:
    """A few fixed points in the plane."""

    n: int = 70

    def __call__(self) -> Data:
        part = Split(torch.randn(self.n, 2, generator=torch.Generator().manual_seed(5)),
                     torch.zeros(self.n, dtype=torch.int64))
        return Data(part, part, part)


def tiny(**changes) -> Game:
    return gan("points", Perceptron((4, 8, 2)), Perceptron((2, 8, 1)), Points(), latent=Normal(4), bounds=None,
               **changes)


def weights(trained):
    return torch.cat([p.detach().reshape(-1) for p in trained.snapshot.model.parameters()])


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_playing_equals_the_loop_a_user_would_write(critic_steps):
    played = train(tiny(critic_steps=critic_steps), RULE, Plan(2, 16, StepDecay(at=(0.5,))), seed=3)
    init, order, noise = (int(s.generate_state(1)[0]) for s in np.random.SeedSequence(3).spawn(3))
    torch.manual_seed(init)
    d, g = Perceptron((2, 8, 1))(), Perceptron((4, 8, 2))()
    opt_d, opt_g = torch.optim.SGD(d.parameters(), lr=0.1), torch.optim.Adam(g.parameters(), lr=2e-3,
                                                                           betas=(0.5, 0.999))
    data, draw, batches = Points()().train.inputs, torch.Generator().manual_seed(noise + 1), []
    for epoch in range(2 * critic_steps):
        batches += epoch_permutation(70, order, epoch).split(16)[:4]
    losses = []
    for round_ in range(8):
        for optimizer, lr in ((opt_d, 0.1), (opt_g, 2e-3)):
            optimizer.param_groups[0]["lr"] = lr if round_ < 4 else 0.1 * lr
        total = 0.0
        for step in range(critic_steps):
            real = d(data[batches[round_ * critic_steps + step]])
            fake = d(g(torch.randn(16, 4, generator=draw)).detach())
            loss = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
            opt_d.zero_grad()
            loss.backward()
            opt_d.step()
            total += float(loss.detach()) / critic_steps
        fake = d(g(torch.randn(16, 4, generator=draw)))
        loss = bce(fake, torch.ones_like(fake))
        opt_g.zero_grad()
        loss.backward()
        opt_g.step()
        losses.append([total, float(loss.detach())])
    expected = torch.cat([p.detach().reshape(-1) for p in (*d.parameters(), *g.parameters())])
    torch.testing.assert_close(weights(played), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(played.losses, torch.tensor(losses), rtol=1e-5, atol=1e-6)


def test_a_simultaneous_step_is_the_rule_on_the_whole_vector():
    game, plan = tiny(order="simultaneous"), Plan(1, 70)
    table = fresh_model(game, 1).double()
    names = dict(table.named_parameters())
    from optscope.vector import Layout
    layout = Layout.of(names)
    start = layout.flatten([p.detach() for p in names.values()])
    deal = Deal(game, plan, 1)
    real, latent = deal.batch(0).inputs.double(), deal.latent().double()
    networks = dict(table.named_children())
    grads = [g for player in game.players for g in torch.autograd.grad(
        player.loss(networks, real, latent), [*networks[player.name].parameters()])]
    step, _ = RULE.update(layout.flatten(grads), RULE.init(start, layout), start, layout)
    torch.testing.assert_close(weights(train(game, RULE, plan, 1)).double(), start + step, rtol=1e-5, atol=1e-6)
    alternating = weights(train(tiny(), RULE, plan, 1))
    assert torch.equal(alternating[:33], weights(train(game, RULE, plan, 1))[:33])  # the discriminator moves first
    assert not torch.equal(alternating[33:], weights(train(game, RULE, plan, 1))[33:])


def test_same_seed_same_bits_and_rules_share_what_is_dealt():
    before = torch.get_rng_state()
    plan = Plan(2, 16)
    a, b = (train(tiny(losses=WGANGP()), RULE, plan, 1) for _ in range(2))
    assert torch.equal(weights(a), weights(b))
    assert torch.equal(torch.get_rng_state(), before)
    other = train(tiny(losses=WGANGP()), Players(generator=SGD(lr=0.1), discriminator=Adam(lr=0.1)), plan, 1)
    assert torch.equal(other.losses[0, 0], a.losses[0, 0])
    seen = []
    watched = train(tiny(losses=WGANGP()), RULE, plan, 1, watch=lambda s: seen.append((s.step, len(s.losses))),
                   at=(0, 5, 8))
    assert seen == [(0, 0), (5, 5), (8, 8)]
    assert torch.equal(weights(watched), weights(a))


def test_loss_scale_moves_sgd_and_neither_normalised_descent_nor_the_other_player():
    @dataclass(frozen=True)
    class Louder:
        inner: object

        def __call__(self, networks, real, latent):
            return 10 * self.inner(networks, real, latent)
    game = tiny()
    loud = Game("loud", Points(), bounds=None, latent=Normal(4), players=(
        Player("discriminator", Perceptron((2, 8, 1)), Louder(NonSaturating().discriminator)), game.players[1]))
    plan = Plan(1, 70)  # one round
    for rule, same in ((NormalizedSGD(lr=0.1), True), (Adam(lr=0.01, eps=1e-12), True), (SGD(lr=0.1), False)):
        players = Players(generator=SGD(lr=0.1), discriminator=rule)
        first, second = (train(each, players, plan, 1).snapshot.model for each in (game, loud))
        for a, b in zip(first["discriminator"].parameters(), second["discriminator"].parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6) == same
    simultaneous = [train(gan("x", Perceptron((4, 8, 2)), Perceptron((2, 8, 1)), Points(), latent=Normal(4),
                             bounds=None, order="simultaneous", losses=pair), RULE, plan, 1).snapshot.model
                    for pair in (NonSaturating(), NonSaturating(generator=Louder(NonSaturating().generator)))]
    for a, b in zip(simultaneous[0]["discriminator"].parameters(), simultaneous[1]["discriminator"].parameters(),
                    strict=True):
        assert torch.equal(a, b)  # the generator's loss is none of the discriminator's business


def test_the_trace_is_what_happened():
    played = train(tiny(), Players(generator=NormalizedSGD(lr=0.03), discriminator=SGD(lr=0.1)), Plan(2, 16), 1)
    steps, slopes = played.traces["steps discriminator"], played.traces["slopes discriminator"]
    torch.testing.assert_close(steps, 0.1 * slopes, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(played.traces["steps generator"], torch.full((8, 4), 0.03), rtol=1e-4, atol=1e-6)
    assert played.metrics["path of the generator"] == pytest.approx(8 * 2 * 0.03, rel=1e-4)
    start, end = (m["generator"].parameters() for m in (fresh_model(tiny(), 1), played.snapshot.model))
    moved = [(a - b).detach().square().sum() for a, b in zip(start, end, strict=True)]
    assert played.metrics["distance of the generator"] == pytest.approx(float(sum(moved).sqrt()), rel=1e-5)
    logs = np.log10((steps.norm(dim=1) / played.traces["weights discriminator"].norm(dim=1)
                     / (played.traces["steps generator"].norm(dim=1)
                        / played.traces["weights generator"].norm(dim=1))).numpy())
    assert played.metrics["log pace ratio"] == pytest.approx(np.median(logs), rel=1e-6)


def test_divergence_is_data():
    wild = Players(generator=SGD(lr=1e30), discriminator=SGD(lr=1e30))
    played = train(tiny(), wild, Plan(3, 16), 1, at=(12,), watch=lambda s: pytest.fail("diverged"))
    assert played.diverged_at is not None
    assert played.metrics == {}


@pytest.mark.parametrize("changes", [{}, {"order": "simultaneous"}, {"critic_steps": 2}, {"losses": Saturating()}],
                         ids=str)
def test_a_fleet_equals_its_looped_twin(changes):
    game, plan = tiny(**changes), Plan(3, 16, StepDecay())
    rule = Players(generator=Graft(Adam(lr=(0.01, 0.02, 0.02)), SGD(lr=1.0)),
                   discriminator=Adam(lr=(0.01, 0.01, 0.03)))
    seen = {}
    fleet = play_members(game, rule, plan, (1, 1, 2), at=(0, 12), watch=lambda r, v: seen.update({r: dict(v)}))
    for i, (seed, lr_g, lr_d) in enumerate(((1, 0.01, 0.01), (1, 0.02, 0.01), (2, 0.02, 0.03))):
        alone = train(game, Players(generator=Graft(Adam(lr=lr_g), SGD(lr=1.0)), discriminator=Adam(lr=lr_d)), plan,
                     seed)
        both = torch.cat([fleet["discriminator"][i], fleet["generator"][i]])
        torch.testing.assert_close(both, weights(alone), rtol=1e-3, atol=1e-4)
        z = torch.randn(5, 4)
        torch.testing.assert_close(outputs(game, "generator", fleet, z)[i], alone.snapshot.model["generator"](z),
                                   rtol=1e-3, atol=1e-4)
    assert torch.equal(seen[12]["generator"], fleet["generator"])
    assert torch.equal(seen[0]["generator"][0], seen[0]["generator"][1])


# Losses

def test_the_gradient_penalty_of_a_linear_critic_is_known():
    critic = nn.Linear(3, 1)
    networks = {"discriminator": critic, "generator": nn.Linear(2, 3)}
    real, latent = torch.randn(6, 3), torch.randn(6, 2)
    with torch.no_grad():
        expected = (critic(networks["generator"](latent)).mean() - critic(real).mean()
                    + 7 * (critic.weight.norm() - 1) ** 2)
    loss = PenalisedCritic(penalty=7.0)(networks, real, latent)
    torch.testing.assert_close(loss.detach(), expected)
    (grad,) = torch.autograd.grad(loss, critic.weight)
    norm = critic.weight.detach().norm()
    penalty = 14 * (norm - 1) * critic.weight.detach() / norm
    fake = networks["generator"](latent).detach()
    torch.testing.assert_close(grad, penalty + (fake.mean(0) - real.mean(0)), rtol=1e-4, atol=1e-5)


def test_saturating_losses_are_the_two_sides_of_one_value():
    game = tiny(losses=Saturating())
    networks = dict(game.model().named_children())
    real, latent = torch.randn(6, 2), torch.randn(6, 4)
    of_d, of_g = (player.loss(networks, real, latent) for player in game.players)
    first = torch.nn.functional.softplus(-networks["discriminator"](real)).mean()
    torch.testing.assert_close(of_d - first, -of_g)


def test_mixtures_and_networks_are_what_they_say():
    data = Ring()()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20_000, 2_000, 2_000]
    apart = data.train.inputs - Ring().means[data.train.targets]
    assert float(apart.std()) == pytest.approx(0.05, rel=0.02)
    assert torch.bincount(data.train.targets).min() > 2300
    assert Lattice().means.unique(dim=0).shape == (25, 2)
    assert float(Lattice().means.sum()) == 0
    images = DCGenerator(latent=7, widths=(8, 4), size=28, channels=3, norm=False)()(torch.randn(2, 7)).detach()
    assert images.shape == (2, 3, 28, 28)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert DCDiscriminator((4, 8), size=28, channels=3)()(images).shape == (2, 1)
    for network, weights in ((ResGenerator()(), 4_276_739), (ResDiscriminator()(), 1_053_825)):
        assert sum(p.numel() for p in network.parameters()) == weights
    small = ResGenerator(latent=4, width=8)()(torch.randn(2, 4))
    assert ResDiscriminator(width=8)()(small).shape == (2, 1)
    larger = ResGenerator(latent=4, width=8, size=48)()(torch.randn(2, 4))
    assert larger.shape == (2, 3, 48, 48)
    assert ResDiscriminator(width=8)()(larger).shape == (2, 1)


# Runs and probes

def test_a_run_of_a_game_leaves_what_other_runs_leave(tmp_path):
    run = Run(tiny(), RULE, Plan(2, 16), 1)
    assert run.perform(RunFolder(tmp_path / run.id)) == "ok"
    store = Store(tmp_path / "new")
    run.perform(store.run_folder(run.id))
    store.add_uses([Use("demo", "mixed", "final", 1, repr(RULE), run.id)])
    records = store.records()
    assert records.by_seed("mixed", "learning rate")[1] == pytest.approx((2e-3 * 0.1) ** 0.5, rel=1e-5)
    assert np.isfinite(records.by_seed("mixed", "log pace ratio")[1])
    assert store.run_folder(run.id).series()["steps generator"].shape == (8, 4)
    other = Run(tiny(critic_steps=2), RULE, Plan(2, 16), 1)
    assert len({run.id, other.id, Run(tiny(losses=WGANGP()), RULE, Plan(2, 16), 1).id}) == 3
    assert run.id == Run(tiny(), RULE, Plan(2, 16), 1).id


GAME = tiny()


WIDE = replace(GAME.players[0], loss=lambda networks, real, latent: networks["discriminator"](real))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: train(GAME, Adam(lr=1e-3), Plan(1, 16), 1), r"give each player a rule, Players\(discriminator=..., g"),
    (lambda: train(GAME, Players(generator=SGD(lr=1.0), critic=SGD(lr=1.0)), Plan(1, 16), 1),
     '"critic", who does not play this game'),
    (lambda: Game("one", Points(), players=GAME.players[:1]), "two players or more.*got discriminator"),
    (lambda: Player("the judge", Perceptron((2, 1)), GAME.players[0].loss), "one word"),
    (lambda: Player("judge", Perceptron((2, 1)), GAME.players[0].loss, steps=0), "steps must be a whole"),
    (lambda: tiny(order="random"), '"alternating" or "simultaneous"; got \'random\''),
    (lambda: tiny(order="simultaneous", critic_steps=2), "makes 2: write order"),
    (lambda: play_members(gan("bn", DCGenerator(), DCDiscriminator(), Points(), latent=Normal(16)), RULE,
                          Plan(1, 16), (1,)), "no buffers"),
    (lambda: play_members(GAME, RULE, Plan(1, 16), ()), "one seed or more"),
    (lambda: play_members(tiny(losses=WGANGP()), RULE, Plan(1, 16), (1,)),
     "the loss of the discriminator cannot be computed for all members of a fleet at once"),
    (lambda: play_members(gan("drop", lambda: nn.Sequential(nn.Linear(4, 2), nn.Dropout()), Perceptron((2, 8, 1)),
                              Points(), latent=Normal(4)), RULE, Plan(1, 16), (1,)), "draws random numbers"),
    (lambda: play_members(replace(GAME, players=(WIDE, GAME.players[1])), RULE, Plan(1, 16), (1,)),
     "take its mean"),
    (lambda: DCGenerator(size=10), "multiple of 4; got 10"),
    (lambda: ResGenerator(size=36), "multiple of 8; got 36"),
    (lambda: Perceptron((3,)), "two positive whole numbers"),
    (lambda: Ring(std=0.0), "sizes > 0"),
    (lambda: Accuracy()(Snapshot(GAME.model(), GAME)), "'points' is of the kind 'game'|not one model but 2"),
    (lambda: Lipschitz()(Snapshot(GAME.model(), GAME)), "game"),
])
def test_bad_input(call, words):
    with pytest.raises(UserError, match=words):
        call()
