"""A state dict as files: ordinary tensors as safetensors, whatever else a model keeps in a second file."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optscope.errors import UserError

TENSORS, REST = "weights.safetensors", "weights-rest.pt"
_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8,
                     torch.int8, torch.int16, torch.int32, torch.int64})


def to_files(state: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the content of each file by its name; `REST` only where some entry is no dense, real tensor.

    Raises:
        UserError: when an entry cannot be written.
    """
    state = {name: value.detach().cpu() if isinstance(value, Tensor) and not is_lazy(value) else value
             for name, value in state.items()}
    # Clones, because tied weights share memory, which the format refuses.
    dense = {name: t.detach().clone().contiguous() for name, t in state.items() if _is_ordinary(t)}
    rest = {name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in state.items() if name not in dense}
    files = {}
    if rest:  # written first: where the tensors are, all is there
        file = io.BytesIO()
        try:
            torch.save(rest, file)
        except Exception as error:  # whatever the pickling of a user's object raises
            raise UserError(f"the entries {', '.join(rest)} of the model's state dict cannot be saved ({error}): "
                            "give get_extra_state a value of tensors, numbers and text") from error
        files[REST] = file.getvalue()
    return files | {TENSORS: tensor_bytes(dense)}


def from_files(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the state dict that `to_files` wrote.

    Raises:
        UserError: when an entry is of a class that no file may name.
        Exception: of many kinds, when the bytes are damaged.
    """
    found: dict[str, Any] = load_tensors(files[TENSORS])
    if REST in files:
        found |= torch.load(io.BytesIO(files[REST]), "cpu", weights_only=True)
    return found


def load_into(model: nn.Module, weights: Mapping[str, Any], *, own: bool) -> None:
    """Load a state dict into a model; its `own` was written by this very program, without its modules' versions.

    Raises:
        Exception: whatever the model's own code raises when the weights are another model's.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not is_lazy(buffer) and buffer.layout is torch.strided and 0 in buffer.stride():
                # Expanded: several of its elements share a place, and nothing can be loaded into it.
                setattr(module, name, buffer.clone())
    if own:
        weights = OrderedDict(weights)
        weights._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(weights)


def _is_ordinary(value: object) -> bool:
    return isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter) and (
        value.layout is torch.strided and value.dtype in _DTYPES)
