"""The weights in whatever a model was saved as, under the names of a model; to read them runs no code.

A file or a folder, shards, a mapping that holds more than weights, and names with a prefix are all met in practice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from optscope.errors import UserError
from optscope.files import DamagedError, read_json

SAVED = ("model.safetensors", "pytorch_model.bin")
"""What `save_pretrained` and Accelerate call weights in their folders; a list of shards ends with .index.json."""
HELD = ("state_dict", "model_state_dict", "model")
"""Under which names a checkpoint holds the weights of its model (the first is Lightning's)."""
COMPILED = "_orig_mod."
"""What `torch.compile` puts into the names of what it has wrapped."""
FEW = 4
"""So many names are said."""

State = dict[str, Any]


def read_weights(path: Path) -> State:
    """Return the state dict in a file, or in a folder that `save_pretrained` or Accelerate has written.

    A file is .safetensors, or whatever `torch.save` makes of tensors: a state dict, or a mapping that holds one
    under a name of `HELD`.

    Raises:
        UserError: saying what is there instead, and what to write.
    """
    found: State = {}
    for file in _files(path):
        found |= _state_dict(_content(file), file)
    return found


def named_as(weights: State, model: nn.Module, path: Path) -> tuple[State, list[str]]:
    """Return weights under a model's own names, and the names of those that lie beside the model.

    Names may have a prefix that the model's have not, as of the module that holds it: what lies outside of it is
    another module's. They may lack one. Tied weights may stand once. Where no prefix fits, the best is taken.

    Raises:
        UserError: when the names fit behind several prefixes alike, as of two copies.
    """
    own = model.state_dict(keep_vars=True)
    if not any(COMPILED in name for name in own):
        weights = {name.replace(COMPILED, ""): value for name, value in weights.items()}
    prefix, *others = _prefixes(weights, own)
    found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    lacked = _prefixes(own, found)[0] if not found.keys() & own.keys() else ""
    found = {lacked + name: value for name, value in found.items()}
    tied = {id(value): found[name] for name, value in own.items() if name in found and isinstance(value, Tensor)}
    found |= {name: tied[id(value)] for name, value in own.items() if name not in found and id(value) in tied}
    if prefix and others and own.keys() <= found.keys():
        raise UserError(f"the weights in {path} fit the model behind {_few([prefix, *others])} alike: save those "
                        "of one alone, without that prefix")
    return found, [name for name in weights if not name.startswith(prefix)]


def misfit(weights: Mapping[str, Any], model: nn.Module) -> str:
    """Return which names of a model weights lack, and which they have that it lacks; "" where there are none."""
    own = model.state_dict()
    missing, left = _few(own.keys() - weights.keys()), _few(weights.keys() - own.keys())
    return "; ".join([f"missing {missing}"] * bool(missing) + [f"left over {left}"] * bool(left))


def _files(path: Path) -> Sequence[Path]:
    """Return the files that hold the weights saved at a place."""
    if path.is_file():
        return [path]
    for name in SAVED:
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}.index.json").is_file():
            return _shards(path / f"{name}.index.json")
    there = f"the folder holds no {' or '.join(SAVED)}" if path.is_dir() else "there is no such file or folder"
    raise UserError(f"no weights at {path}, {there}: give a run's folder (out/runs/<id>), one of save_pretrained, "
                    "a .safetensors file, or one written by torch.save(model.state_dict(), path)")


def _shards(index: Path) -> Sequence[Path]:
    """Return the files that a list of shards names, which lie beside it."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (DamagedError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no list of shards: give the folder as save_pretrained wrote it") from error
    missing = [file.name for file in files if file.parent != index.parent or not file.is_file()]
    if missing:
        raise UserError(f"{index} names {_few(missing)}, which the folder has not: copy all of its files")
    return files


def _content(file: Path) -> object:
    try:
        return load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # of bytes that are no checkpoint, the unpickler raises whatever they lead it to
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise UserError(f"{file} holds an object of {code[1]} beside tensors, and a file's code is not run: if "
                            "you trust it, save its weights alone, by torch.save(STATE_DICT, path), from "
                            "torch.load(path, weights_only=False)") from error
        raise UserError(f"{file} cannot be read as weights ({type(error).__name__}): write it by "
                        "torch.save(model.state_dict(), path) or safetensors") from error


def _state_dict(found: object, file: Path) -> State:
    """Return what a file holds, or the part of it that is a model's state dict."""
    if _is_state_dict(found):
        return dict(found)  # type: ignore[call-overload, no-any-return]
    parts = {str(name): part for name, part in found.items() if _is_state_dict(part)
             } if isinstance(found, Mapping) else {}
    for name in HELD:
        if name in parts:
            return dict(parts[name])
    write = "write it by torch.save(model.state_dict(), path)" if not parts else (
        f"there are some under {_few(parts)}: save one alone, such as "
        f'torch.save(torch.load(path)["{next(iter(parts))}"], "weights.pt")')
    raise UserError(f"{file} must hold a state dict, tensors by name, itself or under {', '.join(HELD)}; got "
                    f"{type(found).__name__}: {write}")


def _is_state_dict(found: object) -> bool:
    return isinstance(found, Mapping) and any(isinstance(value, Tensor) for value in found.values()) and all(
        value is None or isinstance(value, Tensor) or str(name).endswith("_extra_state")
        for name, value in found.items())


def _prefixes(long: Iterable[str], short: Iterable[str]) -> list[str]:
    """Return the prefixes, up to a dot, without which most of the long names are short ones, the shortest first.

    >>> _prefixes(["net.a", "net.b", "loss.weight"], ["a", "b"]), _prefixes(["neta"], ["a"])
    (['net.'], [''])
    """
    wanted, met = set(short), Counter([""])
    for name in long:
        ends = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
        met.update(name[:end] for end in ends if name[end:] in wanted)
    met[""] -= 1
    return sorted((prefix for prefix, count in met.items() if count == max(met.values())), key=len)


def _few(names: Iterable[str]) -> str:
    """Return the first of some names, in their order by alphabet.

    >>> _few(["b", "a"]), _few("fedcba"), _few([])
    ('a, b', 'a, b, c, d and 2 more', '')
    """
    there = sorted(names)
    return ", ".join(there[:FEW]) + (f" and {len(there) - FEW} more" if len(there) > FEW else "")
