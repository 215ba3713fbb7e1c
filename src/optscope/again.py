"""A study's report anew from its numbers: verdicts and figures are today's program's, and nothing is trained."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from optscope.analyses.differences import measured
from optscope.analyses.families import gap_table, judged
from optscope.analyses.twice import beside_the_claims
from optscope.engine.run_folder import RunFolder
from optscope.errors import UserError
from optscope.evidence.claims import Scale, Verdict
from optscope.evidence.columns import read_csv
from optscope.evidence.picture import Figure, Kept
from optscope.evidence.records import Records
from optscope.evidence.words import listed
from optscope.files import read_json, to_json, write_atomically
from optscope.protocol.comparison import Comparison
from optscope.protocol.study import Arrays, Study, check_scale
from optscope.report.document import Document
from optscope.report.manifest import SCHEMA
from optscope.report.section import Check, Section, joined
from optscope.report.style import slug
from optscope.report.tables import Table, runs_table
from optscope.result import Result
from optscope.studies import STUDIES, study_of

ABOUT = ("command", "answer")
"""What `run.json` says that is no row of a page's environment."""
TOLD = {"figures": {"name", "title", "caption"}, "protocol": {"text", "met", "note"}, "verdicts": {"claim"},
        "summary": {"header", "rows", "note"}}
"""What is read of the rows of `report.json`."""


def rewritten(folder: str | Path) -> Result:
    """Write a study's report anew from the numbers in its folder, by this version, and train nothing.

    Claims are judged anew and figures drawn anew from `summary.csv`, which stays as it is. What the numbers do not
    say (how trainings were planned, what was told of them) is taken from the `report.json` that was there, and a
    figure of arrays that the folder does not hold is shown as it was drawn. Claims that came after the report, and
    of which its numbers hold nothing, are named in the answer and left out.

    Raises:
        UserError: when the folder holds no study's report, or one of another version.
    """
    folder = Path(folder)
    made, told = _file(folder / "run.json"), _told(folder)
    study = _study(folder, made)
    scale = check_scale(str(told["scale"]), study)
    records, experiments = read_csv(folder / "summary.csv"), study.experiments(scale)
    there = {row.experiment for row in records}
    if not there & {each.name for each in experiments}:
        raise UserError(f"expected the records of {study.name}, got none of its experiments in "
                        f"{folder / 'summary.csv'}: give the folder of its report")
    asked = _asked(study, records, scale, {each["claim"] for each in told["verdicts"]})
    found = _with_kept(judged(asked, records, _arrays(folder, records), scale), told["figures"], folder)
    compared = [measured(each, records) for each in experiments
                if isinstance(each, Comparison) and each.name in there]
    beside = beside_the_claims(asked, records, scale)
    seen = {check.text for check in beside.checks}
    found = joined([found, _later(study, asked), beside, *compared, Section(
        checks=[Check(each["text"], bool(each["met"]), each["note"]) for each in told["protocol"]
                if each["text"] not in seen])])
    gaps = [Table("How far this is from the paper", each["header"], each["rows"], each["note"])
            for each in told["summary"] if each["header"] == list(gap_table(study).header)]
    document = Document(
        study.paper.title, study.question, "\n".join(found.sentences), told["reservations"], found.verdicts, scale,
        figures=found.figures, tables=found.tables, checklist=found.checks,
        environment={name: value for name, value in made.items() if name not in ABOUT}
        | {"judged and drawn anew by": f"optscope {metadata.version('optscope')}"},
        command=str(made["command"]), runs_table=runs_table(Records(row for row in records if row.rule)),
        summaries=gaps, openers=found.openers, families=dict(found.families), shown=dict(found.shown))
    from optscope.report.page import write  # matplotlib, which a refusal need not wait for

    page = write(document, folder)
    write_atomically(folder / "run.json", to_json(made | {"answer": document.verdict_sentence}))
    return Result(records, document, page)


def _file(path: Path) -> dict[str, Any]:
    """Return what a JSON file of ours holds."""
    if not path.is_file():
        raise UserError(f"expected the folder of a study's report, got one without {path.name}: give one that "
                        f"holds it, or run the study into it again, which repeats no finished run")
    found = read_json(path)
    if not isinstance(found, dict):
        raise _spoilt(path)
    return found


