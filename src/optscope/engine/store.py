"""What runs leave on disk: one folder a run, written so that a crash loses nothing, and an index of them.

The SQLite index only repeats what the files say; it is made anew from them whenever records are read.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as numpy_bytes

from optscope.engine.files import read_json, to_json, write_atomically
from optscope.engine.weights import REST, TENSORS, from_files, to_files
from optscope.errors import UserError
from optscope.evidence.records import Phase, Record, Records
from optscope.probes.probe import Reading

SCHEMA = 1
MARKER = "optscope.json"
SUMMARY = {"learning rate": "lr", "seconds": "seconds", "training loss": "train_loss"}
"""Records made from the summary of every run, and where they stand in it."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. `result.json` is written last: its presence means that training is done."""

    path: Path

    def has_result(self) -> bool:
        """Return whether the run has finished."""
        return (self.path / "result.json").is_file()

    def result(self) -> dict[str, Any]:
        """Return the run's summary."""
        found: dict[str, Any] = read_json(self.path / "result.json")
        return found

    def failure(self) -> dict[str, Any] | None:
        """Return why the last try left no result, or None."""
        path = self.path / "failed.json"
        return read_json(path) if path.is_file() else None

    def forget_failure(self) -> None:
        """Remove what an earlier command wrote of a failure: it is tried anew."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def write_failure(self, status: str, reason: str) -> None:
        """Write that the run failed or was lost; the next command tries it again."""
        self.path.mkdir(parents=True, exist_ok=True)
        found = {"schema": SCHEMA, "status": status, "reason": reason, "train_loss": math.nan}
        write_atomically(self.path / "failed.json", to_json(found))

    def series(self) -> dict[str, NDArray[Any]]:
        """Return the arrays a finished run left."""
        path = self.path / "series.safetensors"
        return load_arrays(path.read_bytes()) if path.is_file() else {}

    def weights(self) -> dict[str, Any]:
        """Return the trained weights by name."""
        try:
            return from_files({name: (self.path / name).read_bytes() for name in (TENSORS, REST)
                               if name == TENSORS or (self.path / name).is_file()})
        except Exception as error:  # of damaged bytes, the unpickler raises whatever they lead it to
            raise UserError(f"the weights in {self.path} cannot be read ({error}): delete that folder and "
                            "run the same command again") from error

    def has_weights(self) -> bool:
        """Return whether the trained weights are kept."""
        return (self.path / TENSORS).is_file()

    def drop_weights(self) -> None:
        """Remove the trained weights; training makes the same again."""
        for name in (TENSORS, REST):
            (self.path / name).unlink(missing_ok=True)

    def write_result(self, summary: Mapping[str, Any], series: Mapping[str, NDArray[Any]],
                     weights: Mapping[str, Any]) -> None:
        """Write all that training left; the summary last."""
        self.path.mkdir(parents=True, exist_ok=True)
        if series:
            arrays = {name: np.ascontiguousarray(value) for name, value in series.items()}
            write_atomically(self.path / "series.safetensors", numpy_bytes(arrays))
        for name, content in (to_files(weights) if weights else {}).items():
            write_atomically(self.path / name, content)
        write_atomically(self.path / "result.json", to_json({"schema": SCHEMA, **summary}))

    def has_reading(self, probe: str) -> bool:
        """Return whether a probe has been taken."""
        return (self.path / f"probe-{probe}.json").is_file()

    def reading_arrays(self, probe: str) -> dict[str, NDArray[Any]]:
        """Return the arrays that a probe kept; those taken during training are named "NAME at STEP"."""
        path = self.path / f"probe-{probe}.safetensors"
        return load_arrays(path.read_bytes()) if path.is_file() else {}

    def write_reading(self, probe: str, label: str, readings: Sequence[tuple[int | None, Reading]],
                      reason: str = "") -> None:
        """Write what a probe found, after which step (None: on the trained model), or why it found nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        found = {name if step is None else f"{name} at {step}": np.ascontiguousarray(a)
                 for step, reading in readings for name, a in reading.arrays.items()}
        texts = {name: a.tolist() for name, a in found.items() if a.dtype.kind == "U"}  # safetensors holds no text
        arrays = {name: a for name, a in found.items() if name not in texts}
        if arrays:
            write_atomically(self.path / f"probe-{probe}.safetensors", numpy_bytes(arrays))
        write_atomically(self.path / f"probe-{probe}.json",
                         to_json({"schema": SCHEMA, "probe": label, "reason": reason, "texts": texts,
                                  "values": [[*row, step] for step, reading in readings
                                             for row in _values(reading)]}))


def _values(reading: Reading) -> list[list[Any]]:
    """Return [metric, at or None, value] for every number of a reading."""
    rows: list[list[Any]] = []
    for metric, value in reading.values.items():
        pairs = value.items() if isinstance(value, Mapping) else [(None, value)]
        rows.extend([metric, at, float(number)] for at, number in pairs)
    return rows


@dataclass(frozen=True)
class Entry:
    """Why a run was made: its place in an experiment, and the measurements that this place reads."""

    experiment: str
    arm: str
    phase: Phase
    seed: int
    rule: str
    run: str
    probes: tuple[str, ...] = ()


