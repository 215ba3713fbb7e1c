"""The two doors: compare optimisers on a task, and run a paper's study; both train, measure, judge, report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from optscope.engine.execute import Local
from optscope.engine.executor import Executor
from optscope.engine.naming import named_task
from optscope.engine.numerics import numerics
from optscope.engine.once import looked_at_once
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.columns import write_csv, write_parquet
from optscope.evidence.picture import Figure
from optscope.evidence.records import Metric, Records
from optscope.files import to_json, write_atomically
from optscope.probes.robust import RobustAccuracy
from optscope.protocol import rounding_levels
from optscope.protocol.advice import earned
from optscope.protocol.caveats import checklist, next_steps, warnings
from optscope.protocol.charts import comparison_figures, training_figures
from optscope.protocol.compare import arms_of, comparison_of, not_taken
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Listener, Quiet, Said
from optscope.protocol.examples import right
from optscope.protocol.findings import findings, places
from optscope.protocol.grafts import graft_matrix, grafted_rules, length_earns_more
from optscope.protocol.headline import headline, nothing_to_compare
from optscope.protocol.rehearse import rehearsed
from optscope.protocol.session import Results, run_experiments
from optscope.protocol.settings import Settings
from optscope.protocol.study import Study
from optscope.report.document import Check, Document
from optscope.report.page import write
from optscope.report.tables import Table, interval, metric_table, runs_table
from optscope.tasks.check import check_task
from optscope.tasks.check_inputs import overlap, scales
from optscope.tasks.task import Task


@dataclass(frozen=True)
class Result:
    """What a door leaves: every number, every verdict, and the path of the page that shows them."""

    records: Records
    verdicts: Sequence[tuple[Claim, Verdict]]
    summary: str
    report: Path
    failures: tuple[str, ...] = ()


@looked_at_once()
def compare(task: Task, out: str | Path, *, arms: Sequence[Arm] = (), settings: Settings | None = None,
               executor: Executor | None = None, listener: Listener | None = None, command: str = "") -> Result:
    """Compare optimisers on a task, fairly, and write the report to the folder `out`.

    Every arm is tuned with the same number of learning rates by validation loss, trained on the same fresh
    seeds, and measured by every probe that fits the task. The same call again continues, and repeats no run.

    Raises:
        UserError: when the task, an arm or the folder will not do; before anything is trained.
    """
    for each in {id(t): t for t in (task, *(arm.task for arm in arms if arm.task))}.values():
        _check(each)
    settings, listener = settings or Settings(), listener or Quiet()
    (comparison,), known = _rehearsed([comparison_of(task, settings, arms)], listener)
    known += not_taken(task)
    store = Store(Path(out), f"the comparison on {task.name}")
    start = time.perf_counter()
    results = run_experiments([comparison], store, executor or Local(), listener)
    figures, verdicts, answer = _said(comparison, results.records, store, settings)
    document = Document(
        title=f"Which optimiser for {task.name}?",
        question=_question(comparison),
        verdict_sentence=answer,
        warnings=[*warnings([comparison], results), *known],
        verdicts=verdicts, scale="desk", next_steps=(
            next_steps(comparison, results.records, store.folder) if verdicts else []),
        figures=figures, tables=[_measured(comparison, results.records)] if verdicts else [],
        checklist=[Check(*each) for each in checklist(
            comparison, results.records, [verdict for _, verdict in verdicts])],
        environment=environment(time.perf_counter() - start, results.records), command=command,
        runs_table=runs_table(results.records))
    return _finish(document, results, store)


@looked_at_once()
def rounding(task: Task, out: str | Path, *, arms: Sequence[Arm] = (), settings: Settings | None = None,
             executor: Executor | None = None, listener: Listener | None = None, command: str = "") -> Result:
    """Find at which learning rates a task's training is decided by rounding, and write the report to `out`.

    Every arm is trained at each of its learning rates, on every seed, three times: the same but for the rounding
    of its steps (`optscope.optim.Rounded`). The same call again continues, and repeats no run.

    Raises:
        UserError: when the task, an arm or the folder will not do; before anything is trained.
    """
    _check(task)
    settings, listener = settings or Settings(), listener or Quiet()
    chosen = tuple(arms) or arms_of(settings)
    known = rounding_levels.rehearsed(task, settings, chosen)
    for sentence in known:
        listener.hear(Said(sentence))
    store = Store(Path(out), f"the rounding floor of {task.name}")
    start = time.perf_counter()
    results = run_experiments([rounding_levels.calls(task, settings, chosen)], store, executor or Local(), listener)
    metric, unit = rounding_levels.metric_of(task)
    found = rounding_levels.levels(chosen, results.records, metric)
    unit = "points" if unit == "%" else "1"
    rows = [(f.arm, f.lr, f.distance, f.mean, f.deviation,
             interval(f.ratio.estimate, f.ratio.low, f.ratio.high) if f.deviation else "0",
             f.verdict) for f in found]
    header = ("optimiser", "learning rate", "distance of twins", f"mean validation {metric}",
              f"deviation among twins [{unit}]", "over that of single runs", "verdict")
    document = Document(
        title=f"Does rounding decide the training of {task.name}?",
        question="At which learning rates do trainings that differ in the last bit of their steps end as different "
                 "models, and how much does that alone change the result?",
        verdict_sentence="\n".join(rounding_levels.sentence(arm.name, found, task) for arm in chosen),
        warnings=[*results.failures, *results.inapplicable, *known],
        figures=rounding_levels.figures(chosen, found, results.records, results.arrays, task),
        tables=[Table("Rounding at every learning rate", header, rows,
                      f"{settings.seeds} seeds, divisors 1, 3 and 5 each. In brackets 95 % F intervals.")],
        environment=environment(time.perf_counter() - start, results.records), command=command)
    return _finish(document, results, store)


def run_study(study: Study, scale: Scale, out: str | Path, *, executor: Executor | None = None,
              listener: Listener | None = None, command: str = "") -> Result:
    """Run a paper's experiments at a scale, judge its claims, and write the report to the folder `out`."""
    listener = listener or Quiet()
    experiments = study.experiments(scale)
    comparisons = [e for e in experiments if isinstance(e, Comparison)]
    for task in {id(t): t for c in comparisons for t in (c.task, *(a.task for a in c.arms if a.task))}.values():
        _check(task)
    comparisons, known = _rehearsed(comparisons, listener)
    experiments = [*comparisons, *(e for e in experiments if not isinstance(e, Comparison))]
    store = Store(Path(out), f"the study {study.name}")
    start = time.perf_counter()
    results = run_experiments(experiments, store, executor or Local(), listener)
    verdicts = study.judge(results.records, scale)
    counts = {o: sum(v.outcome == o for _, v in verdicts) for o in ("holds", "fails", "undecided")}
    summary = (f"Of {len(verdicts)} claims {counts['holds']} hold, {counts['fails']} fail and "
               f"{counts['undecided']} are undecided at {scale} scale.\n" + "\n".join(study.answer(verdicts)))
    document = Document(
        title=study.paper.title, question=study.question, verdict_sentence=summary,
        warnings=[*study.left_out.splitlines(), *warnings(comparisons, results), *known],
        verdicts=verdicts, scale=scale,
        figures=study.pictures(results.records, results.arrays),
        tables=[_measured(c, results.records) for c in comparisons],
        checklist=[Check(*each) for c in comparisons if any(arm.search for arm in c.arms)
                   for each in checklist(c, results.records)],
        environment=environment(time.perf_counter() - start, results.records)
        | {"paper": f"{study.paper.authors}, {study.paper.venue}, arXiv {study.paper.arxiv}",
           "reproduced": study.reproduced},
        command=command, runs_table=runs_table(Records(row for row in results.records if row.rule)))
    return _finish(document, results, store)


