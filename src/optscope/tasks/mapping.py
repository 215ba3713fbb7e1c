"""Arrays in files, mapped into memory: bytes are read when somebody asks for them, and not before."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from optscope.errors import UserError

CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
         torch.bool: "BOOL"}
"""What safetensors calls the types that data here may have."""
_TYPES = {code: dtype for dtype, code in CODES.items()}
DAMAGES = (safetensors.SafetensorError, zipfile.BadZipFile, ValueError, KeyError, TypeError, RuntimeError, EOFError)
"""What reading a damaged or a strange file may raise, besides `OSError`."""


@dataclass(frozen=True)
class Array:
    """An array in a file: its bytes, mapped `(n, bytes a row)`, and the type and shape of a row."""

    rows: Tensor
    dtype: torch.dtype
    shape: tuple[int, ...]

    def take(self, index: Tensor) -> Tensor:
        """Return copies of the rows at `index`, wherever they lie: numbers in files need not be aligned."""
        return self.rows.index_select(0, index).view(-1).view(self.dtype).view(len(index), *self.shape)

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
            yield name, _array(data[first + start:first + end], _TYPES[said["dtype"]], said["shape"])


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
    return _array(data[start:end], torch.from_numpy(np.empty(0, dtype)).dtype, shape)


def _array(data: Tensor, dtype: torch.dtype, shape: Any) -> Array:
    if not len(shape) or not shape[0]:
        raise ValueError("it needs a first axis that counts the examples, at least one")
    row = dtype.itemsize * math.prod(shape[1:])
    if len(data) != shape[0] * row:
        raise ValueError(f"it is cut off: {len(data)} of {shape[0] * row} bytes are there")
    return Array(data.view(shape[0], row), dtype, tuple(shape[1:]))


def _bytes_of(path: Path) -> Tensor:
    return torch.from_numpy(np.memmap(path, np.uint8, "c"))
