"""A folder of runs: whose it is, what its runs were made for, their records, and an index that repeats them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from optscope.engine.ledger import LEDGER, Ledger
from optscope.engine.rows import Use, read, used
from optscope.engine.run_folder import SCHEMA, RunFolder, gone
from optscope.errors import UserError
from optscope.evidence.columns import write_sqlite
from optscope.evidence.records import Records
from optscope.files import DamagedError, make_folder, names_in, read_json, set_aside, to_json, write_atomically

MARKER = "optscope.json"
WRITTEN = {"runs", "data", "figures", "entries.json", "rehearsed.json", "events.jsonl", LEDGER, "index.sqlite",
           "index.sqlite-wal", "index.sqlite-shm", "report.html", "report.md", "report.json", "verdicts.json",
           "summary.csv", "summary.parquet", "run.json"}
"""What may lie in an output folder, for a reader to see; parquet is of an older version."""


class Store:
    """A folder of runs, its uses, and its index.

    `holds` says in a few words what the folder's report is about: a folder holds one.

    Raises:
        UserError: when the folder cannot be written, holds somebody else's files or another report, or is in use.
    """

    def __init__(self, folder: Path, holds: str = "") -> None:
        self.folder = folder
        marker = folder / MARKER
        if folder.exists() and not folder.is_dir():
            raise UserError(f"the output folder {folder} is a file: give --out another name")
        if folder.is_dir() and not marker.is_file() and not _is_ours(folder):
            raise UserError(f"the output folder {folder} holds files that are not optscope's: "
                            "give --out an empty or a new folder")
        try:
            for each in reversed((folder, *folder.parents)):
                make_folder(each)
            known = _marker(marker)
            if known is None or (holds and not known.get("holds")):
                write_atomically(marker, to_json({"schema": SCHEMA, "holds": holds}))
            make_folder(folder / "runs")
            (folder / ".writable").touch()
            (folder / ".writable").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"the output folder {folder} cannot be written ({error.strerror}): "
                            "give --out a folder of yours") from error
        if known and holds and known.get("holds") not in (None, "", holds):
            raise UserError(f"{folder} holds the report of {known['holds']}, which that of {holds} would replace: "
                            "give --out another folder")

    def run_folder(self, run: str) -> RunFolder:
        """Return the folder of one run."""
        return RunFolder(self.folder / "runs" / run)

    def check_is_there(self) -> None:
        """Raise UserError when the folder was deleted, moved or emptied: nothing may be written in its place."""
        if not (self.folder / MARKER).is_file():
            raise UserError(gone(self.folder))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one writing process; leftovers of a killed one are swept first.

        Raises:
            UserError: naming the process that holds it already.
        """
        lock, owner = FileLock(self.folder / ".lock"), self.folder / ".owner"
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            try:
                name = owner.read_text(errors="replace").strip()
            except OSError:  # it has just ended
                name = "?"
            raise UserError(f"{self.folder} is in use by process {name}: "
                            "wait for it, or give --out another folder") from error
        try:
            owner.write_text(f"{os.getpid()} on {platform.node()}")
            for place in ("", "data", "figures"):
                _sweep(self.folder / place)
            for run in (self.folder / "runs").iterdir():
                _sweep(run)
            yield
        finally:
            with contextlib.suppress(OSError):  # gone, or of a disk that may not be written any more
                owner.unlink()  # who looks in from outside knows by it that the command has ended
            lock.release()

    def add_uses(self, uses: Iterable[Use]) -> None:
        """Add uses that are not there yet; they are kept in `entries.json`, set aside when that is damaged."""
        path, known = self.folder / "entries.json", dict.fromkeys(uses)
        try:
            before = dict.fromkeys(self.uses())
        except DamagedError:
            set_aside(path)
            before = {}
        if known.keys() <= before.keys():
            return
        rows = [[e.experiment, e.arm, e.phase, e.seed, e.rule, e.run, list(e.probes), e.factors]
                for e in before | known]
        write_atomically(path, to_json({"schema": SCHEMA, "entries": rows}))

    def uses(self) -> list[Use]:
        """Return all uses, in the order they were added.

        Raises:
            UserError: when the file of entries holds other things than optscope writes there.
        """
        path = self.folder / "entries.json"
        if not path.is_file():
            return []
        found = read_json(path)
        try:
            return list(map(used, found["entries"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not what optscope writes there: delete that file alone, and run the same "
                            "command again; no run is lost") from error

    def records(self, uses: Iterable[Use] | None = None) -> Records:
        """Return every number of the finished runs behind `uses` (all by default).

        Raises:
            UserError: naming the run whose files hold other things than optscope writes there.
        """
        ledger = Ledger(self.folder)
        chosen = self.uses() if uses is None else uses
        return Records(row for use in chosen for row in read(use, ledger.contents(use.run))[0])

    def index(self, records: Records) -> str:
        """Write records to `index.sqlite`, for anyone's SQL; return why that was not possible, or ""."""
        path = self.folder / "index.sqlite"
        try:
            for stale in ("-wal", "-shm", "-journal"):  # of an older file: they would be taken for this one's
                path.with_name(path.name + stale).unlink(missing_ok=True)
            write_sqlite(records, path, SCHEMA)
        except (sqlite3.Error, OSError) as error:
            return f"{path} could not be written ({error}): every number is in summary.csv"
        return ""


def _sweep(place: Path) -> None:
    """Remove files of a folder that a killed process had only begun to write."""
    for name in names_in(place):
        if name.startswith(".") and name.endswith(".tmp"):
            (place / name).unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Return whether a folder without a marker holds only what optscope writes, as after a kill at the start."""
    names = {path.name.removesuffix(".damaged") for path in folder.iterdir()}
    lasting = {name for name in names if not re.fullmatch(rf"{MARKER}|\.(lock|owner|writable|.*\.tmp)", name)}
    runs = folder / "runs"
    return not lasting or (lasting <= WRITTEN and runs.is_dir()
                           and all(re.fullmatch("[0-9a-f]{16}", path.name) for path in runs.iterdir()))


def _marker(path: Path) -> dict[str, Any] | None:
    """Return what the marker says, or None where there is none that can be read.

    Raises:
        UserError: when it is not this program's.
    """
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except DamagedError as error:
        if not _is_ours(path.parent):
            raise UserError(f"{path} is damaged, and {path.parent} holds files that are not optscope's: "
                            "give --out an empty or a new folder") from error
        set_aside(path)
        return None
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise UserError(f'{path} is not what optscope writes there, which is {{"schema": {SCHEMA}}}: delete that '
                        "file alone, and run the same command again; no run is lost")
    if schema > SCHEMA:
        raise UserError(f"{path.parent} was written by a newer optscope (schema {schema}, this one reads "
                        f"{SCHEMA}): update optscope")
    return dict(found)
