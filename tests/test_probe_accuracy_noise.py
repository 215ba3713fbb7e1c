"""Accuracy, noise and frequency probes against loops written the obvious way, with scipy's transforms."""

import itertools
import math

import numpy as np
import pytest
import scipy.fft
import torch
from torch import nn
from torch.nn import functional

from optscope.dct import equal_count_bands
from optscope.errors import UserError
from optscope.probes import noise as noise_module
from optscope.probes.accuracy import Accuracy, Checkpoint, calibration_error
from optscope.probes.frequency import DCT, Fourier, SensitivityMap, spectral_energy
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.noise import BandNoise, GaussianNoise
from optscope.probes.probe import Snapshot
from optscope.tasks.task import Task


def linear(shape, classes=3, seed=0):
    """Return a linear classifier in float64, so that no verdict hangs on rounding."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)).double()


def images(n, *shape, seed=0):
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def snapshot(model, x, y=None, seed=0, **settings):
    y = torch.arange(len(x)) % 3 if y is None else y
    return Snapshot(model, Task.from_tensors(lambda: model, (x, y), (x, y), **settings), seed=seed)


SEEN = {}
"""What each recorder was shown: kept apart from the model, in which a probe leaves nothing behind."""


class Recorder(nn.Module):
    """Keeps what it is shown; a probe looks four times at a few examples before it measures."""

    looks = 4

    def __init__(self, classes=3):
        super().__init__()
        self.classes, SEEN[id(self)] = classes, []

    @property
    def seen(self):
        return SEEN[id(self)]

    def forward(self, x):
        self.seen.append(x)
        return torch.zeros(len(x), self.classes)

    def shown(self, n):
        """Return the inputs of all batches that are not a probe's first looks."""
        return torch.cat(self.seen[self.looks:]).view(-1, n, *self.seen[0].shape[1:])


# Accuracy

def test_accuracy_loss_and_interval():
    x, y = images(40, 5), torch.arange(40) % 3
    model = linear((5,))
    reading = Accuracy()(snapshot(model, x, y))
    logits = model(x).detach()
    correct = np.array([int(row.argmax()) == int(label) for row, label in zip(logits, y, strict=True)])
    p, n, z = correct.mean(), 40, 1.959963984540054
    assert reading.values["accuracy"] == pytest.approx(100 * p)
    assert reading.values["loss"] == pytest.approx(float(-logits.log_softmax(1)[torch.arange(40), y].mean()))
    assert reading.arrays["correct"].dtype == bool
    assert (reading.arrays["correct"] == correct).all()
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert reading.arrays["accuracy interval"] == pytest.approx(
        100 * np.array([centre - half, centre + half]) / (1 + z * z / n))


def test_regression_has_only_its_loss():
    model, x, y = linear((4,), classes=1), images(20, 4), torch.rand(20, 1, dtype=torch.float64)
    reading = Accuracy()(snapshot(model, x, y, loss=functional.mse_loss, kind="regression"))
    assert dict(reading.values) == {"loss": pytest.approx(float(((model(x) - y) ** 2).mean().detach()))}
    assert not reading.arrays


def test_a_checkpoint_reads_validation_and_test_side_by_side():
    x, y = images(60, 4), torch.arange(60) % 3
    model = linear((4,))
    task = Task.from_tensors(lambda: model, (x[:20], y[:20]), (x[40:], y[40:]), validation=(x[20:40], y[20:40]))
    values = Checkpoint(examples=5)(Snapshot(model, task)).values
    for part, rows in (("validation", slice(20, 40)), ("test", slice(40, 45))):
        out = model(x[rows]).detach()
        assert values[f"{part} loss at checkpoint"] == pytest.approx(float(functional.cross_entropy(out, y[rows])))
        share = float((out.argmax(1) == y[rows]).double().mean())
        assert values[f"{part} accuracy at checkpoint"] == pytest.approx(100 * share)
    assert {m.name for m in Checkpoint().metrics} == set(values)


