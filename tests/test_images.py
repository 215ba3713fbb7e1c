"""The image sets: files of every form written and read back, known facts of the real sets, the filters."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import struct
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import scipy.fft
import torch
from PIL import Image
from torch import Tensor

from optscope.dct import dct2, low_pass_mask
from optscope.errors import UserError
from optscope.tasks import catalog, files, sources
from optscope.tasks.augment import FlipCrop
from optscope.tasks.images import CIFAR10, STL10, Digits, FashionMNIST, HighEnergy, LowPass
from optscope.tasks.task import Data, InMemory, Split

RANDOM = np.random.default_rng(0)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, the form of the makers' CIFAR-10 files."""

    def save_string(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_string}


def python2_pickle(value: object) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@dataclass
class Made:
    """A small set of random images in some form on disk."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def labels(n: int) -> np.ndarray:
    return RANDOM.integers(0, 10, n, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTSCOPE_DATA", str(tmp_path))
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "cifar10").mkdir()
    return tmp_path


@pytest.fixture
def fashion(folder: Path) -> Made:
    made = Made(pixels(9, 28, 28), labels(9), pixels(4, 28, 28), labels(4))
    for name, values in (("train-images-idx3", made.images), ("train-labels-idx1", made.labels),
                         ("t10k-images-idx3", made.test_images), ("t10k-labels-idx1", made.test_labels)):
        write_idx(folder / "fashion-mnist" / f"{name}-ubyte.gz", values)
    return made


@pytest.fixture(params=["png", "tar"])
def cifar(folder: Path, request: pytest.FixtureRequest) -> Made:
    made = Made(pixels(10, 3, 32, 32), labels(10), pixels(3, 3, 32, 32), labels(3))
    batches = {f"data_batch_{i + 1}": slice(2 * i, 2 * i + 2) for i in range(5)}
    if request.param == "png":
        def save(name: str, images: np.ndarray) -> None:
            rows = images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)
            Image.fromarray(rows).save(folder / "cifar10" / f"{name}.png")

        for name, part in batches.items():
            save(name, made.images[part])
        save("test_batch", made.test_images)
        (folder / "cifar10" / "train_lables.json").write_text(json.dumps(made.labels.tolist()))
        (folder / "cifar10" / "test_lables.json").write_text(json.dumps(made.test_labels.tolist()))
    else:
        def member(images: np.ndarray, classes: np.ndarray) -> bytes:
            return python2_pickle({b"data": images.reshape(len(images), 3072), b"labels": classes.tolist()})

        write_tar(folder / "cifar10" / "cifar-10-python.tar.gz", {
            **{name: member(made.images[part], made.labels[part]) for name, part in batches.items()},
            "test_batch": member(made.test_images, made.test_labels)})
    return made


def check(split: Split, images: np.ndarray, classes: np.ndarray) -> None:
    assert split.inputs.dtype == torch.float32
    assert split.targets.dtype == torch.int64
    assert split.inputs.is_contiguous()
    np.testing.assert_allclose(split.inputs.numpy(), images.reshape(split.inputs.shape) / 255, rtol=1e-7)
    np.testing.assert_array_equal(split.targets.numpy(), classes)


def test_reads_idx_files(fashion: Made) -> None:
    data = FashionMNIST(train=5, validation=3, test=4, embedded=False)()
    assert data.train.inputs.shape == (5, 1, 28, 28)
    check(data.train, fashion.images[:5], fashion.labels[:5])
    check(data.validation, fashion.images[5:8], fashion.labels[5:8])
    check(data.test, fashion.test_images, fashion.test_labels)


def test_reads_both_forms_of_cifar10(cifar: Made) -> None:
    data = CIFAR10(train=7, validation=3, test=2)()
    assert data.train.inputs.shape == (7, 3, 32, 32)
    check(data.train, cifar.images[:7], cifar.labels[:7])
    check(data.validation, cifar.images[7:], cifar.labels[7:])
    check(data.test, cifar.test_images[:2], cifar.test_labels[:2])


def test_reads_stl10_at_half_its_size(folder: Path) -> None:
    rng = np.random.default_rng(0)
    made = {part: rng.integers(0, 256, (n, 3, 96, 96), np.uint8)
            for part, n in (("unlabeled", 501), ("train", 3), ("test", 2))}
    (folder / "stl10").mkdir(parents=True)
    for part, images in made.items():
        images.transpose(0, 1, 3, 2).tofile(folder / "stl10" / f"{part}_X.bin")
    for part, classes in (("train", [1, 10, 4]), ("test", [2, 3])):
        np.array(classes, np.uint8).tofile(folder / "stl10" / f"{part}_y.bin")
    data = STL10(501, 3, 2)()
    for split, images, classes in ((data.train, made["unlabeled"], [255] * 501),
                                   (data.validation, made["train"], [0, 9, 3]), (data.test, made["test"], [1, 2])):
        means = images.reshape(-1, 3, 48, 2, 48, 2).mean((3, 5))
        check(split, np.floor(means + 0.5), np.array(classes))
    with pytest.raises(UserError, match="hold 504 and 2"):
        STL10(501, 4, 2)()
    (folder / "stl10" / "test_y.bin").unlink()
    with pytest.raises(UserError, match=r"test_y.bin is missing: unpack"):
        STL10(501, 2, 2)()
    (folder / "stl10" / "train_X.bin").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"train_X.bin is damaged: unpack"):
        STL10(501, 1, 2)()


def test_files_with_fewer_images_than_asked_for(fashion: Made) -> None:
    with pytest.raises(UserError, match=r"needs 12 training and 1 test .* hold 9 and 4"):
        FashionMNIST(10, 2, 1, embedded=False)()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: FashionMNIST(train=9000), "has 10000 .* 2000 for test; got 9000 [+] 2000 .* embedded=False"),
    (lambda: FashionMNIST(test=2001), "2000 for test"),
    (lambda: FashionMNIST(55_000, 5_001, 1, embedded=False), "has 60000 .* ask for fewer"),
    (lambda: CIFAR10(validation=5001), "has 50000 images .* got 45000 [+] 5001"),
    (lambda: CIFAR10(validation=0), "at least 1; got 45000, 0 and 10000"),
])
def test_refuses_more_than_there_is_before_reading(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_missing_data_names_the_folder_and_the_command(folder: Path, name: str) -> None:
    factory = CIFAR10() if name == "cifar10" else FashionMNIST(embedded=False)
    with pytest.raises(UserError) as error:
        factory()
    assert str(folder / name) in str(error.value)
    assert f'"optscope data {name}"' in str(error.value)


@pytest.mark.parametrize("content", [
    b"not gzip", b"", gzip.compress(bytes(100), mtime=0)[:-12],  # no gzip, nothing, cut short
    gzip.compress(b"", mtime=0), gzip.compress(b"\0\0\x08\x03", mtime=0),  # no header, half a header
    gzip.compress(b"\0\0\x0d\x01\0\0\0\x01?", mtime=0),  # floats
    gzip.compress(b"\0\0\x08\x01\0\0\0\x02?", mtime=0),  # one value where the header says two
])
def test_damaged_idx_files(fashion: Made, folder: Path, content: bytes) -> None:
    path = folder / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'labels-idx1-ubyte.gz cannot be read .*"optscope data fashion'):
        FashionMNIST(1, 1, 1, embedded=False)()


def test_damaged_cifar_files(cifar: Made, folder: Path) -> None:
    for path in (folder / "cifar10").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r'cannot be read .*"optscope data cifar10"'):
        CIFAR10(1, 1, 1)()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('ran', 'w').close()",)


def test_pickles_cannot_run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    batch = python2_pickle({b"data": Evil(), b"labels": []})
    write_tar(folder / "cifar10" / "cifar-10-python.tar.gz", {"data_batch_1": batch})
    with pytest.raises(UserError, match=r"asks for .*eval"):
        CIFAR10(1, 1, 1)()
    assert not Path("ran").exists()


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTSCOPE_DATA", raising=False)
    assert sources.data_folder() == Path.home() / ".cache" / "optscope"


def test_fetch_downloads_checks_and_leaves_alone(folder: Path, server: tuple[Path, str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    site, address = server
    (site / "a.gz").write_bytes(b"content")
    md5 = hashlib.md5(b"content").hexdigest()
    monkeypatch.setattr(files, "FASHION_MNIST", sources.Files("fashion-mnist", address, {"a.gz": md5}))
    assert sources.fetch("fashion-mnist") == folder / "fashion-mnist"
    assert (folder / "fashion-mnist" / "a.gz").read_bytes() == b"content"
    (site / "a.gz").unlink()
    sources.fetch("fashion-mnist")  # is there already: asks for nothing

    (site / "b.gz").write_bytes(b"altered on the way")
    for name in ("b.gz", "absent.gz"):
        source = sources.Files("cifar10", address, {name: md5}, sign="test_batch.png")
        monkeypatch.setattr(files, "CIFAR10", source)
        with pytest.raises(UserError, match=f"could not fetch {address}{name}"):
            sources.fetch("cifar10")
        assert not (folder / "cifar10" / name).exists()
    (folder / "cifar10" / "test_batch.png").touch()
    assert sources.fetch("cifar10") == folder / "cifar10"  # another form is there


def test_fetch_knows_its_sets() -> None:
    with pytest.raises(UserError, match='did you mean "cifar10"'):
        sources.fetch("cifar")


def test_the_embedded_images() -> None:
    data = FashionMNIST()()
    assert [len(s) for s in (data.train, data.validation, data.test)] == [8000, 2000, 2000]
    assert data.train.inputs.shape[1:] == (1, 28, 28)
    assert data.train.inputs.dtype == torch.float32
    assert (float(data.train.inputs.min()), float(data.train.inputs.max())) == (0.0, 1.0)
    # The set begins with a boot, two tops and a dress; its test part with a boot, a pullover and trousers.
    assert data.train.targets[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert data.test.targets[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert float(data.train.inputs.mean()) == pytest.approx(0.2860, abs=0.002)  # of all 60,000: 0.2860
    assert FashionMNIST()() is data


def test_validation_follows_training() -> None:
    one, other = FashionMNIST(300, 200, 10)(), FashionMNIST(200, 300, 10)()
    assert torch.equal(torch.cat([one.train.inputs, one.validation.inputs]),
                       torch.cat([other.train.inputs, other.validation.inputs]))


def present(name: str, file: str) -> pytest.MarkDecorator:
    path = sources.data_folder() / name / file
    return pytest.mark.skipif(not path.is_file(), reason=f"{path} is not there: optscope data {name}")


@present("fashion-mnist", "train-images-idx3-ubyte.gz")
def test_the_embedded_images_are_the_first_of_the_full_set() -> None:
    full = files.read_fashion_mnist(sources.data_folder() / "fashion-mnist")
    embedded = FashionMNIST().read(Path())
    assert (len(full.train.images), len(full.test.images)) == (60_000, 10_000)
    np.testing.assert_array_equal(np.bincount(full.train.labels), 6000)
    for some, all_ in zip(embedded, full, strict=True):
        np.testing.assert_array_equal(some.images, all_.images[:len(some.images)])
        np.testing.assert_array_equal(some.labels, all_.labels[:len(some.labels)])


CIFAR10_FILE = next((f for f in ("test_batch.png", "cifar-10-python.tar.gz")
                     if (sources.data_folder() / "cifar10" / f).is_file()), "cifar-10-python.tar.gz")


@present("cifar10", CIFAR10_FILE)
def test_cifar10_is_the_set_that_the_literature_describes() -> None:
    train, test = files.read_cifar10(sources.data_folder() / "cifar10")
    assert (train.images.shape, test.images.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    np.testing.assert_array_equal(np.bincount(train.labels), 5000)
    np.testing.assert_array_equal(np.bincount(test.labels), 1000)
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    np.testing.assert_allclose(train.images.mean((0, 2, 3)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-4)


def test_digits_are_split_without_loss() -> None:
    from sklearn.datasets import load_digits

    data, other = Digits(seed=1)(), Digits(seed=2)()
    parts = (data.train, data.validation, data.test)
    assert [len(s) for s in parts] == [1200, 297, 300]
    assert data.train.inputs.shape == (1200, 1, 8, 8)
    assert float(data.train.inputs.max()) == 1.0
    rows = [torch.cat([s.inputs.flatten(1) * 16, s.targets.unsqueeze(1)], 1).numpy() for s in parts]
    pixels, classes = load_digits(return_X_y=True)
    whole = np.column_stack([pixels, classes])
    drawn = np.concatenate(rows)
    np.testing.assert_array_equal(drawn[np.lexsort(drawn.T)], whole[np.lexsort(whole.T)])
    assert not torch.equal(data.train.targets, other.train.targets)
    assert Digits(seed=1)() is data


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r'pip install "optscope\[digits\]"'):
        Digits(seed=12345)()


def small_data() -> InMemory:
    x = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6)
    return InMemory(Data(Split(x, y), Split(x[:2], y[:2]), Split(x[2:], y[2:])))


@pytest.mark.parametrize("wrapper", [LowPass, HighEnergy])
def test_filters_touch_the_training_images_alone(wrapper: type[LowPass | HighEnergy]) -> None:
    plain = small_data()
    spec = wrapper(plain, keep=0.3)
    before, after = plain(), spec()
    assert after.validation is before.validation
    assert after.test is before.test
    assert torch.equal(after.train.targets, before.train.targets)
    assert spec() is after
    coefficients = scipy.fft.dctn(before.train.inputs.double().numpy(), axes=(-2, -1), norm="ortho")
    if wrapper is LowPass:
        mask = low_pass_mask(12, 12, 0.3).numpy()
    else:
        energy = np.abs(coefficients).mean(1, keepdims=True)
        mask = energy >= np.quantile(energy, 0.7, axis=(2, 3), keepdims=True)
    expected = scipy.fft.idctn(coefficients * mask, axes=(-2, -1), norm="ortho")
    np.testing.assert_allclose(after.train.inputs.numpy(), expected, rtol=0, atol=2e-6)
    assert float(after.train.inputs.min()) < 0  # not clipped


def test_most_coefficients_of_clothing_are_weak() -> None:
    """A pilot of arXiv 2308.06703 removed these shares of the l2 norm from the 10,000 images."""
    x = FashionMNIST()().train.inputs[:2000]
    for keep, removed in ((0.9, 0.004), (0.7, 0.022), (0.5, 0.050), (0.3, 0.095), (0.1, 0.19), (0.03, 0.29)):
        rest = x - HighEnergy(FashionMNIST(), keep).filtered(x)
        assert float(rest.norm() / x.norm()) == pytest.approx(removed, rel=0.05)
        kept_again = dct2(HighEnergy(FashionMNIST(), keep).filtered(x[:50])).abs().gt(1e-4).double().mean()
        assert float(kept_again) == pytest.approx(keep, abs=0.02)


@pytest.mark.parametrize("wrapper", [LowPass, HighEnergy])
def test_filters_check_keep_at_construction(wrapper: type[LowPass | HighEnergy]) -> None:
    with pytest.raises(UserError, match=r"write 0.9 for 90 %"):
        wrapper(FashionMNIST(), keep=90)


def shifts_and_mirrors(image: Tensor, pad: int) -> list[Tensor]:
    """All results that a flip and a crop can have, by hand."""
    _, height, width = image.shape
    found = []
    for down in range(2 * pad + 1):
        for across in range(2 * pad + 1):
            padded = torch.zeros(image.shape[0], height + 2 * pad, width + 2 * pad)
            padded[:, pad:pad + height, pad:pad + width] = image
            crop = padded[:, down:down + height, across:across + width]
            found += [crop, crop.flip(2)]
    return found


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_flip_crop_draws_every_shift_and_mirroring_alike(pad: int) -> None:
    image = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    possible = torch.stack(shifts_and_mirrors(image, pad))
    n = 200 * len(possible)
    inputs = image.expand(n, -1, -1, -1)
    drawn = FlipCrop(pad)(inputs, torch.Generator().manual_seed(1))
    equal = (drawn.unsqueeze(1) == possible).flatten(2).all(2)
    assert bool((equal.sum(1) == 1).all())
    chi2 = float(((equal.sum(0) - 200.0) ** 2 / 200).sum())
    freedom = len(possible) - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


def test_flip_crop_is_reproducible_and_changes_no_input() -> None:
    inputs = torch.rand(16, 3, 8, 8)
    before = inputs.clone()
    one, two, three = (FlipCrop()(inputs, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(inputs, before)
    assert len({FlipCrop(2), FlipCrop(pad=2)}) == 1
    with pytest.raises(UserError, match="pad must be a whole number"):
        FlipCrop(pad=-1)


@pytest.mark.parametrize("factory", [FashionMNIST(), CIFAR10(), Digits(3), LowPass(FashionMNIST(), 0.5),
                                     HighEnergy(Digits(), 0.1)], ids=repr)
def test_factories_are_their_repr(factory: object) -> None:
    assert eval(repr(factory)) == factory
    assert pickle.loads(pickle.dumps(factory)) == factory


@pytest.mark.parametrize("name", catalog.TASKS)
def test_ready_tasks_fit_their_data(name: str) -> None:
    task = catalog.task_named(name)
    assert task.name == name
    if name in ("fashion-mnist", "digits", "three-frequency"):
        batch = task.data().train.first(4)
    else:
        channels, size = {"fashion-mnist-full": (1, 28), "cifar10": (3, 32)}[name]
        batch = Split(torch.rand(4, channels, size, size), torch.arange(4))
    inputs = task.augment(batch.inputs, torch.Generator()) if task.augment else batch.inputs
    loss = task.loss(task.model()(inputs), batch.targets)
    loss.backward()
    assert bool(torch.isfinite(loss))


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match='no task "fashion_mnist"; did you mean "fashion-mnist'):
        catalog.task_named("fashion_mnist")
