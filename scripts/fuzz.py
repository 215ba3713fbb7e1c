"""Change files of every kind that optscope reads, and see that nothing but a sentence or a repair follows.

    python -m scripts.fuzz                     100,000 inputs
    python -m scripts.fuzz --inputs 2000 --seed 3 --only state

A real comparison leaves the files. Each input is one of them, changed: bits flipped, cut off, parts deleted,
moved or overwritten, values of JSON replaced by other types, huge numbers, deep nesting, odd text, headers of
safetensors likewise, checksums made to fit again. Then it is read as the program reads it. Allowed is that it is
read, or refused by a `UserError`, or set aside; any other exception counts as a crash, and so does running code:
starting a process, loading a library, unpickling a class, importing or compiling something.
"""

from __future__ import annotations

import argparse
import contextlib
import encodings.cp437
import encodings.utf_32_be
import encodings.utf_32_le  # noqa: F401 - that a module of Python's is loaded is no matter here
import io
import json
import math
import os
import random
import sqlite3
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from scripts.kills import keep, often, small

from optscope.cli import look
from optscope.engine import state_file
from optscope.engine.checkpoint import load_snapshot
from optscope.engine.data_files import DataFiles
from optscope.engine.execute import Inline
from optscope.engine.ledger import LEDGER, Ledger
from optscope.engine.looks import Tail
from optscope.engine.observed import Observed
from optscope.engine.rows import read
from optscope.engine.run_folder import LOOKS, STATE, RunFolder
from optscope.engine.store import Store
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.evidence.columns import read_csv, write_csv, write_sqlite
from optscope.evidence.records import Records
from optscope.files import Lines, to_line
from optscope.following import Follower
from optscope.lab import compare
from optscope.protocol.compare import arms_of
from optscope.protocol.events import Quiet
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import Settings, read_settings

RUNS_CODE = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "subprocess.Popen",
                       "pty.spawn", "pickle.find_class", "ctypes.dlopen", "exec", "compile", "import"})
"""What Python tells of code that is run, loaded or made."""
SETTINGS = b"""seeds = 3
trials = 4
margin = "20%"
graft = "layer"
[optimisers.sgd]
lr = [0.1, 0.3]
[optimisers.adam]
lr = [0.01, 1e-3]
[optimisers.adam.space]
beta2 = {uniform = [0.9, 0.999]}
"""


# Changes

def nested(depth: int, inner: Any = 0) -> Any:
    """Return lists in lists."""
    for _ in range(depth):
        inner = [inner]
    return inner


ODD = (None, True, False, 0, -1, 2**63, 10**400, -1e308, 1e-320, float("inf"), float("nan"), "", "nan", "inf",
       "x" * 2000, "\ud800", "\x00", "../../../etc/passwd", "os:system", [], {}, [[]], {"": {}},
       [1, "a", None], nested(90),
       {"again": 0}, {"again": -1}, {"tensor": "0"}, {"scalar": "O", "value": 1}, {"float": "x"},
       {"scalar": "<f8", "value": 1}, {"items": [[[], 1]]}, {"__reduce__": ["os.system", ["true"]]})
"""Values that are put in the place of others."""