def test_calibration_error_against_a_loop_over_bins():
    logits = 3 * torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(300) % 4
    p = logits.double().softmax(1)
    total = 0.0
    for b in range(15):
        inside = [i for i in range(300) if b / 15 < float(p[i].max()) <= (b + 1) / 15]
        if inside:
            accuracy = np.mean([int(p[i].argmax()) == int(targets[i]) for i in inside])
            total += len(inside) / 300 * abs(accuracy - np.mean([float(p[i].max()) for i in inside]))
    assert calibration_error(logits, targets) == pytest.approx(total, rel=1e-9)


def test_calibration_error_of_a_sure_and_wrong_model_is_1():
    assert calibration_error(torch.tensor([[50.0, 0.0]]), torch.tensor([1])) == pytest.approx(1)


# Gaussian noise

def test_gaussian_noise_has_its_variance_and_is_clamped_to_the_bounds():
    x, variances = images(60, 1, 20, 20), (0.01, 0.25)
    free, boxed = Recorder(), Recorder()
    GaussianNoise(variances)(snapshot(free, x, bounds=None))
    GaussianNoise(variances)(snapshot(boxed, x, bounds=(0.0, 1.0)))
    for noisy, clamped, variance in zip(free.shown(60), boxed.shown(60), variances, strict=True):
        noise = noisy - x
        assert float(noise.var()) == pytest.approx(variance, rel=0.03)  # 24,000 numbers: sd 0.9 %
        assert abs(float(noise.mean())) < 4 * math.sqrt(variance / noise.numel())
        assert torch.equal(clamped, noisy.clamp(0, 1))
        assert not torch.equal(clamped, noisy)


def test_gaussian_noise_accuracy_is_that_of_the_noisy_images():
    x, y, model = images(50, 1, 6, 6), torch.arange(50) % 3, linear((36,))
    reading = GaussianNoise((0.0, 0.04, 1.0))(snapshot(model, x, y, seed=5))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    for row, (variance, accuracy) in enumerate(reading.values["accuracy under gaussian noise"].items()):
        correct = model((x + math.sqrt(variance) * noise).clamp(0, 1)).argmax(1) == y
        assert accuracy == pytest.approx(100 * float(correct.double().mean()))
        assert (reading.arrays["correct under gaussian noise"][row] == correct.numpy()).all()
    clean = Accuracy()(snapshot(model, x, y)).values["accuracy"]
    assert reading.values["accuracy under gaussian noise"][0.0] == clean


@pytest.mark.parametrize("probe", [GaussianNoise(), BandNoise(), SensitivityMap(basis=Fourier())], ids=repr)
def test_models_that_share_a_seed_see_the_same_inputs(probe):
    x = images(9, 2, 8, 8).float()
    first, second, other = Recorder(), Recorder(classes=5), Recorder()
    probe(snapshot(first, x, seed=1))
    probe(snapshot(second, x, seed=1))
    probe(snapshot(other, x, seed=2))
    assert torch.equal(first.shown(9), second.shown(9))
    assert not torch.equal(first.shown(9), other.shown(9))


# Band noise

@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (3, 28, 28)], ids=str)
def test_band_noise_equals_the_obvious_script_and_transforms_the_noise_once(shape, monkeypatch):
    """The script: for every band, transform the noise, cut the band out, transform it back."""
    n, variance = 30, 0.5
    x, model = images(n, *shape), linear(shape)
    y = model(x).argmax(1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype).numpy()
    band = equal_count_bands(28, 28).numpy()
    correct = []
    for k in range(10):
        spectrum = scipy.fft.dctn(math.sqrt(variance) * noise, axes=(-2, -1), norm="ortho")
        spectrum[..., band != k] = 0
        noisy = x + torch.tensor(scipy.fft.idctn(spectrum, axes=(-2, -1), norm="ortho"))
        correct.append((model(noisy).argmax(1) == y).numpy())

    planes = dict.fromkeys(("dct2", "idct2"), 0)

    def counted(name, transform):
        def run(images):
            planes[name] += math.prod(images.shape[:-2])
            return transform(images)
        return run

    for name in planes:
        monkeypatch.setattr(noise_module, name, counted(name, getattr(noise_module, name)))
    reading = BandNoise(variance)(snapshot(model, x, y, seed=3))
    assert (reading.arrays["correct under band noise"] == np.array(correct)).all()
    assert list(reading.values["drop under band noise"].values()) == pytest.approx(
        [100 - 100 * row.mean() for row in correct])
    assert max(reading.values["drop under band noise"].values()) > 0
    channels = math.prod(shape[:-2])
    assert planes == {"dct2": n * channels, "idct2": 10 * n * channels}  # the script needs 10 and 10


