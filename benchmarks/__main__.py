"""Run bars and keep what they found: `python -m benchmarks B8 [B4 ...]`, or all of them without an argument."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads, which reads it once

import argparse
import datetime
import importlib
import json
import pkgutil
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def all_bars() -> dict[str, Callable[..., dict[str, Any] | None]]:
    """Return every bar by its name: the functions b1, b2, ... of the modules here.

    A bar imports its rivals itself, checks answers before it times anything, and returns {"bar", "work",
    "rows", "ratio"}, and "limit" with the most that ratios of the same names may be, where that is settled; None
    where it cannot be measured here, and then it says why.
    """
    found: dict[str, Callable[..., dict[str, Any] | None]] = {}
    for info in pkgutil.iter_modules([str(HERE)]):
        if info.name != "__main__":
            members = vars(importlib.import_module(f"benchmarks.{info.name}"))
            found |= {name.upper(): member for name, member in members.items() if re.fullmatch(r"b\d+", name)}
    return dict(sorted(found.items(), key=lambda bar: int(bar[0][1:])))


def machine() -> dict[str, str | int]:
    """Return what a time depends on besides the program."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count() or 1,
            "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__}


def table(result: Mapping[str, Any]) -> str:
    """Return a result as text: who took how long, then the ratios and what they may be."""
    width = max(len(row["who"]) for row in result["rows"])
    lines = [f"{result['bar']}: {result['work']}"]
    for row in result["rows"]:
        said = [f"{name} {value:g}" for name, value in row["counts"].items()]
        said += [str(row["answer"])] if row["answer"] != "" else []
        lines.append(f"  {row['who']:{width}}  {row['median_s'] * 1e3:10.2f} ms  {', '.join(said)}".rstrip())
    limits = result.get("limit", {})
    for name, value in result["ratio"].items():
        limit = limits.get(name)
        bound = "" if limit is None else f"  at most {limit:g}: {'met' if value <= limit else 'MISSED'}"
        lines.append(f"  {name:{width}}  {value:10.2f}{bound}")
    return "\n".join(lines)


def main() -> None:
    """Run the bars named on the command line, and end with status 1 where one is missed."""
    bars = all_bars()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("bars", nargs="*", metavar="BAR", help=f"one of {', '.join(bars)}; all by default")
    parser.add_argument("--device", help="where B15 is tried: what it finds there is not kept")
    said = parser.parse_args()
    chosen = [bar.upper() for bar in said.bars] or list(bars)
    unknown = [bar for bar in chosen if bar not in bars]
    if unknown:
        parser.error(f"no bar {', '.join(unknown)}; there are {', '.join(bars)}")
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    missed = []
    for bar in chosen:
        found = bars[bar](**({"device": said.device} if said.device and bar == "B15" else {}))
        if found is None:
            continue
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        result = {**found, "machine": machine(), "date": today}
        print(table(result), end="\n\n", flush=True)
        missed += [name for name, most in found.get("limit", {}).items() if found["ratio"][name] > most]
        if said.device:
            continue
        text = json.dumps(result, indent=1, ensure_ascii=False)
        (RESULTS / f"{bar}.json").write_text(text + "\n", encoding="utf-8")
    if missed:
        raise SystemExit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
