#!/usr/bin/env bash
# Inside parametrize.cached() torch.func.functional_call computes with other weights than it is given, and says nothing.
#
# Expected: functional_call(model, weights, x) is the model's output at these weights, wherever it is called; its
# gradient by them is that output's. The cache of parametrisations, which spares making a weight twice in a forward
# pass, is at most slower or faster.
# Happens:  the cache is keyed by the module alone. Once a weight was made in the block, functional_call takes it,
# whatever it is given: outputs at doubled weights are those at the old weight and the doubled bias, and gradients by
# every parametrised tensor are exactly 0. The other way round, a weight made inside functional_call stays: the plain
# forward pass after it is that of weights which the model does not have. No error, no warning.
# Why it matters: sharpness, influence, per-example gradients and ensembles are taken by functional_call, in the middle
# of loops that use the cache for orthogonal, spectral- or weight-normalised layers. A curvature is then that of the
# other parameters alone, smaller and plausible.
# Source: torch 2.13.0 on a CPU, torch/nn/utils/parametrize.py (get_cached_parametrization).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import torch
from torch import nn
from torch.func import functional_call, grad, hessian
from torch.nn.utils import parametrize

print("torch", torch.__version__)
torch.manual_seed(0)


class Symmetric(nn.Module):
    """The parametrisation of torch's own tutorial."""

    def forward(self, X):
        return X.triu() + X.triu(1).T


model = nn.Linear(3, 3).double()
parametrize.register_parametrization(model, "weight", Symmetric())
x = torch.randn(5, 3, dtype=torch.float64)
own = {name: p.detach().clone() for name, p in model.named_parameters()}
doubled = {name: 2 * p for name, p in own.items()}


def loss(weights):
    return functional_call(model, weights, (x,)).square().mean()


def said(where):
    slopes = {name.rpartition(".")[2]: float(g.norm()) for name, g in grad(loss)(own).items()}
    bent = torch.cat([h.flatten() for row in hessian(loss)(own).values() for h in row.values()]).norm()
    found = [float(loss(own).detach()), float(loss(doubled).detach())]
    print(f"{where:28s} loss {found[0]:.4f}, at doubled weights {found[1]:.4f}; gradients "
          + ", ".join(f"{name} {size:.3f}" for name, size in slopes.items()) + f"; Hessian's norm {bent:.2f}")
    return *found, slopes, float(bent)


right, twice, slopes, bent = said("outside")
assert abs(twice - 4 * right) < 1e-12 and all(slopes.values())
with parametrize.cached(), torch.no_grad():
    model(x)  # a forward pass of the loop
    again, wrong, none, less = said("inside, after a forward pass")
assert again == right and abs(wrong - twice) > 0.1 * twice, "changed"
assert none["original"] == 0.0 and none["bias"] == slopes["bias"], "changed"
assert less < 0.9 * bent, "changed"
with parametrize.cached(), torch.no_grad():
    loss(doubled)
    left = float(model(x).square().mean())
print(f"a plain forward pass after functional_call at doubled weights: {left:.4f}, the model's own is {right:.4f}")
assert abs(left - right) > 0.1 * right, "changed"
PY