def in_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return a content with a change that knows nothing of its form."""
    if not content:
        return chance.randbytes(8)
    kind, a, b = chance.randrange(8), *sorted(chance.randrange(len(content) + 1) for _ in range(2))
    if kind == 0:
        return content[:a]
    if kind == 1:
        return content[:a] + content[b:]
    if kind == 2:
        return content[:b] + content[a:]
    if kind == 3:
        return content[:a] + bytes(b - a) + content[b:]
    if kind == 4:
        return content[:a] + chance.randbytes(chance.randrange(1, 9)) + content[a:]
    if kind == 5:
        deep = chance.choice((b"[", b'{"a":', b"[[", b"9")) * chance.choice((10, 500, 5000, 100_000))
        return content[:a] + deep + content[a:]
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def in_value(value: Any, chance: random.Random) -> Any:
    """Return plain values with one of them, somewhere, replaced, taken out or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        if chance.random() < 0.1:
            return {key: each for key, each in value.items() if key != name}
        if chance.random() < 0.05:
            return {("x" if key == name else key): each for key, each in value.items()}
        return value | {name: in_value(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        if chance.random() < 0.1:
            return value[:place] + value[place + 1:]
        if chance.random() < 0.1:
            return [*value, value[place]]
        return [*value[:place], in_value(value[place], chance), *value[place + 1:]]
    return chance.choice(ODD)


def as_json(value: Any) -> bytes:
    """Return JSON, with all that Python's writer lets pass."""
    return json.dumps(value).encode()


def in_json(content: bytes, chance: random.Random) -> bytes:
    """Return JSON with values changed, or bytes."""
    if chance.random() < 0.3:
        return in_bytes(content, chance)
    return as_json(in_value(json.loads(content), chance))


def in_lines(content: bytes, chance: random.Random) -> bytes:
    """Return lines of JSON, one of them with values changed, or bytes."""
    lines = content.split(b"\n")
    place = chance.randrange(len(lines))
    if chance.random() < 0.3 or not lines[place]:
        return in_bytes(content, chance)
    lines[place] = as_json(in_value(json.loads(lines[place]), chance))
    return b"\n".join(lines)


def in_ledger(content: bytes, chance: random.Random) -> bytes:
    """Return a ledger with a line changed, whose checksum fits again in half the cases."""
    lines = content.split(b"\n")
    place = chance.randrange(1, len(lines) - 1)
    if chance.random() < 0.5:
        return in_bytes(content, chance)
    run, stamp, _, held = json.loads(lines[place])
    text = json.dumps(in_value(held, chance), separators=(",", ":")).encode()
    lines[place] = b'["%b","%b",%d,%b]' % (run.encode(), stamp.encode(), zlib.crc32(text), text)
    return b"\n".join(lines)


def in_tensors(content: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file whose header has values changed, or bytes."""
    if chance.random() < 0.4:
        return in_bytes(content, chance)
    size = int.from_bytes(content[:8], "little")
    text = as_json(in_value(json.loads(content[8:8 + size]), chance))
    return len(text).to_bytes(8, "little") + text + content[8 + size:]


def in_state(content: bytes, chance: random.Random) -> bytes:
    """Return a state whose shape has values changed and whose mark fits again, or another changed file."""
    if chance.random() < 0.4:
        return in_tensors(content, chance)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + size])
    told = json.loads(header["__metadata__"]["optscope state"])
    told["shape"] = in_value(told["shape"], chance)
    with contextlib.suppress(ValueError):
        told["mark"] = state_file._mark(told["shape"], load_tensors(content))
    header["__metadata__"]["optscope state"] = json.dumps(told)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size:]


def in_toml(content: bytes, chance: random.Random) -> bytes:
    """Return a TOML file with a value or a name changed, or bytes."""
    if chance.random() < 0.3:
        return in_bytes(content, chance)
    lines = content.decode().splitlines()
    place = chance.randrange(len(lines))
    name, equals, _ = lines[place].partition("=")
    odd = chance.choice(("-1", "1e400", "9" * 5000, "nan", "[]", "{}", "true", '"x"', "''", "1979-05-27",
                         '"\\ud800"', "[" * 5000, '{a = {b = {c = 1}}}', '["a", 1]', "0x" + "f" * 400,
                         '"os:system"', "inf"))
    lines[place] = f"{name}= {odd}" if equals else chance.choice(("[optimisers.x]", "[a.b.c]", "[[optimisers]]"))
    return "\n".join(lines).encode()


# Readings

@dataclass
class Folder:
    """What a comparison has left, and how each kind of file is read as the program reads it."""

    path: Path
    state: bytes
    owner: str
    given: Any = field(default_factory=small)

    def __post_init__(self) -> None:
        self.results = run_experiments([self.given], Store(self.path), Inline(), Quiet())
        self.use = next(use for use in Store(self.path).uses() if use.experiment == "c" and use.phase == "final")
        self.run = self.path / "runs" / self.use.run
        self.run_folder = RunFolder(self.run)
        self.work = next(job.work for job in self.given.jobs(self.results.records) if job.work.id == self.use.run)
        self.split = self.given.task.data().train
        DataFiles(self.path / "data")._keep(self.split)
        self.files = self.run_folder.contents().files

    def records(self) -> None:
        rows, _ = read(self.use, self.run_folder.contents())
        found = Records(rows)
        write_csv(found, self.path / "summary.csv")
        write_sqlite(found, self.path / "index.sqlite", 1)

    def ledger(self) -> None:
        ledger = Ledger(self.path)
        found = Records(read(self.use, ledger.contents(self.use.run))[0])
        write_csv(found, self.path / "summary.csv")
        ledger.write()

    def entries(self) -> None:
        store = Store(self.path)
        store.records(store.uses())
        store.add_uses([self.use])

    def status(self) -> None:
        found = Follower(self.path).status()
        to_line(found.told())
        str(found).encode()

    def events(self) -> None:
        self.status()
        lines = Lines(self.path / "events.jsonl")
        lines.append(b"{}\n")
        lines.close()

    def marker(self) -> None:
        with Store(self.path, "the comparison on task").locked():
            pass

    def arrays(self) -> None:
        self.run_folder.contents()
        self.run_folder.series()
        for probe in self.use.probes:
            self.run_folder.reading_arrays(probe)

    def weights(self) -> None:
        self.run_folder.contents()
        if self.run_folder.has_weights():
            load_snapshot(self.given.task, self.run)

    def data(self) -> None:
        DataFiles(self.path / "data")._keep(self.split)

    def index(self) -> None:
        if said := Store(self.path).index(self.results.records):
            raise AssertionError(said)
        with contextlib.closing(sqlite3.connect(self.path / "index.sqlite")) as database:
            if len(database.execute("select * from records").fetchall()) != len(self.results.records):
                raise AssertionError("the index is not what was found")

    def saved(self) -> None:
        state_file.from_bytes((self.run / STATE).read_bytes(), self.owner)

    def resumed(self) -> None:
        work = self.work
        make = partial(Training, work.task, work.rule, work.plan, work.seed)
        observed = Observed(make, {}, self.run_folder, self.owner, 1e9)
        observed.training.advance(observed.training.step + 1)

    def looks(self) -> None:
        list(Tail(self.path / "runs", self.use.run).new())

    def settings(self) -> None:
        found = read_settings(self.path / "settings.toml")
        str((found.plan, found.place, arms_of(found)))

    def report(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            look.report(self.path, as_json=False)
            look.report(self.path, as_json=True)

    def summary(self) -> None:
        read_csv(self.path / "summary.csv")


Change = Callable[[bytes, random.Random], bytes]
KINDS: dict[str, tuple[str, Change, Callable[[Folder], None], float]] = {
    "result": ("run/result.json", in_json, Folder.records, 1),
    "reading": ("run/probe-*.json", in_json, Folder.records, 1),
    "failure": ("run/failed.json", in_json, Folder.records, 1),
    "ledger": (LEDGER, in_ledger, Folder.ledger, 1),
    "events": ("events.jsonl", in_lines, Folder.events, 1),
    "entries": ("entries.json", in_json, Folder.entries, 1),
    "entries, followed": ("entries.json", in_json, Folder.status, 1),
    "marker": ("optscope.json", in_json, Folder.marker, 1),
    "series": ("run/series.safetensors", in_tensors, Folder.arrays, 1),
    "reading's arrays": ("run/probe-*.safetensors", in_tensors, Folder.arrays, 1),
    "weights": ("run/weights.safetensors", in_tensors, Folder.weights, 1),
    "other weights": ("run/weights-rest.pt", in_bytes, Folder.weights, 1),
    "data": ("data/*.safetensors", in_tensors, Folder.data, 1),
    "state": (f"run/{STATE}", in_state, Folder.saved, 1),
    "state, resumed": (f"run/{STATE}", in_state, Folder.resumed, 0.1),
    "looks": (f"run/{LOOKS}", in_lines, Folder.looks, 1),
    "index": ("index.sqlite", in_bytes, Folder.index, 1),
    "settings": ("settings.toml", in_toml, Folder.settings, 1),
    "report": ("report.json", in_json, Folder.report, 1),
    "verdicts": ("verdicts.json", in_json, Folder.report, 1),
    "command": ("run.json", in_json, Folder.report, 1),
    "summary": ("summary.csv", in_bytes, Folder.summary, 1),
}
"""By kind of file: where it is, how it is changed, how it is read, and its share of the inputs."""


# The script

def folder_at(place: Path) -> Folder:
    """Make the files."""
    compare(small().task, place / "out", arms=small().arms, executor=Inline(), listener=Quiet(),
            settings=Settings(seeds=2, twin_seeds=0, epochs=1, batch=24, examples=8))
    owner, run = "0123456789abcdef", RunFolder(place / "state")
    work = small().jobs(Records())[0].work
    with often(0.0, 1e9):
        make = partial(Training, work.task, work.rule, work.plan, work.seed)
        Observed(make, {}, run, owner, 0.0).run()
    found = Folder(place / "out", run.state() or b"", owner)
    (found.run / STATE).write_bytes(found.state)
    (found.path / "settings.toml").write_bytes(SETTINGS)
    failure = {"schema": 1, "status": "failed", "reason": "x", "train_loss": "nan"}
    (found.run / "failed.json").write_bytes(as_json(failure))
    (found.run / LOOKS).write_bytes(b'[1,{"loss":0.5}]\n[2,{"loss":"nan"}]\n')
    rest = io.BytesIO()
    torch.save({"0.bias": torch.zeros(8)}, rest)
    (found.run / "weights-rest.pt").write_bytes(rest.getvalue())
    return found


def fuzzed(inputs: int, seed: int, place: Path, only: str = "") -> dict[str, Any]:
    """Change and read so many files; return what became of them by kind, and the crashes."""
    folder = folder_at(place)
    kinds = {name: kind for name, kind in KINDS.items() if only in name}
    share = inputs / sum(weight for *_, weight in kinds.values())
    counts: dict[str, Counter[str]] = {}
    crashes: list[str] = []
    for name, (pattern, change, reading, weight) in kinds.items():
        chance = random.Random(f"{seed} {name}")
        root, pattern = (folder.run, pattern[4:]) if pattern.startswith("run/") else (folder.path, pattern)
        paths = sorted(root.glob(pattern))
        kept = Kept(folder.path, folder.run, folder.path / "data")
        reading(folder)  # what is loaded once is loaded now
        counts[name] = Counter()
        for i in range(math.ceil(share * weight)):
            path = chance.choice(paths)
            content = change(kept.contents[str(path)], chance)
            path.write_bytes(content)
            became, told = outcome(partial(reading, folder))
            counts[name][became] += 1
            if became in ("crashed", "ran code"):
                crashes.append(f"{name}, input {i} of seed {seed}: {told}")
            kept.restore()
    return {"inputs": sum(map(sum, (c.values() for c in counts.values()))), "seed": seed,
            "kinds": {name: dict(sorted(count.items())) for name, count in counts.items()}, "crashes": crashes}


def outcome(reading: Callable[[], None]) -> tuple[str, str]:
    """Return what came of a reading, and of a crash where."""
    _heard.clear()
    _listening.append(True)
    try:
        reading()
    except UserError as error:
        became, told = "refused in a sentence", str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        became, told = "crashed", f"{type(error).__name__}: {str(error)[:150]} ({place.filename}:{place.lineno})"
    else:
        became, told = "read, or made anew", ""
    finally:
        _listening.clear()
    return ("ran code", ", ".join(_heard)) if _heard else (became, told)


class Kept:
    """The files of some folders as they were, which are put back where something touched them."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._stamps = self._now()
        self.contents = {path: Path(path).read_bytes() for path in self._stamps}

    def _now(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for folder in self._folders:
            with os.scandir(folder) as entries:
                for each in entries:
                    if each.is_file():
                        status = each.stat()
                        found[each.path] = status.st_ino, status.st_size, status.st_mtime_ns
        return found

    def restore(self) -> None:
        """Put back what was changed, and remove what was added."""
        now = self._now()
        for path in now.keys() - self.contents.keys():
            Path(path).unlink()
        changed = [path for path in self.contents if now.get(path) != self._stamps[path]]
        for path in changed:
            Path(path).write_bytes(self.contents[path])
        if changed:
            self._stamps = self._now()


_heard: list[str] = []
_listening: list[bool] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event in RUNS_CODE and _listening:
        _heard.append(f"{event} {str(arguments[:1])[:100]}")


sys.addaudithook(_hear)


def main() -> None:
    """Change and read as often as asked, print the counts and the first crashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many files are read (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds of files whose name holds this")
    parser.add_argument("--keep", action="store_true", help="write the counts to docs/reliability.json")
    said = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        found = fuzzed(said.inputs, said.seed, Path(place), said.only)
    print(json.dumps(found | {"crashes": found["crashes"][:50]}, indent=1))
    print(f"{len(found['crashes'])} crashes, {time.process_time() - start:.0f} CPU-seconds")
    if said.keep:
        keep(f"fuzzing, seed {said.seed}", found)
    sys.exit(bool(found["crashes"]))


if __name__ == "__main__":
    main()
