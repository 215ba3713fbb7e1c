#!/usr/bin/env bash
# A DataLoader with workers cannot be iterated inside a process of joblib: 'Process' object has no attribute 'env'.
#
# Expected: a training function that reads its data by DataLoader(..., num_workers=1) does the same in a loop and in
# joblib.Parallel(n_jobs=2), the usual way to try learning rates side by side.
# Happens:  in joblib's processes, iterating the loader raises AttributeError, while multiprocessing_context="fork" (or
# "spawn") works there. joblib's loky makes "loky" the start method of its processes; torch asks the default context
# for a Process, gets multiprocessing's own class, and loky's way of starting it wants a class of loky's.
# Why it matters: the message names neither loky nor the loader, and the same code runs alone. Who trains in joblib's
# processes has to name a start method in every DataLoader.
# Source: torch 2.13.0, torch/utils/data/dataloader.py (_MultiProcessingDataLoaderIter); joblib 1.6.0,
# joblib/externals/loky/backend/popen_loky_posix.py.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" "joblib==1.6.0"
cat > trial.py <<'PY'
import joblib
import torch
from torch.utils.data import DataLoader, TensorDataset


def batches(context):
    data = TensorDataset(torch.arange(6))
    try:
        return len(list(DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context=context)))
    except AttributeError as error:
        return f"AttributeError: {error}"


if __name__ == "__main__":
    print("torch", torch.__version__, "joblib", joblib.__version__)
    found = {}
    for context in (None, "fork"):
        found["alone", context] = batches(context)
        found["joblib", context] = joblib.Parallel(n_jobs=2)([joblib.delayed(batches)(context)])[0]
    for (where, context), result in found.items():
        print(f"{where:7} multiprocessing_context={context!r:7} batches: {result}")
    assert found["alone", None] == found["alone", "fork"] == found["joblib", "fork"] == 3
    assert found["joblib", None] == "AttributeError: 'Process' object has no attribute 'env'", "changed"
PY
env/bin/python trial.py
