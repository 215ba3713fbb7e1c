#!/usr/bin/env bash
# A learning-rate schedule does nothing to torch.optim.Rprop: at a scheduled rate of 0 its steps grow.
#
# Expected: every optimiser of torch.optim follows a scheduler of torch.optim.lr_scheduler; at a rate of 0 weights rest.
# Happens:  Rprop reads `lr` once, when it makes the step sizes of a parameter at its first step. After that the
# scheduler changes a number in the param group that nobody reads: the group says 0, and the step grows by 1.2 each
# time as the sign stays. ASGD follows two steps late. SGD rests at once. Neither warns.
# Why it matters: comparing optimisers under one decaying schedule compares Rprop without a schedule to the others with
# one, and a search over six learning rates of Rprop searches over six first steps.
# Source: torch 2.13.0, torch/optim/rprop.py (state["step_size"] is filled from group["lr"] once), torch/optim/asgd.py.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import torch

print("torch", torch.__version__)
moved = {}
for kind in (torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop):
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = kind([weight], lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 2 else 0.0)
    moved[kind.__name__] = []
    for _ in range(6):
        rate, before = optimizer.param_groups[0]["lr"], float(weight.detach())
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        scheduler.step()
        moved[kind.__name__].append((rate, round(before - float(weight.detach()), 6)))
    print(f"{kind.__name__:5s} (rate in the group, step made):", moved[kind.__name__])
at_zero = {name: [step for rate, step in pairs if rate == 0] for name, pairs in moved.items()}
assert at_zero["SGD"] == [0.0] * 4
assert at_zero["ASGD"][0] > 0 and at_zero["ASGD"][-1] == 0
assert at_zero["Rprop"][0] > 0.01 and sorted(at_zero["Rprop"]) == at_zero["Rprop"], "changed: Rprop follows a schedule"
PY
