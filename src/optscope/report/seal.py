"""A seal: what a page says and what draws it, in a few letters; a page that has its own is not drawn anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from optscope.errors import UserError
from optscope.files import read_json
from optscope.report.document import Document

PASSING = ("time of this call [s]",)
"""What of the environment is of the call that drew the page, and says nothing of the numbers."""
LIBRARIES = ("jinja2", "matplotlib", "numpy", "scipy")


def seal(document: Document, page: str) -> str:
    """Return a digest of all that a document says, of the code that draws it, and of the page that it drew."""
    told = hashlib.sha256(_drawn_by())
    lasting = {name: value for name, value in document.environment.items() if name not in PASSING}
    for word in (*_words(replace(document, environment=lasting)), page):
        text = word.encode("utf-8", "surrogatepass")
        told.update(b"%d " % len(text))  # so that no two lists of words read alike
        told.update(text)
    return told.hexdigest()[:32]


def sealed(document: Document, folder: Path) -> Path | None:
    """Return the page in a folder, if it is of this document and this code, and all its files are there."""
    page = folder / "report.html"
    try:
        found = read_json(folder / "report.json")
        files = [page, folder / "report.md", folder / "verdicts.json",
                 *(folder / figure["file"] for figure in found["figures"])]
        kept = found["seal"] == seal(document, page.read_bytes().decode("utf-8")) and all(
            file.is_file() for file in files)
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return None
    return page if kept else None


@cache
def _drawn_by() -> bytes:
    """Return a digest of the code of reports and of what they ask, and of the libraries' versions."""
    told = hashlib.sha256(repr([(name, metadata.version(name)) for name in LIBRARIES]).encode())
    for folder in (Path(__file__).parent, Path(__file__).parents[1] / "evidence"):
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            told.update(path.name.encode() + path.read_bytes())
    return told.digest()


def _words(value: object) -> Iterator[str]:
    """Yield what a value says, bit for bit: text and numbers as they are, other things by their parts."""
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__
        for field in fields(value):
            yield from _words(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield f"mapping of {len(value)}"
        for key, held in value.items():
            yield from _words(key)
            yield from _words(held)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield f"list of {len(value)}"
        for each in value:
            yield from _words(each)
    elif isinstance(value, np.generic):
        yield repr(value.item())
    elif callable(value):  # the test of a claim, whose verdict stands beside it
        yield "a test"
    else:
        yield repr(value)
