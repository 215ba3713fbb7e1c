"""What a generator covers, and how a game turns: closed forms, brute force, a second library where it is there."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from optscope.errors import UserError
from optscope.probes.coverage import Coverage, frechet_distance, frechet_floor
from optscope.probes.embedding import EfficientNetLite0, OwnClassifier, own_classifier
from optscope.probes.fid import FID, pictures
from optscope.probes.game_field import Jacobian, Rotation, leading
from optscope.probes.modes import Classes, Modes, Samples, count_modes
from optscope.probes.neighbours import BLOCK, neighbourhoods
from optscope.tasks.game import Game, Normal, Player
from optscope.tasks.gan import WGANGP, Saturating, gan
from optscope.tasks.gan_models import DCDiscriminator, DCGenerator, Perceptron
from optscope.tasks.images import Digits
from optscope.tasks.mixtures import Ring
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Data, Split, Task
from optscope.tasks.tree import Batch


def cloud(n, f, seed, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_equals_the_matrix_root_and_known_gaussians():
    a, b = cloud(300, 6, 0), cloud(200, 6, 1) @ cloud(6, 6, 2) + 1
    covariances = [np.cov(x.numpy().T) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, 3 * a) == pytest.approx(4 * np.trace(covariances[0]) + 4 * float(
        a.mean(0).square().sum()), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    flat = torch.cat([a, a[:, :1] + a[:, 1:2]], dim=1)  # a singular covariance
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


def test_the_floor_is_what_a_perfect_generator_gets():
    real = cloud(1200, 16, 0)
    perfect = [frechet_distance(real, cloud(2000, 16, seed)) for seed in range(1, 9)]
    assert frechet_floor(real, 2000) == pytest.approx(np.mean(perfect), rel=0.15)


def brute(real, fake, k):
    """The four definitions, pair by pair."""
    def distances(a, b):
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    within = [distances(x, x).sort(1).values[:, k] for x in (real, fake)]
    d = distances(real, fake)
    inside = d < within[0][:, None]
    return {"precision": float(inside.any(0).double().mean()),
            "recall": float((d < within[1]).any(1).double().mean()),
            "density": float(inside.sum(0).double().mean()) / k,
            "coverage": float((d.amin(1) < within[0]).double().mean())}


@pytest.mark.parametrize(("n", "m", "k", "shift"), [
    (BLOCK + 100, 2 * BLOCK + 3, 5, 0.0), (90, 60, 1, 0.7), (60, 90, 3, 1e4)])
def test_neighbourhoods_equal_brute_force(n, m, k, shift):
    real, fake = cloud(n, 5, 0, shift=shift), cloud(m, 5, 1, 0.8, 0.3 + shift)
    found = neighbourhoods(real, fake, k)
    assert found == pytest.approx(brute(real, fake, k), abs=1e-12)
    assert 0.05 < found["coverage"] < 0.999


@pytest.mark.parametrize("unit", [1e-7, 1e-9, 1e-30])
def test_a_small_unit_is_no_grid(unit):
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.rand(n, 3, generator=generator).double() for n in (60, 40))
    assert neighbourhoods(unit * real, unit * fake, 3) == neighbourhoods(real, fake, 3)


@pytest.mark.skipif(importlib.util.find_spec("prdc") is None, reason="prdc is not installed")
def test_neighbourhoods_equal_prdc():
    import prdc

    real, fake = cloud(700, 16, 0), cloud(900, 16, 1, 0.9, 0.1)
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    assert neighbourhoods(real, fake, 5) == pytest.approx(expected, abs=1e-6)


def counted(real, fake, k):
    """The four definitions in whole numbers, pair by pair."""
    def squares(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(2)
    radii, radii_fake = (np.sort(squares(x, x), axis=1)[:, k] for x in (real, fake))
    d = squares(real, fake)
    inside = d < radii[:, None]
    return {"precision": inside.any(0).mean(), "recall": (d < radii_fake).any(1).mean(),
            "density": inside.sum(0).mean() / k, "coverage": inside.any(1).mean()}


def test_ties_of_whole_numbers_as_another_library_has_them():
    rng = np.random.default_rng(0)
    real, fake = rng.integers(0, 4, (500, 4)), rng.integers(0, 4, (500, 4))
    found = neighbourhoods(torch.tensor(real), torch.tensor(fake), 5)
    assert found == pytest.approx(counted(real, fake, 5), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("levels", "place"), [
    (4, lambda k: k), (4, lambda k: k + 1e6), (256, lambda k: k / 255), (256, lambda k: k / 127.5 - 1),
    (16, lambda k: k / 15), (17, lambda k: k / 16), (8, lambda k: k / 10 - 3),
    (9, lambda k: (k - 5) * 2.0**-7 + 3)],
    ids=["whole", "far", "pixels", "centred pixels", "four bits", "digits", "decimals", "dyadic"])
def test_ties_on_a_grid_are_those_of_whole_numbers(levels, place, dtype):
    rng = np.random.default_rng(1)
    real, fake = (np.minimum(rng.integers(0, levels, (300, 3)), levels // 8 + 2) for _ in range(2))
    found = neighbourhoods(*(place(torch.tensor(x, dtype=torch.float64)).to(dtype) for x in (real, fake)), 5)
    assert found == pytest.approx(counted(real, fake, 5), abs=1e-12)


@pytest.mark.parametrize("features", [2, 64, 300])
def test_copies_of_real_things_tie_with_their_neighbours(features):
    """A copy lies on the ball of its original's k-th neighbour, and not inside it; repeated points have no ball."""
    real = cloud(BLOCK + 90, features, 0).float().double() + 7
    real[:40] = real[0]
    fake = torch.cat([real[7:400], cloud(100, features, 1) + 7])
    assert neighbourhoods(real, fake, 3) == pytest.approx(brute(real, fake, 3), abs=1e-12)
    assert neighbourhoods(real[:30], real[:30], 3)["density"] == 0


