"""The doors: compare optimisers, find the rounding floor, run a study; each trains, measures and reports."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from optscope import notebook
from optscope.analyses import rounding_levels
from optscope.analyses.caveats import next_steps
from optscope.analyses.families import judged
from optscope.analyses.recorded import of_recordings
from optscope.analyses.saved import saved
from optscope.analyses.twice import beside_the_claims
from optscope.analyses.usual import of_a_study, said, usual
from optscope.done import Done
from optscope.engine.execute import Local
from optscope.engine.executor import Executor
from optscope.engine.naming import named_task
from optscope.engine.once import looked_at_once
from optscope.engine.place import CPU, Place
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.claims import Scale
from optscope.evidence.records import Records
from optscope.former import formerly
from optscope.probes.probe import Probe
from optscope.progress import Display
from optscope.protocol import rounding_twins
from optscope.protocol.asked import Given, asked
from optscope.protocol.compare import arms_of, comparison_of, looked_quickly, question
from optscope.protocol.comparison import Arm, Comparison, Experiment
from optscope.protocol.estimate import estimated
from optscope.protocol.events import Listener, Said
from optscope.protocol.kits import kit_of
from optscope.protocol.probing import probing_of
from optscope.protocol.recordings import recordings_in
from optscope.protocol.rehearse import rehearsed
from optscope.protocol.remembered import Remembered
from optscope.protocol.session import Results, run_experiments
from optscope.protocol.settings import Settings, settings_with
from optscope.protocol.study import Study
from optscope.report.document import Document
from optscope.report.section import joined
from optscope.report.style import slug
from optscope.result import Result
from optscope.tasks.check import check_task
from optscope.tasks.task import UNNAMED, Task


@formerly("0.1", engine="executor")
@looked_at_once()
def compare(task: Task, *given: Given, arms: Sequence[str | Arm] = (), out: str | Path | None = None,
            settings: Settings | None = None, executor: Executor | None = None, listener: Listener | None = None,
            command: str = "", **more: Any) -> Result:
    """Compare optimisers on a task, fairly, and write the report to a folder.

        compare(task, ["sgd", "adam"])
        compare(task, ["sgd", Arm("mine", Mine(lr=0.1), Grid((0.03, 0.1)))], "runs/mine", epochs=5)

    Every arm is tuned with the same budget of gradients by validation loss, trained on the same fresh seeds, and
    measured by the usual probes that fit the task. Rates fall to a tenth after half of every training, and again
    after three quarters (`Settings.plan`). The same call again continues, and repeats no run.

    Args:
        task: what is learned.
        given: `arms`, as a list, and `out`, as a path, by place.
        arms: the optimisers, the first of which is the baseline: names (`optscope list`) or `Arm`s. Without any,
            those of the settings: "sgd", "adam", "rmsprop" and "graft", if these name none either.
        out: the folder; "runs/compare-NAME" without one.
        settings: what may be said of a comparison.
        executor: where runs are done; processes on this machine without one.
        listener: who is told how the work goes; a bar, or in a notebook a line, without one.
        command: what the report says repeats it.
        **more: settings by name, such as `seeds=12`, which go before those of `settings`.

    Raises:
        UserError: when the task, an arm, a setting or the folder will not do; before anything is trained.
    """
    wish = asked(given, arms, out, settings, more)
    folder, settings = wish.out or _usual_folder("compare", task), wish.settings
    listener = listener or display()
    _check(task, *(arm.task for arm in wish.arms if arm.task))
    executor = executor or Local()
    memory = Remembered(Path(folder))
    (comparison,), known, step = _rehearsed([comparison_of(task, settings, wish.arms)], listener, memory)
    listener.hear(Said(f"{comparison.name}: {estimated(comparison, step, executor)}"))
    if settings.quick:
        known = [looked_quickly(comparison), *known]
        listener.hear(Said(known[0]))
    done = _done(folder, f"the comparison on {task.name}", [comparison], executor, listener, settings.place, memory)
    found = said(comparison, done.results.records, usual(settings, done.store))
    return done.reported(done.document(
        found, [*known, *([] if settings.probes else kit_of(task).left_out(task))],
        title=f"Which optimiser for {task.name}?" if task.name != UNNAMED else "Which optimiser?",
        question=question(comparison), command=command, rows=done.results.records,
        next_steps=next_steps(comparison, done.results.records, folder, settings.quick) if found.verdicts else ()))


@formerly("0.1", engine="executor")
@looked_at_once()
def rounding(task: Task, *given: Given, arms: Sequence[str | Arm] = (), out: str | Path | None = None,
             settings: Settings | None = None, executor: Executor | None = None, listener: Listener | None = None,
             command: str = "", **more: Any) -> Result:
    """Find at which learning rates a task's training is decided by rounding, and write the report to a folder.

    Every arm is trained at each of its learning rates, on every seed, three times: the same but for the rounding
    of its steps (`optscope.optim.Rounded`). The same call again continues, and repeats no run. What it takes is
    what `compare` takes, and so is what counts without it; the command takes "sgd" and "adam" on five seeds then.

    Raises:
        UserError: when the task, an arm, a setting or the folder will not do; before anything is trained.
    """
    wish = asked(given, arms, out, settings, more)
    folder, settings = wish.out or _usual_folder("rounding", task), wish.settings
    listener = listener or display()
    _check(task)
    chosen = wish.arms or arms_of(settings)
    for sentence in (known := rounding_twins.rehearsed(task, settings, chosen)):
        listener.hear(Said(sentence))
    done = _done(folder, f"the rounding floor of {task.name}", [rounding_twins.calls(task, settings, chosen)],
                 executor, listener, settings.place)
    found = rounding_levels.section(chosen, done.results, task, settings.seeds)
    return done.reported(done.document(
        found, known, title=f"Does rounding decide the training of {task.name}?",
        question=rounding_levels.QUESTION, command=command))


@looked_at_once()
def probe(checkpoints: str | Path | Sequence[str | Path], task: Task, *, probes: Sequence[str | Probe] = (),
          group: str = "", out: str | Path | None = None, settings: Settings | None = None,
          executor: Executor | None = None, listener: Listener | None = None, command: str = "",
          **more: Any) -> Result:
    """Measure saved models by the usual probes that fit the task, and write one page about them to a folder.

        probe(["adam-1.pt", "sgd-1.pt", "adam-2.pt", "sgd-2.pt"], task, group="{arm}-{seed}.pt")

    The same call again continues, and takes no reading twice: one is known by weights, task and probe.

    Args:
        checkpoints: files of weights, or folders of `save_pretrained`, of Accelerate or of a run. No code in them
            is run.
        task: what the models were trained for: its model has the names of their weights, its data are looked at.
        probes: names (`optscope probe --list`) or probes, in place of the usual ones that fit.
        group: how the end of each path says arm and seed: then paired differences over seeds are tested, to the arm
            that comes first. Without, no difference is.
        out: the folder; "runs/probe-NAME" without one.
        settings: `examples`, `margin` and the device are asked of it.
        executor: where probes are taken; processes on this machine without one.
        listener: who is told how the work goes.
        command: what the report says repeats it.
        **more: settings by name, such as `examples=200`.

    Raises:
        UserError: when a checkpoint, the task, a probe or the group will not do; before anything is measured.
    """
    wish, listener = settings_with(settings, more), listener or display()
    paths = [Path(each) for each in ([checkpoints] if isinstance(checkpoints, (str, Path)) else checkpoints)]
    folder = out or _usual_folder("probe", task)
    _check(task)
    probing, known = probing_of(task, paths, probes, group, wish.examples, wish.place)
    for sentence in known:
        listener.hear(Said(sentence))
    done = _done(folder, f"saved models of {task.name}", [probing], executor, listener, wish.place)
    records = done.results.records
    found = saved(probing, records, done.store, wish.margin)
    return done.reported(done.document(
        found, known, [] if probes else kit_of(task).left_out(task),
        title=f"Saved models of {task.name}" if task.name != UNNAMED else "Saved models",
        question="what are these models like, beyond their loss?", command=command, rows=records))


def recorded(folder: str | Path) -> Result:
    """Write the report of what recorders (`optscope.Recorder`) have left in a folder so far.

    Raises:
        UserError: when there is nothing of theirs, or a file is not what they write.
    """
    done, document = _recorded(Path(folder))
    return done.reported(document)


def recorded_page(folder: Path) -> str:
    """Return that report as a page, and write nothing.

    Raises:
        UserError: when there is nothing of theirs, or a file is not what they write.
    """
    from optscope.report.page import render  # matplotlib, which other doors need not wait for

    return render(_recorded(folder)[1])


def _recorded(folder: Path) -> tuple[Done, Document]:
    """Return what recorders have left in a folder so far, and the report of it."""
    start, found = time.perf_counter(), recordings_in(folder)
    if found is None:
        raise UserError(f"{folder} holds nothing that optscope.Recorder has recorded")
    done = Done(folder, Results(found.records, {}, (), tuple(found.known)), time.perf_counter() - start, CPU)
    return done, done.document(
        of_recordings(found, None), title=f"Recorded trainings of {found.name}",
        question="how do these trainings differ, beyond their loss?",
        command=shlex.join(["optscope", "report", str(folder)]),
        rows=found.measured(found.records)[1] + found.records)


@formerly("0.1", engine="executor")
def run_study(study: Study, scale: Scale, out: str | Path, *, executor: Executor | None = None,
              listener: Listener | None = None, command: str = "", place: Place = CPU) -> Result:
    """Run a paper's experiments at a scale, judge its claims, and write the report to the folder `out`.

    Its comparisons are trained at `place`; what a study computes otherwise stays on the CPU.

    Raises:
        UserError: when a task or an optimiser will not do, before anything trains.
    """
    listener = listener or display()
    experiments = study.experiments(scale)
    comparisons = [replace(e, place=place) for e in experiments if isinstance(e, Comparison)]
    _check(*(task for c in comparisons for task in (c.task, *(arm.task for arm in c.arms if arm.task))))
    memory = Remembered(Path(out))
    comparisons, known, _ = _rehearsed(comparisons, listener, memory)
    done = _done(out, f"the study {study.name}",
                 [*comparisons, *(e for e in experiments if not isinstance(e, Comparison)),
                  *study.looking(scale, comparisons)], executor, listener, place, memory)
    records = done.results.records
    found = joined([judged(study, records, done.results.arrays, scale), beside_the_claims(study, records, scale),
                    *(of_a_study(c, records) for c in comparisons)])
    return done.reported(done.document(
        found, known, study.left_out.splitlines(), title=study.paper.title, question=study.question, scale=scale,
        command=command, rows=Records(row for row in records if row.rule),
        about={"paper": f"{study.paper.authors}, {study.paper.venue}, arXiv {study.paper.arxiv}",
               "reproduced": study.reproduced}))


def display() -> Listener:
    """Return who tells a person how the work goes: in a notebook in its cell, elsewhere on stderr."""
    return notebook.listener() if "ipykernel" in sys.modules else Display(Console(stderr=True))


def _usual_folder(door: str, task: Task) -> Path:
    return Path("runs") / f"{door}-{slug(task.name)}"


def _done(out: str | Path, holds: str, experiments: Sequence[Experiment], executor: Executor | None,
          listener: Listener, place: Place, memory: Remembered | None = None) -> Done:
    """Run experiments in a folder whose report is about what it `holds`, and that keeps what was rehearsed."""
    store, start = Store(Path(out), holds), time.perf_counter()
    if memory:
        memory.write()
    results = run_experiments(experiments, store, executor or Local(), listener)
    return Done(store.folder, results, time.perf_counter() - start, place)


def _rehearsed(comparisons: Sequence[Comparison], listener: Listener,
               memory: Remembered) -> tuple[list[Comparison], list[str], dict[str, float]]:
    """Rehearse comparisons, tell what is known of them, and return it for the report, with the seconds of steps."""
    found = [rehearsed(comparison, memory.rehearse) for comparison in comparisons]
    shared = [kit_of(c.task).known(c.task) for c in comparisons]
    known = list(dict.fromkeys(sentence for each in (*(f.known for f in found), *shared) for sentence in each))
    for sentence in (*dict.fromkeys(sentence for each in found for sentence in each.before), *known):
        listener.hear(Said(sentence))
    return [each.comparison for each in found], known, {arm: s for each in found for arm, s in each.seconds.items()}


def _check(*tasks: Task) -> None:
    """Look at each task once; whatever its own code raises is its author's to mend."""
    for task in {id(task): task for task in tasks}.values():
        named_task(task)  # first: objects of its modules that note what they were asked are as workers import them
        try:
            check_task(task)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{task.name}: its data, model or loss stopped with {type(error).__name__}: "
                            f"{error}") from error
