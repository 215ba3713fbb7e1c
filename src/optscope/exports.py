"""What a folder found, for other tools: parquet, or its runs with their curves as experiment trackers keep them.

Everything is written here and offline; no account is asked for, and nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from optscope.engine.run_folder import RunFolder
from optscope.errors import UserError, nearest
from optscope.evidence.columns import read_csv, write_parquet
from optscope.evidence.records import Factor, Record, Records

PROJECT = "optscope"
"""What trackers call the folder's project or experiment."""
LOSS = "loss of the batch"
"""The curve of the training loss: the loss at each step's batch, at the weights before that step."""

MLFLOW_BATCH = 1000
"""So many numbers MLflow takes at once."""


@dataclass(frozen=True)
class Tracked:
    """One run as trackers know it: its name, its settings, and what was measured of it by the step."""

    name: str
    settings: Mapping[str, Factor]
    history: Mapping[int, Mapping[str, float]]
    """Metrics after so many steps; what was measured of the trained model stands at its last step."""


@dataclass(frozen=True)
class Exported:
    """What is exported: the records of a folder, and its runs."""

    records: Records
    runs: Path

    @cached_property
    def tracked(self) -> tuple[Tracked, ...]:
        """Every run of every place in an experiment, in the order of the records."""
        groups: dict[tuple[object, ...], list[Record]] = {}
        for row in self.records:
            key = row.experiment, row.arm, row.seed, row.phase, row.rule, row.run, tuple(row.factors.items())
            groups.setdefault(key, []).append(row)
        return tuple(_tracked(rows, self._losses(rows[0].run)) for rows in groups.values())

    def _losses(self, run: str) -> list[float]:
        found = RunFolder(self.runs / run).series().get("losses")
        return [] if found is None else [float(value) for value in found]


def _tracked(rows: list[Record], losses: list[float]) -> Tracked:
    first = rows[0]
    last = len(losses) or max((row.step for row in rows if row.step is not None), default=0)
    history: dict[int, dict[str, float]] = {step: {LOSS: loss} for step, loss in enumerate(losses)}
    for row in rows:
        name = row.metric if row.at is None else f"{row.metric} at {row.at:g}"
        history.setdefault(last if row.step is None else row.step, {})[name] = row.value
    settings = {"experiment": first.experiment, "arm": first.arm, "seed": first.seed, "phase": first.phase,
                "rule": first.rule, "status": first.status, "run": first.run, **first.factors}
    varied = (f"{name}={value}" for name, value in first.factors.items())
    words = first.experiment, first.arm, *varied, first.phase, f"seed {first.seed}", first.run
    return Tracked(" / ".join(filter(None, words)), settings, dict(sorted(history.items())))


def _parquet(found: Exported, place: Path) -> None:
    write_parquet(found.records, place)


def _tensorboard(found: Exported, place: Path) -> None:
    from torch.utils.tensorboard.summary import hparams
    from torch.utils.tensorboard.writer import SummaryWriter

    for i, run in enumerate(found.tracked):
        with SummaryWriter(place / f"{i:05d} {_plain(run.name)}") as writer:
            for step, name, value in _numbers(run):
                writer.add_scalar(name, value, step)
            *_, last = run.history.values()
            for part in hparams(dict(run.settings), dict(last)):
                writer.file_writer.add_summary(part)


def _wandb(found: Exported, place: Path) -> None:
    import wandb

    place.mkdir(parents=True)
    quiet = wandb.Settings(mode="offline", console="off", silent=True, disable_git=True, disable_code=True,
                           x_disable_stats=True, x_disable_meta=True)
    for i, run in enumerate(found.tracked):
        with wandb.init(project=PROJECT, dir=place, name=run.name, id=f"{i:05d}-{run.settings['run']}",
                        group=str(run.settings["arm"]), config=dict(run.settings), settings=quiet) as logged:
            for step, values in run.history.items():
                logged.log(values, step=step)


def _mlflow(found: Exported, place: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    place.mkdir(parents=True)
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.create_experiment(PROJECT, artifact_location=(place / "artifacts").as_uri())
    for run in found.tracked:
        made = client.create_run(experiment, run_name=run.name).info.run_id
        numbers = [Metric(_plain(name), value, 0, step) for step, name, value in _numbers(run)]
        client.log_batch(made, params=[Param(name, str(value)) for name, value in run.settings.items()])
        for start in range(0, len(numbers), MLFLOW_BATCH):
            client.log_batch(made, metrics=numbers[start:start + MLFLOW_BATCH])
        client.set_terminated(made)


def _trackio(found: Exported, place: Path) -> None:
    os.environ["TRACKIO_DIR"] = str(place)  # read when the package is loaded
    from trackio.sqlite_storage import SQLiteStorage

    for run in found.tracked:
        SQLiteStorage.bulk_log(PROJECT, run.name, list(run.history.values()), steps=list(run.history),
                               config=dict(run.settings))


def _numbers(run: Tracked) -> Iterator[tuple[int, str, float]]:
    return ((step, name, value) for step, values in run.history.items() for name, value in values.items())


def _plain(name: str) -> str:
    """Return a name of the characters that MLflow and file systems take."""
    return "".join(c if c.isalnum() or c in "-. _" else "_" for c in name)


@dataclass(frozen=True)
class Format:
    """How an export is written, and what a person types to look at it, `{}` being its place."""

    write: Callable[[Exported, Path], None]
    look: str


FORMATS: Mapping[str, Format] = {
    "parquet": Format(_parquet, "pandas.read_parquet('{}')"),
    "tensorboard": Format(_tensorboard, "tensorboard --logdir '{}'"),
    "wandb": Format(_wandb, "wandb sync '{}'/wandb/offline-run-*, which sends it to your account"),
    "mlflow": Format(_mlflow, "mlflow server --backend-store-uri 'sqlite:///{}/mlflow.db'"),
    "trackio": Format(_trackio, "TRACKIO_DIR='{}' trackio show")}
SILENT = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
"""What keeps packages from telling their makers, and users of tables that are made; read when they are loaded."""


def export(folder: Path, to: str, place: Path) -> str:
    """Write what a folder found to `place`, a new file or folder, as one of `FORMATS`; return how to look at it.

    Raises:
        UserError: when there is no such format, its package is not installed, `place` is there already, or the
            folder has no `summary.csv`.
    """
    if to not in FORMATS:
        raise UserError(f'no format "{to}"; {nearest(to, FORMATS)}')
    if place.exists():
        raise UserError(f"{place} is there already, and an export begins anew: give --out a new name")
    found = Exported(read_csv(folder / "summary.csv"), folder / "runs")
    os.environ.update(SILENT)
    try:
        FORMATS[to].write(found, place.absolute())
    except ImportError as error:
        raise UserError(f'the format "{to}" needs a package ({error}): pip install "optscope[{to}]"') from error
    return FORMATS[to].look.format(place.absolute())