def _spoilt(path: Path) -> UserError:
    return UserError(f"{path} is not what optscope writes there: take the folder as it was published")


def _told(folder: Path) -> dict[str, Any]:
    """Return the report that was there as data, with all of it that is asked for here."""
    path = folder / "report.json"
    found = _file(path)
    if found.get("schema") != SCHEMA:
        raise UserError(f"{path} is of form {found.get('schema')}, and this version of optscope reads form "
                        f"{SCHEMA}: take the version that wrote it, which run.json names")
    if not isinstance(found.get("reservations"), list) or "scale" not in found:
        raise _spoilt(path)
    for name, words in TOLD.items():
        rows = found.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= words for row in rows):
            raise _spoilt(path)
    return found


def _study(folder: Path, made: Mapping[str, Any]) -> Study:
    """Return the study whose report a folder holds."""
    words = shlex.split(str(made.get("command", "")))
    if words[:2] != ["optscope", "run"]:
        raise UserError(f"only the report of a study is written anew from its numbers, and {folder} holds that of "
                        f"{shlex.join(words) or 'no command'}: give that command again, which repeats no finished "
                        "run")
    named = [word for word in words[2:] if word in STUDIES]
    found: Study = study_of(named[0] if named else words[2] if len(words) > 2 else "")
    return found


def _asked(study: Study, records: Records, scale: Scale, before: set[str]) -> Study:
    """Return a study with the claims that were judged before, and those that came later and were measured."""
    kept = [claim for claim, verdict in study.judge(records, scale) if claim.id in before or _measured(verdict)]
    ids, there = {claim.id for claim in kept}, {claim.id.partition(" ")[0] for claim in kept}
    looks = {at: tuple(replace(each, claims=tuple(name for name in each.claims if name in ids))
                       for each in those if ids & {*each.claims}) for at, those in study.looks.items()}
    return replace(study, claims=tuple(kept), looks=looks,
                   families={name: words for name, words in study.families.items() if name in there},
                   shown={name: figures for name, figures in study.shown.items() if name in there},
                   answers=tuple(name for name in study.answers if name in there))


def _measured(verdict: Verdict) -> bool:
    return math.isfinite(verdict.effect) or any(map(_measured, verdict.parts))


def _later(study: Study, asked: Study) -> Section:
    """Return the sentence that names the claims of a study that are not asked."""
    names = [claim.id for claim in study.claims if claim not in asked.claims]
    return Section([f"Not judged, as these numbers are older than the claims: {listed(names)}."] if names else ())


def _arrays(folder: Path, records: Records) -> Arrays:
    """Return the arrays of the runs that lie in a folder, under the names that `Results` has for them."""
    found, first = dict[str, NDArray[Any]](), dict[tuple[str, str], tuple[int, str]]()
    for row in records:
        if row.rule and row.phase == "final":
            key, run = (row.experiment, row.arm), (row.seed, row.run)
            first[key] = min(first.get(key, run), run)
    for experiment, name in dict.fromkeys((row.experiment, row.run) for row in records if not row.rule):
        found.update((f"{experiment}/{each}", array)
                     for each, array in RunFolder(folder / "runs" / name).series().items())
    for (experiment, arm), (_, name) in first.items():
        place = RunFolder(folder / "runs" / name)
        for path in sorted(place.path.glob("probe-*.safetensors")):
            found.update((f"{experiment}/{arm}/{each}", array)
                         for each, array in place.reading_arrays(path.stem.removeprefix("probe-")).items())
    return found


def _with_kept(found: Section, told: Sequence[Mapping[str, str]], folder: Path) -> Section:
    """Return a section with the figures told of that cannot be drawn anew, each after the one before it."""
    figures: list[Figure] = [*found.openers, *found.figures]
    place = 0
    for each in told:
        name, names = slug(each["name"]), [slug(figure.name) for figure in figures]
        path = folder / "figures" / f"{name}.svg"
        if name in names:
            place = names.index(name) + 1
        elif path.is_file():
            figures.insert(place, Kept(name, each["title"], path.read_text(encoding="utf-8"), each["caption"]))
            place += 1
    return replace(found, openers=figures[:1], figures=figures[1:])