def _said(comparison: Comparison, records: Records, store: Store,
          settings: Settings) -> tuple[list[Figure], list[tuple[Claim, Verdict]], str]:
    """Return the figures, the claims and the answer of a comparison; where nothing can be compared, only why."""
    nothing = nothing_to_compare(comparison, records)
    if nothing:
        return training_figures(comparison, records), [], nothing
    found = findings(comparison, records, settings.margin, right(comparison, records, store))
    verdicts = [(f.claim, f.verdict) for f in found]
    figures = comparison_figures(comparison, records, places(comparison, records))
    if settings.graft:
        matrices, claim = _grafts(comparison, records)
        figures, verdicts = [*matrices, *figures], [claim, *verdicts]
    answer = headline(comparison, records, found), earned(comparison, records, settings.margin)
    return figures, verdicts, "\n".join(filter(None, answer))


def _measured(comparison: Comparison, records: Records) -> Table:
    """Return the table of all that was measured on the trained models of a comparison."""
    metrics, found = comparison.measured(records)
    return metric_table(found, metrics, comparison.arms[0].name)


def environment(seconds: float, records: Records) -> dict[str, object]:
    """Return what a reader needs to get the same numbers: versions, processor, threads, time."""
    packages = ("torch", "numpy", "scipy")
    return {"optscope": metadata.version("optscope"), "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
            "processor": f"{platform.machine()} {numerics()['cpu']}, {os.cpu_count()} cores",
            "threads a run": numerics()["threads"], "system": platform.system(),
            "time of this call [s]": round(seconds, 1), "time of all trainings [s]": round(_spent(records), 1)}


