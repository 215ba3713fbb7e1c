"""What a folder's files tell another process of the work there: no lock is taken, and nothing is written."""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from optscope.errors import UserError
from optscope.evidence.recorded import LOSS, Recorded, Stamp, recorded_at, recorded_in
from optscope.files import from_json, read_json
from optscope.pace import rate
from optscope.status import Best, Status, UnderWay

SCHEMA = 1
"""The version of the lines of `events.jsonl` that are understood."""
TICK = 1.0
"""Seconds between two looks at a folder that is followed."""


class Use(NamedTuple):
    """A line of `entries.json`: the place of a run in an experiment."""

    experiment: str
    arm: str
    phase: str
    seed: int
    rule: str
    run: str
    probes: list[str]


def _used(row: Sequence[Any]) -> Use:
    use = Use(*row[:7])
    words = (*use[:3], *use[4:6], *use.probes)
    if not re.fullmatch("[0-9a-f]{16}", use.run) or type(use.seed) is not int or not all(
            isinstance(word, str) for word in words):
        raise TypeError("no place of a run")
    return use


class Follower:
    """Reads what the command in a folder tells, each line once; `status()` says how it stands now.

    Raises:
        UserError: when the folder is not one that a command of ours has made.
    """

    def __init__(self, folder: Path) -> None:
        check_is_ours(folder)
        self.folder = folder
        self._told = _Told()
        self._place = 0
        self._entries: tuple[int, list[Use]] = (0, [])
        self._values: dict[tuple[str, str], float] = {}
        self._recordings: tuple[tuple[Stamp, ...], list[Recorded]] = ((), [])

    def status(self) -> Status:
        """Read on, and return how the work stands.

        Raises:
            UserError: when what the folder's files hold is not what this version writes there.
        """
        self._read_on()
        told, now = self._told, time.time()
        process, alive = _owner(self.folder)
        done = told.before + len(told.ends)
        if not told.total and (recorded := self._recorded(now)):
            return recorded
        if not told.total:
            return Status(str(self.folder), "running" if alive else "empty", process, unread=told.unread)
        over = done >= told.total and told.stage != "tuning"
        of_late = rate(told.ends, told.start, now) if alive else 0.0
        return Status(
            str(self.folder), "running" if alive else "finished" if over else "stopped", process, told.stage,
            told.total, done, sum(self._has_failed(run) for run in told.runs),
            sum(told.ended.get(run) == "diverged" for run in told.runs),
            [told.under_way(run, now) for run in told.begun], of_late,
            (told.total - done) / of_late if of_late else None, self._best(), told.unread)

    def _recorded(self, now: float) -> Status | None:
        """Return how recordings of somebody's own loops stand; None where there are none."""
        stamp = recorded_at(self.folder)
        if not stamp:
            return None
        if stamp != self._recordings[0]:
            self._recordings = stamp, recorded_in(self.folder)
        found = [each for each in self._recordings[1] if each.task]
        going = [each for each in found if each.ended is None]
        return Status(
            str(self.folder), "recording" if going else "recorded", "", found[0].task if found else "", len(found),
            len(found) - len(going), 0, sum(each.diverged for each in found),
            [UnderWay(each.run, each.arm, "final", each.seed, each.rule, max(0.0, now - each.time), each.last,
                      {LOSS.name: each.losses[max(each.losses)]} if each.losses else {}) for each in going])

    def _read_on(self) -> None:
        """Hear the lines since the last time; one that is still being written waits."""
        try:
            with (self.folder / "events.jsonl").open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._place:  # another file: the folder was made anew
                    self._told, self._place = _Told(), 0
                file.seek(self._place)
                text = file.read()
        except FileNotFoundError:  # no stage was named yet
            return
        whole, end, _ = text.rpartition(b"\n")
        self._place += len(whole) + len(end)
        for line in filter(None, whole.split(b"\n")):
            self._told.hear(line)

    def _has_failed(self, run: str) -> bool:
        """Return whether a run failed, and was not taken up again."""
        return (self._told.ended.get(run) in ("failed", "lost")
                and (self.folder / "runs" / run / "failed.json").is_file())

    def _best(self) -> list[Best]:
        """Return what is known of every arm of the comparisons that the last stage is of."""
        told, arms = self._told, dict[tuple[str, str], list[Use]]()
        known = set(told.runs)
        for use in self._uses():
            if use.run in known and use.experiment in told.criteria:
                arms.setdefault((use.experiment, use.arm), []).append(use)
        return [self._best_of(experiment, arm, uses) for (experiment, arm), uses in arms.items()]

    def _best_of(self, experiment: str, arm: str, uses: Sequence[Use]) -> Best:
        metric, better = self._told.criteria[experiment]
        sign = -1.0 if better == "higher" else 1.0
        tried: dict[str, list[float]] = {}
        compared: list[float] = []
        for use in uses:
            if use.phase == "tune" and (value := self._judged(use, metric)) is not None:
                tried.setdefault(use.rule, []).append(value)
            elif use.phase == "final" and self._told.ended.get(use.run) == "ok":
                seen = self._told.seen[use.run][1]
                compared += [seen[metric]] if metric in seen else []
        scores = {rule: sign * statistics.fmean(values) for rule, values in tried.items()
                  if all(map(math.isfinite, values))}
        mean = statistics.fmean(compared) if compared else None
        if not scores:
            return Best(experiment, arm, metric, better, compared=mean, compared_seeds=len(compared))
        rule = min(scores, key=scores.__getitem__)
        return Best(experiment, arm, metric, better, rule, sign * scores[rule], len(tried[rule]), mean,
                    len(compared))

    def _judged(self, use: Use, metric: str) -> float | None:
        """Return what a tuning run is judged by: infinite when it diverged or failed, None while it is open."""
        key = use.run, metric
        if key not in self._values:
            if self._told.ended.get(use.run) in ("diverged", "failed"):
                return math.inf
            for probe in use.probes:
                try:
                    rows = read_json(self.folder / "runs" / use.run / f"probe-{probe}.json")["values"]
                    found = [float(value) for name, at, value, step in rows
                             if (name, at, step) == (metric, None, None)]
                except (OSError, LookupError, TypeError, ValueError):  # not taken yet, or to be taken anew
                    continue
                if found:
                    self._values[key] = found[0]
        return self._values.get(key)

    def _uses(self) -> list[Use]:
        """Return the places of all runs, read again when the file is another one."""
        path = self.folder / "entries.json"
        try:
            stamp = path.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if stamp != self._entries[0]:
            found = read_json(path)
            try:
                self._entries = stamp, list(map(_used, found["entries"]))
            except (LookupError, TypeError, ValueError) as error:
                raise UserError(f"{path} is not what optscope writes there: run the command that made the "
                                "folder again") from error
        return self._entries[1]


