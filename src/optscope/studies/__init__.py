"""One folder a paper: its question, its experiments, its claims."""

import importlib
import pkgutil
from typing import Any

from optscope.errors import UserError, nearest

STUDIES = tuple(sorted(info.name for info in pkgutil.iter_modules(__path__)))
"""The studies by name: each folder here is one, with its `STUDY`."""


def study_of(name: str) -> Any:
    """Return the study of that name, and load no other.

    Raises:
        UserError: when there is none of the name; it says the nearest.
    """
    if name not in STUDIES:
        raise UserError(f'no study "{name}"; {nearest(name, STUDIES)}')
    return importlib.import_module(f"optscope.studies.{name}").STUDY