def _spent(records: Records) -> float:
    """Return the seconds all runs took, each counted once."""
    return sum({row.run: row.value for row in records.where(metric="seconds")}.values())


def _rehearsed(comparisons: Sequence[Comparison], listener: Listener) -> tuple[list[Comparison], list[str]]:
    """Rehearse comparisons, tell the listener what is known of them, and return it for the report."""
    found = [rehearsed(comparison) for comparison in comparisons]
    parts = [c.task.data() for c in comparisons if c.task.kind != "game"]
    shared = [[*overlap(data), *scales(data)] for data in parts]
    known = list(dict.fromkeys(sentence for each in (*(f.known for f in found), *shared) for sentence in each))
    for sentence in (*dict.fromkeys(sentence for each in found for sentence in each.before), *known):
        listener.hear(Said(sentence))
    return [each.comparison for each in found], known


def _check(task: Task) -> None:
    """Look at a task; whatever its own code raises is its author's to mend.

    It is named first: objects of its modules that note what they were asked are as workers will import them.
    """
    named_task(task)
    try:
        check_task(task)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{task.name}: its data, model or loss stopped with {type(error).__name__}: "
                        f"{error}") from error


def _finish(document: Document, results: Results, store: Store) -> Result:
    """Write the folder's files beside the runs: the report, every number, and how they were made."""
    write_csv(results.records, store.folder / "summary.csv")
    write_parquet(results.records, store.folder / "summary.parquet")
    write_atomically(store.folder / "run.json",
                     to_json({"command": document.command, **dict(document.environment)}))
    return Result(results.records, document.verdicts, document.verdict_sentence, write(document, store.folder),
                  results.failures)


def _grafts(comparison: Comparison, records: Records) -> tuple[list[Figure], tuple[Claim, Verdict]]:
    """Return the graft matrices of what is measured, and whether length or direction earns the result."""
    final = records.where(experiment=comparison.name, phase="final")
    rules = grafted_rules(comparison.arms)
    metrics = [p.metric for p in places(comparison, final) if p.at is None]
    named = ("accuracy", comparison.criterion.metric)
    first = next((metric for metric in metrics if metric.name in named), Metric(comparison.criterion.metric))
    claim = Claim("G", f"Step length explains more of the differences in {first.name} than direction",
                  "this comparison", partial(length_earns_more, rules=rules, metric=first.name),
                  "direction explains more", scale="smoke")
    return [graft_matrix(final, rules, metric) for metric in metrics], (claim, claim.judge(final, "desk"))


def _question(comparison: Comparison) -> str:
    names = [arm.name for arm in comparison.arms]
    first = "is more accurate" if comparison.task.about.pairs else "has the lower loss"
    robust = ", more robust" * any(isinstance(probe, RobustAccuracy) for probe in comparison.probes)
    asked = ("whose generator covers what is real?" if comparison.task.kind == "game" else
             f"which model {first}{robust}, and which is smoother?")
    return (f"{', '.join(names[1:])} against {names[0]}: at learning rates chosen alike on clean validation "
            f"data, {asked}")
