"""One folder a paper: its question, its experiments, its claims."""

import pkgutil

STUDIES = tuple(sorted(info.name for info in pkgutil.iter_modules(__path__)))
"""The studies by name: each folder here is one, with its `STUDY`."""
