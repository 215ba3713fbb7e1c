"""B12: precision, recall, density and coverage of 3,000 and 3,000 things in 64 dimensions.

The rival: `pip install --no-deps prdc==0.2`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from benchmarks.timing import Contender, interleave, rows
from optscope.probes.neighbours import neighbourhoods

N, DIMENSIONS, NEIGHBOURS = 3000, 64, 5
MOST_MEGABYTES = 150.0

PEAK = """
import json, resource, sys, threading, time
from benchmarks.coverage import WHO, clouds
run, pair = WHO[sys.argv[1]], clouds()
run(*(part[:400] for part in pair))  # libraries and their pools are there before the clock
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
seen, done, start = [], threading.Event(), resident()
def look():
    while not done.is_set():
        seen.append(resident())
        time.sleep(0.0005)
thread = threading.Thread(target=look)
thread.start()
run(*pair)
done.set()
thread.join()
print(json.dumps((max(seen) - start) / 2**20))
"""


def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Return real and generated features, which overlap in part."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, DIMENSIONS)), 0.95 * rng.standard_normal((N, DIMENSIONS)) + 0.05


def ours(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Return the four numbers of this package."""
    return neighbourhoods(torch.from_numpy(real), torch.from_numpy(fake), NEIGHBOURS)


def rival(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Return those of prdc."""
    import contextlib
    import io

    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):  # it prints how many there are
        found: dict[str, float] = compute_prdc(real, fake, nearest_k=NEIGHBOURS)
    return found


WHO = {"optscope": ours, "prdc": rival}


def peak(who: str) -> float:
    """Return the megabytes that one call adds to a fresh process."""
    done = subprocess.run([sys.executable, "-c", PEAK, who], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def b12() -> dict[str, Any]:
    """Check that both find the same, then time them and measure the memory they add."""
    pair = clouds()
    found = {who: run(*pair) for who, run in WHO.items()}
    off = max(abs(found["optscope"][name] - float(value)) for name, value in found["prdc"].items())
    if off > 1e-6:
        raise AssertionError(f"the numbers differ by {off}: {found}")
    memory = {who: peak(who) for who in WHO}
    contenders = [Contender(who, version(who), ", ".join(f"{name} {float(value):.6f}" for name, value in
                                                         sorted(found[who].items())), partial(run, *pair),
                            {"MB added at the peak": round(memory[who], 1)}) for who, run in WHO.items()]
    times = interleave(contenders, rounds=7)
    return {"bar": "B12", "work": f"precision, recall, density, coverage: {N} and {N} things, {DIMENSIONS} "
                                  f"dimensions, {NEIGHBOURS} neighbours",
            "rows": rows(contenders, times),
            "ratio": {"time, of prdc": times.ratio("optscope", "prdc"), "MB added": memory["optscope"]},
            "limit": {"time, of prdc": 1.0, "MB added": MOST_MEGABYTES}}
