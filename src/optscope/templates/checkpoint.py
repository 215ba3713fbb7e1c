"""My task: a network that is trained already is trained on.

    optscope compare my_task.py:task --quick    # a first look: two seeds, a short search
    optscope compare my_task.py:task            # eight seeds, which can decide: goes on from there
    optscope probe model.pt --task my_task.py:task    # or measure what you have, and train nothing

It runs as it is, from fresh weights and on examples that are drawn. What to change is marked "yours".
"""

import torch
from safetensors.torch import load_file
from torch import nn

from optscope import Task

WEIGHTS = ""  # yours: "model.safetensors", or what torch.save(net.state_dict(), "model.pt") wrote; empty: fresh


class Network(nn.Module):
    """The network whose weights they are: yours."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        """Return the logits."""
        return self.head(self.body(x))


def model():
    """Return the network as every run starts it.

    Of transformers: return AutoModelForSequenceClassification.from_pretrained("my_folder", num_labels=4).
    """
    network = Network()
    if WEIGHTS:
        load = load_file if WEIGHTS.endswith(".safetensors") else torch.load
        weights = load(WEIGHTS)
        # A checkpoint often holds more than weights: then weights = weights["state_dict"], or "model".
        # strict=False leaves a new head as it is drawn. Names with a prefix: {k.removeprefix("net."): v for ...}
        network.load_state_dict(weights)
    # for p in network.body.parameters(): p.requires_grad_(False)    # to train the head alone
    return network


def task():
    """Return what is learned; every process calls this, so it must give the same data each time."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 16, generator=draw)  # yours: examples first, values as bounds= says
    y = (x[:, :4] + x[:, 4:8] * x[:, 8:12]).argmax(1)  # yours: labels from 0
    return Task.from_tensors(model, (x[:1500], y[:1500]), (x[1500:], y[1500:]), bounds=(0.0, 1.0))
