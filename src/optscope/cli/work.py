"""Commands that train: run a study, compare optimisers, find the rounding floor, advise on momentum."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from optscope.cli.app import Batch, Device, Margin, OneDevice, Out, Pool, Slots, StudyName, app, close, command
from optscope.endings import ERR, say
from optscope.engine.fork_server import FORKS, shared_server
from optscope.errors import UserError
from optscope.studies import study_of


@app.command()
def run(study: StudyName, scale: Annotated[str, typer.Option(help=(
            "smoke, desk, long or paper (optscope show says which there are, and what each takes)."))] = "desk",
        out: Annotated[Path | None, typer.Option(help="Folder for runs and report (runs/STUDY-SCALE).")] = None,
        slots: Slots = 0, device: Device = None, executor: Pool = None) -> None:
    """Run a paper's study and write its report; the same command again continues."""
    with _loading(out or Path("runs") / f"{study}-{scale}", executor, device):
        found = study_of(study)
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
                               executor=chosen, command=command(), place=settings.place)
    for claim, verdict in result.verdicts:
        say(f"{claim.id:<5} {verdict.word:<10} {claim.text}")
    close(result)


@app.command()
def compare(task: Annotated[str, typer.Argument(help="A task's name, or my_task.py:NAME.")], out: Out = None,
            optimiser: Annotated[list[str] | None, typer.Option(
                "--optimiser", "-o", help=(
                    "A name or module:Class each; the first is the baseline (sgd, adam, rmsprop, graft)."))] = None,
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
            quick: Annotated[bool, typer.Option("--quick", help=(
                "A first look: two seeds, half of the search; the same without it goes on."))] = False,
            baseline: Annotated[str | None, typer.Option(
                help="Which optimiser others are compared with (the first).")] = None,
            probes: Annotated[list[str] | None, typer.Option("--probes", metavar="NAME", help=(
                "Repeat for each (the usual ones that fit; optscope probe --list)."))] = None,
            metrics: Annotated[list[str] | None, typer.Option("--metrics", metavar="NAME", help=(
                "Repeat for each in which differences are tested (all)."))] = None,
            margin: Margin = None,
            config: Annotated[Path | None, typer.Option(help="A TOML file with the settings.")] = None,
            slots: Slots = 0, device: Device = None, executor: Pool = None) -> None:
    """Compare optimisers on a task and write one HTML report; the same command again continues."""
    _open("compare", task, out, optimiser, config, slots, executor, seeds=seeds, epochs=epochs, steps=steps,
          batch=batch, trials=trials, widen=widen, graft=graft, quick=quick or None, baseline=baseline,
          probes=probes, metrics=metrics, margin=margin, device=device)


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
    if config is None:
        optimiser, seeds = optimiser or ["sgd", "adam"], seeds or 5
    _open("rounding", task, out, optimiser, config, slots, executor, seeds=seeds, epochs=epochs,
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
           batch: Annotated[int, typer.Option(help="Examples a step.")] = 128, device: OneDevice = None) -> None:
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


def _slug(place: str) -> str:
    """Return a task's place as part of a folder's name: my_task.py:task is my_task-task."""
    return place.replace(".py", "").replace(":", "-").replace("/", "-").strip("-.")


def _open(door: str, task: str, out: Path | None, optimisers: list[str] | None, config: Path | None, slots: int,
          executor: str | None, **overrides: Any) -> None:
    """Read the settings of a command, go through its door, and say what came of it."""
    double = sorted({each for each in optimisers or [] if (optimisers or []).count(each) > 1})
    if double:
        raise UserError(f"each optimiser stands once; got {', '.join(double)} more than once")
    place, start = out or Path("runs") / f"{door}-{_slug(task)}", Path.cwd()
    with _loading(place, executor, overrides["device"]):
        from optscope import lab
        from optscope.progress import Display
        from optscope.protocol.pools import executor_at
        from optscope.protocol.resolve import task_at
        from optscope.protocol.settings import read_settings

        chosen: dict[str, Any] | None = {each: {} for each in optimisers} if optimisers else None
        settings = read_settings(config, optimisers=chosen, **overrides)
        found = task_at(task)
        place = place if Path.cwd() == start else start / place  # the task's file may change folder
        with executor_at(executor, slots, settings.devices) as chosen_executor:
            result = getattr(lab, door)(found, place, settings=settings, executor=chosen_executor,
                                        listener=Display(ERR), command=command())
    say(result.summary)
    close(result)


@contextlib.contextmanager
def _loading(place: Path, executor: str | None, device: str | None) -> Iterator[None]:
    """Let what workers are forked of load torch beside this process, unless there may be nothing for it to do."""
    with shared_server() as server:
        if FORKS and executor is None and device in (None, "cpu") and not (place / "run.json").is_file():
            server.begin(sys.path)
        yield
