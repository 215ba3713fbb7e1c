#!/usr/bin/env bash
# Whether torch.cdist has a second derivative depends on how many rows it is given: from 26 on it has, below it raises.
#
# Expected: an operation has a second derivative, or it has none.
# Happens:  with its default compute_mode cdist multiplies matrices when either side has more than 25 rows, and that path
# can be differentiated twice; with 25 rows or fewer it calls a kernel of its own whose backward has no derivative.
# Why it matters: a model with distances inside (prototypes, radial basis functions, contrastive losses) has a Hessian at
# a batch of 32 and none in a unit test with 8 examples, or in the last, short batch of an epoch. The values of the two
# paths differ by rounding too. compute_mode="use_mm_for_euclid_dist" makes them one.
# Source: torch 2.13.0, torch.cdist.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import torch

print("torch", torch.__version__)


def bends(rows, **settings):
    """Return what differentiating twice says."""
    torch.manual_seed(0)
    p = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    q = torch.randn(rows, 3, dtype=torch.float64)
    (slope,) = torch.autograd.grad(torch.cdist(p, q, **settings).sum(), p, create_graph=True)
    try:
        torch.autograd.grad(slope.square().sum(), p)
    except (NotImplementedError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "has a second derivative"


found = {rows: bends(rows) for rows in (8, 25, 26, 64)}
for rows, said in found.items():
    print(rows, "rows:", said)
always = {bends(rows, compute_mode="use_mm_for_euclid_dist") for rows in (8, 25, 26)}
print('compute_mode="use_mm_for_euclid_dist":', *always)
assert always == {"has a second derivative"}
assert [said == "has a second derivative" for said in found.values()] == [False, False, True, True], "changed"
PY
