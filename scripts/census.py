"""A census: every optimiser of torch, of pytorch_optimizer and of small packages, under `Foreign`.

    python scripts/census.py              take every optimiser, write docs/optimisers.json and the page's table
    python scripts/census.py torch:Adam   print the rows of those whose path holds these words
    python scripts/census.py --page       write the page's table from the JSON

Each runs in a process of its own, for a limited time. Packages that cannot be imported are left out, and their rows
stay as they are. `PACKAGES` says which small ones are taken and how they are installed beside the project.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optscope.engine.plan import Plan
from optscope.engine.state_file import equal, from_bytes, to_bytes
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.optim import SGD, AdamW, ByKind, Foreign, Graft, Rounded, Rule
from optscope.optim.by_kind import Where
from optscope.optim.trial import notes
from optscope.tasks.task import Data, Split, Task

DOCS = Path(__file__).parent.parent / "docs"
PAGE, ROWS = DOCS / "optimisers.md", DOCS / "optimisers.json"
START, END = "<!-- written by scripts/census.py -->", "<!-- up to here -->"
LIMIT = 60
"""How many seconds an optimiser has."""
PLAN = Plan(2, 16)  # 12 steps

PACKAGES = {
    "adabelief_pytorch": "adabelief-pytorch==0.2.1", "adam_mini": "adam-mini==1.1.1",
    "came_pytorch": "came-pytorch==0.1.3", "dadaptation": "dadaptation==3.2", "fanos": "fanos==0.4.0",
    "ivon": "ivon-opt==0.1.3", "kron_torch": "kron-torch==0.3.3", "lion_pytorch": "lion-pytorch==0.2.5",
    "open_lars": "open-lars==0.1.1", "optimi": "torch-optimi==0.3.3", "prodigyopt": "prodigyopt==1.1.2",
    "prodigyplus": "prodigy-plus-schedule-free==2.0.1", "schedulefree": "schedulefree==1.4.1",
    "sophia_opt": "sophia-opt==0.2.2", "torch_optimizer": "torch_optimizer==0.3.0",
}
"""Small packages, by module: `pip install --no-deps --target FOLDER ...`, and FOLDER on PYTHONPATH."""

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "BSAM": ({"num_data": 96},), "IVON": ({"lr": 0.01, "ess": 96.0},), "CAME": ({"lr": 1e-3},),
}
"""Options that are tried where an optimiser refuses to be made without; after them a learning rate alone."""


@dataclass(frozen=True)
class Examples:
    """96 images of 6 by 6 pixels in three classes, or the first two of their pixels."""

    flat: bool

    def __call__(self) -> Data:
        labels = torch.arange(96) % 3
        images = torch.rand(96, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.3
        images += labels[:, None, None, None] * 0.2
        split = Split(images[:, 0, 0] if self.flat else images, labels)
        return Data(split, split, split)


def network() -> nn.Module:
    """Return two hidden layers with batch normalisation."""
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 3))


def convolutions() -> nn.Module:
    """Return two layers of kernels, a hidden one and a head."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(36, 8),
                         nn.ReLU(), nn.Linear(8, 3))


TASKS = {"network": Task("network", network, Examples(True)),
         "convolutions": Task("convolutions", convolutions, Examples(False))}


def paths() -> Iterator[str]:
    """Yield all optimisers that can be imported here, as "module:Class"."""
    for module in ("torch.optim", "pytorch_optimizer", *PACKAGES):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = importlib.import_module(module)
        except ImportError as error:
            print(f"left out: {module} ({error})", file=sys.stderr)
            continue
        named = vars(found)
        if module == "pytorch_optimizer":
            named = {kind.__name__: kind for kind in map(found.load_optimizer, found.get_supported_optimizers())}
        seen: set[type] = {torch.optim.Optimizer}
        for name, kind in named.items():
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind not in seen and (
                    module == "torch.optim" or not kind.__module__.startswith("torch.")):
                seen.add(kind)
                yield f"{kind.__module__ if module == 'pytorch_optimizer' else module}:{name}"


