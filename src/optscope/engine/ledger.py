"""What the folders of runs hold, read once: by later commands not at all, while their files stay as they were."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path

from optscope.engine.run_folder import Contents, RunFolder
from optscope.files import names_in, write_atomically

LEDGER = "ledger.jsonl"
"""One line a run: its name, a stamp of its files, a checksum of the rest, and what its JSON files hold."""
HEAD = b'{"schema":1}'


class Ledger:
    """What the runs below `folder` hold. Files are the truth: a line that disagrees with them is not looked at.

    A file counts as unchanged while its name, its length, and the times of its last writing and of its last change
    of any kind are the same: so a folder that is moved is trusted, and one that is copied is read once more.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._runs = folder / LEDGER, folder / "runs"
        self._lines = _lines(self._path)
        self._changed = False

    def contents(self, run: str) -> Contents:
        """Return what a run's folder holds now; damaged files are set aside."""
        path = self._runs / run
        stamp = _stamp(path)  # before the files are read: what is written later has another one
        known = self._lines.get(run, b"")
        head = _head(run, stamp)
        check, _, held = known[len(head):].partition(b",")
        if known.startswith(head) and check == _checksum(held[:-1]):
            return Contents(path, json.loads(held[:-1]))
        found = RunFolder(path).contents()
        content = json.dumps(found.files, separators=(",", ":")).encode()
        self._lines[run] = b"%b%b,%b]" % (head, _checksum(content), content)
        self._changed = True
        return found

    def write(self) -> str:
        """Write what was read for the next command; return why that was not possible, or ""."""
        if not self._changed:
            return ""
        there = names_in(self._runs)
        lines = [HEAD, *(line for run, line in self._lines.items() if run in there)]
        try:
            write_atomically(self._path, b"\n".join((*lines, b"")))
        except OSError as error:
            return f"{self._path} could not be written ({error}): the next command reads every run's files again"
        self._changed = False
        return ""


def _lines(path: Path) -> dict[str, bytes]:
    """Return the lines of a ledger by the run that each is about; of one that cannot be read, none."""
    try:
        head, *lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}
    return {line[2:18].decode("ascii", "replace"): line for line in lines if line} if head == HEAD else {}


def _head(run: str, stamp: str) -> bytes:
    return f'["{run}","{stamp}",'.encode()


def _checksum(content: bytes) -> bytes:
    return b"%d" % zlib.crc32(content)


def _stamp(folder: Path) -> str:
    """Return a digest of the names, lengths and times of a folder's files; "" when there is no folder."""
    try:
        with os.scandir(folder) as found:
            stats = sorted((each.name, each.stat()) for each in found)
    except FileNotFoundError:
        return ""
    told = repr([(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats])
    return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
