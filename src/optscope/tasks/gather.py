"""Examples, wherever they lie, gathered into memory once, in an order of their own: or one sentence why not.

A source gives pairs of an input and a target, trees each, or mappings in which the field "labels" is the target.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from optscope.errors import UserError, first_words
from optscope.tasks.arrays import tensor_of
from optscope.tasks.examples import DataError
from optscope.tasks.fresh import seeded
from optscope.tasks.memory import check_fits, free_bytes
from optscope.tasks.tree import Tree, filled, leaf_name, leaves, mapped
from optscope.tasks.unchanged import unchanged

ENDLESS = 100_000
"""More examples than these are not read from a stream that does not say its length."""
STARTED_BY = "fork" if sys.platform == "linux" else "spawn"
"""How the processes of loaders start; in a worker the usual way is loky's own, which starts none for torch."""
_BLOCK = 1024
TARGETS = ("labels", "label")
"""What the field of the targets is called where inputs and targets are one mapping."""
Pair = tuple[Tree, Tree]
"""Inputs and targets, of one or more examples."""


def gathered(source: Any) -> Pair:
    """Return all inputs and all targets of a pair of arrays, a `Dataset`, a list of pairs, or a `DataLoader`.

    Inputs and targets are arrays, or tuples and mappings of them. One mapping that holds both will do, whole or an
    example at a time, as the data sets of Hugging Face give it: its field "labels" or "label" is the targets.
    Whatever the examples draw (random augmentation), they draw the same each time: it is frozen. The global
    generators are left as they were, and so are those that a loader, its samplers and its data set hold.

    Raises:
        UserError: when `source` is none of these, when its examples are not pairs of numbers of one shape and type,
            do not fit into memory, or are others in every pass.
    """
    if hasattr(source, "column_names"):
        source = _columns(source)
    if isinstance(source, Mapping) and not any(hasattr(part, "column_names") for part in source.values()):
        return _read(_parted(source))
    if isinstance(source, (tuple, list)) and len(source) == 2 and _are_arrays(source):
        return _read(source)
    with seeded(0), unchanged(*_generators(source)):
        if isinstance(source, DataLoader):
            return _from_loader(source)
        if isinstance(source, IterableDataset):
            return _joined(in_turn(source), _length(source), stream=True)
        if isinstance(source, (Dataset, list, tuple)):
            length = _length(source)
            if length is None:
                raise UserError(f"the data set has no length: give {type(source).__name__} a __len__")
            return _joined((example_at(source, i) for i in range(length)), length)
    hint = (f', such as data["{next(iter(source), "train")}"]' if isinstance(source, Mapping) else
            ": give the inputs and the targets apart" if hasattr(source, "shape") else "")
    raise UserError("data must be a pair of tensors (inputs, targets) or of arrays, a torch Dataset or a "
                    f"DataLoader; got {type(source).__name__}{hint}")


