"""My task: a label is foretold from the columns of a table.

    optscope compare my_task.py:task --quick    # a first look: two seeds, a short search
    optscope compare my_task.py:task            # eight seeds, which can decide: goes on from there

It runs as it is, on a table that is drawn. What to change is marked "yours".
"""

import csv
import math
from pathlib import Path

import torch
from torch import nn

from optscope import Task

TABLE = ""  # yours: "customers.csv", whose first line names the columns; empty: a table is drawn
TARGET = "label"  # yours: the column that is foretold


def network(inputs, classes):
    """Return a fresh, untrained network: yours, with as many outputs as there are classes."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, classes))


def task():
    """Return what is learned; every process calls this, so it must give the same data each time."""
    columns = read() if TABLE else drawn()
    words = columns.pop(TARGET)
    classes = sorted(set(words))
    y = torch.tensor([classes.index(word) for word in words])
    x = torch.cat([inputs(column) for column in columns.values()], dim=1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order.tensor_split([4 * len(x) // 5])
    # A number says how many spreads it lies from its mean over the training rows; where it is missing, none.
    known = x[train]
    mean = known.nanmean(0)
    x = torch.nan_to_num((x - mean) / (known - mean).square().nanmean(0).sqrt().clamp(min=1e-6))
    # bounds=None: such numbers have no range, so that noise and attacks are not measured.
    # To foretell a number: y = torch.tensor([[float(word)] for word in words]), one output, kind="regression".
    return Task.from_tensors(lambda: network(x.shape[1], len(classes)), (x[train], y[train]), (x[test], y[test]),
                             bounds=None)


def read():
    """Return the columns of the table by their names."""
    with Path(TABLE).open(newline="", encoding="utf-8-sig") as file:
        names, *rows = csv.reader(file)
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def inputs(column):
    """Return a column as inputs (rows, k): numbers as they are, of words one for each."""
    try:
        return torch.tensor([[float(word) if word.strip() else math.nan] for word in column])
    except ValueError:
        words = sorted(set(column))
        return nn.functional.one_hot(torch.tensor([words.index(word) for word in column]), len(words)).float()


def drawn():
    """Return the columns of a table that shows the way: three classes, two of which are hard to tell apart."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 6, generator=draw)
    hidden = torch.stack([x[:, 0] + x[:, 1], x[:, 1] * x[:, 2], x[:, 3].square() - 1], dim=1)
    label = (hidden + 0.3 * torch.randn(2000, 3, generator=draw)).argmax(1)
    return {f"x{i}": [f"{value:.4f}" for value in x[:, i].tolist()] for i in range(6)} | {
        "place": ["north" if value > 0 else "south" for value in x[:, 0].tolist()],
        "label": [f"class {i}" for i in label.tolist()]}
