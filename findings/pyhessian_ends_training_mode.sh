#!/usr/bin/env bash
# PyHessian leaves the model in evaluation mode, and what it added to or wiped from its gradients stays.
#
# Expected: a curvature that is looked at in the middle of a training loop is a measurement. Afterwards the model is
# in the mode it was in, its gradients are what the loop had gathered, and training goes on as if nobody had looked.
# Happens:  hessian(model, loss, data=...) calls model.eval() and never train(): from the first look on, a loop that
# calls model.train() once, before it, trains without dropout, and with batch normalisation by running statistics that
# stand still. The constructor's backward pass is added to .grad, once with data= and after that trace(), density()
# and several eigenvalues with dataloader= set gradients to zero: micro-batches gathered before a look count one
# batch more, or not at all.
# Why it matters: sharpness along training is what the package is for. Who looks trains another model than who does
# not, without an error, and the logged curvature is that of a training that the look has changed.
# Source: PyHessian 0.1 with torch 2.13.0, pyhessian/hessian.py (constructor, dataloader_hv_product).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/pip install -q --disable-pip-version-check --no-deps "PyHessian==0.1"
env/bin/python -W ignore - <<'PY'
import importlib.metadata

import torch
from pyhessian import hessian
from torch import nn

print("torch", torch.__version__, "PyHessian", importlib.metadata.version("PyHessian"))
torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x[:, :2].prod(1) > 0).long()
loss_of = nn.CrossEntropyLoss()


def trained(looks):
    """Return the model after 200 steps of SGD, of which some are followed by a look."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for step in range(200):
        batch = slice(64 * (step % 8), 64 * (step % 8 + 1))
        optimizer.zero_grad()
        loss_of(model(x[batch]), y[batch]).backward()
        optimizer.step()
        if step in looks:
            with torch.random.fork_rng():
                hessian(model, loss_of, data=(x[:64], y[:64]), cuda=False).eigenvalues(top_n=1)
    return model


plain, watched = trained(()), trained((50,))
fits = {}
for name, model in (("nobody looked", plain), ("one look after step 50", watched)):
    mode, counted = model.training, int(model[1].num_batches_tracked)
    fits[name] = float(loss_of(model.eval()(x), y).detach())
    print(f"{name:24s} training mode {mode!s:5s}  batches that normalisation saw {counted:3d} of 200  "
          f"training loss {fits[name]:.4f}")
    assert (mode, counted) == ((True, 200) if model is plain else (False, 51)), "changed"
assert fits["one look after step 50"] < 0.9 * fits["nobody looked"], "changed"

model = nn.Linear(20, 2)
loss_of(model(x[:64]), y[:64]).backward()
gathered = model.weight.grad.clone()
look = hessian(model, loss_of, data=(x[64:128], y[64:128]), cuda=False)
grown = float((model.weight.grad - gathered).norm() / gathered.norm())
print(f"gathered gradient after data= : moved by {grown:.2f} of its length")
assert grown > 0.1, "changed"
model.weight.grad = gathered.clone()
hessian(model, loss_of, dataloader=[(x[64:128], y[64:128])], cuda=False).eigenvalues(top_n=1)
left = model.weight.grad
print("gathered gradient after dataloader= :", "gone" if left is None or not left.any() else
      f"moved by {float((left - gathered).norm() / gathered.norm()):.2f} of its length")
assert left is None or not torch.allclose(left, gathered), "changed"
PY
