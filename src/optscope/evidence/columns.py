"""Records as files of columns, a column a field and a column a factor: CSV, which is read back, SQLite, parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optscope.errors import UserError
from optscope.evidence.records import FIELDS, NO_FACTORS, Factor, Record, Records
from optscope.files import whole, write_atomically

_SQL = {"seed": "integer", "step": "integer", "value": "real", "at": "real"}


def write_csv(records: Records, path: Path) -> None:
    """Write records to a CSV file, one row a number; what a row has not got is left empty."""
    with whole(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(records.header())
        writer.writerows(records.lines())
        text.detach()  # which writes what is left, and leaves the file open


def read_csv(path: str | Path) -> Records:
    """Return the records of a CSV file that optscope wrote; columns that are no field of a record are factors.

    Raises:
        UserError: when there is no such file, a column is missing, or a number cannot be read, naming the line.
    """
    path = Path(path)
    try:
        file = path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"expected a summary.csv that optscope wrote, got {path} ({error.strerror}): give the path "
                        "of the one in a report's folder") from error
    with file:
        lines = csv.reader(file)
        try:
            header = next(lines, [])
            missing = [name for name in FIELDS if name not in header]
            rows = [] if missing else list(map(_reader(header), lines))
        except (ValueError, IndexError, csv.Error) as error:
            raise UserError(f"{path}, line {lines.line_num} is not what optscope writes there ({error}): run "
                            "the command that made it again, which writes it anew") from error
    if missing:
        raise UserError(f"expected a summary.csv that optscope wrote, got {path} without the column "
                        f"{missing[0]}: give the path of the one in a report's folder")
    return Records(rows)


def _reader(header: list[str]) -> Callable[[list[str]], Record]:
    """Return what makes a record of the cells of a line; rows with the same factors share one mapping."""
    experiment, arm, seed, metric, value, at, step, phase, rule, status, run = map(header.index, FIELDS)
    others = [(name, i) for i, name in enumerate(header) if name not in FIELDS]
    shared: dict[tuple[str, ...], Mapping[str, Factor]] = {}

    def factors(cells: list[str]) -> Mapping[str, Factor]:
        said = tuple(cells[i] for _, i in others)
        if said not in shared:
            found = {name: _factor(text) for (name, _), text in zip(others, said, strict=True) if text}
            shared[said] = found or NO_FACTORS
        return shared[said]

    def read(cells: list[str]) -> Record:
        return Record(cells[experiment], cells[arm], int(cells[seed]), cells[metric], float(cells[value]),
                      float(cells[at]) if cells[at] else None, int(cells[step]) if cells[step] else None,
                      cells[phase], cells[rule], cells[status], cells[run],  # type: ignore[arg-type]
                      factors(cells) if others else NO_FACTORS)

    return read


def _factor(text: str) -> Factor:
    """Return a factor as it was before it was written: whole numbers and others are numbers, all else is words."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def write_sqlite(records: Records, path: Path, version: int) -> None:
    """Write records as an SQLite database with the table "records"; `version` is its user_version.

    Raises:
        sqlite3.Error or OSError: when that is not possible; the file is then as it was before.
    """
    header, kinds = records.header(), {**dict.fromkeys(FIELDS, "text"), **_SQL}
    columns = ", ".join(f'"{name}" {kinds.get(name, "")}' for name in header)
    # In the file's place, not in memory: there it would lie twice. A journal is for who goes on after a crash.
    with whole(path) as file, contextlib.closing(sqlite3.connect(file.name, isolation_level=None)) as database:
        database.execute("pragma journal_mode=off")
        database.execute("pragma synchronous=off")  # it is forced to disk when it is whole
        database.execute(f"pragma user_version={version}")
        database.execute("begin")
        database.execute(f"create table records ({columns})")
        database.executemany(f"insert into records values ({', '.join('?' * len(header))})", records.lines())
        database.execute("commit")


def write_parquet(records: Records, path: Path) -> None:
    """Write records to a parquet file, by pyarrow (optscope[parquet])."""
    import pyarrow
    from pyarrow import parquet

    kinds: dict[str, Any] = {**dict.fromkeys(FIELDS, pyarrow.string()), "seed": pyarrow.int64(),
                             "step": pyarrow.int64(), "value": pyarrow.float64(), "at": pyarrow.float64()}
    table = records.columns()
    columns = {name: pyarrow.array(values, kinds.get(name)) for name, values in table.items()}
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), content)
    write_atomically(path, content.getvalue())
