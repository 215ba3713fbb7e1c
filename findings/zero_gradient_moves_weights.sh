#!/usr/bin/env bash
# A gradient of exactly zero moves the weights a long way in some optimisers: AdamS multiplies them by -9.
#
# Expected: from a zero gradient and without any history a rule moves weights by its decay at most, that is by
# lr * weight_decay of their length: 1e-5 for AdamW's usual numbers.
# Happens:  in one step from zero gradients at default options AdamS turns every weight w to -9 w (its decay is
# divided by the root of a mean square that is 0, floored at eps); FTRL sets all weights to 0, Nero rescales
# them to unit rows, SRMM and Gravity move them by the state that they start from.
# Why it matters: layers whose gradient is zero for a while (a frozen-by-mask block, an unused expert, a padding
# embedding, dead units at the first batch) lose their initialisation or explode, before any learning.
# Source: pytorch_optimizer 4.1.0 with torch 2.13.0.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" "pytorch_optimizer==4.1.0"
env/bin/python -W ignore - <<'PY'
import importlib.metadata

import pytorch_optimizer
import torch
from torch import nn

print("torch", torch.__version__, "pytorch_optimizer", importlib.metadata.version("pytorch_optimizer"))


def move(make):
    """Return |w after - w| / |w| and the factor w after / w of a weight, after one step from zero gradients."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer, before = make(model.parameters()), model.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = model.weight.detach()
    return float((after - before).norm() / before.norm()), float((after / before).median())


for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam):
    assert move(kind)[0] <= 2e-5
moves = {}
for name in pytorch_optimizer.get_supported_optimizers():
    try:
        moves[name] = move(pytorch_optimizer.load_optimizer(name))
    except Exception:  # wants options, closures or param groups of its own
        continue
far = {name: pair for name, pair in moves.items() if pair[0] > 0.01}
for name, (size, factor) in far.items():
    print(f"{name:8s} moves weights by {size:.3g} of their length (median factor {factor:.3g})")
assert set(far) == {"adams", "ftrl", "gravity", "nero", "srmm"}, "changed"
assert abs(far["adams"][1] + 9) < 0.01 and far["ftrl"][0] == 1.0, "changed"
PY
