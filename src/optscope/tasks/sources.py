"""Where public data sets come from: each module of data says so beside its sets, and from here they are fetched.

Everything lies in one folder, `$OPTSCOPE_DATA` or `~/.cache/optscope`, with a folder for each set.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optscope.errors import UserError, nearest


@dataclass(frozen=True)
class Files:
    """Files of a set as its makers keep them: an address, and the md5 sum of each file there.

    `sign` is a file that shows that the set is there already, in a form of its own.
    """

    name: str
    address: str
    files: Mapping[str, str]
    sign: str | None = None

    def fetch(self, folder: Path) -> None:
        """Download the files that are not there yet, and check them.

        Raises:
            UserError: when a file cannot be had as its makers published it.
        """
        import pooch

        if self.sign and (folder / self.sign).is_file():
            return
        for file, md5 in self.files.items():
            if (folder / file).is_file():
                continue
            try:
                pooch.retrieve(self.address + file, known_hash=f"md5:{md5}", fname=file, path=folder)
            except (OSError, ValueError) as error:  # no connection, no such page; another md5 sum
                raise UserError(f"could not fetch {self.address}{file} ({error}): try again, or put the file "
                                f"into {folder} yourself") from error


@dataclass(frozen=True)
class Packaged:
    """The file of a package that carries a set, its SHA-256, and which of its members are the set's.

    `inner` is the archive within the archive in which they lie, if there is one.
    """

    name: str
    address: str
    sha256: str
    members: str
    inner: str = ""

    def fetch(self, folder: Path) -> None:
        """Download the package, check it, and unpack the set, all of it or nothing.

        Raises:
            UserError: when the package cannot be had as it was published.
        """
        import pooch

        if folder.is_dir():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            unpack = pooch.Unzip() if self.address.endswith(".whl") else pooch.Untar()
            try:
                found = pooch.retrieve(self.address, known_hash=self.sha256, path=place, processor=unpack)
            except (OSError, ValueError) as error:  # no connection, no such page; another sum
                raise UserError(f"could not fetch {self.address} ({error}): try again, or put {self.members} from "
                                f"it into {folder} yourself") from error
            if self.inner:
                found = pooch.Untar()(next(p for p in found if Path(p).name == self.inner), "download", None)
            ready = Path(place) / "ready"
            ready.mkdir()
            for path in map(Path, found):
                if path.match(self.members):
                    path.rename(ready / path.name)
            ready.rename(folder)


def data_folder() -> Path:
    """Return the folder that holds the sets: `$OPTSCOPE_DATA`, else `~/.cache/optscope`."""
    chosen = os.environ.get("OPTSCOPE_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "optscope"


def sources() -> dict[str, Files | Packaged]:
    """Return every source that a module of `optscope.tasks` names, by the set's name."""
    package = importlib.import_module("optscope.tasks")
    modules = [importlib.import_module(f"{package.__name__}.{info.name}")
               for info in pkgutil.iter_modules(package.__path__)]
    found = {each.name: each for module in modules for each in vars(module).values()
             if isinstance(each, (Files, Packaged))}
    return dict(sorted(found.items()))


def fetch(name: str) -> Path:
    """Fetch a set, check it, and return its folder. What is already there is left alone.

    Raises:
        UserError: when there is no such set, or it cannot be had as it was published.
    """
    known = sources()
    if name not in known:
        raise UserError(f'there is no data set "{name}" to fetch; {nearest(name, known)}')
    folder = data_folder() / name
    known[name].fetch(folder)
    return folder
