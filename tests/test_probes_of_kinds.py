"""Every probe on every kind of task: it measures as slow twins in float64 do, or says in a sentence why not."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from kinds_of_tasks import IMAGES, TASKS, WORDS, X, Y, rand, thrice, whole
from optscope.engine.plan import Plan
from optscope.engine.rehearsal import rehearse
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.evidence.paired import paired_test
from optscope.optim import SGD, Adam, Players
from optscope.probes import at_weights
from optscope.probes.accuracy import Accuracy, Checkpoint
from optscope.probes.apgd import APGD, TargetedAPGD
from optscope.probes.at_weights import AtWeights, change_by_parts, mean_gradient
from optscope.probes.attack import FGSM, PGD
from optscope.probes.batch_sharpness import BatchSharpness
from optscope.probes.black_box import RandomSearch
from optscope.probes.chance import Chance
from optscope.probes.coverage import Coverage
from optscope.probes.curvature import (
    HessianTrace,
    LayerSharpness,
    PreconditionedSharpness,
    SpectralDensity,
    TopEigenvalues,
)
from optscope.probes.edge import EdgeOfStability
from optscope.probes.ensemble import Ensemble
from optscope.probes.fid import FID
from optscope.probes.frequency import DCT, Fourier, SensitivityMap
from optscope.probes.game_field import Rotation
from optscope.probes.geometry import FirstStep, Geometry, Margin
from optscope.probes.gradient_noise import DescentSplit, GradientNoise
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.modes import Classes, Modes, Samples
from optscope.probes.needs import fitting, lacking
from optscope.probes.noise import BandNoise, GaussianNoise
from optscope.probes.robust import RobustAccuracy
from optscope.protocol.comparison import Arm
from optscope.protocol.kits import kit_of
from optscope.tasks.examples import Examples
from optscope.tasks.mixtures import Ring
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Data, InMemory, Split, Task
from optscope.tasks.tree import Batch

GAMES = {"game"}
ALONE = set(TASKS) - GAMES
CLASSES = {"classifier", "pictures", "by name", "trained loss", "loss of the batch"}
FLOATING = CLASSES | {"odd regression", "multi-label", "segmenter"}
MEANS = ALONE - {"segmenter", "tagger"}  # some of whose labels do not count

ATTACKS = (FGSM(), PGD(3, restarts=2), APGD(steps=3), TargetedAPGD(2, 3), RandomSearch(5),
           Ensemble((PGD(2), APGD(steps=2))))
FITS = {
    Accuracy(): ALONE, Checkpoint(): ALONE, Chance(): ALONE, Geometry(): ALONE, FirstStep(): ALONE,
    TopEigenvalues(k=2, rel=0.1): ALONE, TopEigenvalues(rel=0.1, gauss_newton=True): ALONE,
    PreconditionedSharpness(rel=0.1): ALONE, EdgeOfStability(): ALONE, BatchSharpness(8): ALONE,
    LayerSharpness(rel=0.1): ALONE,
    HessianTrace(6): ALONE, SpectralDensity(1, 4): ALONE, GradientNoise(3): MEANS, DescentSplit(8, 4): MEANS,
    Margin(): CLASSES, GaussianNoise(): CLASSES, BandNoise(bands=3): {"pictures"},
    SensitivityMap(basis=DCT()): {"pictures"}, SensitivityMap(basis=Fourier()): {"pictures"},
    **{RobustAccuracy(norm, (0.05, 0.2), attack, checked=5): CLASSES
       for norm in ("l2", "linf") for attack in ATTACKS},
    Lipschitz(climb=2): FLOATING, Coverage(samples=50): GAMES, Modes(Ring(), 50): GAMES, Samples(): GAMES,
    Rotation(examples=16): GAMES, Classes(): set(), FID(): set(),
}


@pytest.fixture(scope="module")
def trained():
    """A trained snapshot of every task, with its live optimiser."""
    def one(task):
        rule = Adam(lr=0.01)
        many = len(task.objectives) > 1
        return train(task, Players(generator=rule, discriminator=rule) if many else rule, Plan(1, 20), 0).snapshot

    return {name: one(task) for name, task in TASKS.items()}


@pytest.mark.parametrize("probe", FITS, ids=repr)
def test_a_probe_measures_or_says_why_not(probe, trained):
    for name, snapshot in trained.items():
        before = {key: value.clone() for key, value in snapshot.model.state_dict().items()}
        if name not in FITS[probe]:
            with pytest.raises(UserError) as said:
                probe(snapshot)
            assert re.fullmatch(r".{20,}", str(said.value))  # one line
            continue
        reading = probe(snapshot)
        assert reading.values or reading.arrays
        for value in reading.values.values():
            assert not any(map(math.isnan, value.values() if isinstance(value, dict) else [value]))
        assert all(torch.equal(value, before[key]) for key, value in snapshot.model.state_dict().items())


def test_what_fits_a_task_is_a_filter_over_a_list():
    probes = [probe for probe in FITS if not isinstance(probe, (GradientNoise, DescentSplit, Classes, FID))]
    for name, task in TASKS.items():
        assert fitting(probes, task) == tuple(probe for probe in probes if name in FITS[probe])
    assert "ids" not in lacking(Margin(), TASKS["by name"])
    two = replace(TASKS["by name"], data=thrice({**WORDS, "attention_mask": WORDS["attention_mask"].float()}, Y))
    assert 'write perturb="features" in the task' in lacking(Lipschitz(), two)
    assert fitting([Lipschitz()], replace(two, perturb="features")) == (Lipschitz(),)
    assert 'perturb="input_ids" names torch.int64' in lacking(Lipschitz(), replace(two, perturb="input_ids"))
    assert "no leaf 'x', but input_ids, features" in lacking(Lipschitz(), replace(two, perturb="x"))


def test_what_is_said_of_a_task_that_lacks_a_need(trained):
    for probe, name, words in (
            (Rotation(), "tagger", "needs a game; tagger is none"), (Samples(), "causal", 'a player "generator"'),
            (Margin(), "causal", "the causal-lm task 'causal' has torch.int64 targets"),
            (RobustAccuracy(), "segmenter", "needs a classification task"),
            (Lipschitz(), "causal", "must be floating point to have a slope; got torch.int64"),
            (Accuracy(), "game", "a game is not one model but 2"), (Geometry(), "game", "a game is not one model"),
            (BandNoise(), "by name", "frequencies need images"),
            (GradientNoise(), "tagger", "mean over examples; .*ignored labels")):
        with pytest.raises(UserError, match=words):
            probe(trained[name])


@pytest.mark.parametrize("name", TASKS)
def test_what_a_comparison_usually_measures_is_measured(name):
    task = TASKS[name]
    kit, many = kit_of(task), len(task.objectives) > 1
    rule = Players(generator=SGD(lr=0.1), discriminator=SGD(lr=0.1)) if many else SGD(lr=0.1)
    probes = (*kit.probes(task, 8), *kit.describing(task, 8))
    found = rehearse(task, {"SGD": rule}, Plan(1, 8), probes, kit.watched([Arm("SGD", rule)]))
    assert not found.broken
    silent = {type(probe).__name__ for probe in found.silent}
    assert silent == (set() if name in MEANS | GAMES else {"GradientNoise"})
    attacked = any(isinstance(probe, RobustAccuracy) for probe in probes)
    assert attacked == (name in CLASSES)
    assert any(isinstance(probe, Lipschitz) for probe in probes) == (name in FLOATING)
    said = " ".join(kit.left_out(task))
    assert ("Lipschitz bounds are not measured: inputs must be floating point" in said) == (
        name in ALONE - FLOATING)


# Slow twins


class Value(nn.Module):
    """A task's mean loss as a module of one argument, which `functional_call` takes."""

    def __init__(self, task, model):
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch):
        return self.task.value(self.model, batch)


