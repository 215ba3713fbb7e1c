"""What probes read on a device, as JSON: run by `test_device.py`, in a process of its own for a pretended one.

    python pretend.py probes_on_device.py pretend        # or python probes_on_device.py cuda, mps, ...
"""

import contextlib
import json
import math
import os
import sys
import types
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

import kinds_of_tasks
from optscope.optim import LAMB, LARS, SGD, SOAP, Adam, Graft, Lion, Shampoo, SignSGD
from optscope.optim.foreign import Foreign
from optscope.optim.polar import PolarSGD
from optscope.probes.accuracy import Accuracy, Checkpoint
from optscope.probes.apgd import APGD, TargetedAPGD
from optscope.probes.attack import BIM, FGSM, PGD
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
from optscope.probes.embedding import OwnClassifier
from optscope.probes.fid import FID
from optscope.probes.frequency import DCT, Fourier, SensitivityMap
from optscope.probes.game_field import Rotation
from optscope.probes.geometry import FirstStep, Geometry, Margin
from optscope.probes.gradient_noise import DescentSplit, GradientNoise
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.modes import Classes, Modes, Samples
from optscope.probes.noise import BandNoise, GaussianNoise
from optscope.probes.polar import PolarDrift
from optscope.probes.robust import RobustAccuracy
from optscope.tasks.gan import WGANGP, gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Ring
from optscope.tasks.models import ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Data, InMemory, Split, Task
from pretend import NAME, pretending, reads, unusable_default
from probe_kinds import others

IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3


def cnn():
    """A small residual network with batch normalisation."""
    return ResNet(depth=8, channels=1, classes=3, width=4)()


def mlp():
    """Dropout and a bounded activation."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 3))


class Transformer(nn.Module):
    """Rows of an image as tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1,
                                            enable_nested_tensor=False)

    def forward(self, x):
        """Return logits."""
        return self.head(self.blocks(self.embed(x.squeeze(1))).mean(1))


def words():
    """A model of token ids."""
    return nn.Sequential(nn.Embedding(17, 4), nn.Flatten(), nn.Linear(24, 3))


