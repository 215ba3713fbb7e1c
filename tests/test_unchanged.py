"""What looking leaves as it was, whatever a model does when it is called; and which losses are means."""

from __future__ import annotations

import collections
import random
import threading
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from optscope.errors import UserError
from optscope.tasks.mean_loss import check_mean
from optscope.tasks.unchanged import unchanged

NAMES = ("weight", "buffer", "count", "seen", "steps", "queue", "kinds", "drawn", "hidden", "note")


@dataclass(slots=True)
class Note:
    """An object of the user's own, with slots."""

    calls: int = 0


@dataclass
class Log:
    """An object of the user's own."""

    lines: list[float] = field(default_factory=list)


class Restless(nn.Module):
    """Changes whatever a module can hold whenever it is called, or told to train."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.lstm = nn.LSTM(3, 3)
        self.register_buffer("buffer", torch.zeros(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.lock, self.calls, self.seen, self.cache = threading.Lock(), 0, [1.0], {"old": torch.ones(2)}
        self.queue, self.kinds = collections.deque([1], maxlen=3), {"a"}
        self.array, self.note, self.log = np.zeros(3), Note(), Log()
        self.torch_noise, self.numpy_noise = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.old_noise, self.python_noise = np.random.RandomState(0), random.Random(0)
        self.linear.register_forward_hook(lambda module, args, out: self.seen.append(float(out.detach().sum())))
        counted = 0

        def count(module: nn.Module, args: object) -> None:
            nonlocal counted
            counted += 1
            self.counted = lambda: counted

        self.norm.register_forward_pre_hook(count)
        self.counted = lambda: counted
        self.hook = partial(self.log.lines.append)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.eval()
        with torch.no_grad():  # as merging of low-rank weights does
            self.linear.weight.add_(0.1 if mode else -0.1)
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.buffer += 1
        self.array += 1
        self.note.calls += 1
        self.queue.append(self.calls)
        self.kinds.add(str(self.calls))
        self.new = x
        self.frozen.requires_grad_(True)
        self.linear.bias.data = self.linear.bias.data * 1.5
        self.linear.weight.grad = torch.ones_like(self.linear.weight)
        torch.set_default_dtype(torch.float64)
        for draw in (partial(torch.rand, 1, generator=self.torch_noise), self.numpy_noise.random,
                     self.old_noise.rand, self.python_noise.random):
            self.hook(float(draw()))
        parametrize.register_parametrization(self.linear, "bias", nn.Identity())
        self.hidden = self.lstm(self.norm(self.linear(x)))[0]  # with its graph: it cannot be copied
        self.cache["old"].mul_(2)
        self.cache["new"] = self.hidden
        return self.hidden


def state(model: Restless) -> list[object]:
    """Everything that a call changes, as plain values."""
    tensors = [*model.state_dict().values(), model.cache["old"], torch.from_numpy(model.array)]
    noise = [float(torch.rand(1, generator=model.torch_noise.clone_state())),
             repr(model.numpy_noise.bit_generator.state), repr(model.old_noise.get_state()),
             model.python_noise.getstate()]
    return [[t.tolist() for t in tensors], [p.requires_grad for p in model.parameters()],
            [p.grad is None for p in model.parameters()], [m.training for m in model.modules()],
            [type(m).__name__ for m in model.modules()], sorted(vars(model)), sorted(model.cache), model.calls,
            list(model.seen), list(model.queue), set(model.kinds), model.note.calls, list(model.log.lines),
            model.counted(), noise, list(model.linear._parameters), model.linear.bias.data_ptr(),
            [id(p) for p in model.lstm._flat_weights], torch.get_default_dtype()]


def test_whatever_a_call_changes_is_put_back() -> None:
    torch.manual_seed(0)
    model = Restless()
    before = state(model)
    with unchanged(model):
        model.train().eval()(torch.ones(4, 3))
        assert all(a != b for a, b in zip(before[:13], state(model)[:13], strict=True))
    assert state(model) == before
    with pytest.raises(RuntimeError, match="shape"), unchanged(model):
        model(torch.ones(4, 3)).view(7)
    assert state(model) == before


def test_a_training_goes_on_to_the_same_bits() -> None:
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))

    def train(look: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3), nn.Linear(3, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        for step in range(4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if look and step == 2:
                with unchanged(model, optimizer):
                    model(2 * x).mean().backward()
                    optimizer.step()
            optimizer.step()
        return list(model.state_dict().values())

    assert all(map(torch.equal, train(False), train(True)))


LABELS, NUMBERS = torch.arange(8) % 3, torch.linspace(-1, 1, 24).reshape(8, 3)
MEANS = {"cross-entropy": (functional.cross_entropy, LABELS), "squared error": (functional.mse_loss, NUMBERS + 1),
         "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1])), LABELS),
         "ignored labels": (nn.CrossEntropyLoss(ignore_index=2), LABELS),
         "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS),
         "hinge": (nn.MultiMarginLoss(), LABELS),
         "of differences": (lambda z, y: (z - y).mean(), NUMBERS)}  # its value is zero
OTHERS = {"sum": (nn.CrossEntropyLoss(reduction="sum"), LABELS),
          "sum of squares": (nn.MSELoss(reduction="sum"), NUMBERS),
          "small sum": (lambda z, y: 1e-9 * functional.mse_loss(z, y, reduction="sum"), NUMBERS),
          "sum over a constant": (lambda z, y: functional.mse_loss(z, y, reduction="sum") / 128, NUMBERS),
          "pairs": (lambda z, y: (z @ z.T).triu(1).square().sum() / len(z), LABELS)}


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_means_are_taken_for_means(name: str, dtype: torch.dtype) -> None:
    loss, targets = MEANS[name]
    if dtype != torch.float32 and name in ("class weights", "hinge"):  # torch wants weights of one type
        return
    check_mean(loss, NUMBERS.to(dtype), targets.to(dtype) if targets.is_floating_point() else targets)


@pytest.mark.parametrize("name", OTHERS)
def test_other_losses_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"the loss must be a mean over the examples, with the same gradient when "
                                        r"each is taken twice; this one's changes by [0-9]+%: use"):
        check_mean(OTHERS[name][0], NUMBERS, OTHERS[name][1])


def test_a_loss_of_a_fixed_number_of_examples_is_refused() -> None:
    each = torch.ones(8)
    with pytest.raises(UserError, match="it takes 8 of them, and of twice as many it says: The size of tensor"):
        check_mean(lambda z, y: (each * functional.cross_entropy(z, y, reduction="none")).mean(), NUMBERS, LABELS)
