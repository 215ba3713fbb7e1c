"""What one run leaves on disk: files that a crash leaves whole or absent, the summary last."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as numpy_bytes

from optscope.engine.weights import REST, TENSORS, from_files, to_files
from optscope.errors import UserError
from optscope.evidence.records import Factor, Record, check_factors
from optscope.files import (
    DamagedError,
    Lines,
    make_folder,
    names_in,
    read_json,
    set_aside,
    to_json,
    to_line,
    write_atomically,
)
from optscope.probes.probe import Reading

SCHEMA = 1
STATE = "state.safetensors"
"""The state of a training on its way; who resumes looks at it more closely."""

LOOKS = ".looks.tmp"
"""Where a training tells what is seen of it, one line a look, as long as it lasts (`optscope.engine.looks`)."""

ARRAYS = (".safetensors", ".pt")
"""How the names of files of arrays end, which can be checked without reading them."""


@dataclass(frozen=True)
class Contents:
    """What the JSON files of a run's folder hold, by their names; all of them were read at one moment."""

    path: Path
    files: Mapping[str, Any]

    def result(self) -> dict[str, Any] | None:
        """Return the run's summary, or None while it has not finished."""
        return self._of("result.json", "status")

    def failure(self) -> dict[str, Any] | None:
        """Return why the last try left no result, or None."""
        return self._of("failed.json", "status")

    def reading(self, probe: str) -> dict[str, Any] | None:
        """Return what a probe found, or None when it has not been taken."""
        return self._of(f"probe-{probe}.json", "values")

    def has_reading(self, probe: str) -> bool:
        """Return whether a probe has been taken."""
        return f"probe-{probe}.json" in self.files

    def _of(self, name: str, key: str) -> dict[str, Any] | None:
        return checked(self.path, name, self.files[name], key) if name in self.files else None


def checked(folder: Path, name: str, found: Any, key: str) -> dict[str, Any]:
    """Return what a file of a run holds.

    Raises:
        UserError: unless it is a mapping that has the key.
    """
    if not isinstance(found, dict) or key not in found:
        raise UserError(f"{folder / name} is not what optscope writes there (it has no {key!r}): "
                        f"delete the folder {folder} and run the same command again")
    return found


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. `result.json` is written last: its presence means that training is done."""

    path: Path

    def has_result(self) -> bool:
        """Return whether the run has finished."""
        return (self.path / "result.json").is_file()

    def result(self) -> dict[str, Any]:
        """Return the run's summary."""
        return self._read("result.json", "status")

    def _read(self, name: str, key: str) -> dict[str, Any]:
        return checked(self.path, name, read_json(self.path / name), key)

    def contents(self) -> Contents:
        """Read every JSON file. What is damaged is set aside, and what vouches for it: to be made again."""
        names = names_in(self.path)
        spoilt: set[str] = set()
        for name in names:
            stem, dot, kind = name.rpartition(".")
            if name != STATE and dot + kind in ARRAYS and not _is_whole(self.path / name):
                spoilt |= {name, f"{stem}.json" if stem.startswith("probe-") else "result.json"}
        files: dict[str, Any] = {}
        for name in sorted(names - spoilt):
            if name.endswith(".json"):
                try:
                    files[name] = read_json(self.path / name)
                except DamagedError:
                    spoilt.add(name)
        for name in sorted(spoilt & names):
            set_aside(self.path / name)
        return Contents(self.path, files)

    def forget_failure(self) -> None:
        """Remove what an earlier command wrote of a failure: it is tried anew."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def write_failure(self, status: str, reason: str) -> None:
        """Write that the run failed or was lost; the next command tries it again."""
        make_folder(self.path)
        found = {"schema": SCHEMA, "status": status, "reason": reason, "train_loss": math.nan}
        write_atomically(self.path / "failed.json", to_json(found))

    def series(self) -> dict[str, NDArray[Any]]:
        """Return the arrays a finished run left."""
        path = self.path / "series.safetensors"
        return _arrays(path)

    def weights(self) -> dict[str, Any]:
        """Return the trained weights by name.

        Raises:
            UserError: when the files of the weights cannot be read.
        """
        try:
            return from_files({name: (self.path / name).read_bytes() for name in (TENSORS, REST)
                               if name == TENSORS or (self.path / name).is_file()})
        except Exception as error:  # of damaged bytes, the unpickler raises whatever they lead it to
            raise UserError(f"the weights in {self.path} cannot be read ({error}): delete that folder and "
                            "run the same command again") from error

    def has_weights(self) -> bool:
        """Return whether the trained weights are kept."""
        return (self.path / TENSORS).is_file()

    def drop_weights(self) -> None:
        """Remove the trained weights; training makes the same again."""
        for name in (TENSORS, REST):
            (self.path / name).unlink(missing_ok=True)

    def state(self) -> bytes | None:
        """Return the state of a training that was stopped, or None."""
        return (self.path / STATE).read_bytes() if (self.path / STATE).is_file() else None

    def write_state(self, content: bytes) -> None:
        """Write the state of a training on its way."""
        make_folder(self.path)
        write_atomically(self.path / STATE, content)

    def set_state_aside(self) -> None:
        """Keep a state that could not be read, for whoever wants to know why."""
        set_aside(self.path / STATE)

    def drop_state(self) -> None:
        """Remove the state of a training that has ended."""
        (self.path / STATE).unlink(missing_ok=True)

    def tell(self, step: int, values: Mapping[str, Any]) -> None:
        """Tell what a probe sees during training, of metrics that are one number, to whoever waits for this run."""
        make_folder(self.path)
        line = to_line([step, {name: value for name, value in values.items() if not isinstance(value, Mapping)}])
        with contextlib.closing(Lines(self.path / LOOKS)) as lines:
            lines.append(line)

    def write_result(self, summary: Mapping[str, Any], series: Mapping[str, NDArray[Any]],
                     weights: Mapping[str, Any]) -> None:
        """Write all that training left; the summary last."""
        make_folder(self.path)
        if series:
            arrays = {name: np.ascontiguousarray(value) for name, value in series.items()}
            write_atomically(self.path / "series.safetensors", numpy_bytes(arrays))
        for name, content in (to_files(weights) if weights else {}).items():
            write_atomically(self.path / name, content)
        write_atomically(self.path / "result.json", to_json({"schema": SCHEMA, **summary}))

    def has_reading(self, probe: str) -> bool:
        """Return whether a probe has been taken."""
        return (self.path / f"probe-{probe}.json").is_file()

    def reading_arrays(self, probe: str) -> dict[str, NDArray[Any]]:
        """Return the arrays that a probe kept; those taken during training are named "NAME at STEP"."""
        path = self.path / f"probe-{probe}.safetensors"
        return _arrays(path)

    def write_reading(self, probe: str, label: str, readings: Sequence[tuple[int | None, Reading]],
                      reason: str = "") -> None:
        """Write what a probe found, after which step (None: on the trained model), or why it found nothing."""
        make_folder(self.path)
        found = {name if step is None else f"{name} at {step}": np.ascontiguousarray(a)
                 for step, reading in readings for name, a in reading.arrays.items()}
        texts = {name: a.tolist() for name, a in found.items() if a.dtype.kind == "U"}  # safetensors holds no text
        arrays = {name: a for name, a in found.items() if name not in texts}
        if arrays:
            write_atomically(self.path / f"probe-{probe}.safetensors", numpy_bytes(arrays))
        write_atomically(self.path / f"probe-{probe}.json",
                         to_json({"schema": SCHEMA, "probe": label, "reason": reason, "texts": texts,
                                  "values": [[*row, step] for step, reading in readings
                                             for row in _values(reading)]}))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays in a file by name, sorted, for reading them gives any order; none when there is no file."""
    return dict(sorted(load_arrays(path.read_bytes()).items())) if path.is_file() else {}


