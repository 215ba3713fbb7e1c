#!/usr/bin/env bash
# Adafactor of convolutions, torch's and pytorch_optimizer's, keeps as much as Adam or more: it factors the kernel window.
#
# Expected: Adafactor's point is memory that is sublinear in the weights: of a matrix of n rows and m columns n + m
# numbers stand for the n·m second moments. A kernel (out, in, height, width) is a matrix of out rows and in·h·w
# columns to all who whiten or factor it (Shampoo, SOAP, Muon), so some hundredths of Adam's state are expected.
# Happens:  both factor along the last two axes, the window of the kernel. Of a 3x3 kernel two thirds of the second
# moments are kept (h + w numbers for h·w, for each pair of channels), and of a 1x1 kernel twice as many as there are
# weights: a row and a column of one number each. Of a residual network with bottlenecks, most of whose weights are
# 1x1 kernels, 1.3 numbers a weight are kept, more than all of Adam's second moments (1.0); of a linear layer 0.02.
# Why it matters: who takes Adafactor to fit a convolutional network into memory gets none of it, silently; and results
# "with Adafactor" on convolutional networks are those of a nearly unfactored method.
# Source: torch 2.13.0, torch/optim/_adafactor.py (row_var, col_var: "factor along the last 2 dimensions");
# pytorch_optimizer 4.1.0, AdaFactor; Shazeer and Stern 2018, arXiv 1804.04235, section 3, which is of matrices.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" "pytorch_optimizer==4.1.0"
env/bin/python - <<'PY'
from importlib import metadata

import torch
from pytorch_optimizer import AdaFactor
from torch import nn

print("torch", torch.__version__, "pytorch_optimizer", metadata.version("pytorch_optimizer"))


def kept(make, module):
    """Return how many numbers an optimiser keeps of a module's weights of two axes and more, a weight."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    optimizer = make(weights)
    for p in weights:
        p.grad = torch.ones_like(p)
    optimizer.step()
    numbers = sum(v.numel() for p in weights for v in optimizer.state[p].values() if torch.is_tensor(v) and v.dim())
    return numbers / sum(p.numel() for p in weights)


def bottleneck(width):
    return [nn.Conv2d(4 * width, width, 1), nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 4 * width, 1)]


modules = {"Linear(576, 64)": nn.Linear(576, 64), "Conv2d(64, 64, 3)": nn.Conv2d(64, 64, 3),
           "Conv2d(64, 64, 1)": nn.Conv2d(64, 64, 1),
           "16 bottlenecks, 64 to 512 wide": nn.Sequential(*(
               layer for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)) for _ in range(blocks)
               for layer in bottleneck(width)))}
makers = {"torch Adafactor": torch.optim.Adafactor, "torch Adam": lambda p: torch.optim.Adam(p),
          "pytorch_optimizer AdaFactor": lambda p: AdaFactor(p, betas=(None, 0.999))}
found = {}
for name, module in modules.items():
    for who, make in makers.items():
        found[name, who] = kept(make, module)
        print(f"{name:32s} {who:28s} keeps {found[name, who]:.3f} numbers a weight")
for who in ("torch Adafactor", "pytorch_optimizer AdaFactor"):
    assert found["Linear(576, 64)", who] < 0.02
    assert abs(found["Conv2d(64, 64, 3)", who] - 2 / 3) < 0.01, f"changed: {who} factors 3x3 kernels otherwise"
    assert found["Conv2d(64, 64, 1)", who] == 2.0, f"changed: {who} factors 1x1 kernels otherwise"
    assert found["16 bottlenecks, 64 to 512 wide", who] > 1.0
PY