def doubled(task):
    """A task in float64, with a snapshot of an untrained model."""
    part = task.data().train.mapped(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
    made = replace(task, data=thrice(part.inputs, part.targets))
    torch.manual_seed(3)
    return Snapshot(task.model().double(), made, 1, 5, SGD(lr=0.1))


def flat(snapshot):
    """The mean loss as a function of all weights as one vector, and these."""
    value = Value(snapshot.task, snapshot.model.eval())
    named = {name: p.detach() for name, p in value.named_parameters()}

    def loss(w, batch):
        pieces = w.split([p.numel() for p in named.values()])
        return functional_call(value, {name: piece.view(p.shape) for (name, p), piece
                                       in zip(named.items(), pieces, strict=True)}, (batch,))

    return loss, torch.cat([p.flatten() for p in named.values()])


def gradient(loss, w, batch):
    w = w.clone().requires_grad_()
    return torch.autograd.grad(loss(w, batch), w)[0]


TWINS = ("by name", "trained loss", "loss of the batch", "recommender", "odd regression", "multi-label",
         "segmenter", "tagger", "causal")


@pytest.mark.parametrize("name", TWINS)
def test_curvature_against_the_dense_hessian(name):
    snapshot = doubled(TASKS[name])
    batch = snapshot.task.data().train
    loss, w = flat(snapshot)
    H = torch.autograd.functional.hessian(lambda each: loss(each, batch), w)
    exact = torch.linalg.eigvalsh(H)
    found = TopEigenvalues(k=2, rel=1e-6)(snapshot)
    assert found.arrays["eigenvalues"] == pytest.approx(exact.flip(0)[:2].numpy(), rel=1e-4, abs=1e-9)
    trace = HessianTrace(3 * len(w))(snapshot).values
    assert trace["Hessian trace"] == pytest.approx(float(H.trace()), rel=1e-8)
    g = gradient(loss, w, batch)
    step = FirstStep()(snapshot).values
    assert step["step length"] == pytest.approx(0.1 * float(g.norm()), rel=1e-9)
    assert step["step cosine"] == pytest.approx(1)
    accuracy = Accuracy()(snapshot).values
    assert accuracy["loss"] == pytest.approx(float(loss(w, batch)), rel=1e-12)


@pytest.mark.parametrize("name", ["by name", "trained loss", "tagger", "causal"])
def test_other_matrices_against_dense_ones(name):
    snapshot = doubled(TASKS[name])
    batch = snapshot.task.data().train
    loss, w = flat(snapshot)
    H = torch.autograd.functional.hessian(lambda each: loss(each, batch), w)
    named = dict(snapshot.model.named_parameters())
    blocks = H.split([p.numel() for p in named.values()])
    starts = np.cumsum([0, *(p.numel() for p in named.values())])
    tops = [float(torch.linalg.eigvalsh(block[:, a:b])[-1])
            for block, a, b in zip(blocks, starts, starts[1:], strict=False)]
    layers = LayerSharpness(rel=1e-6)(snapshot)
    assert layers.arrays["layers"].tolist() == list(named)
    assert list(layers.values["layer sharpness"].values()) == pytest.approx(tops, rel=1e-4, abs=1e-7)

    def outputs(each):
        pieces = each.split([p.numel() for p in named.values()])
        weights = {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return snapshot.task.outputs(lambda *xs, **by_name: functional_call(snapshot.model, weights, xs, by_name),
                                     batch.inputs)

    whole = outputs(w).detach()
    J = torch.autograd.functional.jacobian(outputs, w).flatten(0, -2)
    B = torch.autograd.functional.hessian(
        lambda z: snapshot.task.judged(snapshot.model, z.view(whole.shape), batch), whole.flatten())
    exact = torch.linalg.eigvalsh(J.T @ B @ J)
    found = TopEigenvalues(rel=1e-6, gauss_newton=True)(snapshot).values["sharpness"]
    assert found == pytest.approx(float(exact[-1]), rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(TWINS) & MEANS))
def test_gradient_noise_against_single_gradients(name):
    snapshot = doubled(TASKS[name])
    loss, w = flat(snapshot)
    own = name == "trained loss"  # for weights of the user's own there is no rule: parts are taken
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)) if own else torch.arange(40)
    size = 5 if own else 1
    parts = snapshot.task.data().train.take(order).split(size)
    g = np.stack([torch.stack([gradient(loss, w, one) for one in part.split(1)]).mean(0) for part in parts])
    noise = size * ((g - g.mean(0)) ** 2).sum() / (len(g) - 1)
    reading = GradientNoise()(snapshot)
    assert ("over 8 parts" in reading.silence) == own
    found = reading.values
    assert found["gradient noise"] == pytest.approx(noise, rel=1e-8)
    assert found["gradient square"] == pytest.approx((g.mean(0) ** 2).sum() - noise / 40, rel=1e-7, abs=1e-14)


