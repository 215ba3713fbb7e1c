"""Which frequencies a model reacts to, cell by cell, and which a data set holds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from optscope.dct import dct2, matrix
from optscope.devices import to_floats
from optscope.errors import UserError, blaming
from optscope.evidence.records import Metric
from optscope.probes.accuracy import check_classifier, classes_of, nameless, verdicts
from optscope.probes.needs import Need
from optscope.probes.noise import OUTSIDE
from optscope.probes.probe import Probe, Reading, Subject

Cell = tuple[int, int]


@dataclass(frozen=True)
class Basis(ABC):
    """Real patterns of unit norm, one a frequency, and the cells of the map each of them fills."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the frequencies are called."""

    @abstractmethod
    def patterns(self, height: int, width: int) -> Iterator[tuple[set[Cell], Tensor]]:
        """Yield the cells (row, column) of each pattern, and the pattern `(height, width)`, float64."""


@dataclass(frozen=True)
class DCT(Basis):
    """The patterns of the orthonormal DCT-II; cell (0, 0) is the constant one."""

    @property
    def name(self) -> str:
        """The basis' name."""
        return "dct"

    def patterns(self, height: int, width: int) -> Iterator[tuple[set[Cell], Tensor]]:
        """Yield the outer product of two cosines a cell."""
        down, across = matrix(height), matrix(width)
        for i in range(height):
            for j in range(width):
                yield {(i, j)}, torch.outer(down[:, i], across[:, j])


@dataclass(frozen=True)
class Fourier(Basis):
    """Plane waves cos 2π(iy/height + jx/width), normalised; the constant one is in the middle of the map.

    The frequencies (i, j) and (-i, -j) are one wave, which fills both cells.
    """

    @property
    def name(self) -> str:
        """The basis' name."""
        return "fourier"

    def patterns(self, height: int, width: int) -> Iterator[tuple[set[Cell], Tensor]]:
        """Yield one wave for each pair of opposite frequencies."""
        y = torch.arange(height, dtype=torch.float64, device="cpu").unsqueeze(1) / height
        x = torch.arange(width, dtype=torch.float64, device="cpu") / width

        def centred(i: int, j: int) -> Cell:
            return (i + height // 2) % height, (j + width // 2) % width

        for i in range(height):
            for j in range(width):
                opposite = -i % height, -j % width
                if opposite >= (i, j):
                    wave = torch.cos(2 * math.pi * (i * y + j * x))
                    yield {centred(i, j), centred(*opposite)}, wave / torch.linalg.vector_norm(wave)


@dataclass(frozen=True, repr=False)
class SensitivityMap(Probe):
    """Measure the accuracy lost (points) to a single frequency of l2 length `norm`, for every frequency.

        map[i, j] = acc(x) - acc(x + r · norm · U_ij)

    U_ij is the pattern of the `basis`; r is a random sign for each image and channel, the same for all cells,
    so each channel's change has length `norm`. Nothing is clamped. A map takes one pass over the examples for
    each pattern: height · width for `DCT()`, about half of that for `Fourier()`.

    Array: "dct sensitivity map" or "fourier sensitivity map", `(height, width)`.

    Reference: Yin et al. 2019, arXiv 1906.08988, who use the Fourier basis and norm 4 on CIFAR-10.

    Raises:
        UserError: unless norm is a number > 0 and basis one of those two.
    """

    needs: ClassVar[tuple[Need, ...]] = ("one network", "float input", "labels", "images")
    norm: float = 4.0
    basis: Basis = DCT()
    examples: int | None = field(default=500, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.norm < math.inf or not isinstance(self.basis, Basis):
            raise UserError("SensitivityMap: norm must be a number above 0 and basis DCT() or Fourier(); "
                            f"got norm={self.norm!r}, basis={self.basis!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The mean and the largest drop over the map."""
        return (
            Metric(f"mean {self.basis.name} sensitivity", "points", "lower", "drop, mean over frequencies"),
            Metric(f"largest {self.basis.name} sensitivity", "points", "lower", "drop, worst frequency"),
        )

    def measure(self, subject: Subject) -> Reading:
        """Measure all cells."""
        check_classifier(subject)
        inputs, (height, width) = subject.leaf, subject.leaf.shape[-2:]
        classes = classes_of(subject)
        right, filled = [(classes == subject.targets).sum()], []
        coins = torch.randint(2, (*inputs.shape[:-2], 1, 1), generator=subject.generator, device="cpu")
        length = self.norm * (2 * coins - 1).to(inputs)
        for cells, pattern in self.basis.patterns(height, width):
            changed = inputs + length * pattern.to(inputs)
            with blaming(subject.task.name, OUTSIDE):
                right.append(verdicts(subject, changed).sum())
            filled.append(cells)
        clean, *others = (100 * count / len(classes) for count in to_floats(*right))
        drops = np.zeros((height, width))
        for cells, under in zip(filled, others, strict=True):
            for cell in cells:
                drops[cell] = clean - under
        return Reading({f"mean {self.basis.name} sensitivity": float(drops.mean()),
                        f"largest {self.basis.name} sensitivity": float(drops.max())},
                       {f"{self.basis.name} sensitivity map": drops}, nameless(classes))


def spectral_energy(images: Tensor) -> Tensor:
    """Return the mean absolute DCT coefficient of images, `(height, width)`: mean |D^T X D|.

    The mean is over all leading axes of `images` `(..., height, width)`, the colour channels among them. The
    absolute value, not its square, is what the paper calls energy (arXiv 2308.06703, figure 8).

    >>> spectral_energy(torch.stack([torch.ones(2, 2), -torch.ones(2, 2)]))[0, 0]
    tensor(2.0000)

    Raises:
        UserError: when `images` has no examples or is not floating point.
    """
    if images.ndim < 3 or not len(images):
        raise UserError("spectral energy needs at least one image (n, ..., height, width); "
                        f"got {tuple(images.shape)}")
    batches = images.split(1024)
    sums = torch.stack([dct2(batch).abs().flatten(0, -3).sum(0, dtype=torch.float64) for batch in batches])
    return (sums.sum(0) / math.prod(images.shape[:-2])).to(images.dtype)
