"""What training leaves on a device, as JSON: run by `test_device.py`, in a process of its own for a pretended one.

    python pretend.py training_on_device.py pretend        # or python training_on_device.py cuda, mps, ...
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from optscope.engine.average import EMA, SWA
from optscope.engine.execute import Inline
from optscope.engine.place import CPU, Place
from optscope.engine.plan import Plan
from optscope.engine.rehearsal import rehearse
from optscope.engine.run import Run
from optscope.engine.run_folder import RunFolder
from optscope.engine.state_file import from_bytes, to_bytes
from optscope.engine.training import Training
from optscope.engine.watch import Watch
from optscope.optim import SGD, Adam, Players
from optscope.optim.schedules import Cosine
from optscope.probes.accuracy import Accuracy
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.models import ResNet
from optscope.tasks.task import Data, InMemory, Split, Task
from pretend import NAME, pretending, reads, unusable_default
from test_rules import ROWS as RULES

N, BATCH = 24, 8
G = torch.Generator().manual_seed(0)
IMAGES, TABLE, LABELS = torch.rand(N, 1, 8, 8, generator=G), torch.rand(N, 4, generator=G), torch.arange(N) % 3
IDS = torch.randint(7, (N, 5), generator=G)


def mlp():
    """A network with batch normalisation and dropout."""
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))


def cnn():
    """A small residual network with batch normalisation."""
    return ResNet(depth=8, channels=1, classes=3, width=4)()


class Reader(nn.Module):
    """A classifier of token ids with a mask, called by names, which returns a mapping."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, ids, mask):
        """Return logits."""
        kept = self.embed(ids) * mask.unsqueeze(-1)
        return {"logits": self.head(kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))}


class Tempered(nn.Module):
    """A loss with a parameter of its own, which is trained, and weights of the classes, which are not."""

    def __init__(self):
        super().__init__()
        self.heat = nn.Parameter(torch.ones(()))
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 0.5]))

    def forward(self, outputs, targets):
        """Return the loss."""
        return functional.cross_entropy(outputs * self.heat, targets, self.weight, reduction="none").mean()


def noisy(inputs, generator):
    """Augment by noise."""
    return (inputs + 0.05 * torch.randn(inputs.shape, generator=generator, device="cpu")).clamp(0, 1)


def linear():
    """A linear classifier."""
    return nn.Linear(4, 3)


def over(inputs):
    """Return three equal parts of a data set."""
    part = Split(inputs, LABELS)
    return InMemory(Data(part, part, part))


WORDS = over({"ids": IDS, "mask": (IDS > 1).float()})
TASKS = {"mlp": Task("mlp", mlp, over(TABLE)), "cnn": Task("cnn", cnn, over(IMAGES)),
         "augmented": Task("augmented", cnn, over(IMAGES), augment=noisy),
         "words": Task("words", Reader, WORDS, bounds=None),
         "weighted": Task("weighted", linear, over(TABLE), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]))),
         "trained loss": Task("trained loss", linear, over(TABLE), Tempered()),
         "game": gan("game", Perceptron((8, 6, 2)), Perceptron((2, 6, 1)), over(TABLE[:, :2]), bounds=None)}
PLANS = {"usual": Plan(3, BATCH), "schedule": Plan(3, BATCH, Cosine()), "parts": Plan(3, BATCH, micro_batch=3),
         "clipped": Plan(3, BATCH, clip=0.1), "ema": Plan(3, BATCH, average=EMA(0.9)),
         "swa": Plan(3, BATCH, average=SWA(0.3))}
ADAM = Adam(lr=0.01)
ROWS = {**{f"{task}, adam": (task, ADAM, "usual") for task in TASKS if task != "game"},
        "game, adam": ("game", Players(generator=ADAM, discriminator=ADAM), "usual"),
        **{f"mlp, {plan}": ("mlp", SGD(lr=0.1, momentum=0.9), plan) for plan in PLANS},
        **{f"mlp, {row.rule!r}": ("mlp", row.rule, "usual") for row in RULES}}


def made(row, device):
    """Return a training of a row."""
    task, rule, plan = ROWS[row]
    return Training(TASKS[task], rule, PLANS[plan], 1, CPU if device == "cpu" else Place(device))


def left(training):
    """Return all weights, buffers and losses that a training left."""
    found = [t.detach().cpu().double().reshape(-1) for t in training.model.state_dict().values()]
    return torch.cat([*found, training.losses.cpu().double().reshape(-1)])


def trained(row, device):
    """Return what a training left, the waits of its second epoch, and what one that was resumed there left."""
    training = made(row, device)
    assert {t.device.type for t in training.model.state_dict().values()} == {device}
    resumed = made(row, device)
    # Optimisers of torch keep their counts on the default device, and read them.
    with contextlib.nullcontext() if device == "cpu" or "Foreign" in row else unusable_default():
        training.advance(training.total // 3)
        content = to_bytes(training.state_dict(), "x")
        before = sum(reads.values())
        training.advance(2 * (training.total // 3))
        waits = sum(reads.values()) - before
        training.advance(training.total)
        training.trained()
        resumed.load_state_dict(from_bytes(content, "x"))
        resumed.advance(resumed.total)
    return left(training), waits, left(resumed)


def performed(device):
    """Return what became of a run with probes, of its rehearsal, and of the weights it wrote."""
    place, task = CPU if device == "cpu" else Place(device), TASKS["cnn"]
    said = [rehearse(task, {"adam": ADAM}, PLANS["usual"], (Accuracy(),), (Accuracy(split="train"),), place=place),
            rehearse(TASKS["game"], {"adam": ROWS["game, adam"][1]}, PLANS["usual"], place=place)]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(task, ADAM, PLANS["ema"], 1, (Accuracy(),), (Watch(Accuracy(), 2),), place=place)
        outcome = list(Inline().run([run], Path(folder)))[-1]
        kept = RunFolder(Path(folder) / run.id)
        result, weights = kept.result(), kept.weights()
        readings = [kept.contents().reading(name)["values"] for name in run.readings]
    total = sum(float(t.double().abs().sum()) for t in weights.values())
    return {"status": outcome.status, "reason": outcome.reason, "loss": result["train_loss"], "weights": total,
            "readings": readings, "broken": [str(each.broken) for each in said],
            "numerics": result["numerics"].get("device", "cpu").partition(" ")[0]}


def main(device, only=""):
    """Print for every row the largest difference from the CPU, the waits, and how far a resumed one is away."""
    found = {}
    rows = [row for row in ROWS if only in row]
    on_cpu = {row: trained(row, "cpu")[0] for row in rows}
    with pretending() if device == NAME else contextlib.nullcontext():
        for row in rows:
            try:
                there, waits, again = trained(row, device)
                found[row] = (float((there - on_cpu[row]).abs().max()), waits, float((again - there).abs().max()))
                if only:
                    print(*reads.most_common(30), sep="\n", file=sys.stderr)  # noqa: T201
            except Exception as error:
                if only:
                    raise
                found[row] = f"{type(error).__name__}: {error}"
        with torch.device(device):  # as users set it, who then make models and tensors without naming one
            found["run"] = performed(device)
    found["run on the cpu"] = performed("cpu")
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the threads that torch starts for a device outlive Python's end, and may abort the process there
