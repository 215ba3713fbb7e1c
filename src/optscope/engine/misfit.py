"""Weights that do not fit, and the line that mends them: a state dict within another, a prefix, a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

SAVED = ("model.safetensors", "pytorch_model.bin")
"""What `save_pretrained` calls the weights in its folder."""


def in_folder(folder: Path) -> str:
    """Return what to give instead of a folder that holds a file of weights; nothing where there is none."""
    found = next((name for name in SAVED if (folder / name).is_file()), "")
    return f"it is a folder: give its file {folder / found}" if found else ""


def within(found: object) -> str:
    """Return under which name a mapping holds a state dict, as a line that takes it out; nothing where none does.

    >>> import torch
    >>> within({"epoch": 3, "model": {"weight": torch.ones(1)}})
    'there is one under "model": torch.save(torch.load(path)["model"], "weights.pt")'
    """
    if not isinstance(found, Mapping):
        return ""
    name = next((key for key, value in found.items() if isinstance(value, Mapping) and value and all(
        isinstance(each, Tensor) for each in value.values())), None)
    if name is None:
        return ""
    return f'there is one under "{name}": torch.save(torch.load(path)["{name}"], "weights.pt")'


def renamed(weights: Mapping[str, Any], model: Iterable[str]) -> str:
    """Return how names must change to be a model's, where all of them lack or have a prefix; nothing else.

    >>> renamed({"net.a": 1, "net.b": 2}, ["a", "b"])
    'its names begin with "net.", which those of the model do not: save {k.removeprefix("net."): v for k, v in ...}'
    >>> renamed({"a": 1}, ["net.a"])
    'its names lack "net.", with which those of the model begin: save {"net." + k: v for k, v in ...}'
    """
    there, wanted = set(weights), set(model)
    more, fewer = (_prefix(there, wanted), _prefix(wanted, there))
    if more:
        return (f'its names begin with "{more}", which those of the model do not: save '
                f'{{k.removeprefix("{more}"): v for k, v in ...}}')
    if fewer:
        return (f'its names lack "{fewer}", with which those of the model begin: save '
                f'{{"{fewer}" + k: v for k, v in ...}}')
    return ""


def _prefix(long: set[str], short: set[str]) -> str:
    """Return the prefix, up to a dot, that all long names have and without which they are the short ones."""
    one = next(iter(long), "")
    ends = [one[:i + 1] for i, letter in enumerate(one) if letter == "."]
    return next((end for end in ends if all(name.startswith(end) for name in long)
                 and {name.removeprefix(end) for name in long} == short), "")
