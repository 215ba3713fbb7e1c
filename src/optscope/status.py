"""How the work in a folder stands, as a value, and in words for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from optscope.pace import outlook

SCHEMA = 1
"""The version of what `Status.told` returns."""
SHOWN = 8
"""So many runs that are under way are told one by one."""


@dataclass(frozen=True)
class UnderWay:
    """A run that is being done: its place, for how many seconds, and what was seen of it last."""

    run: str
    arm: str
    phase: str
    seed: int
    rule: str
    seconds: float
    step: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """What is known of an arm by the metric that chooses learning rates, on validation data.

    `value` is the best mean over the tuning seeds that have ended, that of `rule`; `compared` is the mean at
    the end of training over the seeds that compare. Without such runs, or when all diverged, they are None.
    """

    experiment: str
    arm: str
    metric: str
    better: str
    rule: str | None = None
    value: float | None = None
    seeds: int = 0
    compared: float | None = None
    compared_seeds: int = 0


@dataclass(frozen=True)
class Status:
    """How far the work in a folder is: of the stage that its last command has named, and of all its arms.

    `state` is "empty" (nothing was named yet), "running", "stopped" or "finished"; of somebody's own loops
    "recording" until each of them has closed, then "recorded". `done` counts runs that ended in any way; `running`
    are those that were begun, which in a folder that was stopped are interrupted. Times are seconds. Without
    ends the rate is 0, and what is left is None. `unread` counts lines that are not of ours.
    """

    folder: str
    state: str
    process: str
    stage: str = ""
    total: int = 0
    done: int = 0
    failed: int = 0
    diverged: int = 0
    running: Sequence[UnderWay] = ()
    runs_per_second: float = 0.0
    seconds_left: float | None = None
    best: Sequence[Best] = ()
    unread: int = 0

    @property
    def works(self) -> bool:
        """Whether more may come: a command works, or a recorder has not closed."""
        return self.state in ("running", "recording")

    @property
    def recorded(self) -> bool:
        """Whether it is of somebody's own loops, which recorders look on at."""
        return self.state in ("recording", "recorded")

    def told(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"schema": SCHEMA, **asdict(self)}

    def __str__(self) -> str:
        """Return it in lines for a person."""
        by = f" (process {self.process})" if self.state == "running" else ""
        if not self.total:
            return f"{self.folder}: no run has been named yet{by}"
        lines = [f"{self.folder}: {self.state}{by}, {self.stage}",
                 f"  {self.done} of {self.total} runs done ({self.failed} failed, {self.diverged} diverged)"]
        if self.state == "running":
            left = outlook(self.runs_per_second, self.total - self.done)
            lines[-1] += f", {len(self.running)} running; {left}"
        elif self.recorded:
            lines[-1] = f"  {self.done} of {self.total} trainings have closed ({self.diverged} diverged)"
        if self.works:
            lines += [f"  {each.arm or 'a call'}, seed {each.seed}{', ' * bool(each.rule)}{each.rule}: "
                      f"{each.seconds:.0f} s{_seen(each)}" for each in self.running[:SHOWN]]
            lines += [f"  and {len(self.running) - SHOWN} more"] if len(self.running) > SHOWN else []
        several = len({each.experiment for each in self.best}) > 1
        lines += ["best so far, on validation data:"] if self.best else []
        lines += [f"  {each.experiment + ', ' if several else ''}{each.arm}: {_found(each)}"
                  for each in self.best]
        if self.unread:
            lines.append(f"{self.unread} line(s) of events.jsonl cannot be read, and are left out")
        if self.state == "stopped":
            lines.append("the same command as before continues, and repeats no finished run")
        return "\n".join(lines)


def _seen(run: UnderWay) -> str:
    """Return what was seen last of a run."""
    metric, value = next(iter(run.values.items()), ("", 0.0))
    return "" if run.step is None else f", step {run.step}" + (f", {metric} {value:.3g}" if metric else "")


def _found(best: Best) -> str:
    """Return what is known of an arm in words."""
    parts = []
    if best.value is not None:
        parts.append(f"best {best.metric} {best.value:.4g} by {best.rule} (tuning, {_seeds(best.seeds)})")
    if best.compared is not None:
        parts.append(f"{best.metric} {best.compared:.4g} in the comparison ({_seeds(best.compared_seeds)})")
    return "; ".join(parts) or "nothing has ended well yet"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"
