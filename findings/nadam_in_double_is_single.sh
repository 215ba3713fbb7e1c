#!/usr/bin/env bash
# torch.optim.NAdam of float64 weights is right to float32: it keeps the product of its momenta in single precision.
#
# Expected: an optimiser of float64 weights makes its steps in float64, as Adam does, so that it can be the reference
# for another implementation to 1e-12, and two codes of one equation agree to that.
# Happens:  NAdam holds the running product of its momenta, which divides every step, in a tensor of the default type,
# float32, whatever the weights are. After five steps float64 weights are off by 1e-10, some 1e-9 of their way, where
# Adam's are right to the last digit; and with the default type float64 so are NAdam's, of the same code.
# Why it matters: who tests an optimiser of their own against torch's in float64 finds a difference and looks for a
# fault that is not theirs; and a training in double for the sake of reproducibility has single-precision steps.
# Source: torch 2.13.0, torch/optim/nadam.py (state["mu_product"], a tensor of the scalar type, which is the default type).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import torch

print("torch", torch.__version__)


def by_hand(kind, steps):
    w, m, v, product = 1.0, 0.0, 0.0, 1.0
    for t in range(1, steps + 1):
        g = w**3 - 0.3
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        size = (v / (1 - 0.999**t)) ** 0.5 + 1e-8
        if kind == "Adam":
            w -= 0.01 * m / (1 - 0.9**t) / size
        else:
            now, ahead = (0.9 * (1 - 0.5 * 0.96 ** (each * 0.004)) for each in (t, t + 1))
            product *= now
            w -= 0.01 * ((1 - now) / (1 - product) * g + ahead / (1 - product * ahead) * m) / size
    return w


def torchs(kind, steps):
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = getattr(torch.optim, kind)([weight], lr=0.01)
    for _ in range(steps):
        weight.grad = weight.detach() ** 3 - 0.3
        optimizer.step()
    kept = {name: value.dtype for name, value in optimizer.state[weight].items() if torch.is_tensor(value)}
    return float(weight.detach()), kept


apart = {}
for default in (torch.float32, torch.float64):
    torch.set_default_dtype(default)
    for kind in ("Adam", "NAdam"):
        found, kept = torchs(kind, 5)
        apart[kind, default] = abs(found - by_hand(kind, 5))
        print(f"{kind:5s} default {default}: {apart[kind, default]:.1e} from the equation after 5 steps; keeps {kept}")
assert apart["Adam", torch.float32] < 1e-14
assert apart["NAdam", torch.float64] < 1e-14
assert apart["NAdam", torch.float32] > 1e-11, "changed: NAdam of float64 weights is right to float64"
PY