def _generators(source: Any) -> Iterator[Any]:
    """Yield the generators of random numbers that a source and what it is made of hold as attributes."""
    batches = getattr(source, "batch_sampler", None)
    made_of = getattr(source, "dataset", None), getattr(source, "sampler", None), getattr(batches, "sampler", None)
    for owner in (source, batches, *made_of):
        for held in getattr(owner, "__dict__", {}).values():
            if isinstance(held, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
                yield held


def _columns(source: Any) -> Any:
    """Return the columns of a table of Hugging Face, by name."""
    if isinstance(source.column_names, Mapping):  # several tables
        return source
    rows = source[:]
    return {name: rows[name] for name in source.column_names}


def _parted(example: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the inputs and the targets that one mapping holds.

    Raises:
        UserError: when no field of it is the targets, or none is left for the inputs.
    """
    found = [name for name in TARGETS if name in example]
    if not found or len(example) < 2:
        names = ", ".join(map(repr, example))
        raise UserError(f'a mapping of inputs and targets needs a field "labels" or "label" beside the inputs; got '
                        f"{names or 'none'}: rename the field of the targets, or give a pair (inputs, targets)")
    return {name: part for name, part in example.items() if name != found[0]}, example[found[0]]


def _read(pair: Any) -> Pair:
    """Return a pair of trees of arrays as trees of tensors."""
    inputs, targets = (_tensors(part, what, ()) for part, what in zip(pair, ("inputs", "targets"), strict=True))
    return inputs, targets


def _tensors(tree: Any, what: str, path: tuple[str, ...]) -> Any:
    if isinstance(tree, Mapping):
        return {name: _tensors(part, what, (*path, str(name))) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_tensors(part, what, (*path, str(i))) for i, part in enumerate(tree))
    return tensor_of(tree, leaf_name(what, ".".join(path)))


def _are_arrays(pair: tuple[Any, ...] | list[Any]) -> bool:
    """Return whether two things are the inputs and the targets, rather than two examples.

    Of two tuples they are two examples, and so are two mappings in a list.
    """
    listed = isinstance(pair, tuple)

    def is_array(part: Any) -> bool:
        return hasattr(part, "shape") or (listed and isinstance(part, list))

    def is_tree(part: Any) -> bool:
        inner = part.values() if isinstance(part, Mapping) else part if isinstance(part, tuple) else None
        return part is None or is_array(part) if inner is None else all(map(is_tree, inner))  # None is said later

    inputs, targets = pair
    if isinstance(inputs, tuple) and isinstance(targets, tuple):
        return False
    return all(map(is_array, pair)) or (listed and all(map(is_tree, pair)))


def _length(source: Any) -> int | None:
    try:
        return len(source) if isinstance(source, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _from_loader(loader: DataLoader[Any]) -> Pair:
    """Read a loader's examples in the order of their index; streams without workers, each of which reads it all."""
    length = _length(loader.dataset)
    if isinstance(loader.dataset, IterableDataset):
        stream = DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn)
        return _joined(map(_both if loader.batch_size else _batch_or_alone, _batches(stream)), length, stream=True)
    if loader.batch_sampler is None:
        return _joined(map(_batch_or_alone, _batches(loader)), None)
    indices = _visited(loader)
    if _visited(loader) != indices:
        raise UserError("a DataLoader must visit the same examples in every pass, in whatever order; its sampler "
                        "picks others: give the Dataset itself")
    started_by = (loader.multiprocessing_context or STARTED_BY) if loader.num_workers else None
    ordered = DataLoader(loader.dataset, loader.batch_size or 1, sampler=indices, collate_fn=loader.collate_fn,
                         num_workers=loader.num_workers, worker_init_fn=loader.worker_init_fn,
                         multiprocessing_context=started_by)
    return _joined(map(_both, _batches(ordered)), len(indices))


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    return _whole(iter(loader), f"a DataLoader of {type(loader.dataset).__name__}", "batches")


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


def _both(pair: Any) -> Pair:
    """Return the inputs and targets of a batch of a loader, whose collate function lists the parts of tuples."""
    inputs, targets = _pair(pair)
    return _read((_unlisted(inputs), _unlisted(targets)))


def _pair(example: Any) -> tuple[Any, Any]:
    if isinstance(example, Mapping):
        return _parted(example)
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        of = f" of {len(example)}" if isinstance(example, Sized) else ""
        raise UserError(f"every example must be a pair (input, target); got {type(example).__name__}{of}: wrap the "
                        "data set so that it returns two things, each a tensor, or a tuple or mapping of tensors")
    return example[0], example[1]


def _unlisted(tree: Any) -> Any:
    """Return tuples for the lists of batches that torch collates tuples into."""
    if isinstance(tree, Mapping):
        return {name: _unlisted(part) for name, part in tree.items()}
    listed = isinstance(tree, list) and len(tree) > 0 and all(not np.isscalar(part) for part in tree)
    return tuple(map(_unlisted, tree)) if listed or isinstance(tree, tuple) else tree


def alone(example: Any) -> Pair:
    """Return the inputs and targets of one example as trees of tensors of one row, in memory of their own.

    Raises:
        UserError: when it is no pair of numbers.
    """
    inputs, targets = _read(_pair(example))

    def row(leaf: Tensor) -> Tensor:
        return leaf[None].clone()  # a data set may fill one buffer again and again

    return mapped(row, inputs), mapped(row, targets)


def example_at(source: Any, index: int) -> Pair:
    """Return the example of an index, as `alone` does.

    Raises:
        DataError: when the data set stops there.
    """
    try:
        found = source[index]
    except UserError:
        raise
    except Exception as error:  # whatever the author chose to raise
        raise DataError(f"{type(source).__name__} stopped at the example of index {index} with "
                        f"{first_words(error)}: mend it, or leave that example out") from error
    return alone(found)


def in_turn(source: Iterable[Any]) -> Iterator[Pair]:
    """Yield the examples of a stream, as `alone` does.

    Raises:
        DataError: when the stream stops before its end.
    """
    yield from map(alone, _whole(iter(source), type(source).__name__, "examples"))


def _whole(given: Iterator[Any], who: str, what: str) -> Iterator[Any]:
    """Yield what is given to the end, or say who has stopped before it."""
    for number in itertools.count():
        try:
            found = next(given)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:  # whatever the author chose to raise
            raise DataError(f"{who} stopped after {number} {what} with {first_words(error)}: mend it") from error
        yield found


def _batch_or_alone(pair: Any) -> Pair:
    """Return what a loader without batches of its own gives: batches, unless the target is a single number."""
    inputs, targets = _both(pair)
    if all(leaf.dim() for leaf in leaves(targets).values()):
        return inputs, targets
    return mapped(lambda leaf: leaf[None], inputs), mapped(lambda leaf: leaf[None], targets)


def _joined(batches: Iterable[Pair], expected: int | None, stream: bool = False) -> Pair:
    """Join batches of examples, `expected` in all if that is known: the first foretells the memory of all."""
    free, count = free_bytes(), 0
    first: Pair | None = None
    done: list[list[Tensor]] = []
    waiting: list[list[Tensor]] = []
    most = ENDLESS if expected is None else expected
    for batch in batches:
        if first is None:
            first = batch
            done, waiting = [[] for _ in leaves(batch)], [[] for _ in leaves(batch)]
        check_alike(first, batch, count)
        parts = list(leaves(batch).values())
        each = sum(part.numel() * part.element_size() for part in parts) / max(1, len(parts[0]))
        count += len(parts[0])
        check_fits(each, max(count, expected or 0), free)
        if stream and count > most:
            raise UserError(f"a stream {'without a length' if expected is None else 'of that length'} goes on "
                            f"after {most} examples: give it a __len__ that is true, or the examples themselves, "
                            "list(itertools.islice(stream, n)); a stream to train on without holding it is "
                            "optscope.tasks.datasets.Stream(make_it)")
        for part, pile in zip(parts, waiting, strict=True):
            pile.append(part)
        if len(waiting[0]) == _BLOCK:
            _merge(waiting, done)
    if first is None:
        raise UserError("the data hold no example at all")
    _merge(waiting, done)
    inputs, targets = filled(first, map(torch.cat, done))
    return inputs, targets


def _merge(waiting: list[list[Tensor]], done: list[list[Tensor]]) -> None:
    """Make one tensor of many small ones, each of which takes a kilobyte beside its numbers."""
    for few, many in zip(done, waiting, strict=True):
        few.extend([torch.cat(many)] if many else [])
        many.clear()


def check_alike(first: Pair, batch: Pair, number: int) -> None:
    """Raise unless examples have the fields, shapes and types of the first; `number` is their index.

    Raises:
        UserError: naming what is not alike.
    """
    for what, one, other in zip(("input", "target"), first, batch, strict=True):
        known, found = leaves(one), leaves(other)
        if known.keys() != found.keys():
            raise UserError(f"examples must be alike; the {what} of the first has the fields {', '.join(known)}, "
                            f"that at index {number} {', '.join(found)}")
        for path, leaf in known.items():
            new = found[path]
            if leaf.shape[1:] != new.shape[1:] or leaf.dtype != new.dtype:
                raise UserError(f"examples must be of one shape and type; the {leaf_name(what, path)} of the first "
                                f"is {leaf.dtype} of shape {tuple(leaf.shape[1:])}, that at index {number} "
                                f"{new.dtype} of shape {tuple(new.shape[1:])}: crop, pad or convert them")
