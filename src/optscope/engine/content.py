"""The content of arrays and tensors of every kind, as a digest; and that of a model that torch.jit holds."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return ["array", *kind, _sha(flat.view(torch.uint8).numpy())]


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