def test_bands_share_the_noise_and_are_not_clamped():
    x, seen = images(40, 1, 16, 16), Recorder()
    BandNoise(variance=0.5)(snapshot(seen, x, seed=1))
    *bands, clean = seen.shown(40)
    parts = torch.stack(bands) - x
    noise = math.sqrt(0.5) * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    assert torch.equal(clean, x)
    assert torch.allclose(parts.sum(0), noise, atol=1e-12)
    energies = parts.square().flatten(1).sum(1)
    assert torch.allclose(energies / energies.sum(), torch.full((10,), 0.1, dtype=x.dtype), atol=0.02)
    assert float(torch.stack(bands).min()) < 0


@pytest.mark.parametrize("shape", [(3, 12, 20), (7, 9)], ids=str)
def test_any_image_size(shape):
    reading = BandNoise(bands=4)(snapshot(linear(shape), images(5, *shape)))
    assert list(reading.values["drop under band noise"]) == [0.0, 1.0, 2.0, 3.0]
    drops = SensitivityMap()(snapshot(linear(shape), images(5, *shape))).arrays["dct sensitivity map"]
    assert drops.shape == shape[-2:]


def test_draws_are_cut_into_batches_by_size_alone(monkeypatch):
    x, seen = images(10, 1, 8, 8), Recorder()
    monkeypatch.setattr(noise_module, "PIXELS", 3 * 64)
    GaussianNoise((1.0,))(snapshot(seen, x, bounds=None))
    g = torch.Generator().manual_seed(0)
    noise = torch.cat([torch.randn(part.shape, generator=g, dtype=x.dtype) for part in x.split(3)])
    shown = torch.cat(seen.seen[seen.looks:])
    assert torch.allclose(shown, x + noise)


# Frequency maps

def unit_dct(i, j, height, width):
    spectrum = np.zeros((height, width))
    spectrum[i, j] = 1
    return scipy.fft.idctn(spectrum, norm="ortho")


def unit_fourier(i, j, height, width):
    """The unit image whose spectrum, the constant in the middle, has only (i, j) and its opposite."""
    spectrum = np.zeros((height, width), dtype=complex)
    row, column = i - height // 2, j - width // 2
    spectrum[row % height, column % width] += 1
    spectrum[-row % height, -column % width] += 1
    wave = np.fft.ifft2(spectrum).real
    return wave / np.linalg.norm(wave)


@pytest.mark.parametrize(("basis", "unit"), [(DCT(), unit_dct), (Fourier(), unit_fourier)])
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 8)], ids=str)
def test_map_equals_a_loop_over_images_and_cells(basis, unit, shape):
    height, width = shape[-2:]
    x, model = images(12, *shape), linear(shape)
    y = torch.arange(12) % 3
    reading = SensitivityMap(norm=3.0, basis=basis)(snapshot(model, x, y, seed=4))
    coins = torch.randint(2, (*x.shape[:-2], 1, 1), generator=torch.Generator().manual_seed(4)).numpy()
    clean = (model(x).argmax(1) == y).double().mean()
    expected = np.zeros((height, width))
    for i, j in itertools.product(range(height), range(width)):
        noisy = x + torch.tensor(3.0 * np.where(coins, 1, -1) * unit(i, j, height, width))
        expected[i, j] = 100 * (clean - (model(noisy).argmax(1) == y).double().mean())
    found = reading.arrays[f"{basis.name} sensitivity map"]
    assert found == pytest.approx(expected)
    assert np.ptp(found) > 0
    assert reading.values[f"mean {basis.name} sensitivity"] == pytest.approx(expected.mean())
    assert reading.values[f"largest {basis.name} sensitivity"] == pytest.approx(expected.max())


