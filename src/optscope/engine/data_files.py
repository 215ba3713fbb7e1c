"""Data in memory as files: written once under the digest of their content, and mapped by every worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from optscope.errors import UserError
from optscope.files import make_folder, set_aside, write_atomically
from optscope.tasks.content import octets
from optscope.tasks.mapping import CODES, DAMAGES, arrays_in, metadata
from optscope.tasks.task import Split
from optscope.tasks.tree import Tree, leaves

DATA = "data"
"""The folder of these files in an output folder."""
elsewhere: ContextVar[Path | None] = ContextVar("elsewhere", default=None)
"""Where they lie in this process, when it is not where the command wrote them."""


@dataclass(frozen=True)
class _Kept:
    """A file as it was when the command looked through it: a worker that finds it so need not read it all again."""

    path: str
    size: int
    modified: int


class DataFiles:
    """The data files of one command: `<digest>.safetensors` in a folder that it makes when it is needed.

    Every split that is pickled with `reducers` becomes the name of its file, at most a few hundred bytes. The file
    is written when it is not there, and looked through once a command when it is: one that is cut off, or holds
    other bytes than its name says, is set aside and written anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[int, tuple[Split, _Kept]] = {}  # with the splits, so that ids stay their own
        self.named: dict[Path, None] = {}
        """The files that were named since somebody cleared it."""

    @property
    def reducers(self) -> dict[type, Callable[[Any], Any]]:
        """How a pickler turns splits into the names of their files."""
        return {Split: self._reduced}

    def _reduced(self, split: Split) -> Any:
        if any(leaf.dtype not in CODES for leaf in leaves((split.inputs, split.targets)).values()):
            return split.__reduce_ex__(4)  # complex numbers have no place in such files, and no task here
        if id(split) not in self._kept:
            self._kept[id(split)] = split, self._keep(split)
        kept = self._kept[id(split)][1]
        self.named[Path(kept.path)] = None
        return _read_there, (kept,)

    def _keep(self, split: Split) -> _Kept:
        """Return the file of a split, whole.

        Raises:
            OSError: when it cannot be written, as on a full disk, with its path as the `filename`.
        """
        digest = split.digest
        path = self.folder / f"{digest}.safetensors"
        if path.is_file() and not _holds(path, digest):
            set_aside(path)
        if not path.is_file():
            make_folder(self.folder)
            write_atomically(path, *_written(split))
        found = path.stat()
        return _Kept(str(path), found.st_size, found.st_mtime_ns)


def _written(split: Split) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file: leaves by their dotted paths, and the shape of the trees as JSON."""
    tree = {"inputs": split.inputs, "targets": split.targets}
    # The widest numbers come first, so that each leaf lies where its type may lie in memory.
    found = sorted(leaves(tree).items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": {"tree": json.dumps(_paths(tree, ()))}}
    end = 0
    for path, leaf in found:
        start, end = end, end + leaf.numel() * leaf.element_size()
        header[path] = {"dtype": CODES[leaf.dtype], "shape": list(leaf.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    yield len(text).to_bytes(8, "little") + text
    for _, leaf in found:
        yield octets(leaf).data


def _paths(tree: Tree, path: tuple[str, ...]) -> Any:
    """Return a tree with each leaf's path in its place, for JSON: tuples are lists there."""
    if isinstance(tree, Tensor):
        return ".".join(path)
    if isinstance(tree, tuple):
        return [_paths(part, (*path, str(i))) for i, part in enumerate(tree)]
    return {str(name): _paths(part, (*path, str(name))) for name, part in tree.items()}


def _mapped(path: Path) -> Split:
    """Return the split in a file, in memory that is the file's until somebody writes into it: then it is his own.

    Raises:
        UserError: when the file is damaged, but for the bytes of the tensors.
        One of `DAMAGES`: when it is no data file of this program.
    """
    arrays = arrays_in(path)
    tree = json.loads(metadata(path)["tree"])

    def filled(part: Any) -> Tree:
        if isinstance(part, list):
            return tuple(map(filled, part))
        if isinstance(part, dict):
            return {name: filled(each) for name, each in part.items()}
        return arrays[part].whole()

    return Split(filled(tree["inputs"]), filled(tree["targets"]))


def _holds(path: Path, digest: str) -> bool:
    """Return whether a file holds what its name says, all of it looked at."""
    try:
        return _mapped(path).digest == digest
    except (*DAMAGES, UserError):
        return False


def _read_there(kept: _Kept) -> Split:
    """Return a split in another process; what has been touched since the command began is looked through again.

    Raises:
        UserError: when the file is gone, or is another one.
    """
    path, moved = Path(kept.path), elsewhere.get()
    path = path if moved is None else moved / path.name
    try:
        found = path.stat()
        split = _mapped(path)
        if (found.st_size, found.st_mtime_ns) == (kept.size, kept.modified) or split.digest == path.stem:
            return split
        reason = "its content is not the one its name says"
    except (*DAMAGES, UserError, OSError) as error:
        reason = type(error).__name__
    raise UserError(f"the data file {path} was deleted, moved or changed while this command ran ({reason}): run "
                    "the same command again, which writes it anew")
