"""Files that are there whole or not at all: written beside their place, forced to disk, and renamed."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optscope.errors import UserError


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """Write a file, of one or more pieces, so that after any crash it is whole, or as it was before.

    Raises:
        OSError: with the path as its `filename`, so that a full disk is told from errors of others.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
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
    def plain(v: Any) -> Any:
        if isinstance(v, float):
            return v if math.isfinite(v) else str(v)
        if isinstance(v, Mapping):
            return {str(k): plain(x) for k, x in v.items()}
        return [plain(x) for x in v] if isinstance(v, (list, tuple)) else v
    return json.dumps(plain(value), ensure_ascii=False, indent=1, allow_nan=False).encode()


class DamagedError(UserError):
    """A file that is not what its name says: cut off, garbled or emptied."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DamagedError: naming the file when it is not JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}): run the command that made it again, which sets it "
                           "aside and writes it anew") from error


def set_aside(path: Path) -> None:
    """Rename a damaged file, so that it is made again and can still be looked at."""
    path.replace(path.with_name(f"{path.name}.damaged"))
