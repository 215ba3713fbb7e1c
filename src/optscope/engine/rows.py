"""From files to records: the rows that a place in an experiment reads from a run's folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optscope.engine.run_folder import Contents, unpacked
from optscope.errors import UserError
from optscope.evidence.records import NO_FACTORS, Factor, Phase, Record, check_factors

SUMMARY = {"learning rate": "lr", "seconds": "seconds", "CPU seconds a step": "cpu_seconds_a_step",
           "training loss": "train_loss"}
"""Records made from the summary of every run, and where they stand in it."""


@dataclass(frozen=True)
class Use:
    """Why a run was made: its place in an experiment, its arm's factors, and the measurements this place reads."""

    experiment: str
    arm: str
    phase: Phase
    seed: int
    rule: str
    run: str
    probes: tuple[str, ...] = ()
    factors: Mapping[str, Factor] = field(default_factory=lambda: NO_FACTORS, hash=False)


def read(use: Use, contents: Contents) -> tuple[list[Record], list[str]]:
    """Return every number that a use reads of its run, and why probes of it found none: "probe: reason".

    So is said, too, why the state of a training was not saved on its way.

    There is none of either while the run has neither a result nor failed.

    Raises:
        UserError: naming the folder whose files hold other things than optscope writes there.
    """
    try:
        found = filter(None, map(contents.reading, use.probes))
        reasons = [f"{each['probe']}: {each['reason']}" for each in found if each.get("reason")]
        unsaved = (contents.result() or {}).get("unsaved")
        reasons += [f"{use.rule}: trainings were not saved on their way, and a killed one begins anew: {unsaved}"
                    ] if unsaved else []
        return list(_rows(use, contents)), reasons
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"the files in {contents.path} are not what optscope writes there ({error}): delete that "
                        "folder and run the same command again") from error


def used(row: Sequence[Any]) -> Use:
    """Return the use that a line of `entries.json` says.

    Raises:
        TypeError, ValueError: when it says other things.
        UserError: when factors are none.
    """
    experiment, arm, phase, seed, rule, run, probes, *others = row
    (factors,) = others or (NO_FACTORS,)
    if not re.fullmatch("[0-9a-f]{16}", run):
        raise ValueError(f"a run's name was expected; got {run[:40]}")
    check_factors(factors, "an arm")
    return Use(_word(experiment), _word(arm), _word(phase), _whole(seed),  # type: ignore[arg-type]
               _word(rule), run, tuple(map(_word, probes)), factors)


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a word was expected; got {str(value)[:40]}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not -2**63 <= value < 2**63:
        raise TypeError(f"a whole number was expected; got {str(value)[:40]}")
    return value


def _rows(use: Use, contents: Contents) -> Iterator[Record]:
    failure = contents.failure()
    result = contents.result() or failure
    if result is None:
        return
    status = _word(result["status"])
    if use.phase == "tune" and failure and not all(map(contents.has_reading, use.probes)):
        status = failure["status"]  # trained, but never judged

    def row(metric: str, value: Any, at: Any = None, step: int | None = None, arm: str = use.arm,
            seed: int = use.seed, factors: Mapping[str, Factor] = use.factors) -> Record:
        number = float(value)
        return Record(use.experiment, _word(arm), _whole(seed), _word(metric),
                      number if math.isfinite(number) else math.nan, None if at is None else float(at),
                      None if step is None else _whole(step), use.phase, use.rule, status, use.run, factors)

    for factors in result.get("factors", []):
        check_factors(factors, f"{contents.path / 'result.json'}")
    for arm, seed, metric, value, at, step, factors in unpacked(result, use.factors):
        yield row(metric, value, at, step, arm, seed, factors)
    for metric, name in SUMMARY.items():
        if isinstance(result.get(name), (int, float, str)):
            yield row(metric, result[name])
    for metric, value in result.get("metrics", {}).items():
        yield row(metric, value)
    for probe in use.probes:
        for metric, at, value, step in (contents.reading(probe) or {"values": []})["values"]:
            yield row(metric, value, at, step)
