"""Send unusual models, losses, optimisers and data through a small comparison, and write docs/unusual.md of it.

    python scripts/unusual.py              # all of them, some minutes
    python scripts/unusual.py NAME ...     # print the lines of some
"""

from __future__ import annotations

import copy
import re
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as everyone calls it
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint

from optscope.engine.execute import Inline
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.protocol.compare import comparison_of
from optscope.protocol.events import Quiet
from optscope.protocol.rehearse import rehearsed
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import OptimiserSettings, Settings
from optscope.tasks.check import check_task
from optscope.tasks.task import Task

PAGE = Path(__file__).parent.parent / "docs" / "unusual.md"
N = 60
X = torch.rand(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3
IMAGES = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(20, (N, 7), generator=torch.Generator().manual_seed(2))
ENTRIES: dict[str, Callable[[], tuple[Task, dict[str, list[float]]]]] = {}


def entry(name: str, model: Callable[[], nn.Module], x: object = X, y: object = Y, *,
          optimisers: tuple[str, ...] = ("sgd", "adam"), **settings: object) -> None:
    """Add a row; what cannot be made into a task at all is refused when it is its turn."""
    def make() -> tuple[Task, dict[str, list[float]]]:
        source = ((x[:40], y[:40]), (x[40:], y[40:])) if isinstance(x, Tensor) else (x, x)
        return (Task.from_tensors(model, *source, name="it", **settings),  # type: ignore[arg-type]
                {optimiser: [0.01] for optimiser in optimisers})

    ENTRIES[name] = make


class Net(nn.Module):
    """A linear layer and a head, with something odd put between them by each subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.odd()

    def odd(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.first(x)))

    def between(self, h: Tensor) -> Tensor:
        return h.relu()


class Frozen(Net):
    def odd(self): self.first.requires_grad_(False)


class Tied(Net):
    def odd(self):
        self.again = nn.Linear(6, 8)
        self.again.weight = self.first.weight

    def between(self, h): return self.again(h[:, :6]).relu()


class Complex(Net):
    def odd(self): self.phase = nn.Parameter(torch.randn(8, dtype=torch.cfloat))

    def between(self, h): return (h * self.phase).abs()


class ComplexOutput(Net):
    def between(self, h): return h.relu()

    def forward(self, x): return super().forward(x).to(torch.cfloat)


class Lazy(Net):
    def odd(self): self.head = nn.LazyLinear(3)


class Locked(Net):
    def odd(self): self.lock = threading.Lock()

    def between(self, h):
        with self.lock:
            return h.relu()


class Counting(Net):
    def odd(self): self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def between(self, h):
        self.calls += 1
        return h.relu()


class Fading(Counting):
    def between(self, h):
        self.calls += 1
        return h.relu() + self.calls


class Checkpointed(Net):
    def between(self, h): return checkpoint(torch.relu, h, use_reentrant=False)


class Extra(Net):
    def get_extra_state(self): return {"note": "kept"}

    def set_extra_state(self, state): ...


class Hidden(Net):
    def odd(self): self.register_buffer("scale", torch.ones(8), persistent=False)

    def between(self, h): return h.relu() * self.scale


class Listed(Net):
    def odd(self):
        self.parts = nn.ParameterList([nn.Parameter(torch.ones(8))])
        self.named = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(8))})

    def between(self, h): return (h * self.parts[0] + self.named["shift"]).relu()


class Drawing(Net):
    def between(self, h): return h.relu() + torch.randn_like(h)


class Averaging(Net):
    def odd(self): self.register_buffer("mean", torch.zeros(8))

    def between(self, h):
        if self.training:
            self.mean.lerp_(h.detach().mean(0), 0.1)
        return h.relu() - self.mean


class Pair(Net):
    def forward(self, x): return super().forward(x), x


class Named(Net):
    def forward(self, x): return {"logits": super().forward(x)}


class Output:
    def __init__(self, logits): self.logits = logits


class Logits(Net):
    def forward(self, x): return Output(super().forward(x))


class InPlace(Net):
    def forward(self, x): return super().forward(x.mul_(2))


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.sign()

    @staticmethod
    def backward(ctx, grad): return grad


class Signs(Net):
    def between(self, h): return Straight.apply(h)


class Quantised(Net):
    def odd(self): self.scale, self.zero = 0.1, 0

    def between(self, h): return torch.fake_quantize_per_tensor_affine(h, self.scale, self.zero, -128, 127)


class Hyper(Net):
    def odd(self): self.core = nn.Linear(8, 8)

    def between(self, h):
        made = {"weight": self.core.weight * h.mean(), "bias": self.core.bias}
        return torch.func.functional_call(self.core, made, (h,))


class Aligned(nn.Module):
    """A spatial transformer: where to look is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.head = nn.Linear(64, 6), nn.Linear(64, 3)

    def forward(self, x):
        grid = F.affine_grid(self.where(x.flatten(1)).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(20, 5), nn.GRU(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x): return self.head(self.states(self.embed(x)))

    def states(self, z): return self.cell(z)[0][:, -1]


class Packed(Recurrent):
    def states(self, z):
        lengths = torch.full((len(z),), 4)
        return self.cell(rnn.pack_padded_sequence(z, lengths, batch_first=True))[1][0]


class Bag(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 5, **options), nn.Linear(5, 3)

    def forward(self, x): return self.head(self.pooled(x))

    def pooled(self, x): return self.embed(x).mean(1)


class Masked(Bag):
    def pooled(self, x):
        mask = (x > 3).unsqueeze(2)
        return (self.embed(x) * mask).sum(1) / mask.sum(1).clamp(min=1)


class Attending(Bag):
    def pooled(self, x):
        z = self.embed(x)
        return F.scaled_dot_product_attention(z, z, z).mean(1)


class ByName(nn.Module):
    """Inputs of two types."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embed = linear(), nn.Embedding(20, 3)

    def forward(self, x, tokens): return {"logits": self.first(x) + self.embed(tokens).mean(1)}


class InOrder(ByName):
    def forward(self, x, tokens): return super().forward(x, tokens)["logits"]


def lengthened(outputs, batch):
    """Return the cross-entropy, in which examples count by an input."""
    return (F.cross_entropy(outputs, batch.targets, reduction="none") * batch.inputs[0][:, 0]).mean()


class Weighted(nn.Module):
    """A loss with a temperature of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, outputs, targets): return F.cross_entropy(outputs / self.temperature, targets)


def linear(): return nn.Linear(6, 3)


def convolution(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def normed(wrap):
    def build():
        model = Net()
        wrap(model.first)
        return model
    return build


def summed(outputs, targets): return F.cross_entropy(outputs, targets, reduction="sum")


def rounded(outputs, targets): return F.cross_entropy(outputs.round(), targets)


def argmaxed(outputs, targets): return (outputs.argmax(1) != targets).float().mean()


ONE_HOT, LABELS = F.one_hot(Y).float(), (X[:, :3] > 0.5).float()
PIXELS = torch.arange(N * 64).view(N, 8, 8) % 3
entry("frozen first layer", Frozen)
entry("tied weights", Tied)
entry("complex weights", Complex)
entry("complex outputs", ComplexOutput)
entry("lazy layer", Lazy)
entry("lock in the model", Locked)
entry("buffer that counts calls", Counting)
entry("output that depends on the calls", Fading)
entry("activation checkpointing", Checkpointed)
entry("extra state", Extra)
entry("buffer that is not saved", Hidden)
entry("ParameterList and ParameterDict", Listed)
entry("random numbers in eval mode", Drawing)
entry("moving average in forward", Averaging)
entry("model that returns a tuple", Pair)
entry("model that returns a dict", Named)
entry("model that returns an object with .logits", Logits)
entry("model that writes into its input", InPlace)
entry("first layer in place", lambda: nn.Sequential(nn.ReLU(inplace=True), linear()))
entry("straight-through signs (autograd.Function)", Signs)
entry("fake quantisation", Quantised)
entry("weights made by functional_call", Hyper)
entry("spatial transformer", Aligned, IMAGES)
entry("weight norm", normed(parametrizations.weight_norm))
entry("spectral norm", normed(parametrizations.spectral_norm))
entry("orthogonal weights", normed(parametrizations.orthogonal))
entry("PReLU and dropout", lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Dropout(0.5), nn.Linear(8, 3)))
entry("Dropout3d", lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 4, 8)), nn.Dropout3d(), nn.Flatten(),
                                         nn.Linear(64, 3)), IMAGES.flatten(1))
