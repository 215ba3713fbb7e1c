"""B26: a comparison on 500 MB of tensors, two workers: memory, and CPU-seconds beyond training.

The command makes the data itself, as random numbers, and compares two optimisers by 200 steps each; the same
command is repeated then, when nothing is left to do. Memory is the proportional set size (PSS) of the command and
all its processes, summed ten times a second: pages that several map count once. Seconds are CPU-seconds of all
processes, less those in which the data are made, beyond what the same command takes with a hundredth of the data:
what looking at them, writing, reading and mapping them costs, before, between and after trainings. No rival.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

WIDTH = 784
SIZES = (500,)
"""Megabytes of data; `python -m benchmarks.memory 2000 FOLDER` makes a command of another size."""
MOST_MEMORY, MOST_SECONDS, MOST_AGAIN = 1.2, 3.0, 2.0
"""Gigabytes for 500 MB of data, CPU-seconds beyond training, and those of a repeated command."""


def compare(megabytes: int, folder: str) -> None:
    """Make data, and compare two optimisers on them; print the CPU-seconds in which the data were made."""
    import torch

    from optscope import Task, lab
    from optscope.engine.execute import Local
    from optscope.protocol.events import Quiet
    from optscope.protocol.settings import OptimiserSettings, Settings
    from optscope.tasks.models import MLP

    start = time.process_time()
    generator = torch.Generator().manual_seed(0)
    count = megabytes * 1_000_000 // (4 * WIDTH)
    inputs, labels = torch.rand(count, WIDTH, generator=generator), torch.arange(count) % 10
    few = torch.rand(2000, WIDTH, generator=generator), torch.arange(2000) % 10
    parts = {"train": (inputs, labels), "validation": few, "test": few}
    del inputs, labels, few
    print(time.process_time() - start)
    task = Task.from_tensors(MLP((WIDTH, 10)), **parts)
    del parts
    one = OptimiserSettings(lr=[0.01, 0.1])
    settings = Settings(optimisers={"sgd": one, "adam": one}, seeds=2, twin_seeds=0, widen=0, steps=200, batch=128,
                        examples=50)
    lab.compare(task, folder, settings=settings, executor=Local(2), listener=Quiet())


def memory_of(session: int) -> float:
    """Return the PSS of all processes of a session in gigabytes."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session:
                total += int(re.findall(r"^Pss: +(\d+)", (path / "smaps_rollup").read_text(), re.MULTILINE)[0])
        except (OSError, IndexError):  # it has just ended
            continue
    return total * 1024 / 1e9


def measured(megabytes: int, folder: Path) -> dict[str, float]:
    """Run the command once; return the most memory it took, and its CPU-seconds without those of making data."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = subprocess.Popen([sys.executable, "-m", "benchmarks.memory", str(megabytes), str(folder)], text=True,
                               stdout=subprocess.PIPE, start_new_session=True)
    seen: list[float] = [0.0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            seen.append(memory_of(command.pid))

    looker = threading.Thread(target=look)
    looker.start()
    said, _ = command.communicate()
    over.set()
    looker.join()
    assert command.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"GB": max(seen), "seconds": seconds - float(said)}


def b26() -> Mapping[str, Any] | None:
    """Return what a comparison on large tensors takes, and the same command again."""
    if not Path("/proc/self/smaps_rollup").is_file():
        print("B26 needs Linux: it sums what /proc says of memory")
        return None
    found: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as place:
            folder, few = Path(place) / "out", Path(place) / "few"
            small, first = measured(size // 100, few), measured(size, folder)
            small_again, again = measured(size // 100, few), measured(size, folder)
        for who, mine, base in ((f"{size} MB", first, small), (f"{size} MB, repeated", again, small_again)):
            counts = {"GB": round(mine["GB"], 2), "GB of a hundredth": round(base["GB"], 2),
                      "seconds of a hundredth": round(base["seconds"], 1)}
            found.append({"who": who, "version": metadata.version("optscope"), "answer": "",
                          "median_s": mine["seconds"], "counts": counts})
        ratios |= {f"{size} MB: memory, of {MOST_MEMORY:g} GB": first["GB"] / MOST_MEMORY,
                   f"{size} MB: beyond training, of {MOST_SECONDS:g} s": (
                       first["seconds"] - small["seconds"]) / MOST_SECONDS,
                   f"{size} MB: repeated, of {MOST_AGAIN:g} s": (
                       again["seconds"] - small_again["seconds"]) / MOST_AGAIN}
    return {"bar": "B26", "work": "a comparison on 500 MB of tensors, two workers", "rows": found, "ratio": ratios,
            "limit": dict.fromkeys(ratios, 1.0)}


if __name__ == "__main__":
    compare(int(sys.argv[1]), sys.argv[2])