@pytest.mark.parametrize("name", ["causal", "tagger", "segmenter", "odd regression"])
@pytest.mark.parametrize("most", [1, 4000])
def test_outputs_that_are_too_many_to_hold_are_compared_with_their_neighbours(name, most, monkeypatch):
    snapshot = doubled(TASKS[name])
    part = snapshot.task.data().train
    at = AtWeights(snapshot.model, call=snapshot.task.outputs)
    loss = snapshot.task.loss

    def change(parts):
        return change_by_parts(at, loss, list(parts), lambda each: [len(each)])

    expected = mean_gradient(at, loss, part, 40)
    held = change(part.split(5))
    monkeypatch.setattr(at_weights, "MOST", most)
    assert (change(part.split(5)) > 0) == (held > 0) == (name not in MEANS)
    torch.testing.assert_close(mean_gradient(at, loss, part, 3), expected, rtol=1e-9, atol=1e-12)
    last = torch.cat([torch.arange(39), torch.arange(1)])  # the last part alone is another
    uneven = part.take(last)
    if name == "causal":
        uneven.targets[35:, 3:] = -100
        assert change(uneven.split(5)) > 0


class Shifted(nn.Module):
    """A linear classifier of one leaf; another shifts its logits, a third, floating point too, scales them."""

    def __init__(self):
        super().__init__()
        self.shifts, self.head = nn.Embedding(5, 3), nn.Linear(6, 3)

    def forward(self, group, x, scale):
        return {"scores": self.head(x) * scale[:, None] + self.shifts(group)}


