"""One thread, one kernel path and, in CI, the same examples: a test gives the same bits each time."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # both before torch loads, which reads them once
os.environ.setdefault("MKL_CBWR", "AVX2")

import hypothesis
import torch

torch.set_num_threads(1)

# No deadline: on a shared machine the clock says nothing about the code.
hypothesis.settings.register_profile("optscope", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("optscope")
