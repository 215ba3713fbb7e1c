"""My task: images are told apart.

    optscope compare my_task.py:task --quick    # a first look: two seeds, a short search
    optscope compare my_task.py:task            # eight seeds, which can decide: goes on from there

It runs as it is, on images that are drawn. What to change is marked "yours".
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from optscope import Task

FOLDER = ""  # yours: "photos", with a folder of images for each class; empty: images are drawn
SIZE = 16  # yours: every image is made so many pixels wide and high
COLOURS = 1  # yours: 3 for colour


class Network(nn.Module):
    """A small convolutional network: yours, with as many outputs as there are classes."""

    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(COLOURS, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes))

    def forward(self, images):
        """Return the logits of images in [0, 1]: normalisation belongs in here."""
        return self.layers(images - 0.5)


def task():
    """Return what is learned; every process calls this, so it must give the same data each time."""
    images, labels = read() if FOLDER else drawn()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order.tensor_split([4 * len(images) // 5])
    # Inputs lie in [0, 1], which is what bounds= says when it is not given: noise and attacks stay within.
    # augment= takes a function of images and a torch.Generator, which returns training images changed at random.
    return Task.from_tensors(lambda: Network(int(labels.max()) + 1), (images[train], labels[train]),
                             (images[test], labels[test]))


def read():
    """Return the images (n, colours, height, width) in [0, 1] and the number of each one's folder."""
    known = Image.registered_extensions()
    paths = [path for path in sorted(Path(FOLDER).glob("*/*")) if path.suffix.lower() in known]
    classes = sorted({path.parent.name for path in paths})
    mode = "RGB" if COLOURS == 3 else "L"
    arrays = [np.asarray(Image.open(path).convert(mode).resize((SIZE, SIZE))) for path in paths]
    images = torch.from_numpy(np.stack(arrays)).reshape(len(paths), SIZE, SIZE, COLOURS).movedim(-1, 1) / 255
    return images, torch.tensor([classes.index(path.parent.name) for path in paths])


def drawn():
    """Return images that show the way: a bar that lies, stands or leans, at a random place in noise."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (1000,), generator=draw)
    place = torch.randint(4, SIZE - 4, (1000, 2), generator=draw)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    down, right = y - place[:, 0, None, None], x - place[:, 1, None, None]
    across = torch.stack([down, right, down - right])[labels, torch.arange(1000)]
    bars = (across.abs() < 1) & (down.abs() < 4) & (right.abs() < 4)
    return (0.6 * bars + 0.4 * torch.rand(1000, SIZE, SIZE, generator=draw))[:, None], labels