GROUPS, SCALES = whole(5, 40, seed=4), rand(40, seed=5) + 0.5


def shifted(seed=0):
    """A snapshot of it, in float64, with weights that are right often."""
    inputs = {"group": GROUPS, "x": X.double(), "scale": SCALES.double()}
    torch.manual_seed(seed)
    model = Shifted().double()
    with torch.no_grad():
        model.head.weight.mul_(4)
        y = model(**inputs)["scores"].argmax(1).where(torch.arange(40) % 5 > 0, Y)
    return Snapshot(model, Task("shifted", Shifted, thrice(inputs, y), output="scores", perturb="x"), 2)


def parts(snapshot):
    """Weights (n, 3, 6) and logits (n, 3) of every example, and its label."""
    model, batch = snapshot.model, snapshot.task.data().test
    with torch.no_grad():
        logits = model(**batch.inputs)["scores"]
    return model.head.weight.detach() * batch.inputs["scale"][:, None, None], logits, batch.targets


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_attacks_move_one_leaf_and_take_the_others_along(norm):
    snapshot = shifted()
    snapshot = replace(snapshot, task=replace(snapshot.task, bounds=None))
    weights, logits, y = parts(snapshot)
    lead = logits.gather(1, y[:, None]) - logits
    slope = (weights.gather(1, y[:, None, None].expand(-1, 1, 6)) - weights).norm(dim=2, p=2 if norm == "l2" else 1)
    radius = (lead / slope).masked_fill(functional.one_hot(y, 3).bool(), math.inf).amin(1)
    eps = (0.02, 0.05, 0.1, 0.2)
    clear = [int(i) for i in range(40) if all(abs(math.log(max(float(radius[i]), 1e-9) / e)) > 0.1 for e in eps)]
    smallest = [next((e for e in (0, *eps) if radius[i] <= e), math.inf) for i in clear]
    assert len(clear) > 25
    assert len(set(smallest)) > 3
    for attack in (PGD(60, restarts=2), APGD(steps=40), TargetedAPGD(2, 40)):
        found = RobustAccuracy(norm, eps, attack)(snapshot).arrays[f"fooled by {norm} radius"]
        assert found[clear].tolist() == smallest
    distance = Margin()(snapshot).arrays["boundary distances"]
    runner_up = logits.scatter(1, y[:, None], -math.inf).argmax(1)
    along = (weights[torch.arange(40), y] - weights[torch.arange(40), runner_up]).norm(dim=1)
    np.testing.assert_allclose(distance, (lead[torch.arange(40), runner_up] / along).numpy(), rtol=1e-9)


