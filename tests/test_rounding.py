"""Rounding twins: what k changes and what it must not, on every rule; and how far twins part."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from optscope.engine import observed
from optscope.engine.plan import Plan
from optscope.engine.run_folder import RunFolder
from optscope.engine.saving import Saving
from optscope.engine.train import train
from optscope.engine.weight_paths import apart, log_spaced, weight_paths
from optscope.errors import UserError
from optscope.evidence.growth import growth_rate
from optscope.optim import SGD, Adam, Decayed, Foreign, Rounded, Scheduled, StepDecay
from optscope.probes.probe import Reading
from optscope.tasks.images import FashionMNIST
from optscope.tasks.smooth import Conv3
from optscope.tasks.task import Task
from optscope.vector import Layout
from test_rules import ROWS, made, run_optimizer, run_pure, tensors
from tiny import TASK, Blobs, Net

RULES = [row.rule for row in ROWS if not isinstance(row.rule, Rounded)]
rules = pytest.mark.parametrize("rule", RULES, ids=repr)
EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@rules
@pytest.mark.parametrize("dtype", EPS)
def test_powers_of_two_change_no_bit(rule, dtype):
    start = tensors(dtype=dtype)
    layout = Layout.of(start)
    one = run_optimizer(made(Rounded(rule, 1)), start, steps=6)
    pure = run_pure(Rounded(rule, 1), layout.flatten(start), layout, steps=6)
    for k in (2, 4, 1024):
        assert torch.equal(run_optimizer(made(Rounded(rule, k)), start, steps=6), one)
        assert torch.equal(run_pure(Rounded(rule, k), layout.flatten(start), layout, steps=6), pure)


@rules
def test_another_k_changes_the_last_bits_of_a_step_and_no_more(rule):
    # Small weights, so that the last bits of a step are bits of the weights too.
    start = [1e-3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))]
    before = Layout.of(start).flatten(start)
    one = run_optimizer(made(Rounded(rule, 1)), start, steps=1)
    # Each of the roundings (of lr k, of s/(lr k), of the product and the sum) is half a unit in the last place.
    bound = 4 * EPS[torch.float32] * ((one - before).abs() + one.abs())
    for k in (3, 5, 7, 9, 11):
        other = run_optimizer(made(Rounded(rule, k)), start, steps=1)
        assert not torch.equal(one, other) or torch.equal(one, before)  # a warm-up starts with no step
        assert ((one - other).abs() <= bound).all()


def test_the_step_is_the_inner_rules_to_rounding():
    start = tensors(dtype=torch.float64)
    for k in (1, 3):
        torch.testing.assert_close(run_optimizer(Rounded(Adam(lr=0.01), k).optimizer, start),
                                   run_optimizer(Adam(lr=0.01).optimizer, start), rtol=1e-11, atol=1e-13)


def test_a_perturbation_of_the_first_step_only_is_that_of_one_step():
    start = tensors(dtype=torch.float32)
    first, always, one = (run_optimizer(rule.optimizer, start, steps=1) for rule in (
        Rounded(SGD(lr=0.05), 3, steps=1), Rounded(SGD(lr=0.05), 3), Rounded(SGD(lr=0.05), 1)))
    assert torch.equal(first, always)
    assert not torch.equal(first, one)
    late = Rounded(SGD(lr=0.05), 3, steps=1)
    layout = Layout.of(start)
    state = late.init(layout.flatten(start), layout) | {"step": torch.tensor(1.0)}
    grad = layout.flatten(tensors(1, torch.float32))
    stepped, _ = late.update(grad, state, layout.flatten(start), layout)
    plain = Rounded(SGD(lr=0.05), 1)
    assert torch.equal(stepped, plain.update(grad, state, layout.flatten(start), layout)[0])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Rounded(SGD(lr=0.1), k=0), "Rounded: k must be a whole number >= 1; got 0"),
    (lambda: Rounded(SGD(lr=0.1), k=1.5), "got 1.5"),
    (lambda: Rounded(SGD(lr=0.1), k=3, steps=0), "Rounded: steps must be a whole number >= 1; got 0"),
    (lambda: weight_paths(TASK, [SGD(lr=0.1)], Plan(1, 8), 0), "paths are compared of two rules or more; got 1"),
])
def test_bad_input_gets_a_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


# Weight paths

def two(rule, *ks, epochs=20, **how):
    return weight_paths(TASK, [Rounded(rule, k) for k in (1, *ks)], Plan(epochs, 16), seed=0, **how)


def test_paths_are_two_trainings_compared():
    found = two(SGD(lr=0.5), 3, at=(1, 60, 120))
    assert found.steps.tolist() == [1, 60, 120]
    for rule, trained in zip((Rounded(SGD(lr=0.5), 1), Rounded(SGD(lr=0.5), 3)), found.trained, strict=True):
        alone = train(TASK, rule, Plan(20, 16), 0)
        assert torch.equal(alone.losses, trained.losses)
    a, b = (np.concatenate([p.detach().numpy().ravel() for p in t.snapshot.model.parameters()]).astype(np.float64)
            for t in found.trained)
    np.testing.assert_allclose(found.distance[0, -1], np.mean(2 * abs(a - b) / (abs(a) + abs(b))), rtol=1e-6)
    np.testing.assert_allclose(found.relative[0, -1], np.linalg.norm(a - b) / np.linalg.norm(a), rtol=1e-6)
    assert 0 < found.distance[0, 0] < 1e-6


def test_equal_twins_never_part():
    found = two(Decayed(SGD(lr=0.5, momentum=0.9), decay=1e-3), 1, 2, 4)
    assert found.steps[-1] == 120
    assert (found.distance == 0).all()
    assert (found.relative == 0).all()


def test_twins_of_a_deep_net_start_at_the_last_bit():
    """One step of float32 on a ReLU net with batch normalisation: 1.7e-8 to 3.8e-8 in a pilot of other code."""
    task = Task("fashion-mnist", Conv3(), FashionMNIST(256, 100, 100))
    rule = Scheduled(SGD(lr=0.1, momentum=0.9), StepDecay(), steps=10)
    found = weight_paths(task, [Rounded(rule, k) for k in (1, 3, 5, 7, 9, 11, 2)], Plan(1, 128), 0, at=(1,))
    assert ((found.distance[:-1, 0] > 1e-10) & (found.distance[:-1, 0] < 1e-7)).all()
    assert found.distance[-1, 0] == 0


def test_a_twin_that_diverges_leaves_nan():
    task = Task.from_tensors(Net(), Blobs()().train, Blobs()().test, bounds=None)
    found = weight_paths(task, [SGD(lr=0.1), SGD(lr=1e30)], Plan(2, 8), 0)
    assert found.trained[0].diverged_at is None
    assert found.trained[1].diverged_at is not None
    assert math.isnan(found.distance[0, -1])


def test_everyone_is_watched():
    seen = []
    two(Foreign("torch.optim:SGD", lr=0.1), 3, epochs=1, at=(2, 6),
        watch=lambda i, snapshot, memory: seen.append((i, snapshot.step)))
    assert seen == [(0, 2), (1, 2), (0, 6), (1, 6)]


def test_twins_that_are_stopped_go_on_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(observed, "SHARE", math.inf)  # they are saved after every turn, however long a file takes
    folder, seen = RunFolder(tmp_path / "run"), []

    def watch(i, snapshot, memory):
        seen.append((i, snapshot.step))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return Reading({"loss": float(snapshot.losses[-1])}, memory={"looks": memory.get("looks", 0) + 1})

    def followed(saving=None):
        return two(Rounded(SGD(lr=0.5), 1), 3, at=(1, 61, 120), watch=watch, saving=saving)

    with pytest.raises(KeyboardInterrupt):
        followed(Saving(folder, "call", 0.0))
    assert folder.state() is not None
    resumed = followed(Saving(folder, "call", 0.0))
    assert folder.state() is None
    assert seen == [(0, 1), (1, 1), (0, 61), (1, 61), (0, 120), (0, 120), (1, 120)]  # what was saved, once
    whole = followed()
    for one, other in ((resumed.distance, whole.distance), (resumed.relative, whole.relative)):
        np.testing.assert_array_equal(one, other)
    assert [dict(each) for each in resumed.seen] == [dict(each) for each in whole.seen]
    assert [each.losses.tolist() for each in resumed.trained] == [each.losses.tolist() for each in whole.trained]


def test_moments():
    assert log_spaced(1) == [1]
    found = log_spaced(10_000)
    assert (found[0], found[-1], len(set(found))) == (1, 10_000, len(found))
    assert max(b / a for a, b in pairwise(found[10:])) < 1.35


def test_distance_of_equal_and_opposite_vectors():
    a = torch.tensor([0.0, 1.0, -3.0])
    assert apart(a, a) == (0.0, 0.0)
    assert apart(a, -a) == (pytest.approx(4 / 3), pytest.approx(2.0))


# Growth

def test_growth_rate_finds_the_rate_between_its_bounds():
    t = np.arange(200.0)
    noise = np.exp(0.1 * np.random.default_rng(0).normal(size=200))
    d = noise * np.minimum(1e-8 * np.exp(0.2 * t), 0.3)
    found = growth_rate(t, d, 1e-7, 1e-2)
    assert found.low < 0.2 < found.high
    assert found.high - found.low < 0.02
    assert found.n < 70


def test_no_growth_is_nan():
    assert math.isnan(growth_rate([1, 2, 3], [1e-7, 1e-7, 2e-7], 1e-6, 1e-2).estimate)
    assert math.isnan(growth_rate([1, 2], [1e-9, 1.0], 1e-6, 1e-2).estimate)
