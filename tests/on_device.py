"""What rules do on a pretended device, as JSON: run by `test_device.py`, in a process of its own."""

import contextlib
import json
import os
import sys

import torch
from torch import nn

from optscope.vector import Layout
from pretend import NAME, pretending, reads, unusable_default
from test_rules import ROWS, gradient, made, tensors

STEPS = 4


def trained(rule, device):
    """Return the weights after some steps, and how often a value was read in the last of them."""
    start = tensors()
    layout = Layout.of(start)
    params = [nn.Parameter(t.clone().to(device)) for t in start]
    optimizer, weights, waits = made(rule)(params), layout.flatten(start), 0
    for t in range(STEPS):
        for p, g in zip(params, layout.views(gradient(weights, t)), strict=True):
            p.grad = g.clone().to(device)

        def again(t=t):
            there = layout.flatten([p.detach() for p in params])
            for p, g in zip(params, layout.views(gradient(there, t)), strict=True):
                p.grad = g.clone()

        before = sum(reads.values())
        # Optimisers of torch keep their counts on the default device, and read them.
        with contextlib.nullcontext() if "Foreign" in repr(rule) else unusable_default():
            optimizer.step(again)
        waits = sum(reads.values()) - before
        weights = layout.flatten([p.detach().cpu() for p in params])
    return weights, waits


def main():
    found = {"rules": {}}
    on_cpu = {repr(row.rule): trained(row.rule, "cpu")[0] for row in ROWS}
    found["moved"] = min(float((weights - Layout.of(tensors()).flatten(tensors())).abs().max())
                         for weights in on_cpu.values())
    with pretending():
        for row in ROWS:
            weights, waits = trained(row.rule, NAME)
            found["rules"][repr(row.rule)] = float((weights - on_cpu[repr(row.rule)]).abs().max()), waits
    with pretending():
        model = nn.Linear(3, 2).to(NAME)
        model(torch.rand(4, 3, device=NAME)).sum().backward()
        try:
            model(torch.rand(4, 3))
        except RuntimeError as error:
            found["mixed"] = type(error).__name__
        before = sum(reads.values())
        float(model.bias.detach().sum())
        found["reads before, after float()"] = before, sum(reads.values())
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the threads that torch starts for a device outlive Python's end, and may abort the process there