def taken(path: str) -> dict[str, Any]:
    """Return what comes of an optimiser: its row."""
    row: dict[str, Any] = {"path": path, "options": "", "wants": [], "trained": {}, "saved": "", "inside": {},
                           "notes": []}
    try:
        rule, row["options"] = made(path)
    except UserError as error:
        return {**row, "refused": line(error)}
    row["wants"] = wants(rule)
    row["notes"] = [each.removeprefix(f"{rule!r} ") for each in notes(rule)]
    whole: Rule = among(rule) if rule.way.matrices else rule
    for name, task in TASKS.items():
        row["trained"][name] = outcome(partial(trained, task, whole))
        row["saved"] = row["saved"] or (outcome(partial(saved, task, whole)) if went(row["trained"][name]) else "")
    if rule.way.matrices:
        row["options"] = "ByKind(matrices=..., rest=...)"
    held: dict[str, Rule] = {"Graft": Graft(rule, SGD(lr=1.0)), "Rounded": Rounded(rule, 3)}
    for name, combined in held.items():
        whole = among(combined) if rule.way.matrices else combined
        row["inside"][name] = outcome(partial(trained, TASKS["network"], whole))
    return row


def made(path: str) -> tuple[Foreign, str]:
    """Return an optimiser with the first options that it takes, and these in words."""
    given = OPTIONS.get(path.rpartition(":")[2], ())
    refused: list[UserError] = []
    for options in ({}, *given, {"lr": 1e-3}):
        try:
            return Foreign(path, **options), ", ".join(f"{name}={value!r}" for name, value in options.items())
        except UserError as error:
            refused.append(error)
    raise refused[len(given)]


def wants(rule: Foreign) -> list[str]:
    """Return what is supplied beside parameters and gradients."""
    way = rule.way
    said = {"groups": "`use_muon` groups", "names": "named parameters", "model": "the model"}
    optimizer = rule.small()
    modes = callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
    found = {said.get(way.first, ""): way.first in said, "the number of steps": way.steps,
             f"a closure, {way.calls} calls": way.calls, "second derivatives": way.graph,
             "matrices alone": way.matrices, "train and eval modes": modes}
    return [words for words, there in found.items() if there]


def among(rule: Rule) -> Rule:
    """Return a rule of matrices, with another one for the rest."""
    return ByKind((Where(kind="matrix"), rule), rest=AdamW(lr=1e-3))


def trained(task: Task, rule: Rule) -> str:
    """Train, and return what came of it."""
    training = Training(task, rule, PLAN, 1)
    training.advance(training.total)
    words = "works" if training.diverged_at is None else f"diverges at step {training.diverged_at}"
    return words + ", contiguous" * training.slowed


def saved(task: Task, rule: Rule) -> str:
    """Return whether a training goes on from its saved state to the bit."""
    one, other = (Training(task, rule, PLAN, 1) for _ in range(2))
    one.advance(5)
    other.load_state_dict(from_bytes(to_bytes(one.state_dict(), "census"), "census"))
    for each in (one, other):
        each.advance(each.total)
    return "to the bit" if equal(one.state_dict(), other.state_dict()) else "known not to be"


def outcome(done: Callable[[], str]) -> str:
    """Return what was done comes to, or why it was refused: what stops here stops a comparison's rehearsal."""
    try:
        return done()
    except UserError as error:
        return f"refused: {line(error)}"
    except Exception as error:  # whatever the author of the optimiser chose to raise
        return f"refused: {type(error).__name__}: {line(error)}"


def line(error: Exception) -> str:
    """Return an error in one line."""
    return " ".join(str(error).split())


def in_process(path: str) -> dict[str, Any]:
    """Return an optimiser's row, taken in a process of its own."""
    forks = multiprocessing.get_context("fork")  # torch need not be loaded 250 times
    ours, theirs = forks.Pipe(duplex=False)
    child = forks.Process(target=_child, args=(path, theirs))
    child.start()
    theirs.close()
    try:
        late = {"path": path, "crashed": f"not done in {LIMIT} s"}
        row: dict[str, Any] = ours.recv() if ours.poll(LIMIT) else late
    except EOFError:
        row = {"path": path, "crashed": "its process died"}
    child.kill()
    child.join()
    return row


