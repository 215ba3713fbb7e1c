"""What a call of a door asks for, as a person writes it: which optimisers, which folder, which settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optscope.errors import UserError
from optscope.protocol.arms import arm_named
from optscope.protocol.comparison import Arm
from optscope.protocol.settings import OptimiserSettings, Settings, settings_with

Given = str | Path | Sequence[str | Arm]
"""What a door takes by place: a folder, or optimisers, of which each is an arm or the name of a ready one."""


@dataclass(frozen=True)
class Asked:
    """The arms (none: those of the settings), the folder (None: the usual one) and the settings of a call."""

    arms: tuple[Arm, ...]
    out: Path | None
    settings: Settings


def asked(given: Sequence[Given], arms: Sequence[str | Arm], out: str | Path | None, settings: Settings | None,
          said: dict[str, Any]) -> Asked:
    """Return what a call asks for: of what is `given` by place, a path is the folder and a list the optimisers.

    `said` are settings by name, which go before those of `settings`.

    Raises:
        UserError: when one of them comes twice, is neither, or is no setting.
    """
    for each in given:
        if isinstance(each, (str, os.PathLike)):
            if out is not None:
                raise UserError(f"one folder is expected; got {str(out)!r} and {str(each)!r}")
            out = each
        elif isinstance(each, Sequence) and not arms:
            arms = each
        else:
            raise UserError("a list of optimisers and a folder are expected after the task, "
                            f'such as ["sgd", "adam"], "runs/mine"; got {each!r}')
    found = settings_with(settings, said)
    return Asked(tuple(_arm(each, found) for each in arms), None if out is None else Path(out), found)


def _arm(said: str | Arm, settings: Settings) -> Arm:
    if isinstance(said, str):
        of = settings.optimisers.get(said, OptimiserSettings())
        return arm_named(said, of.lr, of.space, settings.trials)
    if not isinstance(said, Arm):
        raise UserError(f'an optimiser is a name such as "sgd", or an Arm; got {said!r}: write '
                        'Arm("mine", SGD(lr=0.1), Grid((0.03, 0.1, 0.3)))')
    return said
