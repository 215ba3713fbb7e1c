#!/usr/bin/env bash
# The first torch.autograd.grad with grad_outputs in a process imports sympy, to compare two shapes.
#
# Expected: a gradient weighted by a given vector costs the backward pass that the gradient of a sum costs, in eager
# mode, without compilation and without symbolic shapes.
# Happens:  where grad_outputs (or the argument of Tensor.backward) is a tensor, autograd imports
# torch.fx.experimental.symbolic_shapes for its check of shapes, and with it sympy: several hundred modules and tens of
# megabytes, once a process. The same numbers by the gradient of (output * vector).sum() import nothing.
# Why it matters: products with a Hessian or a Jacobian, GAN penalties and adjoint methods begin with such a call. A
# process a training pays it every time, and so does each worker that is forked of a parent which never made one; a
# benchmark without a warm-up measures sympy. Importing the module in the parent, before forking, pays once for all.
# Source: torch 2.13.0 on a CPU, torch/autograd/__init__.py (_make_grads).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import resource
import sys
import time

import torch

print("torch", torch.__version__)
x = torch.linspace(0, 1, 5, requires_grad=True)
vector = torch.arange(5.0)


def taken(what, call):
    modules, memory, start = set(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    (found,) = call()
    seconds, new = time.process_time() - start, set(sys.modules) - modules
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    print(f"{what:34s} {seconds:7.3f} CPU seconds, {len(new):4d} modules imported, {more:4.0f} MB, {found.tolist()}")
    return found, new


plain, none = taken("the gradient of a weighted sum", lambda: torch.autograd.grad((x.exp() * vector).sum(), x))
seeded, many = taken("by grad_outputs, the first time", lambda: torch.autograd.grad(x.exp(), x, vector))
again, later = taken("by grad_outputs, the second time", lambda: torch.autograd.grad(x.exp(), x, vector))
assert torch.equal(plain, seeded) and torch.equal(plain, again)
assert "sympy" in many and len(many) > 200, "changed"
assert "sympy" not in none and not later, "changed"
PY