def packed(rows: Sequence[Record]) -> dict[str, Any]:
    """Return the rows of a call as JSON takes them: what several have as their factors is said once.

    Raises:
        UserError: when the factors of a row are none.
    """
    places: dict[tuple[tuple[str, Factor], ...], int] = {}
    found = [[row.arm, row.seed, row.metric, row.value, row.at, row.step,
              places.setdefault(tuple(row.factors.items()), len(places))] for row in rows]
    for factors in places:
        check_factors(dict(factors), "a row of a call")
    return {"factors": list(map(dict, places)), "rows": found}


def unpacked(result: Mapping[str, Any], given: Mapping[str, Factor]) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a call, (arm, seed, metric, value, at, step, factors), with those that are `given` to all.

    Rows that were written before there were factors say none.
    """
    factors = [{**given, **own} for own in result.get("factors", [])]
    for *row, place in (row if len(row) == 7 else [*row, None] for row in result.get("rows", [])):
        yield *row, given if place is None else factors[place]


def gone(folder: Path) -> str:
    """Return what is said of an output folder that is not there any more."""
    return (f"the output folder {folder} was deleted, moved or emptied while this command ran: what was finished "
            "is where it went; run the same command again, with --out where it is now")


def _is_whole(path: Path) -> bool:
    """Return whether a file of arrays is as long as it says, without reading it all."""
    try:
        if path.suffix == ".pt":
            zipfile.ZipFile(path).close()
        else:
            safetensors.safe_open(path, "np")
    except OSError:
        raise
    except Exception:  # whatever damaged bytes lead to
        return False
    return True


def _values(reading: Reading) -> list[list[Any]]:
    """Return [metric, at or None, value] for every number of a reading."""
    rows: list[list[Any]] = []
    for metric, value in reading.values.items():
        pairs = value.items() if isinstance(value, Mapping) else [(None, value)]
        rows.extend([metric, at, float(number)] for at, number in pairs)
    return rows
