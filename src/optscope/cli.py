"""The command: list, show, run, compare, rounding, advise, status, report, data.

Torch is imported only by commands that need it.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from optscope.endings import ERR, OUT, ended, say
from optscope.errors import UserError, nearest

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="See what the choice of optimiser does to a trained model, beyond its loss curve.")

Out = Annotated[Path | None, typer.Option("--out", help="Folder for runs and report (runs/COMMAND-NAME).")]
Slots = Annotated[int, typer.Option("--slots", min=0, help=(
    "Processes to use (0: one a core); of accelerators, runs on each at once (0: one)."))]
Batch = Annotated[int | None, typer.Option("--batch", help="Examples a step (128).")]
Device = Annotated[str | None, typer.Option("--device", help=(
    "Where to train: auto, cpu, cuda, mps, ..., or several: cuda:0,cuda:1."))]

Pool = Annotated[str | None, typer.Option("--executor", metavar="PLACE", help=(
    "Who does the runs: dask://HOST:PORT, or my_cluster.py:NAME, a function that returns an executor."))]


def _version(asked: bool) -> None:
    """Say the version, and end."""
    if asked:
        from importlib.metadata import version

        say(f"optscope {version('optscope')}")
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False) -> None:
    """See what the choice of optimiser does to a trained model, beyond its loss curve."""


def main() -> None:
    """Run the command; what a user can mend is one sentence and exit code 2, a full disk is 74."""
    started = Path(sys.argv[0]).parts[-2:]
    name = "python -m optscope" if started == ("optscope", "__main__.py") else "optscope"
    ended(lambda: app(_whole(sys.argv[1:]), prog_name=name, standalone_mode=False))


def _whole(words: list[str]) -> list[str]:
    """Return the words of a command with the one that a bare --graft stands for.

    >>> _whole(["compare", "--graft", "digits"]), _whole(["compare", "digits", "--graft", "model"])
    (['compare', '--graft=layer', 'digits'], ['compare', 'digits', '--graft', 'model'])
    """
    said = ["layer"], ["module"], ["model"]
    return ["--graft=layer" if word == "--graft" and words[i:i + 1] not in said else word
            for i, word in enumerate(words, start=1)]


def _command() -> str:
    """Return what a reader types for the same numbers: the call without the folder it wrote to."""
    words = sys.argv[1:]
    kept = [w for i, w in enumerate(words)
            if not w.startswith("--out") and (i == 0 or words[i - 1] != "--out")]
    return shlex.join(["optscope", *kept])


@app.command("list")
def list_() -> None:
    """List studies, tasks and optimisers by name."""
    from optscope.protocol.arms import NAMES
    from optscope.studies import STUDIES
    from optscope.tasks.catalog import TASKS

    OUT.print("[bold]studies[/bold]")
    for name in STUDIES:
        study = _study(name)
        OUT.print(f"  {name:<22} {study.paper.title} (arXiv {study.paper.arxiv})", highlight=False)
    OUT.print(f"[bold]tasks[/bold]       {', '.join(TASKS)}, or my_task.py:NAME", highlight=False)
    OUT.print(f"[bold]optimisers[/bold]  {', '.join(NAMES)}, or module:Class", highlight=False)


@app.command()
def show(study: str) -> None:
    """Show a study: its question, claims, scales and what they cost."""
    found = _study(study)
    OUT.print(f"[bold]{found.paper.title}[/bold]\n{found.paper.authors}, {found.paper.venue}, "
               f"arXiv {found.paper.arxiv}\n", highlight=False)
    for text in (found.question, found.reproduced, found.left_out):
        OUT.print(text + "\n", highlight=False)
    for claim in found.claims:
        OUT.print(f"[bold]{claim.id}[/bold] {claim.text} ({claim.source})", highlight=False)
    OUT.print()
    for scale, cost in found.costs.items():
        OUT.print(f"--scale {scale:<6} {cost}", highlight=False)


@app.command()
def run(study: str, scale: Annotated[str, typer.Option(help="smoke, desk, long or paper.")] = "desk",
        out: Out = None, slots: Slots = 0, device: Device = None, executor: Pool = None) -> None:
    """Run a paper's study and write its report; the same command again continues."""
    found = _study(study)
    from optscope.lab import run_study
    from optscope.progress import Display
    from optscope.protocol.pools import executor_at
    from optscope.protocol.settings import Settings
    from optscope.protocol.study import check_scale

    known = check_scale(scale, found)
    say(f"{found.name} at {known} scale: {found.costs[known]}", ERR)
    settings = Settings(device=device or "cpu")
    with executor_at(executor, slots, settings.devices) as chosen:
        result = run_study(found, known, out or Path("runs") / f"{found.name}-{known}", listener=Display(ERR),
                           executor=chosen, command=_command(), place=settings.place)
    for claim, verdict in result.verdicts:
        say(f"{claim.id:<5} {verdict.outcome:<10} {claim.text}")
    _close(result)