def _child(path: str, pipe: Connection) -> None:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            pipe.send(taken(path))
        except Exception as error:  # whatever the author of the optimiser chose to raise
            pipe.send({"path": path, "crashed": f"{type(error).__name__}: {line(error)}"})


def went(words: str) -> bool:
    """Return whether a training was done."""
    return words.startswith(("works", "diverges"))


def verdict(row: dict[str, Any]) -> tuple[str, str]:
    """Return an optimiser's group and what the table says of it."""
    if "crashed" in row:
        return "crash", f"**crashes**: {row['crashed']}"
    if "refused" in row:
        return "are refused", f"refused: {row['refused']}"
    if not any(map(went, row["trained"].values())):
        return "are refused", "; ".join(dict.fromkeys(row["trained"].values()))
    said = list(row["wants"])
    said += [f"{name} {words}" for name, words in row["trained"].items() if words != "works"]
    group = "work with the options that are named" if row["options"] else "work as they come"
    words = f"works with {row['options']}" if row["options"] else "works"
    return group, "; ".join([words, *said])


def inside(row: dict[str, Any]) -> str:
    """Return what comes of an optimiser in combinators."""
    found = row.get("inside", {})
    if all(map(went, found.values())):
        return "works" if found else ""
    words = next(each for each in found.values() if not went(each))
    reason = words.partition("is taken: ")[2].removesuffix("; use it by itself")
    return f"refused: {reason}" if reason else words


def table(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """Return the generated part of the page."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[verdict(row)[0]] = counts.get(verdict(row)[0], 0) + 1
    saves = [row.get("saved") for row in rows if row.get("saved")]
    combined = [inside(row) for row in rows if inside(row)]
    sums = ", ".join(f"{number} {name}" for name, number in sorted(counts.items(), reverse=True))
    head = [f"{len(rows)} optimisers: {sums}. Of {len(saves)} that train, {saves.count('to the bit')} go on from "
            f"a state to the bit, and {combined.count('works')} work inside `Graft` and `Rounded` too.", "",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".", "",
            "| optimiser | alone | inside Graft and Rounded | saved | noted |", "|---|---|---|---|---|"]
    def cell(words: str) -> str:
        return " ".join(words.split()).replace("|", "/")
    lines = [f"| `{short(row['path'])}` | {cell(verdict(row)[1])} | {cell(inside(row))} | {cell(kept(row))} | "
             f"{cell(' '.join(row.get('notes', [])))} |" for row in rows]
    return "\n".join([*head, *lines])


def kept(row: dict[str, Any]) -> str:
    """Return whether an optimiser is saved, or why not."""
    words: str = row.get("saved", "")
    return re.sub(r"^refused: (state\S*\.)?", "known not to be: ", words)


def short(path: str) -> str:
    """Return a path without the modules between a package and the class."""
    module, _, name = path.partition(":")
    return path if module == "torch.optim" else f"{module.partition('.')[0]}:{name}"


def versions_here() -> dict[str, str]:
    """Return the versions of all packages that are taken."""
    named = {"torch": "torch", "pytorch_optimizer": "pytorch_optimizer",
             **{module: pin.partition("==")[0] for module, pin in PACKAGES.items()}}
    found = {}
    for module, name in named.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[module] = importlib.metadata.version(name)
    return found


def write_page() -> None:
    """Write the table into the page."""
    found = json.loads(ROWS.read_text(encoding="utf-8"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n{table(found['rows'], found['versions'])}\n{END}{after}", encoding="utf-8")


def main(words: list[str]) -> None:
    """Take one, some or all, as the module says."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if words == ["--page"]:
        write_page()
        return
    found = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {"versions": {}, "rows": []}
    rows = {row["path"]: row for row in found["rows"]}
    taken("torch.optim:Adam")  # what every process would load anew
    for path in paths():
        if not words or any(word in path for word in words):
            rows[path] = in_process(path)
            print(short(path), verdict(rows[path])[1], inside(rows[path]), kept(rows[path]), sep=" | ", flush=True)
            found = {"versions": found["versions"] | versions_here(), "rows": list(rows.values())}
            ROWS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page()


if __name__ == "__main__":
    main(sys.argv[1:])