class _Told:
    """What the lines of `events.jsonl` have said up to now; each stage that is named begins anew."""

    def __init__(self) -> None:
        self.stage, self.total, self.before, self.start = "", 0, 0, 0.0
        self.runs: list[str] = []
        self.criteria: dict[str, tuple[str, str]] = {}
        self.ends: list[float] = []
        self.begun: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self.ended: dict[str, str] = {}
        self.seen: dict[str, tuple[int | None, dict[str, float]]] = {}
        self.unread = 0

    def hear(self, line: bytes) -> None:
        """Take in a line; one that is not of ours is counted."""
        try:
            said = from_json(line)
            hear = {"named": self._named, "started": self._started, "moment": self._moment,
                    "ended": self._ended}
            if said["schema"] == SCHEMA and said["event"] in hear:
                hear[said["event"]](said, datetime.fromisoformat(said["time"]).timestamp())
            self.unread += said["schema"] != SCHEMA
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            self.unread += 1

    def under_way(self, run: str, now: float) -> UnderWay:
        """Return how a run that was begun stands."""
        since, use = self.begun[run]
        step, values = self.seen[run]
        return UnderWay(run, **use, seconds=max(0.0, now - since), step=step, values=values)

    def _named(self, said: Mapping[str, Any], at: float) -> None:
        self.criteria = {name: (str(metric), str(better)) for name, (metric, better) in said["criteria"].items()}
        self.stage, self.runs, self.start = str(said["stage"]), list(map(str, said["runs"])), at
        self.total, self.before = int(said["total"]), int(said["done"])
        self.ends, self.begun = [], {}

    def _started(self, said: Mapping[str, Any], at: float) -> None:
        self.begun[said["run"]] = at, {name: said[name] for name in ("arm", "phase", "seed", "rule")}
        self.seen.setdefault(said["run"], (None, {}))  # a training that was stopped goes on from about there

    def _moment(self, said: Mapping[str, Any], at: float) -> None:
        _, values = self.seen.get(said["run"], (None, {}))
        self.seen[said["run"]] = said["step"], values | {n: float(v) for n, v in said["values"].items()}

    def _ended(self, said: Mapping[str, Any], at: float) -> None:
        self.begun.pop(said["run"], None)
        self.seen.setdefault(said["run"], (None, {}))
        self.ended[said["run"]] = said["status"]
        self.ends.append(at)


def check_is_ours(folder: Path) -> None:
    """Raise unless a command has made this folder.

    Raises:
        UserError: with what to give instead.
    """
    if not (folder / "optscope.json").is_file():
        raise UserError(f"{folder} is not a folder that optscope made: give the --out of a run or compare")


def followed(folder: Path) -> Iterator[Status]:
    """Yield how the work in a folder stands, once a second, until no command works there."""
    follower = Follower(folder)
    while True:
        status = follower.status()
        yield status
        if not status.works:
            return
        time.sleep(TICK)


def _owner(folder: Path) -> tuple[str, bool]:
    """Return which process works in a folder, and whether it does: one on another machine is believed."""
    try:
        name = (folder / ".owner").read_text(errors="replace").strip()
    except OSError:
        return "", False
    process, _, machine = name.partition(" on ")
    if machine != platform.node() or os.name == "nt":  # there, to ask would end it
        return name, True
    try:
        os.kill(int(process), 0)  # asks whether it is there
    except PermissionError:  # it is, and somebody else's
        return name, True
    except (OSError, ValueError):
        return "", False
    return name, True
