"""B6: the ten-band noise curve and the Fourier map of an MLP, against the usual scripts, counted in transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.timing import Contender, interleave, rows
from benchmarks.training import trained
from optscope.dct import equal_count_bands, matrix
from optscope.probes import noise
from optscope.probes.frequency import Fourier, SensitivityMap
from optscope.probes.noise import PIXELS, BandNoise
from optscope.tasks.images import FashionMNIST
from optscope.tasks.models import MLP
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

TASK = Task("fashion-mnist", MLP(), FashionMNIST())
IMAGES, VARIANCE, NORM, SEED = 500, 0.1, 4.0, 0

Array = NDArray[np.float64]


@dataclass
class Count:
    """How many transforms were taken: of a batch of images in the bands, of one wave in the map."""

    transforms: int = 0


def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Return the accuracy in percent."""
    with torch.no_grad():
        return 100 * float((model(inputs).argmax(1) == targets).double().mean())


def script_bands(model: nn.Module, count: Count) -> Array:
    """Return the ten drops as the paper's script gets them: the noise goes to the DCT and back for every band.

    The draw and the bands are the probe's, so that the numbers can be compared; the bands of the paper's script
    differ from them in 10 of the 784 coefficients.
    """
    part = TASK.data().test.first(IMAGES)
    basis, band = matrix(28).float(), equal_count_bands(28, 28)
    generator = torch.Generator().manual_seed(SEED)
    draws = torch.cat([torch.randn(x.shape, generator=generator) for x in part.inputs.split(PIXELS // 784)])
    clean, drops = accuracy(model, part.inputs, part.targets), []
    for k in range(10):
        spectrum = basis.T @ (VARIANCE**0.5 * draws) @ basis
        part_of_noise = basis @ ((band == k) * spectrum) @ basis.T
        count.transforms += 2
        drops.append(clean - accuracy(model, part.inputs + part_of_noise, part.targets))
    return np.array(drops)


def script_map(model: nn.Module, count: Count) -> Array:
    """Return the Fourier map as the usual script gets it: an inverse transform for each of the 784 cells."""
    part = TASK.data().test.first(IMAGES)
    coins = torch.randint(2, (IMAGES, 1, 1, 1), generator=torch.Generator().manual_seed(SEED))
    signs = (2 * coins - 1).float()
    clean, drops = accuracy(model, part.inputs, part.targets), np.zeros((28, 28))
    for i in range(28):
        for j in range(28):
            cell = torch.zeros(28, 28, dtype=torch.complex64)
            cell[i, j] = cell[-i % 28, -j % 28] = 1
            wave = torch.fft.ifft2(cell).real
            count.transforms += 1
            wave = wave / torch.linalg.vector_norm(wave)
            changed = part.inputs + NORM * signs * wave
            drops[(i + 14) % 28, (j + 14) % 28] = clean - accuracy(model, changed, part.targets)
    return drops


def our_bands(model: nn.Module, count: Count) -> Array:
    """Return the ten drops of the probe, its transforms counted."""
    with counted(count):
        found = BandNoise(VARIANCE, examples=IMAGES)(Snapshot(model, TASK, SEED)).values["drop under band noise"]
    return np.array(list(found.values()))  # type: ignore[union-attr]


def our_map(model: nn.Module, count: Count) -> Array:
    """Return the map of the probe, which writes its waves down and transforms nothing."""
    reading = SensitivityMap(NORM, Fourier(), examples=IMAGES)(Snapshot(model, TASK, SEED))
    return reading.arrays["fourier sensitivity map"].astype(np.float64)


@contextmanager
def counted(count: Count) -> Iterator[None]:
    """Count the batches of `IMAGES` images that the noise probe transforms."""
    images, kept = 0, (noise.dct2, noise.idct2)

    def counting(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            nonlocal images
            images += x.numel() // 784
            return transform(x)
        return run

    noise.dct2, noise.idct2 = map(counting, kept)
    try:
        yield
    finally:
        noise.dct2, noise.idct2 = kept
        count.transforms += images // IMAGES


def b6() -> dict[str, Any]:
    """Take the band curve and the Fourier map on 500 images: equal numbers, counted transforms, time."""
    model = trained(TASK, steps=1500)
    works = {"ten bands": (our_bands, script_bands), "Fourier map": (our_map, script_map)}
    contenders: list[Contender] = []
    transforms: dict[str, list[int]] = {}
    for work, pair in works.items():
        answers = []
        for who, run in zip(("optscope", "script"), pair, strict=True):
            count = Count()
            answers.append(run(model, count))
            transforms.setdefault(work, []).append(count.transforms)
            said = f"mean {answers[-1].mean():.3f}, largest {answers[-1].max():.1f} points"
            contenders.append(Contender(f"{who}, {work}", version("optscope") if who == "optscope" else "", said,
                                        lambda run=run: run(model, Count()), {"transforms": count.transforms}))
        apart = float(np.abs(answers[0] - answers[1]).max())
        if apart > 100 / IMAGES + 1e-9:  # rounding may turn one image
            raise AssertionError(f"{work}: the numbers differ by up to {apart} points")
    times = interleave(contenders, rounds=3, warm_up=0)
    ours, theirs = (sum(pair[i] for pair in transforms.values()) for i in range(2))
    ratio = {"transforms, both works": ours / theirs,
             **{f"transforms, {work}": mine / script for work, (mine, script) in transforms.items()},
             **{f"time, {work}": times.ratio(f"optscope, {work}", f"script, {work}") for work in works}}
    return {"bar": "B6", "work": f"noise in ten bands, and the 28x28 Fourier map, of an MLP on {IMAGES} images of "
            "Fashion-MNIST", "rows": rows(contenders, times), "ratio": ratio,
            "limit": {"transforms, both works": 1 / 5}}