def test_noise_moves_one_leaf_and_takes_the_others_along():
    snapshot = shifted()
    batch = snapshot.task.data().test
    x, y = batch.inputs["x"], batch.targets
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    found = GaussianNoise(variances=(0.01, 0.1))(snapshot)
    for variance, correct in zip((0.01, 0.1), found.arrays["correct under gaussian noise"], strict=True):
        for i in range(40):
            moved = (x[i] + variance**0.5 * noise[i]).clamp(0, 1)
            alone = snapshot.model(GROUPS[i:i + 1], moved[None], batch.inputs["scale"][i:i + 1])["scores"]
            assert correct[i] == (int(alone.argmax()) == int(y[i]))


class Tinted(nn.Module):
    """Pictures with a tint, by name."""

    def __init__(self):
        super().__init__()
        self.head, self.tints = nn.Linear(64, 3), nn.Embedding(4, 3)

    def forward(self, pixel_values, tint):
        return SimpleNamespace(logits=self.head(pixel_values.flatten(1)) + self.tints(tint))


def test_bands_move_one_leaf_and_take_the_others_along():
    tint = whole(4, 40, seed=6)
    torch.manual_seed(0)
    model = Tinted()
    task = Task("tinted", Tinted, thrice({"pixel_values": IMAGES, "tint": tint}, Y))
    told = Snapshot(model, task, 2)
    for i in range(4):  # of one tint alone it is a model of pictures
        same = tint == i
        bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        bare[1].load_state_dict(model.head.state_dict())
        bare[1].bias.data += model.tints.weight[i].detach()
        plain = Snapshot(bare, Task("plain", nn.Identity, thrice(IMAGES, Y)), 2)
        for probe in (BandNoise(variance=0.05, bands=4), GaussianNoise((0.05, 0.2)), SensitivityMap(norm=1.0)):
            one, other = probe(told), probe(plain)
            for name, array in one.arrays.items():
                if array.dtype == bool:
                    np.testing.assert_array_equal(array[..., same], other.arrays[name][..., same])
        some = {"pixel_values": IMAGES[same], "tint": tint[same]}
        alone = Snapshot(model, replace(task, data=thrice(some, Y[same])), 2)
        single = Snapshot(bare, Task("plain", nn.Identity, thrice(IMAGES[same], Y[same])), 2)
        assert SensitivityMap(norm=1.0)(alone).values == SensitivityMap(norm=1.0)(single).values


def test_lipschitz_constants_are_those_in_one_leaf_at_the_others_of_any_example():
    snapshot = shifted()
    exact = float(SCALES.double().max() * torch.linalg.matrix_norm(snapshot.model.head.weight.detach(), ord=2))
    reading = Lipschitz(climb=3)(snapshot)
    assert reading.values["Lipschitz lower bound"] == pytest.approx(math.log10(exact), abs=1e-6)
    assert "there is no upper bound: the product of norms needs" in reading.silence


def test_a_trained_loss_is_no_part_of_the_map_whose_constant_is_bounded():
    task = TASKS["classifier"]
    learned = Task("learned", task.model, task.data, TASKS["trained loss"].loss)
    torch.manual_seed(0)
    model = learned.model()
    with_loss, without = Lipschitz()(Snapshot(model, learned)), Lipschitz()(Snapshot(model.model, task))
    assert with_loss.values == without.values
    assert len(with_loss.values) == 4


# Chance


