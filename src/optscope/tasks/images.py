"""Image sets as data factories: Fashion-MNIST (embedded or full), CIFAR-10, STL-10, digits, filtered versions.

Images are float32 `(n, channels, height, width)` in [0, 1], labels int64. Each factory is a frozen dataclass
whose `repr` is its identity; calling it twice reads the files once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optscope.dct import check_keep, dct2, energy_mask, idct2, low_pass_mask
from optscope.errors import UserError
from optscope.tasks.files import Labelled, Parts, read_cifar10, read_fashion_mnist, read_stl10
from optscope.tasks.sources import data_folder
from optscope.tasks.task import Data, Split


@dataclass(frozen=True)
class Official(ABC):
    """A set with official training and test parts.

    `train` takes the first images of the training part, `validation` those after them, `test` the first of
    the test part.

    Raises:
        UserError: when a part is empty, or the official parts hold fewer images.
    """

    train: int
    validation: int
    test: int

    def __post_init__(self) -> None:
        here, (most, most_test) = type(self).__name__, self.available
        if min(self.train, self.validation, self.test) < 1:
            raise UserError(f"{here}: train, validation and test must each be at least 1; "
                            f"got {self.train}, {self.validation} and {self.test}")
        if self.train + self.validation > most or self.test > most_test:
            raise UserError(f"{here} has {most} images for train and validation together and {most_test} for "
                            f"test; got {self.train} + {self.validation} and {self.test}{self.advice}")

    @property
    @abstractmethod
    def available(self) -> tuple[int, int]:
        """How many images the official training and test parts hold."""

    @property
    def advice(self) -> str:
        """What to write when more is asked for than there is."""
        return ": ask for fewer"

    @abstractmethod
    def read(self, folder: Path) -> Parts:
        """Return the official parts, from the data sets in `folder`."""

    def __call__(self) -> Data:
        """Return the data; read once, then kept.

        Raises:
            UserError: when the files are missing or damaged.
        """
        return _cut(self, data_folder())


@dataclass(frozen=True)
class FashionMNIST(Official):
    """Fashion-MNIST: 28x28 grey images of ten kinds of clothing.

    `embedded=True` reads the first 10,000 training and 2,000 test images, which come with this package;
    otherwise the full set of 60,000 and 10,000 is read from `$OPTSCOPE_DATA/fashion-mnist` (else
    `~/.cache/optscope/fashion-mnist`).

    >>> FashionMNIST()().train.inputs.shape
    torch.Size([8000, 1, 28, 28])

    Reference: Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747.

    Raises:
        UserError: when more images are asked for than there are.
    """

    train: int = 8000
    validation: int = 2000
    test: int = 2000
    embedded: bool = True

    @property
    def available(self) -> tuple[int, int]:
        """How many images the training and test parts hold."""
        return (10_000, 2_000) if self.embedded else (60_000, 10_000)

    @property
    def advice(self) -> str:
        """What to write when more is asked for than there is."""
        return ": write embedded=False for the full set" if self.embedded else super().advice

    @property
    def features(self) -> str:
        """The classifier of our own that was trained on these images."""
        return "fashion_mnist"

    def read(self, folder: Path) -> Parts:
        """Return the official parts, or their embedded beginnings."""
        if not self.embedded:
            return read_fashion_mnist(folder / "fashion-mnist")
        with as_file(files("optscope") / "data" / "fashion_mnist.npz") as path, np.load(path) as arrays:
            return Parts(Labelled(arrays["train_images"][:, None], arrays["train_labels"]),
                         Labelled(arrays["test_images"][:, None], arrays["test_labels"]))


@dataclass(frozen=True)
class CIFAR10(Official):
    """CIFAR-10: 32x32 colour images of ten kinds of animals and vehicles.

    Read from `$OPTSCOPE_DATA/cifar10` (else `~/.cache/optscope/cifar10`).

    Reference: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.

    Raises:
        UserError: when more images are asked for than there are.
    """

    train: int = 45_000
    validation: int = 5_000
    test: int = 10_000

    @property
    def available(self) -> tuple[int, int]:
        """How many images the training and test parts hold."""
        return 50_000, 10_000

    def read(self, folder: Path) -> Parts:
        """Return the official parts."""
        return read_cifar10(folder / "cifar10")


@dataclass(frozen=True)
class STL10(Official):
    """STL-10 as GANs are trained on it: colour images halved to 48x48, first the 100,000 that have no label.

    Those are of class 255; the 5,000 labelled ones follow them, so that by default they are the validation part.
    Read from the makers' binary files in `$OPTSCOPE_DATA/stl10` (else `~/.cache/optscope/stl10`).

    Reference: Coates, Lee, Ng 2011, An Analysis of Single-Layer Networks in Unsupervised Feature Learning.

    Raises:
        UserError: when more images are asked for than there are.
    """

    train: int = 100_000
    validation: int = 5_000
    test: int = 8_000

    @property
    def available(self) -> tuple[int, int]:
        """How many images the training and test parts hold."""
        return 105_000, 8_000

    def read(self, folder: Path) -> Parts:
        """Return the official parts."""
        return read_stl10(folder / "stl10")


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, 8x8 grey, from scikit-learn: 1,200 to train on, 297 to validate, 300 to test.

    `seed` draws which are which. Needs `pip install "optscope[digits]"`.

    Reference: Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; as scikit-learn has them.
    """

    seed: int = 0

    @property
    def features(self) -> str:
        """The classifier of our own that was trained on these images."""
        return "digits"

    def __call__(self) -> Data:
        """Return the data; read once, then kept.

        Raises:
            UserError: when scikit-learn is not installed.
        """
        return _digits(self.seed)


