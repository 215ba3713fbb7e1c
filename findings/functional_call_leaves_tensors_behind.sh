#!/usr/bin/env bash
# torch.func.functional_call changes a model in which one layer has two names: its parameters are others afterwards.
#
# Expected: functional_call runs a module with other parameters and leaves it as it was; with tied weights it sets both
# places by default (tie_weights=True).
# Happens:  when the same *module* is registered under two names (an encoder that is also the decoder), the tensors of the
# call stay behind as the module's parameters: plain tensors that are no leaves. An optimiser made before holds
# parameters that the model does not use any more, and training goes on without moving it.
# Why it matters: Hessian-vector products, per-example gradients and ensembles are taken this way, in the middle of
# trainings; weight sharing by reusing a layer is common.
# Source: torch 2.13.0, torch/nn/utils/_named_member_accessor.py and torch/func.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import torch
from torch import nn

print("torch", torch.__version__)


class Reused(nn.Module):
    def __init__(self, twice):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = self.a if twice else nn.Linear(2, 2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


moved = {}
for twice in (False, True):
    torch.manual_seed(0)
    model = Reused(twice)
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.rand(5, 2)
    before = [p for p in model.parameters()]
    shifted = {name: p.detach().clone().requires_grad_() * 1 for name, p in model.named_parameters()}
    torch.func.functional_call(model, shifted, (x,))
    same = all(p is q for p, q in zip(before, model.parameters(), strict=True))
    weight = model.a.weight.detach().clone()
    model(x).square().mean().backward()
    optimizer.step()
    moved[twice] = not torch.equal(model.a.weight, weight)
    print(f"one layer under two names: {twice}; parameters are the same objects: {same}; leaves: "
          f"{[p.is_leaf for p in model.parameters()]}; a step of SGD moves the model: {moved[twice]}")
    assert same is not twice, "changed"
assert moved == {False: True, True: False}, "changed"
PY