def told(task, outputs, targets):
    """Of one example, (column, label, log losses of all labels) of every label that counts."""
    if task.kind == "multi-label":
        return [(j, int(targets[j]), [-functional.logsigmoid(-z).item(), -functional.logsigmoid(z).item()])
                for j, z in enumerate(outputs.double())]
    if task.kind == "segmentation":
        rows, labels = outputs.flatten(1).T, targets.flatten()
    else:
        rows, labels = (outputs[:-1], targets[1:]) if task.kind == "causal-lm" else (outputs, targets)
    return [(0, int(y), (-z.double().log_softmax(0)).tolist()) for z, y in zip(rows, labels, strict=True)
            if y not in (-100, 255)]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["causal", "tagger", "segmenter", "multi-label"])
def test_chance_against_a_loop_over_labels(name, seed):
    task = TASKS[name]
    torch.manual_seed(seed)
    snapshot = Snapshot(task.model(), task, 0)
    part = task.data().test
    with torch.no_grad():
        outputs = snapshot.model.eval()(part.inputs)
    every = [told(task, z, y) for z, y in zip(outputs, part.targets, strict=True)]
    columns = {}
    for column, label, losses in itertools.chain(*every):
        columns.setdefault(column, [0] * len(losses))[label] += 1
    right = sum(max(times) for times in columns.values())
    blind = {j: [-math.log((n + 0.5) / (sum(times) + 0.5 * len(times))) for n in times]
             for j, times in columns.items()}
    chances, losses = ([statistics.fmean(each) for each in both] for both in (
        [[blind[j][y] for j, y, _ in one] for one in every], [[of[y] for _, y, of in one] for one in every]))
    found = Chance()(snapshot).values
    total = sum(map(len, every))
    assert found["accuracy of the commonest class"] == pytest.approx(100 * right / total)
    p = paired_test(np.array(chances), np.array(losses), one_sided=True).p
    assert found["better than chance"] == float(p <= 0.025)
    assert not 0.024 < p < 0.026
    correct = sum(min(range(len(of)), key=of.__getitem__) == y for _, y, of in itertools.chain(*every))
    accuracy = Accuracy()(snapshot).values
    assert accuracy["accuracy"] == pytest.approx(100 * correct / total)
    loss = statistics.fmean(of[y] for _, y, of in itertools.chain(*every))
    assert accuracy["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_model_that_knows_the_next_token_beats_chance():
    tokens = (torch.arange(40)[:, None] + torch.arange(5)) % 6
    task = Task("cycle", nn.Identity, thrice(tokens, tokens), bounds=None, kind="causal-lm")
    model = nn.Embedding(6, 6)
    with torch.no_grad():
        model.weight.copy_(4 * torch.eye(6).roll(1, 1))
    assert Chance()(Snapshot(model, task)).values["better than chance"] == 1.0
    with torch.no_grad():
        model.weight.zero_()
    assert Chance()(Snapshot(model, task)).values["better than chance"] == 0.0


class Endless(Examples):
    """A stream of examples whose class is 1 twice in three times."""

    size, digest = None, "endless"

    def batch(self, epoch, step, size, order):
        """Draw some."""
        x = rand(size, 6, seed=order)
        return Batch(x, (torch.arange(size) % 3 > 0).long())

    def first(self, n):
        """Refuse to draw them all."""
        assert n is not None
        return self.batch(0, 0, n, 0)


def test_a_stream_is_known_by_a_sample():
    held = Split(X, (Y == 2).long())
    task = Task("stream", nn.Identity, InMemory(Data(Endless(), held, held)))
    model = nn.Linear(6, 2)
    reading = Chance()(Snapshot(model, task))
    assert reading.values["accuracy of the commonest class"] == pytest.approx(100 * float((Y == 2).double().mean()))
    probes = Chance(), Margin(), TopEigenvalues(rel=0.1), FirstStep(examples=30), Rotation()
    assert fitting(probes, task) == probes[:-1]
    assert TopEigenvalues(rel=0.1)(Snapshot(model, task)).values["sharpness"] > 0


def test_a_label_that_is_always_so_is_no_knowledge():
    y = torch.stack([torch.ones(40), torch.zeros(40), Y == 0], 1).long()
    task = Task("labels", nn.Identity, thrice(X, y), kind="multi-label")
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([5.0, -5.0, -0.7]))
    assert Chance()(Snapshot(model, task)).values["better than chance"] == 0.0
    assert Accuracy()(Snapshot(model, task)).values["accuracy"] > 80

