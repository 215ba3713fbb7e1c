#!/usr/bin/env bash
# once_differentiable does not stop a second derivative: torch hands out one in which terms are missing.
#
# Expected: a custom function whose backward is marked @once_differentiable raises when it is differentiated twice; that
# is what the decorator is for, and what the documentation of extending autograd says.
# Happens:  differentiating the gradient by the weights *before* the function runs through, and leaves out every term
# that passes through the function's own backward: of w^4, written as Square(w * w), the second derivative comes
# out as 4 w^2 instead of 12 w^2. Only a path with nothing else in it raises.
# Why it matters: many fast kernels (attention, losses, norms) are such functions. Sharpness, Hessian products and
# gradient penalties through them are numbers, and wrong.
# Source: torch 2.13.0, torch/autograd/function.py, once_differentiable: the node that raises hangs on detached copies
# of the results and is never reached from what is asked for.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import torch
from torch.autograd.function import once_differentiable

print("torch", torch.__version__)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
found = {}
for name, square in (("Square, marked once differentiable", Square.apply), ("x * x", lambda x: x * x)):
    (slope,) = torch.autograd.grad(square(w * w).sum(), w, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), w)
    found[name] = bend.tolist()
    print(f"second derivative of w^4 at w = 1, 2 through {name}: {bend.tolist()}")
marked, plain = found.values()
assert plain == [12.0, 48.0]
assert marked == [4.0, 16.0], "changed"
PY
