#!/usr/bin/env bash
# The second derivative of torch's weight normalisation is wrong, without an error: its Hessian is not even symmetric.
#
# Expected: gradients of gradients through torch.nn.utils.weight_norm, and through parametrizations.weight_norm, are
# those of w = g v / |v|; a Hessian is symmetric.
# Happens:  the first derivative is right. The second is taken as if |v| were a constant: gradgradcheck fails, and the
# Hessian of a small loss in (v, g) is off by more than its own size, while the same two lines written by hand pass.
# Why it matters: sharpness, Hessian traces, influence functions, second-order optimisers and gradient penalties of
# weight-normalised networks are wrong, by a little near a minimum and by much elsewhere, and nothing says so.
# Source: torch 2.13.0 on a CPU, torch._weight_norm, which both forms of weight_norm call.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

print("torch", torch.__version__)
torch.manual_seed(0)
v = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
g = torch.rand(3, 1, dtype=torch.float64, requires_grad=True)
x = torch.randn(16, 4, dtype=torch.float64)


def by_torch(v, g):
    """The weight of a weight-normalised layer as a function of its two parameters: its output on the unit vectors."""
    layer = weight_norm(nn.Linear(4, 3, bias=False).double(), dim=0)
    parameters = {"parametrizations.weight.original0": g, "parametrizations.weight.original1": v}
    return torch.func.functional_call(layer, parameters, (torch.eye(4, dtype=torch.float64),)).T


def by_hand(v, g):
    return g * v / v.norm(dim=1, keepdim=True)


def hessian(weights):
    def loss(flat):
        return torch.tanh(x @ weights(flat[:12].view(3, 4), flat[12:].view(3, 1)).T).square().mean()

    return torch.autograd.functional.hessian(loss, torch.cat([v.detach().flatten(), g.detach().flatten()]))


assert torch.allclose(by_torch(v, g), by_hand(v, g))
for weights in (by_torch, by_hand):
    assert torch.autograd.gradcheck(weights, (v, g)), "first derivatives are right in both"
    H = hessian(weights)
    second = torch.autograd.gradgradcheck(weights, (v, g), raise_exception=False)
    skew = float((H - H.T).norm() / H.norm())
    print(f"{weights.__name__:8s} gradgradcheck {second}, |H - H'|/|H| = {skew:.3f}")
    assert second is (weights is by_hand) and (skew < 1e-12) is (weights is by_hand), "changed"
off = float((hessian(by_torch) - hessian(by_hand)).norm() / hessian(by_hand).norm())
print(f"Hessian by torch against by hand: {100 * off:.0f} % off")
assert off > 0.5, "changed"
PY