@dataclass(frozen=True)
class LowPass:
    """Data whose *training* images keep only low frequencies: the lowest share `keep` of the coefficients.

    One mask `rho < r` for all images (see `optscope.dct.low_pass_mask`). Validation and test images are
    untouched, and nothing is clipped afterwards: filtered pixels may leave [0, 1].

    Reference: Ma, Pan, Farahmand, arXiv 2308.06703, training on filtered data.

    Raises:
        UserError: when `keep` is not in (0, 1].
    """

    data: Callable[[], Data]
    keep: float

    def __post_init__(self) -> None:
        check_keep(self.keep)

    @property
    def features(self) -> str | None:
        """Which classifier was trained on the unfiltered images, if one was."""
        return getattr(self.data, "features", None)

    def filtered(self, images: Tensor) -> Tensor:
        """Return images `(..., height, width)` without their high frequencies."""
        return idct2(dct2(images) * low_pass_mask(images.shape[-2], images.shape[-1], self.keep))

    def __call__(self) -> Data:
        """Return the data, filtered once, then kept."""
        return _filtered(self)


@dataclass(frozen=True)
class HighEnergy:
    """Data whose *training* images keep only their own strongest share `keep` of the coefficients.

    Each image has its own mask, the same for all its channels (see `optscope.dct.energy_mask`). Validation
    and test images are untouched, and nothing is clipped afterwards: filtered pixels may leave [0, 1].

    Reference: Ma, Pan, Farahmand, arXiv 2308.06703, training on filtered data.

    Raises:
        UserError: when `keep` is not in (0, 1].
    """

    data: Callable[[], Data]
    keep: float

    def __post_init__(self) -> None:
        check_keep(self.keep)

    @property
    def features(self) -> str | None:
        """Which classifier was trained on the unfiltered images, if one was."""
        return getattr(self.data, "features", None)

    def filtered(self, images: Tensor) -> Tensor:
        """Return images `(n, channels, height, width)` without their weak coefficients."""
        return idct2(dct2(images) * energy_mask(images, self.keep))

    def __call__(self) -> Data:
        """Return the data, filtered once, then kept."""
        return _filtered(self)


@lru_cache(maxsize=4)
def _cut(source: Official, folder: Path) -> Data:
    parts = source.read(folder)
    end = source.train + source.validation
    held, held_test = (min(map(len, part)) for part in parts)
    if held < end or held_test < source.test:
        raise UserError(f"{source!r} needs {end} training and {source.test} test images with labels; the "
                        f"files in {folder} hold {held} and {held_test}: ask for fewer, or get the set again")
    return Data(_split(parts.train, slice(source.train)), _split(parts.train, slice(source.train, end)),
                _split(parts.test, slice(source.test)))


@lru_cache(maxsize=4)
def _digits(seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError('the digits come with scikit-learn, which is not installed: '
                        'pip install "optscope[digits]"') from error
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    inputs = torch.tensor(pixels, dtype=torch.float32, device="cpu").view(-1, 1, 8, 8)[order] / 16
    targets = torch.tensor(labels, dtype=torch.int64, device="cpu")[order]
    sizes = [1200, 297, 300]
    return Data(*map(Split, inputs.split(sizes), targets.split(sizes)))


@lru_cache(maxsize=4)
def _filtered(spec: LowPass | HighEnergy) -> Data:
    whole = spec.data()
    train = whole.train.first(None)
    blocks = [spec.filtered(block) for block in train.inputs.split(4096)]  # bounds the memory needed
    return Data(Split(torch.cat(blocks), train.targets), whole.validation, whole.test)


def _split(part: Labelled, which: slice) -> Split:
    images = np.ascontiguousarray(part.images[which])
    return Split(torch.tensor(images, dtype=torch.float32, device="cpu").div_(255),
                 torch.tensor(part.labels[which], dtype=torch.int64, device="cpu"))
