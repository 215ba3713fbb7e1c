"""Arrays of every make as tensors, and tensors as a data set keeps them: or one sentence why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.tasks.memory import check_fits, free_bytes
from optscope.tasks.tree import Tree, filled, leaf_name, leaves, mapped


def tensor_of(value: Any, what: str) -> Tensor:
    """Return tensors as they are, arrays and tables as tensors; of these float64 gets the default dtype.

    Raises:
        UserError: when `value` does not consist of numbers, or some of them are masked.
    """
    if isinstance(value, Tensor):
        return value
    if (type(value).__module__ or "").partition(".")[0] == "PIL":
        raise UserError(f"{what} are images of PIL: give the data set a transform that makes tensors of them, such "
                        "as torchvision.transforms.ToTensor()")
    if type(value) is not np.ndarray and getattr(value, "shape", None):  # a file or a sparse matrix, unread so far
        size = getattr(getattr(value, "dtype", None), "itemsize", 8)
        check_fits(size * float(np.prod(value.shape[1:])), value.shape[0], free_bytes())
    for dense in ("toarray", "to_numpy"):
        value = getattr(value, dense)() if hasattr(value, dense) else value
    if np.ma.is_masked(value):
        raise UserError(f"{what} are masked in places: fill them (.filled(0)) or leave those examples out")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UserError(f"{what} are lists of different lengths: pad or crop them to one shape") from error
    if array.dtype.kind not in "fiubc":
        first = repr(array.flat[0])[:40] if array.size else "nothing"
        raise UserError(f"{what} must be numbers; got {array.dtype} (first: {first}): number classes and words, "
                        "for example by their place in sorted(set(words)), and leave gaps and other columns out")
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        return torch.from_numpy(np.array(array, np.float64)).to(torch.get_default_dtype())
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))


def plain(values: Any, what: str) -> Any:
    """Return a tree of dense, contiguous tensors in this machine's memory that no gradient and no caller tracks.

    Raises:
        UserError: when one is no tensor, or one without values, of several lengths, or of no axis.
    """
    found = leaves(values)
    if not found:
        raise UserError(f"a split's {what} must hold a tensor; got an empty {type(values).__name__}")
    all_of_them: list[Any] = []
    mapped(all_of_them.append, values)
    if len(all_of_them) > len(found):
        raise UserError(f"the leaves of a split's {what} need paths of their own; got {', '.join(found)} for "
                        f"{len(all_of_them)} leaves, since names have dots in them: rename one")
    return filled(values, [_plain(leaf, leaf_name(what, path)) for path, leaf in found.items()])


def _plain(values: Any, what: str) -> Tensor:
    if not isinstance(values, Tensor):
        raise UserError(f"a split's {what} must be a tensor; got {type(values).__name__}: write "
                        "Split.of((inputs, targets))")
    if values.is_nested:
        raise UserError(f"{what} are a nested tensor, of examples of different lengths: pad them, for example with "
                        ".to_padded_tensor(0)")
    if values.is_meta:
        raise UserError(f'{what} lie on the device "meta", which holds no values: load them')
    if values.dim() == 0:
        raise UserError(f"{what} need a first axis that counts the examples; got a single number: write [None]")
    values = values.detach().cpu()
    if values.is_quantized:
        values = values.dequantize()
    if values.layout is not torch.strided or not values.is_contiguous():
        check_fits(values.element_size() * float(np.prod(values.shape[1:])), len(values), free_bytes())
        values = values.to_dense().contiguous()
    if values.is_inference():
        values = values.clone()
    if values.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch can neither order nor pick these
        values = values.long()
    return values if type(values) is Tensor else values.as_subclass(Tensor)


def labelled(targets: Tensor) -> Tensor:
    """Return whole-number targets `(n,)` as int64, and all others as they are."""
    whole = not (targets.is_floating_point() or targets.is_complex())
    return targets.long() if targets.dim() == 1 and whole else targets


def check_lengths(inputs: Tree, targets: Tree) -> None:
    """Raise unless all leaves of inputs and targets have as many rows, at least one.

    Raises:
        UserError: naming two leaves that differ, and their lengths.
    """
    (first, leaf), *others = [(leaf_name(what, path), leaf) for what, tree in
                              (("inputs", inputs), ("targets", targets)) for path, leaf in leaves(tree).items()]
    for name, other in others:
        if len(other) != len(leaf):
            need = "as many targets as inputs" if name.startswith("targets") else "leaves of one length"
            raise UserError(f"a split needs {need}; got {len(leaf)} {first} and {len(other)} {name}: "
                            "give every leaf one row an example")
    if len(leaf) == 0:
        raise UserError("a split needs at least one example; got none")
