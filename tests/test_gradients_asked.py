"""Rules that ask for several gradients a step, and rules that stand for other weights, in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optscope.engine.plan import Plan
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.optim import (
    MARS,
    SAM,
    SGD,
    SVAG,
    AdamW,
    ByKind,
    Cosine,
    Decayed,
    Prodigy,
    Rounded,
    ScheduleFree,
    Where,
)
from optscope.optim.kinds import layers_of
from optscope.tasks.task import Task


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def task() -> Task:
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    return Task.from_tensors(network, (x, torch.arange(96) % 3), (x, torch.arange(96) % 3), name="noisy")


PLAN = Plan(epochs=2, batch=16)


def sam_by_hand(rho: float, steps: int, clip: float | None = None) -> nn.Module:
    """The same training as one writes it: dropout and statistics of the second pass are undone by hand."""
    training = Training(task(), SGD(lr=0.1), PLAN, seed=3)
    model = training.model
    for i in range(steps):
        batch = training.deal.batch(i)

        def slope(batch=batch):
            model.zero_grad()
            nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            return [p.grad for p in model.parameters()]
        with training._numbers:
            drawn = torch.get_rng_state()
            first = slope()
            length = rho / torch.linalg.vector_norm(torch.cat([g.reshape(-1) for g in first]))
            before = [p.detach().clone() for p in model.parameters()]
            buffers, after = [b.clone() for b in model.buffers()], torch.get_rng_state()
            with torch.no_grad():
                for p, g in zip(model.parameters(), first, strict=True):
                    p += length * g
            torch.set_rng_state(drawn)
            second = slope()
            torch.set_rng_state(after)
        with torch.no_grad():
            for p, w, g in zip(model.parameters(), before, second, strict=True):
                p.copy_(w - 0.1 * g)
            for b, kept in zip(model.buffers(), buffers, strict=True):
                b.copy_(kept)
    return model


@pytest.mark.parametrize("clip", [None, 0.5])
def test_sam_in_training_is_sam_by_hand_with_dropout_and_statistics_held(clip):
    training = Training(task(), SAM(SGD(lr=0.1), rho=0.05), Plan(epochs=2, batch=16, clip=clip), seed=3)
    training.advance(7)
    by_hand = sam_by_hand(0.05, 7, clip)
    theirs = by_hand.state_dict()
    for name, ours in training.model.state_dict().items():
        torch.testing.assert_close(ours, theirs[name], rtol=0, atol=2e-6, msg=name)
    assert training.evaluations == 14


def test_arms_stay_paired_beside_one_that_asks():
    """The second gradient draws what the first drew, and the stream goes on as after one."""
    plain, asking = (Training(task(), rule, PLAN, seed=1) for rule in (SGD(lr=0.1), SAM(SGD(lr=0.1), rho=1e-9)))
    for each in (plain, asking):
        each.advance(6)
    torch.testing.assert_close(plain.losses, asking.losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", [SAM(SGD(lr=0.1, momentum=0.9)), ScheduleFree(AdamW(lr=0.01, beta1=0.0)),
                                  Rounded(ScheduleFree(SGD(lr=0.1)), k=3), Rounded(SAM(SGD(lr=0.1)), k=3),
                                  ByKind(heads=SGD(lr=0.1), rest=ScheduleFree(AdamW(lr=0.01))), Prodigy(d0=1e-3),
                                  MARS(SGD(lr=0.1, momentum=0.9), exact=True)], ids=repr)
def test_a_training_goes_on_from_its_state_to_the_bit(rule):
    straight, stopped = (Training(task(), rule, PLAN, seed=2) for _ in range(2))
    straight.advance(12)
    stopped.advance(5)
    with stopped.looked_at() as snapshot:
        shown = [p.clone() for p in snapshot.model.parameters()]
    assert rule.averages != all(torch.equal(a, b) for a, b in zip(shown, stopped.model.parameters(), strict=True))
    other = Training(task(), rule, PLAN, seed=2)
    other.load_state_dict(stopped.state_dict())
    other.advance(12)
    assert torch.equal(straight.losses, other.losses)
    assert all(map(torch.equal, straight.model.parameters(), other.model.parameters()))


def test_schedule_free_is_measured_at_the_mean_of_its_path_and_takes_no_schedule():
    rule = ScheduleFree(SGD(lr=0.1))
    falling, constant = (Training(task(), rule, Plan(epochs=2, batch=16, **more), seed=2)
                         for more in ({"schedule": Cosine()}, {}))
    for each in (falling, constant):
        each.advance(12)
    assert torch.equal(falling.losses, constant.losses)
    path = Training(task(), rule, PLAN, seed=2)
    mean = None
    for t in range(1, 7):
        path.advance(t)
        state = path.state_dict()["sides"][0]["stepper"]["optimizer"]["state"]
        z = [state[i]["z"].clone() for i in sorted(state)]
        mean = z if mean is None else [m + (a - m) / t for m, a in zip(mean, z, strict=True)]
    with path.looked_at() as snapshot:
        for x, p in zip(mean, snapshot.model.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), x, rtol=0, atol=1e-6)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(10, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.gain = nn.Parameter(torch.ones(8))
        self.convolution = nn.Conv1d(8, 8, 3)
        self.head = nn.Linear(8, 10, bias=False)


def test_kinds_are_read_from_the_modules_that_own_parameters():
    assert {name: layer.kind for name, layer in layers_of(Block()).items()} == {
        "pos_embed": "embedding", "gain": "other", "token.weight": "embedding", "norm.weight": "norm",
        "norm.bias": "norm", "attention.in_proj_weight": "matrix", "attention.in_proj_bias": "bias",
        "attention.out_proj.weight": "matrix", "attention.out_proj.bias": "bias",
        "convolution.weight": "convolution",
        "convolution.bias": "bias", "head.weight": "head"}
    tied = Block()
    tied.head.weight = tied.token.weight
    assert layers_of(tied)["token.weight"].kind == "embedding"
    assert layers_of(tied)["convolution.weight"].kind == "head"


def test_the_rest_decays_no_vectors_and_named_parts_do_as_they_say():
    model = Block()
    for rule, still in ((ByKind(rest=AdamW(lr=0.1, decay=0.5)), True),
                        (ByKind(vectors=AdamW(lr=0.1, decay=0.5), rest=SGD(lr=0.1)), False)):
        optimizer = rule.optimizer_of(model)
        before = model.gain.detach().clone()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert torch.equal(before, model.gain) == still


@pytest.mark.parametrize(("make", "words"), [
    (lambda: ByKind(matrizes=SGD(lr=0.1)), 'matrices'),
    (lambda: ByKind(), "got none"),
    (lambda: ByKind(matrices=0.1), "give a rule to each part"),
    (lambda: ByKind(matrices=SGD(lr=0.1)).optimizer_of(network()), "no part: add rest=..."),
    (lambda: ByKind((Where("0.*"), SGD(lr=0.1)), matrices=SGD(lr=0.1), rest=SGD(lr=1.0)).optimizer_of(network()),
     "'0.weight' .matrix. is claimed by Where.* and matrices"),
    (lambda: ByKind(convolutions=SGD(lr=0.1), rest=SGD(lr=1.0)).optimizer_of(network()), "convolutions claims no"),
    (lambda: Rounded(ByKind(rest=SGD(lr=1.0)), 3).optimizer(network().parameters()), "rule.optimizer_of"),
    (lambda: SAM(SGD(lr=0.1)).optimizer(network().parameters()).step(), "call step.closure"),
    (lambda: SAM(SAM(SGD(lr=0.1))), "one gradient a step"),
    (lambda: SVAG(SAM(SGD(lr=0.1))), "one a step"),
    (lambda: SAM(SGD(lr=0.1)).update(torch.ones(1), {}, torch.ones(1), None), "call seek"),
    (lambda: ScheduleFree(SGD(lr=0.1), beta=0.0), "beta must be"),
    (lambda: Decayed(SGD(lr=0.1), 0.1).with_(**{"other.lr": 1.0}), "holds no rule 'other'"),
])
def test_what_cannot_be_is_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_rates_of_parts_are_tied_by_their_ratio_or_changed_apart():
    rule = ByKind(matrices=SGD(lr=0.4), rest=AdamW(lr=0.001))
    assert rule.with_(lr=0.2) == ByKind(matrices=SGD(lr=0.2), rest=AdamW(lr=0.0005))
    assert rule.with_(**{"rest.decay": 0.3}) == ByKind(matrices=SGD(lr=0.4), rest=AdamW(lr=0.001, decay=0.3))
    assert eval(repr(rule)) == rule
    split = ByKind((Where("0.*"), SGD(lr=0.1)), rest=AdamW(lr=0.001))
    assert eval(repr(split)) == split
