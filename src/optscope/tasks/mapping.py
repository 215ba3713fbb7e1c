"""Arrays in files, mapped into memory: bytes are read when somebody asks for them, and not before."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.tasks.arrays import labelled
from optscope.tasks.content import digest_of, digest_of_file
from optscope.tasks.examples import Examples
from optscope.tasks.fresh import epoch_permutation
from optscope.tasks.memory import check_fits, free_bytes
from optscope.tasks.tree import Batch, leaves, mapped

CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
         torch.bool: "BOOL"}
"""What safetensors calls the types that data here may have."""
_TYPES = {code: dtype for dtype, code in CODES.items()}
DAMAGES = (safetensors.SafetensorError, zipfile.BadZipFile, ValueError, KeyError, TypeError, RuntimeError, EOFError)
"""What reading a damaged or a strange file may raise, besides `OSError`."""


@dataclass(frozen=True)
class Array:
    """An array in a file: its bytes, mapped `(n, bytes a row)`, a row's type and shape, and what it becomes."""

    rows: Tensor
    dtype: torch.dtype
    shape: tuple[int, ...]
    becomes: torch.dtype

    def take(self, index: Tensor) -> Tensor:
        """Return copies of the rows at `index`, wherever they lie: numbers in files need not be aligned."""
        taken = self.rows.index_select(0, index).view(-1).view(self.dtype).view(len(index), *self.shape)
        return taken.to(self.becomes)

    def whole(self) -> Tensor:
        """Return all of it, still mapped; the file must have it where its type may lie in memory."""
        return self.rows.view(-1).view(self.dtype).view(len(self.rows), *self.shape)


def arrays_in(path: Path) -> dict[str, Array]:
    """Return the arrays of a `.safetensors` or uncompressed `.npz` file by name, or that of a `.npy` file as "".

    The mapping is private: who writes into it changes neither the file nor what others see. (torch cannot mark a
    tensor as read-only, and does not survive that its memory is.)

    Raises:
        UserError: when the file is missing, damaged, of another kind, or holds what cannot be mapped.
    """
    read = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}.get(path.suffix)
    if read is None:
        raise UserError(f"{path}: a mapped file must be a .npy, .npz or .safetensors file")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        return dict(read(path))
    except DAMAGES as error:
        raise UserError(f"{path} cannot be mapped ({error}): write it by np.save, np.savez or safetensors"
                        ) from error


def metadata(path: Path) -> dict[str, str]:
    """Return the texts in a safetensors file, whose lengths, offsets and types this checks.

    Raises:
        One of `DAMAGES`: when the file is not whole.
    """
    with safetensors.safe_open(path, "np") as checked:
        return dict(checked.metadata() or {})


def _safetensors(path: Path) -> Iterator[tuple[str, Array]]:
    metadata(path)
    data = _bytes_of(path)
    first = 8 + int.from_bytes(data[:8].numpy().tobytes(), "little")
    header = json.loads(data[8:first].numpy().tobytes())
    for name, said in header.items():
        if name != "__metadata__":
            start, end = said["data_offsets"]
            dtype = _TYPES[said["dtype"]]
            yield name, _array(data[first + start:first + end], dtype, said["shape"], dtype)


def _npy(path: Path) -> Iterator[tuple[str, Array]]:
    with path.open("rb") as file:
        yield "", _numpy(file, _bytes_of(path))


def _npz(path: Path) -> Iterator[tuple[str, Array]]:
    data = _bytes_of(path)
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed, as by np.savez_compressed")
            file.seek(member.header_offset + 26)  # where the lengths of two texts stand, after which data begin
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(member.header_offset + 30 + name + extra)
            yield member.filename.removesuffix(".npy"), _numpy(file, data)


