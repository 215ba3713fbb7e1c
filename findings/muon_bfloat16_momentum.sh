#!/usr/bin/env bash
# torch.optim.Muon overwrites its own momentum when parameters are bfloat16 and nesterov=False.
#
# Expected: after one step from a constant gradient g the buffer is (1 - momentum) g, whatever the dtype, as it is in
# float32, and in bfloat16 with nesterov=True.
# Happens:  with nesterov=False and bfloat16 parameters the buffer has norm 1, whatever the gradient's size: the
# Newton-Schulz iteration asks for a bfloat16 copy of its input, gets the buffer itself, for that is bfloat16 already,
# and divides it in place by its norm. Every later step averages a unit matrix with a gradient.
# Why it matters: momentum without Nesterov in bfloat16 is another algorithm than its float32 twin, and nothing says so.
# Source: torch 2.13.0, torch/optim/_muon.py, _zeropower_via_newtonschulz (ortho_grad = grad.bfloat16(), then div_).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import torch

print("torch", torch.__version__)
norms = {}
for dtype in (torch.float32, torch.bfloat16):
    for nesterov in (True, False):
        weight = torch.nn.Parameter(torch.zeros(8, 8, dtype=dtype))
        optimizer = torch.optim.Muon([weight], lr=0.02, momentum=0.95, nesterov=nesterov, weight_decay=0.0)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        norms[dtype, nesterov] = float(optimizer.state[weight]["momentum_buffer"].float().norm())
        print(f"{dtype} nesterov={nesterov}: |buffer| = {norms[dtype, nesterov]:.4f}, expected 0.05 * 8 = 0.4")
odd = norms.pop((torch.bfloat16, False))
assert all(abs(norm - 0.4) < 0.01 for norm in norms.values()), norms
assert abs(odd - 1.0) < 0.02, "changed: the buffer is no longer overwritten"
PY
