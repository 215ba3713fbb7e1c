#!/usr/bin/env bash
# Under a default device torch.as_tensor(t) and torch.asarray(t) move a tensor away from where it is.
#
# Expected: both return a tensor as it is. The documentation of torch.as_tensor says of `device`: where none is named
# and the data are a tensor, the device of the data is used; that of torch.asarray says the same. The default device
# is for what has no device yet.
# Happens:  with torch.device(d), and after torch.set_default_device(d), both copy the tensor to d: the default is put
# in as if it had been named, for every function that has a `device` and may make a tensor. Memory that was shared with
# NumPy is shared no longer; on "meta" the values are gone. Tensor.to and torch.from_numpy leave it where it is.
# Why it matters: as_tensor is the usual way to take numbers, arrays and tensors alike, because it does nothing to a
# tensor. A script that sets the default device to a GPU moves every batch and every counter that passes such a line,
# one by one, into mixtures of devices or waits; in a DataLoader's forked worker it begins to use the GPU. A model that
# is built under torch.device("meta"), as large ones are, loses the table that it was handed.
# Source: torch 2.13.0 on a CPU, torch/utils/_device.py (DeviceContext.__torch_function__, _device_constructors).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python - <<'PY'
import numpy as np
import torch
from torch import nn

print("torch", torch.__version__)
documented = " ".join(torch.as_tensor.__doc__.split())
assert "If None and data is a tensor then the device of data is used" in documented, "the documentation changed"
table = torch.tensor([1.0, 2.0, 3.0])
array = np.ones(3)


def devices():
    return {"as_tensor(tensor)": torch.as_tensor(table).device.type, "asarray(tensor)": torch.asarray(table).device.type,
            "as_tensor(array)": torch.as_tensor(array).device.type, "from_numpy(array)": torch.from_numpy(array).device.type,
            "tensor.to(float64)": table.to(torch.float64).device.type}


class Positions(nn.Module):
    """A module that is handed a table and keeps it."""

    def __init__(self, table):
        super().__init__()
        self.register_buffer("table", torch.as_tensor(table))


before = devices()
with torch.device("meta"):  # a device that every machine has; with "cuda" it is the same
    under = devices()
    kept = Positions(table).table
for name in before:
    print(f"{name:20s} usually on {before[name]}, under a default device on {under[name]}")
print("the table that a module keeps:", kept)
assert set(before.values()) == {"cpu"}
assert torch.as_tensor(table) is table and np.shares_memory(torch.as_tensor(array).numpy(), array)
assert under == {"as_tensor(tensor)": "meta", "asarray(tensor)": "meta", "as_tensor(array)": "meta",
                 "from_numpy(array)": "cpu", "tensor.to(float64)": "cpu"}, "changed"
assert kept.is_meta, "changed"
PY