def _numpy(file: IO[bytes], data: Tensor) -> Array:
    """Return the array whose header begins where a file stands."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    if columns_first and len(shape) > 1:
        raise ValueError("its columns come first: write np.ascontiguousarray(array)")
    if dtype.hasobject or not dtype.isnative:
        raise ValueError(f"its numbers are {dtype}, which torch has not")
    start = file.tell()
    end = start + dtype.itemsize * math.prod(shape)
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    becomes = {torch.float64: torch.get_default_dtype(), torch.uint16: torch.int64, torch.uint32: torch.int64,
               torch.uint64: torch.int64}.get(kind, kind)  # as of arrays in memory
    return _array(data[start:end], kind, shape, becomes)


def _array(data: Tensor, dtype: torch.dtype, shape: Any, becomes: torch.dtype) -> Array:
    if not len(shape) or not shape[0]:
        raise ValueError("it needs a first axis that counts the examples, at least one")
    row = dtype.itemsize * math.prod(shape[1:])
    if len(data) != shape[0] * row:
        raise ValueError(f"it is cut off: {len(data)} of {shape[0] * row} bytes are there")
    return Array(data.view(shape[0], row), dtype, tuple(shape[1:]), becomes)


def _bytes_of(path: Path) -> Tensor:
    return torch.from_numpy(np.memmap(path, np.uint8, "c"))


@dataclass(frozen=True)
class Mapped(Examples):
    """Examples in files that are mapped into memory: only what a batch takes is read.

    `inputs` and `targets` are paths of `.npy` files, or tuples and mappings of such paths; or `inputs` alone is an
    uncompressed `.npz` or a `.safetensors` file with arrays called "inputs" and "targets" ("inputs.mask", ... of
    mappings, "inputs.0", ... of tuples). Real numbers of 64 bits in NumPy's files become torch's default type.

    The digest of a file is that of its length, its time of change, and 64 kB at each of 16 places: a copied file is
    another one (`cp -p` keeps the time), and bytes that were changed under the same time are not seen.

    Raises:
        UserError: when a file is missing, damaged or compressed, or the files hold different numbers of examples.
    """

    inputs: Any
    targets: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the paths: another process opens the files itself."""
        return {"inputs": self.inputs, "targets": self.targets}

    @cached_property
    def _arrays(self) -> Batch:
        if self.targets is not None:
            return Batch(mapped(_only, self.inputs), mapped(_only, self.targets))
        parts: Any = _nested(arrays_in(Path(self.inputs)))
        if not isinstance(parts, dict) or not {"inputs", "targets"} <= parts.keys():
            raise UserError(f'{self.inputs} must hold arrays called "inputs" and "targets"; got '
                            f'{", ".join(parts) if isinstance(parts, dict) else "one without a name"}')
        return Batch(parts["inputs"], parts["targets"])

    @cached_property
    def size(self) -> int:
        """How many examples there are.

        Raises:
            UserError: when the files have different numbers of rows.
        """
        arrays: Any = leaves((self._arrays.inputs, self._arrays.targets)).values()
        sizes = {len(array.rows) for array in arrays}
        if len(sizes) > 1:
            raise UserError(f"mapped files need one row an example; got arrays of {sorted(sizes)} rows")
        return sizes.pop()

    @property
    def source(self) -> object:
        """How the files are put together; their names do not count."""
        return mapped(lambda _: 0, (self.inputs, 0 if self.targets is None else self.targets))

    @cached_property
    def digest(self) -> str:
        """32 hex digits of what the files are known by."""
        paths: Any = leaves((self.inputs, () if self.targets is None else self.targets)).values()
        found: Any = tuple(digest_of_file(Path(path)) for path in paths)
        return digest_of(found)

    def batch(self, epoch: int, step: int, size: int, order: int) -> Batch:
        """Return batch number `step` of an epoch, whose order `order` seeds."""
        return self._take(epoch_permutation(self.size, order, epoch)[step * size:(step + 1) * size])

    def first(self, n: int | None) -> Batch:
        """Return the first `n` examples.

        Raises:
            UserError: when they do not fit into memory.
        """
        n = self.size if n is None else min(n, self.size)
        one = self._take(torch.arange(1, device="cpu"))
        check_fits(sum(leaf.nbytes for leaf in leaves((one.inputs, one.targets)).values()), n, free_bytes())
        return self._take(torch.arange(n, device="cpu"))

    def _take(self, index: Tensor) -> Batch:
        found = self._arrays.mapped(lambda array: array.take(index))
        return Batch(found.inputs, mapped(labelled, found.targets))


def _only(path: str | Path) -> Array:
    """Return the array of a file that holds one."""
    found = arrays_in(Path(path))
    if list(found) != [""]:
        raise UserError(f"{path} holds several arrays: give it alone, Mapped({str(path)!r}), or .npy files")
    return found[""]


def _nested(arrays: Mapping[str, Any]) -> Any:
    """Return a tree of what has dotted names; where all names are numbers, it is a tuple."""
    if list(arrays) == [""]:
        return arrays[""]
    heads = dict.fromkeys(name.partition(".")[0] for name in arrays)
    parts = {head: _nested({name.partition(".")[2]: array for name, array in arrays.items()
                            if name.partition(".")[0] == head}) for head in heads}
    if all(head.isdecimal() for head in parts):
        return tuple(parts[head] for head in sorted(parts, key=int))
    return parts
