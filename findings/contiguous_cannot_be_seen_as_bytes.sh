#!/usr/bin/env bash
# A tensor that torch calls contiguous cannot always be seen as bytes, and ProdigyPlusScheduleFree keeps such tensors.
#
# Expected: t.contiguous().view(torch.uint8), the usual way to hash, compare or write a tensor's bytes, works for every
# dense tensor, for contiguous() copies whatever does not lie in one piece.
# Happens:  a tensor of one element is contiguous with any stride, so contiguous() and clone() leave it as it is, and
# view(torch.uint8) raises "self.stride(-1) must be 1", in bfloat16 and in float32. In an optimiser's state this is no
# corner: Prodigy's variants keep every 11th weight (slice_p=11), and of a bias of at most 11 numbers that is one element
# with stride 11.
# Why it matters: a checkpoint writer or a test of equality that goes by bytes works for every optimiser, and stops at
# this one, in the first model with a small bias. reshape(-1).as_strided((t.numel(),), (1,)) after contiguous() helps.
# Source: torch 2.13.0 (Tensor.view(dtype)); prodigy-plus-schedule-free 2.0.1, core_optimiser.py, slice_p.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" \
    "prodigy-plus-schedule-free==2.0.1"
env/bin/python - <<'PY'
from importlib.metadata import version

import torch
from prodigyplus import ProdigyPlusScheduleFree

print("torch", torch.__version__, "prodigy-plus-schedule-free", version("prodigy-plus-schedule-free"))
model = torch.nn.Linear(4, 3)
optimizer = ProdigyPlusScheduleFree(model.parameters())
optimizer.train()
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
refused = []
for name, parameter in model.named_parameters():
    for key, value in optimizer.state[parameter].items():
        if not isinstance(value, torch.Tensor) or not value.numel():
            continue
        try:
            value.contiguous().reshape(-1).view(torch.uint8)
            said = "bytes"
        except RuntimeError as error:
            refused.append((name, key, value.numel(), value.stride(), value.is_contiguous()))
            said = str(error)
        print(f"{name}.{key}: {tuple(value.shape)} stride {value.stride()} contiguous {value.is_contiguous()}: {said}")
assert refused, "changed: every tensor of the state can be seen as bytes"
assert all(numel == 1 and contiguous for _, _, numel, _, contiguous in refused), refused
one = torch.arange(55.0).reshape(5, 11)[2:3, 3]
assert one.is_contiguous() and one.contiguous().stride() == (11,), "changed: contiguous() mends the stride"
PY
