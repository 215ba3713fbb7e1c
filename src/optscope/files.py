"""Files that are there whole or not at all: written beside their place, forced to disk, and renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from optscope.errors import UserError

RECORDED = "recorded.jsonl"
"""What a recorder of somebody's own loop calls its file of lines, in the folder of a run."""


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """Write a file, of one or more pieces, so that after any crash it is whole, or as it was before.

    Raises:
        OSError: with the path as its `filename`, so that a full disk is told from errors of others.
    """
    with whole(path) as file:
        for piece in content:
            file.write(piece)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes its place when it is whole: it may be larger than what memory should hold.

    Raises:
        OSError: with the path as its `filename`; the file is then as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder, unless it is there, so that after any crash its name is there, too."""
    if path.is_dir():
        return
    try:
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)
    except OSError as error:  # one of fsync names no file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(path: Path) -> None:
    """Force a folder's names to disk, where the system can."""
    if os.name == "nt":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def to_json(value: object) -> bytes:
    """Return JSON in which non-finite numbers are the strings "nan", "inf" and "-inf"."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=1, allow_nan=False).encode()


def to_line(value: object) -> bytes:
    r"""Return the same JSON in one line, its end included.

    >>> to_line({"loss": float("inf"), "step": 3})
    b'{"loss":"inf","step":3}\n'
    """
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return a value with non-finite numbers as strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


class Lines:
    """A file of lines that grows at its end: each line is one write, so that a kill leaves whole lines.

    What a crash of the machine has cut off after the last whole line is cut away when the file is opened.

    Raises:
        OSError: with the path as its `filename`, when a line does not fit on the disk; it is taken back then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(self._file).st_size
        whole = _end_of_last_line(self._file, size)
        if whole < size:
            os.ftruncate(self._file, whole)

    def append(self, line: bytes) -> None:
        """Write a line, which brings its own end."""
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)


def _end_of_last_line(file: int, size: int) -> int:
    """Return the place after the last end of a line, looked for from the end on."""
    last = size
    while last > 0:
        first = max(0, last - 65_536)
        os.lseek(file, first, os.SEEK_SET)
        found = os.read(file, last - first).rfind(b"\n")
        if found >= 0:
            return first + found + 1
        last = first
    return 0


class DamagedError(UserError):
    """A file that is not what its name says: cut off, garbled or emptied."""


def from_json(content: bytes) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: when it is not JSON, or holds half a character, which nobody could write or show.
        RecursionError: when it is nested too deeply.
    """
    text = content.decode("utf-8")
    found = json.loads(text)
    if "\\u" in text:  # only so can half a character be said
        to_line(found)
    return found


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DamagedError: naming the file when it is not JSON.
    """
    try:
        return from_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}): run the command that made it again, which sets it "
                           "aside and writes it anew") from error


def names_in(folder: Path) -> set[str]:
    """Return the names of what lies in a folder; none when there is no such folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        return {each.name for each in found}
    return set()


def set_aside(path: Path) -> None:
    """Rename a damaged file, so that it is made again and can still be looked at."""
    path.replace(path.with_name(f"{path.name}.damaged"))
