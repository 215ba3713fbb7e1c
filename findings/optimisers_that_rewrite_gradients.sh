#!/usr/bin/env bash
# Eight optimisers of pytorch_optimizer leave another gradient in p.grad than backward() put there.
#
# Expected: step() reads gradients and writes weights; who logs a gradient norm, or compares gradients, may do so after
# the step as well as before it. No optimiser of torch.optim changes p.grad on its default path.
# Happens:  Adalite, GrokFastAdamW, LARS, NovoGrad, Ranger, ScheduleFreeAdamW, SCIONLight and StableSPAM scale, centre
# or decay the gradient in place.
# Why it matters: gradient norms logged after the step, gradient accumulation that is not zeroed, and a second optimiser
# stepping from the same gradient (grafting) silently see another vector for these.
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


def change(make):
    """Return |p.grad after one step - before| / |before| over a linear layer."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = make(model.parameters())
    model(torch.rand(8, 4)).square().mean().backward()
    before = torch.cat([p.grad.flatten() for p in model.parameters()]).clone()
    optimizer.step()
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    return float((after - before).norm() / before.norm())


for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam):
    assert change(kind) == 0
changed = {}
for name in pytorch_optimizer.get_supported_optimizers():
    try:
        changed[name] = change(pytorch_optimizer.load_optimizer(name))
    except Exception:  # wants options, closures or param groups of its own
        continue
changed = {name: size for name, size in changed.items() if size}
for name, size in changed.items():
    print(f"{name:18s} changes p.grad by {100 * size:.3g} % of its length")
assert set(changed) == {"adalite", "grokfastadamw", "lars", "novograd", "ranger", "schedulefreeadamw", "scionlight",
                        "stablespam"}, "changed"
PY
