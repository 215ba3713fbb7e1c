#!/usr/bin/env bash
# Four optimisers of pytorch_optimizer draw from torch's global generator in step(), so that dropout masks change.
#
# Expected: two trainings from one seed that differ in the optimiser alone see the same dropout masks and the same
# augmentation; that is what seeding is for, and it holds for every optimiser of torch.optim.
# Happens:  step() of Dash, Gravity, Kron and Magma calls torch's random functions without a generator of its own.
# Whatever is drawn after the first step, by dropout, a shuffling loader or augmentation, is another draw.
# Why it matters: a paired comparison over seeds is no longer paired, without a word, for these arms.
# Source: pytorch_optimizer 4.1.0 with torch 2.13.0; all its optimisers that build from parameters alone are tried.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" "pytorch_optimizer==4.1.0"
env/bin/python -W ignore - <<'PY'
import importlib.metadata

import pytorch_optimizer
import torch
from torch import nn

print("torch", torch.__version__, "pytorch_optimizer", importlib.metadata.version("pytorch_optimizer"))


def masks(make):
    """Return the sums of the dropout masks that four steps see from one seed."""
    torch.manual_seed(0)
    model, mask = nn.Linear(4, 4), nn.Dropout(0.5)
    optimizer, x, seen = make(model.parameters()), torch.ones(64, 4), []
    torch.manual_seed(1)
    for _ in range(4):
        kept = mask(torch.ones(64, 4))
        seen.append(float(kept.sum()))
        optimizer.zero_grad()
        model(x * kept).square().mean().backward()
        optimizer.step()
    return seen


paired = masks(torch.optim.SGD)
assert paired == masks(torch.optim.Adam)
unpaired, refused = [], 0
for name in pytorch_optimizer.get_supported_optimizers():
    try:
        seen = masks(pytorch_optimizer.load_optimizer(name))
    except Exception:  # wants options, closures or param groups of its own
        refused += 1
        continue
    if seen != paired:
        unpaired.append(name)
        print(f"{name}: masks {seen}, under torch.optim.SGD and Adam {paired}")
print("other masks:", unpaired, "| not tried, as they want more than parameters:", refused)
assert unpaired == ["dash", "gravity", "kron", "magma"], "changed"
PY