entry("BatchNorm", lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))
entry("gated linear units", lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3)))
entry("torch.jit.script", lambda: torch.jit.script(linear()))
entry("torch.jit.trace", lambda: torch.jit.trace(linear(), X[:2]))
entry("torch.compile", lambda: torch.compile(linear(), backend="eager"))
entry("float64 model and data", lambda: linear().double(), X.double())
entry("float16 model and data", lambda: linear().half(), X.half())
entry("bfloat16 model and data", lambda: linear().bfloat16(), X.bfloat16())
entry("bfloat16 model, float32 data", lambda: linear().bfloat16())
entry("model without parameters", nn.Identity)
one = linear()
entry("one model for all runs", lambda: one)
entry("copies of one trained model", lambda: copy.deepcopy(one))
entry("token ids, embedding", Bag, TOKENS, bounds=None)
entry("token ids with bounds", Bag, TOKENS)
entry("Embedding(max_norm)", lambda: Bag(max_norm=0.5), TOKENS, bounds=None)
entry("sparse embedding", lambda: Bag(sparse=True), TOKENS, bounds=None)
entry("deep set with a mask", Masked, TOKENS, bounds=None)
entry("attention", Attending, TOKENS, bounds=None)
entry("GRU", Recurrent, TOKENS, bounds=None)
entry("GRU on packed sequences", Packed, TOKENS, bounds=None)
entry("segmentation, pixels ignored", lambda: nn.Conv2d(1, 3, 3, padding=1), IMAGES, PIXELS.where(PIXELS > 0, 255),
      kind="regression", loss=nn.CrossEntropyLoss(ignore_index=255))