@app.command()
def compare(task: Annotated[str, typer.Argument(help="A task's name, or my_task.py:NAME.")], out: Out = None,
            optimiser: Annotated[list[str] | None, typer.Option(
                "--optimiser", "-o", help="A name or module:Class each; the first is the baseline.")] = None,
            seeds: Annotated[int | None, typer.Option(help="Seeds that compare the arms (8).")] = None,
            epochs: Annotated[int | None, typer.Option(help="Passes over the training data (30).")] = None,
            steps: Annotated[int | None, typer.Option(help="Steps of training, as streams need them.")] = None,
            batch: Batch = None,
            trials: Annotated[int | None, typer.Option(
                help="Draw so many points of each one's range, instead of its grid of learning rates.")] = None,
            widen: Annotated[int | None, typer.Option(
                help="How often all arms search on while a best learning rate lies at an end (2).")] = None,
            graft: Annotated[str | None, typer.Option("--graft", metavar="[layer|module|model]", help=(
                "Compare every optimiser's step length on every one's direction: that of each layer's step "
                "(also without a word), each module's, or the whole model's."))] = None,
            margin: Annotated[str | None, typer.Option(
                help="Within what accuracies count as equal: points, or a share of the error (20%).")] = None,
            config: Annotated[Path | None, typer.Option(help="A TOML file with the settings.")] = None,
            slots: Slots = 0, device: Device = None, executor: Pool = None) -> None:
    """Compare optimisers on a task and write one HTML report; the same command again continues."""
    from optscope.lab import compare as door

    _open(door, "compare", task, out, optimiser, config, slots, executor, seeds=seeds, epochs=epochs, steps=steps,
          batch=batch, trials=trials, widen=widen, graft=graft, margin=margin, device=device)


@app.command()
def rounding(task: Annotated[str, typer.Argument(help="A task's name, or my_task.py:NAME.")], out: Out = None,
             optimiser: Annotated[list[str] | None, typer.Option(
                 "--optimiser", "-o", help="Repeat for each (sgd, adam).")] = None,
             seeds: Annotated[int | None, typer.Option(help="Seeds, each with three rounding twins (5).")] = None,
             epochs: Annotated[int | None, typer.Option(help="Passes over the training data (30).")] = None,
             batch: Batch = None,
             config: Annotated[Path | None, typer.Option(help="A TOML file with the settings.")] = None,
             slots: Slots = 0, device: Device = None, executor: Pool = None) -> None:
    """Find at which learning rates training is decided by rounding; the same command again continues."""
    from optscope.lab import rounding as door

    if config is None:
        optimiser, seeds = optimiser or ["sgd", "adam"], seeds or 5
    _open(door, "rounding", task, out, optimiser, config, slots, executor, seeds=seeds, epochs=epochs,
          batch=batch, device=device)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def floor() -> None:
    """Say under which name the command is found."""
    raise UserError("the command is called rounding now: write optscope rounding")


@app.command()
def advise(task: Annotated[str, typer.Argument(help="A task's name, or my_task.py:NAME.")],
           lr: Annotated[float, typer.Option(help="Learning rate, as PyTorch's SGD takes it.")] = 0.01,
           momentum: Annotated[float, typer.Option(help="Momentum.")] = 0.9,
           epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 5,
           batch: Annotated[int, typer.Option(help="Examples a step.")] = 128, device: Device = None) -> None:
    """Foretell from one short run whether momentum is needed, and name the SGD to try instead."""
    from optscope.engine.place import Place
    from optscope.engine.plan import Plan
    from optscope.optim import SGD
    from optscope.protocol.advice import advise as foretell
    from optscope.protocol.resolve import task_at

    place = Place(device or "cpu")
    say(str(foretell(task_at(task), SGD(lr=lr, momentum=momentum), Plan(epochs, batch), place=place)))
    say("to compare both, each at its own best rate: "
         f"optscope compare {task} -o momentum -o sgd --epochs {epochs}")


