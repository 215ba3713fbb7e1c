"""Work where no disk is shared: what a run needs is brought to its worker, and what it leaves comes home."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from optscope.engine.data_files import DATA, elsewhere
from optscope.engine.execute import perform_there
from optscope.engine.executor import Outcome
from optscope.engine.origin import users_folders
from optscope.engine.run_folder import LOOKS
from optscope.files import make_folder, names_in, write_atomically

RUNS, MODULES = "runs", "modules"


@dataclass(frozen=True)
class Needed:
    """A file that a run needs: its name below the output folder, where it lies, and when it was last changed."""

    name: str
    path: Path
    modified: int

    @staticmethod
    def of(name: str, path: Path) -> Needed:
        """Return a file as it is now."""
        return Needed(name, path, path.stat().st_mtime_ns)


@dataclass(frozen=True)
class Answer:
    """What a worker says of work: how it ended, and what it left in a folder of the worker's own, file by file.

    Without an outcome it has not begun: the worker does not see the output folder, and nothing was brought along.
    """

    outcome: Outcome | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def needed(run: Path, data: Sequence[Path], modules: Mapping[str, Path]) -> list[Needed]:
    """Return the files that a run needs elsewhere: its data, what it left before, and the user's own modules."""
    left = sorted(name for name in names_in(run) if not name.startswith(".") and not name.endswith(".damaged"))
    return [*(Needed.of(f"{DATA}/{path.name}", path) for path in data),
            *(Needed.of(f"{RUNS}/{run.name}/{name}", run / name) for name in left),
            *(Needed.of(f"{MODULES}/{name}", path) for name, path in modules.items())]


def users_modules() -> dict[str, Path]:
    """Return the files of the modules that were imported from beside the user's files, by their names there."""
    found = {}
    for module in list(sys.modules.values()):
        path = Path(getattr(module, "__file__", None) or "")
        for folder in users_folders.get():
            if path.suffix == ".py" and path.is_relative_to(folder):
                found[path.relative_to(folder).as_posix()] = path
    return found


def perform_alone(sent: bytes, run: str, program: str, brought: Sequence[tuple[str, int]],
                  contents: Sequence[bytes]) -> Answer:
    """Do one piece of work in a folder of this process's own, to which files are brought; return what it left."""
    place = Path(_place().name)
    for (name, modified), content in zip(brought, contents, strict=True):
        path = place / name
        if not (name.startswith(f"{DATA}/") and path.is_file()):  # which is called by what it holds
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
            os.utime(path, ns=(modified, modified))
    if str(place / MODULES) not in sys.path:
        sys.path.append(str(place / MODULES))
    (place / RUNS).mkdir(exist_ok=True)
    here, before = place / RUNS / run, elsewhere.set(place / DATA)
    try:
        outcome = perform_there(sent, place / RUNS, program)
        return Answer(outcome, {name: (here / name).read_bytes() for name in names_in(here) - {LOOKS}})
    finally:
        elsewhere.reset(before)
        shutil.rmtree(here, ignore_errors=True)


@functools.cache
def _place() -> TemporaryDirectory[str]:
    """Return a folder that lasts as long as this process."""
    return TemporaryDirectory(prefix="optscope-")


def bring_home(run: Path, files: Mapping[str, bytes]) -> None:
    """Write what a run left elsewhere, each file whole and the summary last; what is gone there goes here.

    Raises:
        OSError: when it cannot be written.
    """
    make_folder(run)
    for name in sorted(files, key=lambda name: (name == "result.json", name.endswith(".json"), name)):
        write_atomically(run / name, files[name])
    for name in names_in(run) - files.keys():
        if not name.endswith(".damaged"):
            (run / name).unlink(missing_ok=True)