# Modes

def test_modes_are_counted():
    mixture = Ring()
    perfect = mixture().test.inputs
    found = {name: float(v) for name, v in count_modes(perfect, mixture.means, mixture.std).items()}
    shares = np.bincount(mixture().test.targets) / 2000
    assert found["modes"] == 8
    assert found["high quality"] == pytest.approx(1, abs=5e-4)
    assert found["missed mass"] == pytest.approx(float(np.clip(1 / 8 - shares, 0, None).sum()), abs=1e-3)
    assert found["KL to uniform"] == pytest.approx(float(np.sum(shares * np.log(8 * shares))), abs=1e-3)
    half = mixture.means[:4].repeat_interleave(500, 0)
    two = torch.stack([half, half + torch.tensor([0.0, 0.3])])
    found = count_modes(two, mixture.means, mixture.std)
    assert found["modes"].tolist() == [4, 0]
    assert found["high quality"].tolist() == [1, 0]
    assert found["missed mass"].tolist() == [0.5, 1]
    assert found["KL to uniform"].tolist() == pytest.approx([math.log(2), math.log(8)])
    lost = count_modes(torch.full((10, 2), math.nan), mixture.means, mixture.std)
    assert lost["high quality"] == 0


@dataclass(frozen=True)
class Fixed:
    """A generator that copies given points, whatever the latent vectors."""

    data: object

    def __call__(self):
        points = self.data().test.inputs

        class Copier(nn.Module):
            def __init__(self):
                super().__init__()
                self.unused = nn.Parameter(torch.zeros(1))

            def forward(self, latent):
                return points.repeat((len(latent) // len(points) + 1, *(1,) * (points.dim() - 1)))[:len(latent)]
        return Copier()


def test_probes_of_generators():
    ring = gan("ring", Fixed(Ring()), Perceptron((2, 8, 1)), Ring(), bounds=None)
    snapshot = Snapshot(ring.model(), ring)
    assert Modes(Ring())(snapshot).values["modes"] == 8
    found = Coverage(samples=500, examples=500)(snapshot).values
    assert found["coverage"] == 1
    assert found["Fréchet distance"] == pytest.approx(0, abs=1e-9)
    assert 0 < found["Fréchet floor"] < 0.1
    digits = gan("digits", Fixed(Digits()), DCDiscriminator(), Digits(), latent=Normal(16))
    snapshot = Snapshot(digits.model(), digits)
    assert Classes(samples=300)(snapshot).values["classes"] == 10
    found = Coverage(OwnClassifier("digits"), samples=300, split="train")(snapshot).values
    assert found["Fréchet distance"] < 2.5 * found["Fréchet floor"]
    assert found["coverage"] > 0.5
    assert Samples(3)(snapshot).arrays["samples"].shape == (3, 1, 8, 8)


def test_fid_hands_both_sets_of_images_to_torch_fidelity(monkeypatch):
    digits = gan("digits", Fixed(Digits()), DCDiscriminator(), Digits(), latent=Normal(16))
    snapshot = Snapshot(digits.model(), digits)
    seen = {}

    def calculate_metrics(**arguments):
        seen.update(arguments)
        return {"frechet_inception_distance": 7.5}
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(calculate_metrics=calculate_metrics))
    assert FID(samples=40, split="train")(snapshot).values == {"FID": 7.5}
    for given, images in (("input1", Digits()().test.inputs[:40]), ("input2", Digits()().train.inputs)):
        handed = seen.pop(given)
        assert isinstance(handed, torch.utils.data.Dataset)
        assert len(handed) == len(images)
        assert handed[3].dtype == torch.uint8
        np.testing.assert_array_equal(handed[3], np.floor(255 * images[3].numpy() + 0.5).repeat(3, axis=0))
    assert seen == {"fid": True, "cuda": False, "save_cpu_ram": True, "verbose": False}
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match="pip install torch-fidelity"):
        FID(samples=40)(snapshot)
    ring = gan("ring", Fixed(Ring()), Perceptron((2, 8, 1)), Ring(), bounds=None)
    with pytest.raises(UserError, match="FID compares images"):
        FID()(Snapshot(ring.model(), ring))


