"""My task: texts are told apart.

    optscope compare my_task.py:task --quick    # a first look: two seeds, a short search
    optscope compare my_task.py:task            # eight seeds, which can decide: goes on from there

It runs as it is, on sentences that are drawn. What to change is marked "yours".
"""

import collections
import csv
import random
import re
from pathlib import Path

import torch
from torch import nn

from optscope import Task

TEXTS = ""  # yours: "reviews.csv", whose first line names the columns; empty: sentences are drawn
TEXT, LABEL = "text", "label"  # yours: the columns
LENGTH = 32  # yours: so many words of every text are read
WORDS = 5000  # yours: so many words are known, the commonest


class Network(nn.Module):
    """The mean of word vectors, and a small network on it: yours, with as many outputs as there are classes."""

    def __init__(self, words, classes):
        super().__init__()
        self.embed = nn.Embedding(words, 32, padding_idx=0)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, input_ids, attention_mask):
        """Return the logits of texts (n, LENGTH): a model of transformers is called likewise."""
        here = attention_mask[..., None]
        return self.head((self.embed(input_ids) * here).sum(1) / here.sum(1).clamp(min=1))


def task():
    """Return what is learned; every process calls this, so it must give the same data each time."""
    texts, names = read() if TEXTS else drawn()
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names])
    inputs, known = numbered(texts)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    train, test = ({"labels": labels[part]} | {name: each[part] for name, each in inputs.items()}
                   for part in order.tensor_split([4 * len(texts) // 5]))
    # What a tokenizer of transformers returns goes in likewise, and its models are called likewise:
    #   inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    #   lambda: AutoModelForSequenceClassification.from_pretrained("my_folder", num_labels=2) for the network
    # bounds=None: word numbers have no range, so that noise and attacks are not measured.
    return Task.from_tensors(lambda: Network(known, len(classes)), train, test, bounds=None)


def read():
    """Return the texts and their labels."""
    with Path(TEXTS).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return [row[TEXT] for row in rows], [row[LABEL] for row in rows]


def numbered(texts):
    """Return texts as numbers of words (0: none, 1: not known), and how many numbers there are."""
    split = [re.findall(r"\w+", text.lower())[:LENGTH] for text in texts]
    common = collections.Counter(word for words in split for word in words).most_common(WORDS)
    number = {word: i for i, (word, _) in enumerate(common, start=2)}
    ids = torch.tensor([([number.get(word, 1) for word in words] + [0] * LENGTH)[:LENGTH] for words in split])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}, len(number) + 2


def drawn():
    """Return sentences that show the way: praise and blame, some of it turned round by "not"."""
    draw = random.Random(0)
    good = ["good", "fine", "lovely", "funny", "clever", "warm"]
    bad = ["bad", "poor", "dull", "slow", "weak", "cold"]
    texts, labels = [], []
    for _ in range(2000):
        praise, turned = draw.random() < 0.5, draw.random() < 0.2
        words = [draw.choice(good if praise else bad) for _ in range(draw.randint(1, 3))]
        texts.append(f"the {draw.choice(['film', 'book', 'play'])} was {'not ' * turned}{' and '.join(words)}")
        labels.append("liked" if praise != turned else "disliked")
    return texts, labels
