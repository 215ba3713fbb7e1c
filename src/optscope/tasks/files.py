"""The files of public image sets: where their makers keep them, and how they are read."""

from __future__ import annotations

import gzip
import json
import pickle
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError
from optscope.tasks.sources import Files

Bytes = NDArray[np.uint8]


class Labelled(NamedTuple):
    """Images `(n, channels, height, width)` from 0 to 255, and their classes `(n,)`."""

    images: Bytes
    labels: Bytes


class Parts(NamedTuple):
    """The two official parts of a set, in their makers' order."""

    train: Labelled
    test: Labelled


FASHION_MNIST = Files("fashion-mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310"})
CIFAR10 = Files("cifar10", "https://www.cs.toronto.edu/~kriz/", {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}, sign="test_batch.png")
CIFAR_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


def read_fashion_mnist(folder: Path) -> Parts:
    """Return the set as its four IDX files in `folder` hold it: 60,000 and 10,000 grey images of 28x28.

    Raises:
        UserError: when a file is missing or damaged.
    """
    train, train_labels, test, test_labels = (
        read_idx(_existing(folder, file)) for file in FASHION_MNIST.files)
    return Parts(Labelled(train[:, None], train_labels), Labelled(test[:, None], test_labels))


def read_cifar10(folder: Path) -> Parts:
    """Return the set as `folder` holds it: 50,000 and 10,000 colour images of 32x32.

    It is read from the makers' `cifar-10-python.tar.gz`, or from a copy in PNG form: `data_batch_1.png` to
    `data_batch_5.png` and `test_batch.png`, with one image a row, and the labels in `train_lables.json` and
    `test_lables.json` (spelled so).

    Raises:
        UserError: when there is neither, or a file is damaged.
    """
    if (folder / "test_batch.png").is_file():
        return Parts(_cifar_from_png(folder, CIFAR_BATCHES, "train_lables.json"),
                     _cifar_from_png(folder, ("test_batch",), "test_lables.json"))
    archive = _existing(folder, "cifar-10-python.tar.gz")
    with _reading(archive), tarfile.open(archive) as tar:
        return Parts(_cifar_from_tar(tar, CIFAR_BATCHES), _cifar_from_tar(tar, ("test_batch",)))


def read_stl10(folder: Path) -> Parts:
    """Return the set as its makers' binary files in `folder` hold it, every image halved to 48x48 by means of four.

    The training part has the 100,000 images of `unlabeled_X.bin`, whose class is 255, and then the 5,000 of
    `train_X.bin`; the test part has 8,000.

    Raises:
        UserError: when a file is missing or damaged.
    """
    unlabelled, train, test = (_halved(folder / f"{part}_X.bin") for part in ("unlabeled", "train", "test"))
    classes, test_classes = (_stl10_bytes(folder / f"{part}_y.bin", 1) - np.uint8(1) for part in ("train", "test"))
    unknown = np.full(len(unlabelled), 255, np.uint8)
    return Parts(Labelled(np.concatenate([unlabelled, train]), np.concatenate([unknown, classes])),
                 Labelled(test, test_classes))


def _halved(path: Path) -> Bytes:
    images = _stl10_bytes(path, 3 * 96 * 96).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)  # stored by columns
    halved = np.empty((len(images), 3, 48, 48), np.uint8)
    for first in range(0, len(images), 500):  # bounds the memory needed
        block = images[first:first + 500].astype(np.uint16)
        sums = block[..., ::2, :] + block[..., 1::2, :]
        halved[first:first + 500] = (sums[..., ::2] + sums[..., 1::2] + 2) // 4
    return halved


def _stl10_bytes(path: Path, each: int) -> Bytes:
    if not path.is_file() or not path.stat().st_size or path.stat().st_size % each:
        raise UserError(f"{path} is {'damaged' if path.is_file() else 'missing'}: unpack the makers' "
                        "stl10_binary.tar.gz (https://cs.stanford.edu/~acoates/stl10) into that folder, or set "
                        "OPTSCOPE_DATA to the folder that holds your data sets")
    return np.memmap(path, np.uint8, "r")


def read_idx(path: Path) -> Bytes:
    """Return the array of a gzipped IDX file of unsigned bytes: a type, the lengths of the axes, the values.

    Raises:
        UserError: when the file is not one.
    """
    with _reading(path):
        raw = gzip.decompress(path.read_bytes())
        if raw[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an IDX file of bytes")
        start = 4 + 4 * raw[3]
        shape = np.frombuffer(raw[4:start], ">u4").tolist()
        return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _cifar_from_png(folder: Path, batches: Iterable[str], labels: str) -> Labelled:
    from PIL import Image

    rows = []
    for batch in batches:
        path = _existing(folder, f"{batch}.png")
        with _reading(path), Image.open(path) as image:
            rows.append(np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3))
    path = _existing(folder, labels)
    with _reading(path):
        classes = np.array(json.loads(path.read_text()), np.uint8)
    return Labelled(np.concatenate(rows).transpose(0, 3, 1, 2), classes)


def _cifar_from_tar(tar: tarfile.TarFile, batches: Iterable[str]) -> Labelled:
    images, labels = [], []
    for batch in batches:
        stream = tar.extractfile(f"cifar-10-batches-py/{batch}")
        if stream is None:
            raise ValueError(f"{batch} is not a file")
        content = _PlainUnpickler(stream, encoding="bytes").load()
        images.append(np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32))
        labels += content[b"labels"]
    return Labelled(np.concatenate(images), np.array(labels, np.uint8))


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of dictionaries, lists, bytes and arrays, and runs nothing else that they may name."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data needs") from None


def _existing(folder: Path, file: str) -> Path:
    if not (folder / file).is_file():
        raise UserError(f'there is no {file} in {folder}: get it with "optscope data {folder.name}", or set '
                        "OPTSCOPE_DATA to the folder that holds your data sets")
    return folder / file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, LookupError, TypeError, ValueError, tarfile.TarError, zlib.error,
            pickle.UnpicklingError) as error:
        raise UserError(f'{path} cannot be read ({error}): delete it and run "optscope data '
                        f'{path.parent.name}"') from error
