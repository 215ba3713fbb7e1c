"""What all commands share: the program they belong to, options of one meaning, how a call ends."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from optscope.endings import ended, say

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="See what the choice of optimiser does to a trained model, beyond its loss curve.")

Out = Annotated[Path | None, typer.Option("--out", help="Folder for runs and report (runs/COMMAND-NAME).")]
Slots = Annotated[int, typer.Option("--slots", min=0, help=(
    "Processes to use (0: one a core); of accelerators, runs on each at once (0: one)."))]
Batch = Annotated[int | None, typer.Option("--batch", help="Examples a step (128).")]
Device = Annotated[str | None, typer.Option("--device", help=(
    "Where to compute: auto, cpu, cuda, mps, ..., or several: cuda:0,cuda:1."))]
OneDevice = Annotated[str | None, typer.Option("--device", help="Where to compute: auto, cpu, cuda, mps, ...")]
Margin = Annotated[str | None, typer.Option("--margin", help=(
    "Within what accuracies count as equal, such as 0.5 or 20% (1.5 points or 20 % of the baseline's error, "
    "whichever is less)."))]
StudyName = Annotated[str, typer.Argument(help="A study's name (optscope list).")]

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


def command() -> str:
    """Return what a reader types for the same numbers: the call without the folder it wrote to."""
    words = sys.argv[1:]
    kept = [w for i, w in enumerate(words)
            if not w.startswith("--out") and (i == 0 or words[i - 1] != "--out")]
    return shlex.join(["optscope", *kept])


def close(result: Any) -> None:
    """Say where the report is; a call of which runs failed ends with 1."""
    say(f"report: {result.report}")
    if result.failures:
        sys.exit(1)