def test_pictures_are_bytes_in_colour_whatever_the_bounds():
    images = torch.tensor([-1.0, -0.5, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).repeat(2, 3, 2, 1)
    images[:, 1] = 0
    (first, second) = pictures(images, (-1.0, 1.0))[0][:2]
    assert first.tolist() == 2 * [[0, 64, 128, 255, 255]]
    assert second.tolist() == 2 * [5 * [128]]
    for refused, bounds in ((images, None), (images[:, :2], (-1.0, 1.0)), (images[0], (-1.0, 1.0))):
        with pytest.raises(UserError, match="FID compares images"):
            pictures(refused, bounds)


@pytest.mark.parametrize(("name", "data", "least"), [("digits", Digits(), 96)])
def test_own_classifiers_know_their_images(name, data, least):
    test = data().test
    right = (own_classifier(name)(test.inputs).argmax(1) == test.targets).double().mean()
    assert 100 * float(right) >= least


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="no colour features")
@pytest.mark.filterwarnings("ignore")
def test_colour_features_tell_noise_from_pictures():
    pictures = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(pictures, size=32, mode="bilinear")
    noise = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    a, b, c = map(EfficientNetLite0(), (smooth[:20], smooth[20:], noise))
    assert a.shape == (20, 64)
    assert frechet_distance(a, b) < frechet_distance(a, c)


# The game's Jacobian

def bilinear(a=2.0, damping=0.0):
    """min over x, max over y of a·x·y + damping (x² − y²)/2: eigenvalues damping ± a i."""
    @dataclass(frozen=True)
    class Loss:
        sign: float

        def __call__(self, networks, real, latent):
            x, y = (networks[name](torch.ones(1, 1)) for name in ("first", "second"))
            return self.sign * (a * x * y + damping * (x**2 - y**2) / 2).mean()

    @dataclass(frozen=True)
    class One:
        def __call__(self):
            return nn.Linear(1, 1, bias=False)
    part = Split(torch.zeros(4, 1), torch.zeros(4))
    return Game("bilinear", lambda: Data(part, part, part), bounds=None, latent=Normal(1),
                players=(Player("first", One(), Loss(1.0)), Player("second", One(), Loss(-1.0))))


