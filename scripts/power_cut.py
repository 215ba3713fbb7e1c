"""A disk that forgets: what of a folder outlasts a cut of the power, at every moment before a file operation.

A file's content lasts from the time when it was forced to disk (`os.fsync`), a name in a folder from the time
when that folder was: this is all that POSIX promises. Of the rest, anything may be there afterwards or not, names
without content among them. `Disk` looks on while a program works in a folder, and keeps of every moment what was
there and what would last; `Moment.left` makes from that a folder as the next boot may find it.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FATES = ("killed", "dropped", "torn", "mixed")
"""What becomes of what was not forced to disk: all is kept (the process alone died), all is lost, names are kept
but contents are cut off or zeros, or each name and each content has a fate of its own."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Moment:
    """A folder before a file operation: by path, what is there, what of that content was forced, and what lasts.

    A folder's content is None. `before` names the operation, and `count` is what was counted up to now.
    """

    before: str
    there: Mapping[str, bytes | None]
    forced: Mapping[str, bytes | None]
    lasting: Mapping[str, bytes | None]
    count: int

    def left(self, fate: str, chance: random.Random) -> dict[str, bytes | None]:
        """Return the paths of a folder as a fate leaves it, with their contents."""
        if fate == "killed":
            return dict(self.there)
        if fate == "dropped":
            return dict(self.lasting)
        found: dict[str, bytes | None] = {}
        for path in sorted({*self.there, *self.lasting}):
            options = [tree[path] for tree in (self.there, self.lasting) if path in tree]
            certain = len(options) == 2 and options[0] == options[1] == self.forced[path]
            if certain or (fate == "torn" and path in self.there):
                found[path] = options[0] if certain else _torn(self.there[path], self.forced[path], chance)
            elif fate == "mixed" and chance.random() < 0.5:
                content = chance.choice(options)
                torn = path in self.there and chance.random() < 0.5
                found[path] = _torn(self.there[path], self.forced[path], chance) if torn else content
            elif fate == "mixed" and path in self.lasting and path in self.there:
                found[path] = self.lasting[path]
        return found


def _torn(now: bytes | None, forced: bytes | None, chance: random.Random) -> bytes | None:
    """Return a content of which only a part, that which was forced or another, has reached the disk."""
    if now is None or now == forced:
        return now
    cut = chance.randrange(len(now) + 1)
    return chance.choice([forced or b"", now[:cut], now[:cut] + bytes(len(now) - cut), now])


def put(tree: Mapping[str, bytes | None], folder: Path) -> None:
    """Make a folder of paths and contents."""
    folder.mkdir(parents=True)
    for path, content in tree.items():
        target = folder / path
        (target if content is None else target.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            target.write_bytes(content)


class Disk:
    """What was forced to disk of a folder; all that is there at the start was."""

    def __init__(self, root: Path, count: Callable[[], int] = lambda: 0) -> None:
        self.root, self.moments = root, list[Moment]()
        self._count = count
        self._seen: dict[tuple[int, ...], bytes] = {}
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: dict[int, int] = {}
        root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """Look on at what this process does in the folder."""
        sync = os.fsync

        def fsync(file: int) -> None:
            path = Path(f"/proc/self/fd/{file}").readlink()  # its name now: it may have been renamed
            if path.is_relative_to(self.root) and path.exists():
                self._note(f"fsync {path.name}")
                self._force(path)

        for path in (self.root, *self.root.rglob("*")):
            self._force(path)
        os.fsync = fsync
        _watching.append(self)
        try:
            yield self
        finally:
            _watching.remove(self)
            os.fsync = sync
            for held in self._held.values():
                os.close(held)
            self._held.clear()

    def _force(self, path: Path) -> None:
        status = path.stat()
        if path.is_dir():
            with os.scandir(path) as entries:
                found = {each.name: each.inode() for each in entries}
            self._names[status.st_ino] = found
            for name, number in found.items():
                self._hold(path / name, number)
        else:
            self._contents[status.st_ino] = self._read(path, status)
            self._hold(path, status.st_ino)

    def _hold(self, path: Path, number: int) -> None:
        """Keep a file open, so that its number is given to no other when it is deleted."""
        if number not in self._held:
            self._held[number] = os.open(path, os.O_RDONLY)

    def _read(self, path: Path, status: os.stat_result) -> bytes:
        key = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if key not in self._seen:
            self._seen[key] = path.read_bytes()
        return self._seen[key]

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note the moment before an operation that changes something in the folder."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & _WRITES:
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        else:
            path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(self.root):
            self._note(f"{event} {Path(path).name}")

    def _note(self, before: str) -> None:
        there: dict[str, bytes | None] = {}
        forced: dict[str, bytes | None] = {}
        numbers: dict[int, tuple[str, os.stat_result]] = {}
        self._look(self.root, "", there, forced, numbers)
        lasting: dict[str, bytes | None] = {}
        self._last(self.root.stat().st_ino, "", lasting, {number for number, (path, status) in numbers.items()
                                                          if there[path] is None})
        self.moments.append(Moment(before, there, forced, lasting, self._count()))

    def _look(self, folder: Path, prefix: str, there: dict[str, bytes | None], forced: dict[str, bytes | None],
              numbers: dict[int, tuple[str, os.stat_result]]) -> None:
        with os.scandir(folder) as entries:
            for each in entries:
                status = each.stat()
                path = prefix + each.name
                numbers[status.st_ino] = path, status
                if each.is_dir():
                    there[path] = forced[path] = None
                    self._look(folder / each.name, f"{path}/", there, forced, numbers)
                else:
                    there[path] = self._read(Path(each.path), status)
                    forced[path] = self._contents.get(status.st_ino, b"")

    def _last(self, number: int, prefix: str, lasting: dict[str, bytes | None], folders: set[int]) -> None:
        for name, inner in self._names.get(number, {}).items():
            path = prefix + name
            if inner in folders:
                lasting[path] = None
                self._last(inner, f"{path}/", lasting, folders)
            else:
                lasting[path] = self._contents.get(inner, b"")


_watching: list[Disk] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for disk in tuple(_watching):
        disk.heard(event, arguments)


sys.addaudithook(_hear)
