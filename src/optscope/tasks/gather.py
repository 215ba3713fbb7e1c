"""Examples, wherever they lie, gathered into memory once, in an order of their own: or one sentence why not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from optscope.errors import UserError
from optscope.tasks.fresh import seeded
from optscope.tasks.memory import check_fits, free_bytes

ENDLESS = 100_000
"""More examples than these are not read from a stream that does not say its length."""
_BLOCK = 1024
Batch = tuple[Tensor, Tensor]
"""Inputs and targets, of one or more examples."""


def gathered(source: Any) -> Batch:
    """Return all inputs and all targets of a pair of arrays, a `Dataset`, a list of pairs, or a `DataLoader`.

    Whatever the examples draw (random augmentation), they draw the same each time: it is frozen. The global
    generators are left as they were.

    Raises:
        UserError: when `source` is none of these, when its examples are not pairs of numbers of one shape and type,
            do not fit into memory, or are others in every pass.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2 and _are_arrays(source):
        return tensor_of(source[0], "inputs"), tensor_of(source[1], "targets")
    with seeded(0):
        if isinstance(source, DataLoader):
            return _from_loader(source)
        if isinstance(source, IterableDataset):
            return _joined(map(_alone, source), _length(source), stream=True)
        if isinstance(source, (Dataset, list, tuple)):
            length = _length(source)
            if length is None:
                raise UserError(f"the data set has no length: give {type(source).__name__} a __len__")
            return _joined((_alone(source[i]) for i in range(length)), length)
    hint = (f', such as (data["{next(iter(source), "x")}"], ...)' if isinstance(source, Mapping) else
            ": give the inputs and the targets apart" if hasattr(source, "shape") else "")
    raise UserError("data must be a pair of tensors (inputs, targets) or of arrays, a torch Dataset or a "
                    f"DataLoader; got {type(source).__name__}{hint}")


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


def plain(values: Any, what: str) -> Tensor:
    """Return values as a dense, contiguous tensor in this machine's memory that no gradient and no caller tracks.

    Raises:
        UserError: when they are no tensor, or one without values, of several lengths, or of no axis.
    """
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


def _are_arrays(pair: tuple[Any, ...] | list[Any]) -> bool:
    """Return whether two things are the inputs and the targets, rather than two examples."""
    listed = isinstance(pair, tuple)
    return all(hasattr(part, "shape") or (listed and isinstance(part, list)) for part in pair)


def _length(source: Any) -> int | None:
    try:
        return len(source) if isinstance(source, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _from_loader(loader: DataLoader[Any]) -> Batch:
    """Read a loader's examples in the order of their index; streams without workers, each of which reads it all."""
    length = _length(loader.dataset)
    if isinstance(loader.dataset, IterableDataset):
        stream = DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn)
        return _joined(map(_both if loader.batch_size else _batch_or_alone, stream), length, stream=True)
    if loader.batch_sampler is None:
        return _joined(map(_batch_or_alone, loader), None)
    indices = _visited(loader)
    if _visited(loader) != indices:
        raise UserError("a DataLoader must visit the same examples in every pass, in whatever order; its sampler "
                        "picks others: give the Dataset itself")
    ordered = DataLoader(loader.dataset, loader.batch_size or 1, sampler=indices, collate_fn=loader.collate_fn,
                         num_workers=loader.num_workers, worker_init_fn=loader.worker_init_fn,
                         multiprocessing_context=loader.multiprocessing_context)
    return _joined(map(_both, ordered), len(indices))


def _visited(loader: DataLoader[Any]) -> list[Any]:
    """Return the indices that a loader's sampler names, those which `drop_last` leaves out too, in order."""
    batches = loader.batch_sampler
    named = batches.sampler if isinstance(batches, BatchSampler) else itertools.chain.from_iterable(batches or ())
    most = 10 * max(_length(loader.dataset) or 0, ENDLESS)
    indices = sorted(itertools.islice(named, most + 1))
    if len(indices) > most:
        raise UserError(f"the DataLoader's sampler names more than {most} examples, which has no end: give the "
                        "Dataset itself")
    return indices


def _both(pair: Any) -> Batch:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        got = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, Sized) else type(pair).__name__
        raise UserError(f"every example must be a pair (input, target); got {got}: wrap the data set so that it "
                        "returns two things")
    inputs, targets = pair
    for part in pair:
        if isinstance(part, (Mapping, tuple)):
            raise UserError("every example must be a pair (input, target) of one tensor each; got a "
                            f"{type(part).__name__}: join what the model takes into one tensor, and part it again "
                            "inside the model")
    return tensor_of(inputs, "inputs"), tensor_of(targets, "targets")


def _alone(pair: Any) -> Batch:
    inputs, targets = _both(pair)
    return inputs[None].clone(), targets[None].clone()  # a data set may fill one buffer again and again


def _batch_or_alone(pair: Any) -> Batch:
    """Return what a loader without batches of its own gives: batches, unless the target is a single number."""
    inputs, targets = _both(pair)
    return (inputs, targets) if targets.dim() else (inputs[None], targets[None])


def _joined(batches: Iterable[Batch], expected: int | None, stream: bool = False) -> Batch:
    """Join batches of examples, `expected` in all if that is known: the first foretells the memory of all."""
    free, count, first = free_bytes(), 0, None
    done: tuple[list[Tensor], list[Tensor]] = [], []
    waiting: tuple[list[Tensor], list[Tensor]] = [], []
    most = ENDLESS if expected is None else expected
    for batch in batches:
        first = first or batch
        _check_alike(first, batch, count)
        each = sum(part.numel() * part.element_size() for part in batch) / max(1, len(batch[0]))
        count += len(batch[0])
        check_fits(each, max(count, expected or 0), free)
        if stream and count > most:
            raise UserError(f"a stream {'without a length' if expected is None else 'of that length'} goes on "
                            f"after {most} examples: give it a __len__ that is true, or the examples themselves, "
                            "list(itertools.islice(stream, n))")
        for part, pile in zip(batch, waiting, strict=True):
            pile.append(part)
        if len(waiting[0]) == _BLOCK:
            _merge(waiting, done)
    if first is None:
        raise UserError("the data hold no example at all")
    _merge(waiting, done)
    return torch.cat(done[0]), torch.cat(done[1])


def _merge(waiting: tuple[list[Tensor], list[Tensor]], done: tuple[list[Tensor], list[Tensor]]) -> None:
    """Make one tensor of many small ones, each of which takes a kilobyte beside its numbers."""
    for few, many in zip(done, waiting, strict=True):
        few.extend([torch.cat(many)] if many else [])
        many.clear()


def _check_alike(first: Batch, batch: Batch, number: int) -> None:
    for what, one, other in zip(("input", "target"), first, batch, strict=True):
        if one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
            raise UserError(f"examples must be of one shape and type; the {what} of the first is {one.dtype} of "
                            f"shape {tuple(one.shape[1:])}, that at index {number} {other.dtype} of shape "
                            f"{tuple(other.shape[1:])}: crop, pad or convert them")