class Store:
    """A folder of runs, its entries, and its index.

    Raises:
        UserError: when the folder cannot be written, holds somebody else's files, or is in use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        marker = folder / MARKER
        if folder.exists() and not folder.is_dir():
            raise UserError(f"the output folder {folder} is a file: give --out another name")
        if folder.is_dir() and not marker.is_file() and any(folder.iterdir()):
            raise UserError(f"the output folder {folder} holds files that are not optscope's: "
                            "give --out an empty or a new folder")
        try:
            (folder / "runs").mkdir(parents=True, exist_ok=True)
            if not marker.is_file():
                write_atomically(marker, to_json({"schema": SCHEMA}))
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        except OSError as error:
            raise UserError(f"the output folder {folder} cannot be written ({error.strerror}): "
                            "give --out a folder of yours") from error
        schema = read_json(marker).get("schema", 0)
        if schema > SCHEMA:
            raise UserError(f"{folder} was written by a newer optscope (schema {schema}, this one reads "
                            f"{SCHEMA}): update optscope")

    def run_folder(self, run: str) -> RunFolder:
        """Return the folder of one run."""
        return RunFolder(self.folder / "runs" / run)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one writing process; leftovers of a killed one are swept first."""
        lock, owner = FileLock(self.folder / ".lock"), self.folder / ".owner"
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            name = owner.read_text().strip() if owner.is_file() else "?"
            raise UserError(f"{self.folder} is in use by process {name}: "
                            "wait for it, or give --out another folder") from error
        try:
            owner.write_text(str(os.getpid()))
            for stray in self.folder.glob("runs/*/.*.tmp"):
                stray.unlink()
            yield
        finally:
            lock.release()

    def add_entries(self, entries: Iterable[Entry]) -> None:
        """Add entries that are not there yet; they are kept in `entries.json`."""
        known = dict.fromkeys(self.entries())
        known.update(dict.fromkeys(entries))
        rows = [[e.experiment, e.arm, e.phase, e.seed, e.rule, e.run, list(e.probes)] for e in known]
        write_atomically(self.folder / "entries.json", to_json({"schema": SCHEMA, "entries": rows}))

    def entries(self) -> list[Entry]:
        """Return all entries, in the order they were added."""
        path = self.folder / "entries.json"
        rows = read_json(path)["entries"] if path.is_file() else []
        return [Entry(experiment, arm, phase, seed, rule, run, tuple(probes))
                for experiment, arm, phase, seed, rule, run, probes in rows]

    def silences(self, entries: Iterable[Entry]) -> list[str]:
        """Return, once each, why probes found nothing."""
        paths = (self.run_folder(e.run).path / f"probe-{probe}.json" for e in entries for probe in e.probes)
        found = (read_json(path) for path in dict.fromkeys(paths) if path.is_file())
        return list(dict.fromkeys(f"{f['probe']}: {f['reason']}" for f in found if f["reason"]))

    def records(self, entries: Iterable[Entry] | None = None) -> Records:
        """Return every number of the finished runs behind `entries` (all by default)."""
        chosen = self.entries() if entries is None else entries
        return Records(row for entry in chosen for row in self._rows(entry))

    def _rows(self, entry: Entry) -> Iterator[Record]:
        folder = self.run_folder(entry.run)
        result = folder.result() if folder.has_result() else folder.failure()
        if result is None:
            return
        status = result["status"]

        def row(metric: str, value: Any, at: Any = None, step: int | None = None, arm: str = entry.arm,
                seed: int = entry.seed) -> Record:
            number = float(value) if math.isfinite(float(value)) else math.nan  # means have no place for inf
            return Record(entry.experiment, arm, seed, metric, number,
                          None if at is None else float(at), step, entry.phase, entry.rule, status, entry.run)

        for arm, seed, metric, value, at, step in result.get("rows", []):
            yield row(metric, value, at, step, arm, seed)
        for metric, name in SUMMARY.items():
            if isinstance(result.get(name), (int, float, str)):
                yield row(metric, result[name])
        for metric, value in result.get("metrics", {}).items():
            yield row(metric, value)
        for probe in entry.probes:
            path = folder.path / f"probe-{probe}.json"
            for metric, at, value, step in read_json(path)["values"] if path.is_file() else []:
                yield row(metric, value, at, step)

    def index(self, records: Records) -> Path:
        """Write records to `index.sqlite`, for anyone's SQL, and return its path."""
        path = self.folder / "index.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("pragma journal_mode=wal")
            database.execute("pragma synchronous=full")
            database.execute(f"pragma user_version={SCHEMA}")
            database.execute("drop table if exists records")
            database.execute("create table records (experiment text, arm text, seed integer, metric text, "
                             "value real, at real, step integer, phase text, rule text, status text, "
                             "run text)")
            rows = ((r.experiment, r.arm, r.seed, r.metric, r.value, r.at, r.step, r.phase, r.rule,
                     r.status, r.run) for r in records)
            database.executemany("insert into records values (?,?,?,?,?,?,?,?,?,?,?)", rows)
        return path


def export_csv(records: Records, path: Path) -> None:
    """Write records to a CSV file, one row a number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in dataclasses.fields(Record))
    writer.writerows(dataclasses.astuple(row) for row in records)
    write_atomically(path, text.getvalue().encode())