def test_a_bilinear_game_turns_as_known():
    for damping in (0.0, 0.5):
        game = bilinear(2.0, damping)
        found = Rotation()(Snapshot(game.model(), game)).values
        assert found["leading eigenvalue, imaginary"] == pytest.approx(2, rel=1e-5)
        assert found["leading eigenvalue, modulus"] == pytest.approx(math.hypot(2, damping), rel=1e-5)
        assert found["rotation"] == pytest.approx(2 / math.hypot(2, damping), rel=1e-5)


@pytest.mark.parametrize("losses", [Saturating(), WGANGP()])
def test_arnoldi_finds_the_eigenvalues_of_the_dense_jacobian(losses):
    torch.manual_seed(0)
    game = gan("points", Perceptron((3, 6, 2)), Perceptron((2, 5, 1)), Ring(), latent=Normal(3), bounds=None,
               losses=losses)
    table = game.model().double()
    batch, latent = game.data().train.first(40), torch.randn(40, 3).double()
    real = batch.inputs.double()
    jacobian = Jacobian(game.objectives, table, Batch(real, batch.targets), latent)
    params = jacobian.params

    def row(v):
        if not v.requires_grad:
            return torch.zeros(jacobian.size, dtype=torch.float64)
        grads = torch.autograd.grad(v, params, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in grads])
    rows = [row(v) for part in jacobian.field for v in part.reshape(-1)]
    dense = torch.stack(rows).numpy()
    assert np.abs(dense - dense.T).max() > 1e-3
    vector = np.random.default_rng(0).standard_normal(len(dense))
    np.testing.assert_allclose(jacobian.product(vector), dense.T @ vector, rtol=1e-9, atol=1e-12)
    exact = np.linalg.eigvals(dense)
    exact = exact[np.argsort(-np.abs(exact))]
    np.testing.assert_allclose(np.abs(leading(jacobian, 4, 1e-8)[:3]), np.abs(exact[:3]), rtol=1e-5)


def test_a_jacobian_of_zeros_has_eigenvalues_of_zero():
    """As where a discriminator parts all that there is, and its gradients underflow: Arnoldi refuses to begin."""
    nobody_moves = SimpleNamespace(size=40, product=np.zeros_like)
    assert leading(nobody_moves, 4, 1e-2).tolist() == [0.0] * 4


def test_players_of_one_loss_do_not_turn():
    game = bilinear(2.0, 0.5)
    shared = replace(game, players=(game.players[0], replace(game.players[1], loss=game.players[0].loss)))
    assert Rotation()(Snapshot(shared.model(), shared)).values["rotation"] == pytest.approx(0, abs=1e-6)


TASK = Task("digits", DCDiscriminator(), Digits())
GAME = gan("digits", DCGenerator(), DCDiscriminator(), Digits(), latent=Normal(16))


def nowhere(n, generator):
    """Latent vectors that are not finite."""
    return torch.full((n, 16), math.nan)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: Coverage(samples=5), "more samples than neighbours; got 5 neighbours and 5 samples"),
    (lambda: Coverage(examples=4)(Snapshot(GAME.model(), GAME)), "the test part has 4, and there are 5"),
    (lambda: Coverage()(Snapshot(TASK.model(), TASK)), 'a player "generator" generates; digits is none'),
    (lambda: Coverage()(Snapshot(GAME.model(), replace(GAME, latent=nowhere))), "latent.* gave nan or inf"),
    (lambda: Modes(Digits()), "whose modes are known, such as Ring"),
    (lambda: OwnClassifier("digit"), "got 'digit', did you mean"),
    (lambda: OwnClassifier("fashion_mnist")(torch.zeros(1, 1, 8, 8)), r"\(n, 1, 28, 28\); got \(1, 1, 8, 8\)"),
    (lambda: EfficientNetLite0()(torch.zeros(1, 1, 8, 8)), "colour images"),
    (lambda: Rotation()(Snapshot(TASK.model(), TASK)), "it needs a game; digits is none"),
])
def test_bad_input(call, words):
    with pytest.raises(UserError, match=words):
        call()