class Tagger(nn.Module):
    """Logits of every word, from words and the places that count."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(17, 8), nn.Linear(8, 17)

    def forward(self, ids, mask):
        """Return logits `(n, T, 17)`, by name."""
        return {"logits": self.head(self.words(ids).tanh() * mask.unsqueeze(-1))}


def line():
    """A model of numbers."""
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def thrice(inputs, targets):
    """The same data as training, validation and test part."""
    part = Split(inputs, targets)
    return InMemory(Data(part, part, part))


IDS = (IMAGES.flatten(1)[:, :6] * 16).long()
WORDS = {"ids": IDS, "mask": torch.ones(24, 6)}
NUMBERS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
PICTURES = Task("pictures", cnn, thrice(IMAGES, LABELS))
TASKS = {
    "cnn": PICTURES,
    "mlp": Task("pictures", mlp, thrice(IMAGES, LABELS)),
    "transformer": Task("pictures", Transformer, thrice(IMAGES, LABELS)),
    "words": Task("words", words, thrice(IDS, LABELS), bounds=None),
    "line": Task("line", line, thrice(NUMBERS, NUMBERS[:, :1].sin()), kind="regression", bounds=None),
    "tags": Task("tags", Tagger, thrice(WORDS, IDS.where(IDS > 2, -100)), kind="token-classification",
                 bounds=None, output="logits"),
    "ring": gan("ring", Perceptron((8, 16, 2)), Perceptron((2, 16, 1)), Ring(), bounds=None, losses=WGANGP()),
    "digits": gan("digits", lambda: nn.Sequential(nn.Linear(8, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))),
                  lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), thrice(IMAGES, LABELS)),
}
TREES = ("by name", "trained loss", "loss of the batch", "recommender", "multi-label", "segmenter", "causal")
"""Of `kinds_of_tasks` those that a pretended device can run: it has no kernel of LSTMs."""
TASKS |= {name: kinds_of_tasks.TASKS[name] for name in TREES}
INPUTS = (Accuracy(), Checkpoint(), Chance(), Margin(), Lipschitz(climb=3))
CURVATURE = (TopEigenvalues(k=2, rel=0.1), TopEigenvalues(rel=0.1, gauss_newton=True), EdgeOfStability(),
             PreconditionedSharpness(rel=0.1), LayerSharpness(rel=0.1), HessianTrace(9), SpectralDensity(1, 5))
WEIGHTS = (Geometry(), FirstStep(), GradientNoise(3), DescentSplit(16, 4), BatchSharpness(8))
SPECTRA = (GaussianNoise(), BandNoise(), SensitivityMap(basis=DCT()), SensitivityMap(basis=Fourier()))
ATTACKS = (FGSM(), BIM(4), PGD(6, restarts=2), APGD(steps=6), TargetedAPGD(2, 6), RandomSearch(20))
ROBUST = (*(RobustAccuracy(norm, (0.02, 0.1, 0.5), attack, checked=0) for norm in ("l2", "linf")
            for attack in ATTACKS), RobustAccuracy("l2"), RobustAccuracy("linf", 0.02))
GAMES = (Coverage(samples=60), Modes(Ring(), 60), Samples(), Rotation(examples=16))
ADAM, PLAIN, POLAR = Adam(lr=0.01), SGD(lr=0.1, momentum=0.9), PolarSGD(lr=0.1)
SET = [
    *(("cnn", ADAM, probe) for probe in (*INPUTS, *CURVATURE, *WEIGHTS, *SPECTRA, *ROBUST)),
    *(("mlp", PLAIN, probe) for probe in (*INPUTS, TopEigenvalues(), *WEIGHTS)),
    *(("mlp", rule(lr=0.01), EdgeOfStability()) for rule in (SignSGD, Lion, Shampoo, SOAP, LARS, LAMB)),
    ("mlp", Graft(Adam(lr=0.01), Shampoo(lr=1.0)), EdgeOfStability()),
    *(("mlp", Foreign("torch.optim:NAdam"), probe) for probe in (FirstStep(), TopEigenvalues(rel=0.1))),
    *(("transformer", ADAM, probe) for probe in (*INPUTS, TopEigenvalues(rel=0.1), RobustAccuracy("l2", 0.5))),
    *(("words", ADAM, probe) for probe in (Accuracy(), Chance(), Margin(), TopEigenvalues(rel=0.1), *WEIGHTS)),
    *(("line", ADAM, probe) for probe in (Accuracy(), Checkpoint(), Chance(), TopEigenvalues(), *WEIGHTS,
                                          Lipschitz(climb=3))),
    *((task, ADAM, probe) for task in TREES for probe in (Accuracy(), Chance(), TopEigenvalues(rel=0.1),
                                                          FirstStep())),
    *(("by name", ADAM, probe) for probe in (Margin(), Lipschitz(climb=3), GaussianNoise(), GradientNoise(3),
                                             RobustAccuracy("l2", 0.1))),
    *(("tags", ADAM, probe) for probe in (Accuracy(), Checkpoint(), Chance(), FirstStep())),
    *(("mlp", POLAR, probe) for probe in (PolarDrift(),)),
    *(("ring", None, probe) for probe in GAMES),
    *(("digits", None, probe) for probe in (Coverage(OwnClassifier("digits"), 60), Classes(samples=60),
                                            Samples(), FID(samples=20))),
]
ROWS = [*SET, *(("cnn", ADAM, probe) for probe in others(type(row[2]).__name__ for row in SET))]


def name(row):
    """What a row of the table is called."""
    task, rule, probe = row
    return f"{task} {rule!r} {probe!r}"


def trained(task, rule, device):
    """Return a model after two steps by a rule on a device; a game as it starts."""
    torch.manual_seed(0)
    model, part = task.model().to(device), task.data().train
    if rule is None:
        return Snapshot(model, task)
    optimizer = rule.optimizer(model.parameters())
    batch = part.to(device)
    for _ in range(2):
        optimizer.zero_grad()
        model.eval()  # dropout draws other numbers on another device
        task.value(model, batch).backward()
        optimizer.step()
    return Snapshot(model.train(), task, rule=rule, optimizer=optimizer, step=2)


def numbers(reading):
    """Return all that is in a reading, by name, as arrays."""
    values = {key: np.array(list(value.values()) if isinstance(value, Mapping) else [value])
              for key, value in reading.values.items()}
    return {**values, **{f"array {key}": np.asarray(value) for key, value in reading.arrays.items()}}


def difference(there, here):
    """Return the largest difference of two readings, relative to the largest number of its kind."""
    mine, theirs = numbers(here), numbers(there)
    if mine.keys() != theirs.keys() or here.silence != there.silence:
        return math.inf
    worst = 0.0
    for key, a in mine.items():
        b = theirs[key]
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        if a.dtype.kind not in "fiub" or a.dtype == bool:
            worst = max(worst, 0.0 if (a == b).all() else math.inf)
        elif not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return math.inf
        elif (fine := np.isfinite(a)).any():
            a, b = a.astype(float)[fine], b.astype(float)[fine]
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)))
    return worst


MAKERS = (Geometry, Classes, Coverage)
"""Probes that make a model, to compare with or to look by."""


def read(row, device):
    """Return a reading on a device and how often the device was waited for."""
    task, rule, probe = row
    snapshot = trained(TASKS[task], rule, device)
    start = [value.detach().cpu().clone() for value in snapshot.model.state_dict().values()]
    before = sum(reads.values())
    # Optimisers of torch keep their counts on the default device, where new models are made, too.
    usual = device == "cpu" or "Foreign" in repr(rule) or isinstance(probe, MAKERS)
    with contextlib.nullcontext() if usual else unusable_default():
        found = probe(snapshot)
    waits = sum(reads.values()) - before
    left = [value.detach().cpu() for value in snapshot.model.state_dict().values()]
    if not all(map(torch.equal, start, left)) or not all(p.requires_grad for p in snapshot.model.parameters()):
        raise AssertionError(f"{probe!r} changed the model")
    return found, waits


def fidelity(**given):
    """Stand in for torch-fidelity: the mean of what it is handed."""
    each = [torch.stack([pictures[i] for i in range(len(pictures))]).double().mean()
            for pictures in (given["input1"], given["input2"])]
    return {"frechet_inception_distance": float(each[0] - each[1])}


def main(device, only=""):
    """Print for every row the largest relative difference from the CPU, and the waits."""
    sys.modules["torch_fidelity"] = types.SimpleNamespace(calculate_metrics=fidelity)
    found = {}
    rows = [row for row in ROWS if only in name(row)]
    on_cpu = {name(row): read(row, "cpu")[0] for row in rows}
    with pretending() if device == NAME else contextlib.nullcontext():
        for row in rows:
            try:
                before = reads.copy()
                there, waits = read(row, device)
                found[name(row)] = difference(there, on_cpu[name(row)]), waits
                if only:
                    print(*(reads - before).most_common(30), sep="\n", file=sys.stderr)  # noqa: T201
            except Exception as error:
                if only:
                    raise
                found[name(row)] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the threads that torch starts for a device outlive Python's end, and may abort the process there