@app.command()
def status(folder: Annotated[Path, typer.Argument(help="A folder in which a command works, or has worked.")],
           watch: Annotated[bool, typer.Option("--watch", help="Go on until that command ends.")] = False,
           as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a time.")] = False) -> None:
    """Say how the work in a folder goes: runs done, running, failed, time left, the best so far of every arm."""
    from rich.live import Live
    from rich.text import Text

    from optscope.files import to_line
    from optscope.following import followed
    from optscope.status import Status

    def tell(found: Status) -> None:
        say(to_line(found.told()).decode().rstrip("\n") if as_json else str(found))

    states = followed(folder)
    if not watch:
        tell(next(states))
        return
    with contextlib.suppress(KeyboardInterrupt):  # who looks on may leave: the work is another process's
        if as_json or not OUT.is_terminal:
            for found in states:
                tell(found)
        else:
            with Live(console=OUT, auto_refresh=False) as live:
                for found in states:
                    live.update(Text(str(found)), refresh=True)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A folder that run or compare made.")],
           as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
           ) -> None:
    """Say again where a folder's report is and what it found."""
    from optscope.files import read_json
    from optscope.following import check_is_ours

    check_is_ours(folder)
    if as_json:
        if not (folder / "report.json").is_file():
            raise UserError(f"{folder} has no report.json: run the command that made it again, which repeats no "
                            "finished run")
        say((folder / "report.json").read_text(encoding="utf-8").strip())
        return
    if (folder / "verdicts.json").is_file():
        verdicts = read_json(folder / "verdicts.json")
        try:
            lines = [f"{verdict['claim']:<5} {verdict['outcome']:<10} {verdict['text']}" for verdict in verdicts]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'verdicts.json'} is not what optscope writes there: run the command that "
                            "made it again") from error
        for line in lines:
            say(line)
    if (folder / "run.json").is_file():
        made = read_json(folder / "run.json")
        if isinstance(made, dict) and made.get("answer"):
            say(str(made["answer"]))
    if (folder / "summary.csv").is_file():
        say(f"every number: {folder / 'summary.csv'}")
    page = folder / "report.html"
    say(f"report: {page}" if page.is_file() else "no report yet: the command that made the folder continues")


@app.command()
def data(name: Annotated[str, typer.Argument(
        help="Its name, such as fashion-mnist; a wrong one names all.")]) -> None:
    """Fetch a data set, as it was published."""
    from optscope.tasks.sources import fetch

    say(f"{name}: {fetch(name)}")


def _slug(place: str) -> str:
    """Return a task's place as part of a folder's name: my_task.py:task is my_task-task."""
    return place.replace(".py", "").replace(":", "-").replace("/", "-").strip("-.")


def _open(door: Any, name: str, task: str, out: Path | None, optimisers: list[str] | None, config: Path | None,
          slots: int, executor: str | None, **overrides: Any) -> None:
    """Read the settings of a command, go through its door, and say what came of it."""
    from optscope.progress import Display
    from optscope.protocol.pools import executor_at
    from optscope.protocol.resolve import task_at
    from optscope.protocol.settings import read_settings

    double = sorted({each for each in optimisers or [] if (optimisers or []).count(each) > 1})
    if double:
        raise UserError(f"each optimiser stands once; got {', '.join(double)} more than once")
    chosen: dict[str, Any] | None = {each: {} for each in optimisers} if optimisers else None
    settings = read_settings(config, optimisers=chosen, **overrides)
    place, start = out or Path("runs") / f"{name}-{_slug(task)}", Path.cwd()
    found = task_at(task)
    place = place if Path.cwd() == start else start / place  # the task's file may change folder
    with executor_at(executor, slots, settings.devices) as chosen_executor:
        result = door(found, place, settings=settings, executor=chosen_executor, listener=Display(ERR),
                      command=_command())
    say(result.summary)
    _close(result)


def _study(name: str) -> Any:
    import importlib

    from optscope.studies import STUDIES

    if name not in STUDIES:
        raise UserError(f'no study "{name}"; {nearest(name, STUDIES)}')
    return importlib.import_module(f"optscope.studies.{name}").STUDY


def _close(result: Any) -> None:
    say(f"report: {result.report}")
    if result.failures:
        sys.exit(1)
