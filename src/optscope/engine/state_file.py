"""A state as one file: its numbers as safetensors, its shape as JSON in the header; reading it runs no code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.files import DamagedError
from optscope.tasks.content import mark

SCHEMA = 1
_KEY = "optscope state"
_DEEPEST = 100


def to_bytes(state: object, owner: str) -> bytes:
    """Return a state, made of tensors, arrays, numbers, text, lists, tuples and dictionaries, as a file's content.

    What stands in several places of it, or shares memory as a whole, does so again when it is read; tensors keep
    their strides. `owner` says whose state it is.

    Raises:
        UserError: naming the place of something else, which no such file can hold.
    """
    writer = _Writer()
    shape = writer.write(state, "state")
    header = json.dumps({"schema": SCHEMA, "owner": owner, "shape": shape, "mark": _mark(shape, writer.tensors)})
    return bytes(tensor_bytes(writer.tensors, metadata={_KEY: header}))


def from_bytes(content: bytes, owner: str) -> Any:
    """Return the state that `to_bytes` wrote.

    Raises:
        DamagedError: when the file is cut off or changed, is no state, or is that of another owner or program.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8:8 + size])["__metadata__"][_KEY])
        schema, whose, shape, written = (header[name] for name in ("schema", "owner", "shape", "mark"))
        tensors = load_tensors(content)
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise DamagedError(f"the saved state is damaged ({type(error).__name__})") from error
    if schema != SCHEMA or whose != owner:
        raise DamagedError(f"the saved state is of another program or run (schema {schema!r}, {whose!r}; expected "
                           f"schema {SCHEMA}, {owner!r})")
    if written != _mark(shape, tensors):
        raise DamagedError("the saved state is damaged: what it holds is not what was written")
    try:
        return _Reader(tensors).read(shape)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, RecursionError) as error:
        raise DamagedError(f"the saved state is damaged ({type(error).__name__}: {error})") from error


def _mark(shape: object, tensors: Mapping[str, Tensor]) -> str:
    """Return what is another, but by chance, when a bit of a state has changed."""
    marks = {name: mark(tensor) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([shape, marks], sort_keys=True).encode()).hexdigest()


class _Writer:
    """Takes a state apart; what is met again is written as the number of its first place."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[int, int] = {}
        self._kept: list[object] = []  # an id is another's as soon as its owner is gone

    def write(self, value: Any, place: str, depth: int = 0) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return value
        if type(value) is int or (type(value) is float and math.isfinite(value)):
            return value
        if type(value) is float:
            return {"float": str(value)}
        if isinstance(value, np.generic):
            return {"scalar": str(value.dtype), "value": self.write(value.item(), place)}
        if id(value) in self._known:
            return {"again": self._known[id(value)]}
        if depth > _DEEPEST:
            raise UserError(f"{place} is nested too deeply to be saved")
        self._known[id(value)] = len(self._known)
        self._kept.append(value)
        return self._container(value, place, depth + 1)

    def _container(self, value: Any, place: str, depth: int) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "U":
                return {"text": value.tolist()}
            if value.dtype.kind not in "fiub":
                raise UserError(f"{place} is an array of {value.dtype}, which cannot be saved")
            return {"array": self._number(torch.from_numpy(np.ascontiguousarray(value)))}
        if isinstance(value, Mapping):
            return {"items": [[self.write(k, place, depth), self.write(v, f"{place}.{k}", depth)]
                              for k, v in value.items()]}
        if type(value) in (list, tuple, torch.Size):
            parts = [self.write(v, f"{place}[{i}]", depth) for i, v in enumerate(value)]
            return {"list": parts} if type(value) is list else {"tuple": parts}
        raise UserError(f"{place} is a {type(value).__name__}, which cannot be saved: keep tensors, numbers, text, "
                        "lists and dictionaries in it")

    def _tensor(self, value: Tensor, place: str) -> Any:
        value = value if value.device.type == "cpu" else value.detach().cpu()
        if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_quantized:
            raise UserError(f"{place} is a {type(value).__name__} ({value.layout}), which cannot be saved")
        plain = value.detach()
        if plain.is_complex():
            return {"complex": self._number(torch.view_as_real(plain.resolve_conj()).contiguous())}
        found: dict[str, Any] = {"tensor": self._number(plain.contiguous())}
        dense = torch.empty_like(plain).stride() == plain.stride()  # without gaps, in whatever order
        return found | ({} if plain.is_contiguous() or not dense else {"stride": list(plain.stride())})

    def _number(self, tensor: Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor)
        return name


class _Reader:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._known: list[Any] = []

    def read(self, shape: Any) -> Any:
        if not isinstance(shape, dict):
            if shape is None or isinstance(shape, (bool, str, int, float)):
                return shape
            raise TypeError("no part of a state")
        if "float" in shape:
            return float(shape["float"])
        if "scalar" in shape:
            return np.dtype(shape["scalar"]).type(self.read(shape["value"]))
        if "again" in shape:
            return self._known[shape["again"]]
        place = len(self._known)
        self._known.append(None)
        made = self._container(shape, place)
        self._known[place] = made
        return made

    def _container(self, shape: Mapping[str, Any], place: int) -> Any:
        if "items" in shape:
            made: dict[Any, Any] = {}
            self._known[place] = made  # it may hold itself
            for key, value in shape["items"]:
                made[self.read(key)] = self.read(value)
            return made
        if "list" in shape or "tuple" in shape:
            values = [self.read(each) for each in shape.get("list", shape.get("tuple"))]
            return values if "list" in shape else tuple(values)
        if "text" in shape:
            return np.array(shape["text"])
        if "array" in shape:
            return self._tensors[shape["array"]].numpy()
        if "complex" in shape:
            return torch.view_as_complex(self._tensors[shape["complex"]])
        tensor = self._tensors[shape["tensor"]]
        if "stride" in shape:
            strides = tuple(shape["stride"])
            strided = torch.empty_strided(tuple(tensor.shape), strides, dtype=tensor.dtype, device="cpu")
            return strided.copy_(tensor)
        return tensor


def equal(a: Any, b: Any) -> bool:
    """Return whether two states hold the same to the bit, those numbers that are none included."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b or (a != a and b != b))
