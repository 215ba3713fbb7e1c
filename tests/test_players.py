"""Rules of games and norms over blocks: what each player's step is, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import optscope.optim as optim
from optscope.errors import UserError
from optscope.optim import SGD, Adam, Decayed, Graft, NormalizedSGD, Players
from optscope.optim.players import players_of
from optscope.vector import Layout

NAMES = ("discriminator.0.weight", "discriminator.0.bias", "generator.0.weight", "generator.2.weight",
         "generator.2.bias")
SHAPES = tuple(map(torch.Size, [(4, 3), (4,), (3, 5), (2, 3), (2,)]))
LAYOUT = Layout(NAMES, SHAPES)
D, G = slice(0, 16), slice(16, 39)
GRAD = torch.randn(39, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ZERO = torch.zeros(39, dtype=torch.float64)


def step(rule, grad=GRAD, layout=LAYOUT):
    return rule.update(grad, rule.init(torch.zeros_like(grad), layout), torch.zeros_like(grad), layout)[0]


def test_each_player_is_stepped_by_its_own_rule_alone():
    both = step(Players(generator=NormalizedSGD(lr=0.1, per="model"), discriminator=Adam(lr=0.01)))
    inner = Layout(("0.weight", "2.weight", "2.bias"), SHAPES[2:])
    assert torch.equal(both[G], step(NormalizedSGD(lr=0.1, per="model"), GRAD[G], inner))
    assert torch.equal(both[D], step(Adam(lr=0.01), GRAD[D], Layout(("0.weight", "0.bias"), SHAPES[:2])))
    scaled = step(Players(generator=SGD(lr=1.0), discriminator=NormalizedSGD(lr=1.0)),
                  torch.cat([GRAD[D], 10 * GRAD[G]]))
    assert torch.equal(scaled[D], step(NormalizedSGD(lr=1.0), GRAD[D], Layout(NAMES[:2], SHAPES[:2])))


def test_members_of_players_equal_separate_runs():
    rule = Players(generator=Adam(lr=(0.1, 0.2)), discriminator=SGD(lr=0.3))
    assert rule.lr == (pytest.approx(0.03**0.5, rel=1e-5), pytest.approx(0.06**0.5, rel=1e-5))
    grads = torch.stack([GRAD, 2 * GRAD])
    together = step(rule, grads)
    for member, lr, grad in zip(together, (0.1, 0.2), grads, strict=True):
        alone = step(Players(generator=Adam(lr=lr), discriminator=SGD(lr=0.3)), grad)
        torch.testing.assert_close(member, alone, rtol=0, atol=1e-15)


def test_repr_is_the_rule_and_rates_scale_together():
    rule = Players(generator=Graft(Adam(lr=0.01), SGD(lr=1.0)), discriminator=NormalizedSGD(lr=0.09))
    assert eval(repr(rule), vars(optim)) == rule
    assert rule.lr == pytest.approx(0.03)
    changed = rule.with_(lr=0.3)
    assert [r.lr for _, r in changed.rules] == pytest.approx([0.9, 0.1])
    assert rule.with_(generator=SGD(lr=1.0)).by_name["generator"] == SGD(lr=1.0)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: Players(), "got none"),
    (lambda: Players(generator=0.1), "got generator=0.1"),
    (lambda: Players(generator=SGD(lr=1.0)).with_(critic=SGD(lr=1.0)), "no player 'critic'"),
    (lambda: step(Players(generator=SGD(lr=1.0), discriminatr=SGD(lr=1.0))),
     'a rule for "discriminatr", who does not play this game; did you mean "discriminator"'),
    (lambda: step(Players(generator=SGD(lr=1.0))), 'the player "discriminator" has no rule'),
    (lambda: Players(generator=SGD(lr=1.0)).optimizer([]), "train a Game with them"),
    (lambda: players_of(Layout(("a.w", "b.w", "a.v"), SHAPES[:3])), "must follow each other"),
    (lambda: NormalizedSGD(lr=0.1, per="modul"), 'did you mean "module"'),
    (lambda: Graft(NormalizedSGD(lr=0.1, per="model"), SGD(lr=1.0), per="module").optimizer_of(nn.Linear(2, 2)),
     "over modules and over the model"),
])
def test_bad_input(call, words):
    with pytest.raises(UserError, match=words):
        call()


# Lengths, as each name promises

@pytest.mark.parametrize(("per", "blocks"), [
    ("layer", [slice(0, 12), slice(12, 16), slice(16, 31), slice(31, 37), slice(37, 39)]),
    ("module", [slice(0, 16), slice(16, 31), slice(31, 39)]), ("model", [slice(0, 39)])])
def test_normalised_steps_have_the_promised_length_in_every_block(per, blocks):
    unit, rms = step(NormalizedSGD(lr=0.1, per=per)), step(NormalizedSGD(lr=0.1, per=per, rms=True))
    grafted = step(Graft(Adam(lr=0.1), SGD(lr=1.0), per=per))
    for block in blocks:
        n = block.stop - block.start
        for found, length in ((unit, 0.1), (rms, 0.1 * n**0.5), (grafted, float(step(Adam(lr=0.1))[block].norm()))):
            assert float(found[block].norm()) == pytest.approx(length, rel=1e-12)
            cosine = torch.nn.functional.cosine_similarity(found[block], -GRAD[block], dim=0)
            assert float(cosine) == pytest.approx(1, abs=1e-12)


def test_grafts_take_length_from_one_rule_and_direction_from_the_other():
    length, there = step(SGD(lr=0.1)), step(Adam(lr=1.0))
    found = step(Graft(SGD(lr=0.1), Adam(lr=1.0)))
    for part, m, d in zip(*(LAYOUT.views(v) for v in (found, length, there)), strict=True):
        torch.testing.assert_close(part, d * m.norm() / d.norm(), rtol=1e-12, atol=0)
    # Adam's first step is a sign, so the graft's has the length of lr √n where no gradient is 0.
    first = step(Graft(Adam(lr=0.1, eps=1e-30), SGD(lr=1.0)))
    assert LAYOUT.norms(first).tolist() == pytest.approx([0.1 * math.sqrt(n) for n in LAYOUT.sizes])


@pytest.mark.parametrize("rule", [NormalizedSGD(lr=0.1, per="module"),
                                  NormalizedSGD(lr=0.1, per="module", rms=True),
                                  Decayed(Graft(Adam(lr=0.1), SGD(lr=1.0), per="module"), decay=0.01)], ids=repr)
def test_an_optimiser_of_a_model_takes_norms_over_its_modules(rule):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    named = dict(model.named_parameters())
    layout = Layout.of(named)
    start = layout.flatten([p.detach() for p in named.values()])
    model(torch.randn(8, 3, dtype=torch.float64)).square().sum().backward()
    grad = layout.flatten([p.grad for p in named.values()])
    optimizer = rule.optimizer_of(model)
    optimizer.step()
    expected = start + rule.update(grad, rule.init(start, layout), start, layout)[0]
    assert len(optimizer.param_groups) == 3
    torch.testing.assert_close(layout.flatten([p.detach() for p in named.values()]), expected, rtol=0, atol=1e-14)