entry("several labels an example", linear, X, LABELS, kind="regression", loss=nn.BCEWithLogitsLoss())
entry("several labels an example, as a kind", linear, X, LABELS, kind="multi-label")
entry("segmentation, as a kind", lambda: nn.Conv2d(1, 3, 3, padding=1), IMAGES, PIXELS.where(PIXELS > 0, 255),
      kind="segmentation")
entry("next tokens", lambda: nn.Sequential(nn.Embedding(20, 5), nn.Linear(5, 20)), TOKENS, TOKENS, kind="causal-lm",
      bounds=None)
entry("inputs by name, labels among them", ByName, {"x": X, "tokens": TOKENS, "labels": Y})
entry("two inputs, a loss that sees them", InOrder, ((X, TOKENS), Y), loss=lengthened)
entry("two floating leaves with bounds", InOrder, ((X, X), Y))
entry("inputs of two lengths", InOrder, ((X, TOKENS[:7]), Y))
entry("a name that the model does not take", ByName, {"x": X, "ids": TOKENS, "labels": Y})
entry("regression without a loss given", lambda: nn.Linear(6, 1), X, X[:, :1], kind="regression")
entry("regression with outputs (n,)", lambda: nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), X, X[:, 0],
      kind="regression")
entry("a kind that there is not", linear, kind="multilabel")
entry("summed loss", linear, loss=summed)
entry("loss with parameters", linear, loss=Weighted())
entry("loss that is rounded", linear, loss=rounded)
entry("error rate as the loss", linear, loss=argmaxed)
entry("label smoothing", linear, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
entry("class weights", linear, loss=nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])))
entry("Rprop", linear, optimisers=("sgd", "torch.optim:Rprop"))
entry("Muon on a bias", linear, optimisers=("sgd", "torch.optim:Muon"))
entry("LBFGS", linear, optimisers=("sgd", "torch.optim:LBFGS"))
entry("SparseAdam", linear, optimisers=("sgd", "torch.optim:SparseAdam"))
entry("labels as bytes", linear, X, Y.byte())
entry("labels (n, 1)", linear, X, Y[:, None])
entry("one-hot labels", linear, X, ONE_HOT)
entry("labels from 1", linear, X, Y + 1)
entry("labels that skip a class", linear, X, Y.where(Y != 1, 0))
entry("images as bytes", convolution, (IMAGES * 255).byte())
entry("sparse inputs", linear, list(zip(X.to_sparse(), Y, strict=True)))
entry("lists of numbers", linear, (X.tolist(), Y.tolist()))
entry("words as labels", linear, (X, ["a", "b", "c"] * 20))
entry("examples of different sizes", linear, [(X[0], 0), (X[0, :3], 1)])
entry("one example is nan", linear, X.where(torch.arange(N)[:, None] != 5, torch.nan))
entry("complex inputs", linear, X.to(torch.cfloat), bounds=None)
entry("inputs outside the bounds", linear, 3 * X)


