"""Small tasks of every kind, with inputs of every form: what probes, and whoever else measures, are tried on."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Ring
from optscope.tasks.task import Data, InMemory, Split, Task

N = 40


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def whole(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def thrice(inputs, targets):
    """The same data as training, validation and test part."""
    part = Split(inputs, targets)
    return InMemory(Data(part, part, part))


class Named(nn.Module):
    """Takes its inputs by name and returns its outputs by name, as transformers do."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, input_ids, features, attention_mask):
        """Return logits of masked words and numbers together."""
        mask = attention_mask.unsqueeze(-1).to(features.dtype)
        words = (self.words(input_ids) * mask).sum(1) / mask.sum(1).clamp_min(1)
        return SimpleNamespace(loss=None, logits=self.head(torch.tanh(self.hidden(features) + words)))


class Recommender(nn.Module):
    """Takes a user and an item."""

    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(7, 3), nn.Embedding(4, 3)

    def forward(self, user, item):
        """Return one number a pair."""
        return (self.users(user) * self.items(item)).sum(1, keepdim=True)


class Tagger(nn.Module):
    """An LSTM over tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 3), nn.Linear(4, 3)
        self.lstm = nn.LSTM(3, 2, bidirectional=True, batch_first=True)

    def forward(self, tokens):
        """Return logits (n, T, 3)."""
        return self.head(self.lstm(self.embed(tokens))[0])


class Scaled(nn.Module):
    """A cross-entropy with a temperature of its own, which is trained."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, outputs, targets):
        """Return the loss."""
        return functional.cross_entropy(self.log_scale.exp() * outputs, targets)


def weighted(outputs, batch):
    """A loss that sees the inputs."""
    each = functional.cross_entropy(outputs, batch.targets, reduction="none")
    return (each * (1 + batch.inputs["features"][:, 0])).mean()


def classifier():
    """A plain one."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def segmenter():
    """Two convolutions."""
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 1))


def pictures():
    """A small classifier of pictures."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def causal():
    """Logits of every token."""
    return nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), nn.Linear(4, 6))


def odd():
    """From (3, 2) to (2, 2)."""
    return nn.Sequential(nn.Conv1d(3, 2, 1), nn.Tanh(), nn.Linear(2, 2))


X, Y, IMAGES, TOKENS = rand(N, 6), torch.arange(N) % 3, rand(N, 1, 8, 8), whole(6, N, 5)
WORDS = {"input_ids": whole(5, N, 4), "features": X, "attention_mask": whole(2, N, 4, seed=1)}
MASKS = (IMAGES[:, 0] * 3).long()
TASKS = {
    "classifier": Task("classifier", classifier, thrice(X, Y)),
    "pictures": Task("pictures", pictures, thrice(IMAGES, Y)),
    "by name": Task("by name", Named, thrice(WORDS, Y)),
    "trained loss": Task("trained loss", Named, thrice(WORDS, Y), Scaled()),
    "loss of the batch": Task("loss of the batch", Named, thrice(WORDS, Y), weighted),
    "recommender": Task("recommender", Recommender, thrice((whole(7, N), whole(4, N, seed=1)), rand(N, 1)),
                        kind="regression", bounds=None),
    "odd regression": Task("odd regression", odd, thrice(rand(N, 3, 2), rand(N, 2, 2, seed=1)), kind="regression"),
    "multi-label": Task("multi-label", classifier, thrice(X, (X[:, :3] > 0.4).long()), kind="multi-label"),
    "segmenter": Task("segmenter", segmenter, thrice(IMAGES, MASKS.masked_fill(IMAGES[:, 0] > 0.9, 255)),
                      kind="segmentation"),
    "tagger": Task("tagger", Tagger, thrice(TOKENS, (TOKENS % 3).masked_fill(TOKENS == 5, -100)), bounds=None,
                   kind="token-classification"),
    "causal": Task("causal", causal, thrice(TOKENS, TOKENS), bounds=None, kind="causal-lm"),
    "game": gan("game", Perceptron((8, 6, 2)), Perceptron((2, 5, 1)), Ring(), bounds=None),
}
