"""The content of tensors, arrays, trees and scripted models as a digest; a mark that tells when it has changed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.tasks.tree import Tree

_SAMPLE = 65536
_BLOCK = 4096
_WEIGHTS = np.random.default_rng(0).integers(-2**63, 2**63 - 1, _BLOCK // 8) | 1


def content(value: Tensor | np.ndarray[Any, Any]) -> list[Any]:
    """Return kind, shape and a SHA-256 of all values: of what lies in memory, or of the parts of a sparse tensor.

    >>> content(torch.zeros(2)) == content(torch.zeros(2, dtype=torch.bfloat16))
    False
    """
    if isinstance(value, Tensor):
        with torch.no_grad():
            return _of_tensor(value.detach())
    if value.dtype.hasobject:
        return ["objects", list(value.shape), repr(value.tolist())]
    return ["array", str(value.dtype), list(value.shape), _sha(np.ascontiguousarray(value).view(np.uint8))
            if value.size and value.ndim else hashlib.sha256(value.tobytes()).hexdigest()]


def mark(tensor: Tensor) -> str:
    """Return 16 hex digits that are others, but for a chance of 2⁻⁶⁴, when one byte of a dense tensor has changed.

    Blocks of 4 kB are summed with fixed odd weights: a thirtieth of the time of `content`, at 20 GB/s. It finds
    accidents, not forgers, and says nothing of shape and type.
    """
    data = octets(tensor)
    whole = len(data) // _BLOCK * _BLOCK
    words = data[:whole].view(np.int64).reshape(-1, len(_WEIGHTS))
    sums = np.einsum("ij,j->i", words, _WEIGHTS)
    return hashlib.sha256(sums.tobytes() + data[whole:].tobytes()).hexdigest()[:16]


def octets(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the bytes of a dense tensor on the CPU, in the order of its elements; a view where they lie so.

    A tensor of one element is contiguous with any stride, of which torch makes no bytes: it gets stride 1.
    """
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy()


def digest_of(tree: Tree) -> str:
    """Return 32 hex digits of the SHA-256 of a tree: its shape, and the types, shapes and bytes of its leaves."""
    text = json.dumps(_described(tree), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def digest_of_file(path: Path) -> str:
    """Return 32 hex digits of a file's length, time of change, and 64 kB at each of 16 places.

    Raises:
        UserError: when there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    said = path.stat()
    found = hashlib.sha256(f"{said.st_size} {said.st_mtime_ns}".encode())
    with path.open("rb") as file:
        for start in np.linspace(0, max(0, said.st_size - _SAMPLE), 16).astype(np.int64).tolist():
            file.seek(start)
            found.update(file.read(_SAMPLE))
    return found.hexdigest()[:32]


def _described(tree: Any) -> Any:
    if isinstance(tree, str):
        return tree
    if isinstance(tree, Tensor):
        return content(tree)
    if isinstance(tree, tuple):
        return ["tuple", *map(_described, tree)]
    return {name: _described(part) for name, part in tree.items()}


def _of_tensor(tensor: Tensor) -> list[Any]:
    kind = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape) if not tensor.is_nested else []]
    if tensor.is_nested:
        return ["nested", *kind, [_of_tensor(part) for part in tensor.unbind()]]
    if tensor.is_meta:
        return ["no values", *kind]
    if tensor.layout != torch.strided:
        return [str(tensor.layout), *kind, [_of_tensor(part) for part in _parts(tensor)]]
    if tensor.is_quantized:
        return ["quantised", *kind, *_scales(tensor), _of_tensor(tensor.int_repr())]
    return ["array", *kind, _sha(octets(tensor.cpu()))]


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices(), tensor.values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)


def _scales(tensor: Tensor) -> list[Any]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [tensor.q_scale().hex(), tensor.q_zero_point()]
    return [tensor.q_per_channel_axis(), _of_tensor(tensor.q_per_channel_scales()),
            _of_tensor(tensor.q_per_channel_zero_points())]


def _sha(data: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(data.data).hexdigest()


def script(model: torch.jit.ScriptModule) -> dict[str, Any]:
    """Return what a traced or scripted model computes: its methods and attributes, but no names that torch numbers.

    Constants stand in the methods' texts; their order among the attributes is chance.
    """
    compiled = model._c
    methods = {name: compiled._get_method(name).code_with_constants for name in compiled._method_names()}
    found = {name: [re.sub(r"\b___torch_mangle_\d+\.", "", text), dict(constants)]
             for name, (text, constants) in methods.items()}
    held = re.findall(r"^  (\w+) : (?!Final)", compiled.code.partition("\n  def ")[0], re.MULTILINE)
    others = {name: getattr(compiled, name) for name in held
              if name not in (*model._parameters.keys(), *model._buffers.keys())}
    return dict(sorted({**found, **others}.items()))