def line(name: str) -> str:
    """Return what optscope does with an entry: "works", "works, without ...: why", or "refused: why"."""
    try:
        task, optimisers = ENTRIES[name]()
        settings = Settings(optimisers={k: OptimiserSettings(lr=v) for k, v in optimisers.items()}, seeds=1,
                            epochs=1, batch=16, twin_seeds=0, examples=8)
        with tempfile.TemporaryDirectory() as folder:
            check_task(task)
            rehearsal = rehearsed(comparison_of(task, settings))
            trained = replace(rehearsal.comparison, probes=(), described=(), watched=())
            results = run_experiments([trained], Store(Path(folder) / "out"), Inline(), Quiet())
    except UserError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"**crashes**: {type(error).__name__}: {error}"
    if results.failures:
        return f"**fails**: {results.failures[0]}"
    found = [without(sentence) for sentence in (*rehearsal.before, *rehearsal.known)]
    return "; ".join(["works", *dict.fromkeys(filter(None, found))])


def without(sentence: str) -> str:
    """Return what a sentence says is not measured, with the names of probes for their settings."""
    silent = re.fullmatch(r".*nothing is measured of an untrained model by (.*?\)): (.*)", sentence, re.DOTALL)
    broken = re.fullmatch(r"(.*) is left out: of an untrained model, (.*)", sentence, re.DOTALL)
    if not (silent or broken):
        return ""
    probes, why = (silent or broken).groups()  # type: ignore[union-attr]
    names = dict.fromkeys(re.findall(r"\b([A-Z]\w+)\((?=[^()]*)", probes))
    return f"without {', '.join(names)}: {why}"


def row(name: str) -> str:
    """Return an entry's row of the table."""
    return f"| {name} | {' '.join(line(name).split()).replace('|', '/')} |"


HEAD = """# What optscope does with unusual models

Written by `python scripts/unusual.py`, which sends each of these through the check and the rehearsal of a
comparison of SGD with Adam (or the optimiser named) on 60 examples, and then through its trainings: one seed, one
epoch. Every task is called "it" here. "Works" means that every probe was taken of the untrained model, and every
training finished; "without" names the probes that fall silent, with the reason that the terminal shows; "refused"
is the one sentence that `optscope compare` prints before it trains anything.

| what | what happens |
|---|---|
"""


def main(names: list[str]) -> None:
    """Print the rows of some entries, or write the page of all."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in names or ENTRIES:
        start = time.perf_counter()
        rows.append(row(name))
        print(rows[-1], f"{time.perf_counter() - start:.1f} s", flush=True)
    if not names:
        PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