def test_a_model_that_sees_one_frequency_loses_only_there():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    with torch.no_grad():
        wave = torch.tensor(unit_dct(2, 3, 8, 8)).flatten()
        model[1].weight.copy_(torch.stack([wave, -wave]))
        model[1].bias.zero_()
    x = images(200, 1, 8, 8)
    y = model(x).argmax(1)
    found = SensitivityMap(norm=100.0)(snapshot(model, x, y, bounds=None)).arrays["dct sensitivity map"]
    assert found[2, 3] == pytest.approx(50, abs=12)  # the sign is a coin, 200 times: sd 3.5
    found[2, 3] = 0
    assert not found.any()


def test_fourier_waves_are_taken_once_for_both_of_their_cells():
    cells = [cell for filled, _ in Fourier().patterns(6, 5) for cell in filled]
    assert sorted(cells) == sorted(itertools.product(range(6), range(5)))
    assert sum(1 for _ in Fourier().patterns(6, 5)) == 16  # 2 waves are their own opposites, 28 / 2 are not
    assert all(float(wave.norm()) == pytest.approx(1) for _, wave in Fourier().patterns(6, 5))


@pytest.mark.parametrize("shape", [(30, 6, 7), (30, 3, 8, 8)], ids=str)
def test_spectral_energy_against_scipy(shape):
    x = images(*shape)
    expected = np.abs(scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")).reshape(-1, *shape[-2:]).mean(0)
    assert spectral_energy(x).numpy() == pytest.approx(expected, rel=1e-12)


def test_spectral_energy_in_batches_is_that_of_the_whole():
    x = images(2500, 4, 4).float()
    expected = np.abs(scipy.fft.dctn(x.double().numpy(), axes=(-2, -1), norm="ortho")).mean(0)
    assert spectral_energy(x).numpy() == pytest.approx(expected, rel=1e-5)


# What all of them promise

ALL = [Accuracy(), GaussianNoise(), BandNoise(bands=3), SensitivityMap(), Lipschitz(climb=2)]


@pytest.mark.parametrize("probe", ALL, ids=repr)
def test_the_model_is_left_bit_for_bit_as_it_was(probe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model[4].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    reading = probe(snapshot(model, images(8, 1, 6, 6).float()))
    metrics = [metric for metric in probe.metrics if metric.name not in ("exact match", "perplexity")]
    assert set(reading.values) == {metric.name for metric in metrics}
    assert all(isinstance(reading.values[m.name], float) != bool(m.axis) for m in metrics)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, True, True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [False] + 5 * [True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    again = probe(snapshot(model, images(8, 1, 6, 6).float()))
    assert again.values == reading.values


@pytest.mark.parametrize("probe", [Accuracy(), GaussianNoise(), BandNoise(), SensitivityMap()], ids=repr)
def test_labels_outside_the_classes_are_refused(probe):
    with pytest.raises(UserError, match="from 0 to 2"):
        probe(snapshot(linear((1, 8, 8)), images(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])))


@pytest.mark.parametrize("probe", [GaussianNoise(), BandNoise(), SensitivityMap()], ids=repr)
def test_regression_is_refused(probe):
    with pytest.raises(UserError, match="classification task"):
        probe(snapshot(linear((1, 8, 8), classes=1), images(4, 1, 8, 8), torch.rand(4, 1), kind="regression"))


@pytest.mark.parametrize("probe", [BandNoise(), SensitivityMap()], ids=repr)
def test_flat_inputs_have_no_frequencies(probe):
    with pytest.raises(UserError, match="images"):
        probe(snapshot(linear((64,)), images(4, 64)))


@pytest.mark.parametrize("make", [
    lambda: GaussianNoise(()), lambda: GaussianNoise(0.1), lambda: GaussianNoise((-0.1,)),
    lambda: BandNoise(-1.0), lambda: BandNoise(bands=0),
    lambda: SensitivityMap(norm=0.0), lambda: SensitivityMap(basis="dct"),
])
def test_settings_are_checked(make):
    with pytest.raises(UserError, match="got"):
        make()


@pytest.mark.parametrize("images", [torch.rand(4, 4), torch.rand(0, 4, 4), torch.ones(2, 4, 4).long()])
def test_spectral_energy_needs_images(images):
    with pytest.raises(UserError, match="needs"):
        spectral_energy(images)
