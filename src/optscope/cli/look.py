"""Commands that train nothing: what there is, how a folder stands, what it found, also for other tools; data."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from optscope.cli.app import StudyName, app
from optscope.endings import OUT, say
from optscope.errors import UserError
from optscope.studies import STUDIES, study_of


@app.command("list")
def list_() -> None:
    """List studies, tasks and optimisers by name."""
    from optscope.protocol.arms import NAMES
    from optscope.tasks.catalog import TASKS

    OUT.print("[bold]studies[/bold]")
    for name in STUDIES:
        study = study_of(name)
        OUT.print(f"  {name:<22} {study.paper.title} (arXiv {study.paper.arxiv})", highlight=False)
    OUT.print(f"[bold]tasks[/bold]       {', '.join(TASKS)}, or my_task.py:NAME", highlight=False)
    OUT.print(f"[bold]optimisers[/bold]  {', '.join(NAMES)}, or module:Class", highlight=False)


@app.command()
def show(study: StudyName, power: Annotated[Path | None, typer.Option("--power", metavar="FOLDER", help=(
        "Say of a report of the study what would decide the claims that are undecided."))] = None) -> None:
    """Show a study: its question, claims, scales and what they cost."""
    found = study_of(study)
    if power:
        _show_power(found, power)
        return
    OUT.print(f"[bold]{found.paper.title}[/bold]\n{found.paper.authors}, {found.paper.venue}, "
               f"arXiv {found.paper.arxiv}\n", highlight=False)
    for text in (found.question, found.reproduced, found.left_out):
        OUT.print(text + "\n", highlight=False)
    for gap in found.gaps:
        OUT.print(f"[bold]{gap.differs}[/bold]: the paper {gap.paper}; here {gap.ours}; to close it: {gap.costs}",
                  highlight=False)
    OUT.print()
    for claim in found.claims:
        OUT.print(f"[bold]{claim.id}[/bold] {claim.text} ({claim.source})", highlight=False)
    OUT.print()
    for scale, cost in found.costs.items():
        OUT.print(f"--scale {scale:<6} {cost}", highlight=False)


def _show_power(study: Any, folder: Path) -> None:
    """Print what it would take to decide what the report in a folder leaves open."""
    from rich import box
    from rich.table import Table

    from optscope.analyses.outlook import UNMEASURED, outlooks
    from optscope.evidence.columns import read_csv

    found = outlooks(study, read_csv(folder / "summary.csv"))
    if found.rows and all(str(row[1]).startswith(UNMEASURED) for row in found.rows):
        raise UserError(f"expected the records of {study.name}, got none that its claims read: give the folder of "
                        "its report")
    shown = Table(*found.header, title=found.title, caption=found.note, box=box.SIMPLE, highlight=False)
    for row in found.rows:
        shown.add_row(*map(str, row))
    OUT.print(shown if found.rows else "No claim is undecided.")


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
def report(folder: Annotated[Path, typer.Argument(help="A folder that a command or a Recorder made.")],
           as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
           anew: Annotated[bool, typer.Option("--anew", help=(
               "Judge and draw a study's report anew from its summary.csv; nothing is trained."))] = False,
           ) -> None:
    """Say again where a folder's report is and what it found; of recorded trainings, write it anew."""
    from optscope.files import RECORDED, read_json
    from optscope.following import check_is_ours

    if anew:
        from optscope.again import rewritten

        rewritten(folder)
    else:
        check_is_ours(folder)
    if any((folder / "runs").glob(f"*/{RECORDED}")):  # of which more may have come since
        from optscope.lab import recorded

        recorded(folder)
    if as_json:
        if not (folder / "report.json").is_file():
            raise UserError(f"{folder} has no report.json: run the command that made it again, which repeats no "
                            "finished run")
        read_json(folder / "report.json")  # damaged, it is no use to a program
        say((folder / "report.json").read_text(encoding="utf-8").strip())
        return
    if (folder / "verdicts.json").is_file():
        verdicts = read_json(folder / "verdicts.json")
        try:
            lines = [f"{each['claim']:<5} {each.get('said', each['outcome']):<10} {each['text']}"
                     for each in verdicts]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
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
def export(folder: Annotated[Path, typer.Argument(help="A folder that a command or a Recorder made.")],
           to: Annotated[str, typer.Option("--to", help="parquet, tensorboard, wandb, mlflow or trackio.")],
           out: Annotated[Path, typer.Option("--out", help="The new file or folder.")]) -> None:
    """Write every number and every curve of a folder for another tool; nothing leaves this machine."""
    from optscope.exports import export as written
    from optscope.following import check_is_ours

    check_is_ours(folder)
    say(f"to look at it: {written(folder, to, out)}")


@app.command()
def serve(folder: Annotated[Path, typer.Argument(help="A folder in or below which commands work, or have worked.")],
          port: Annotated[int, typer.Option(help="Of this machine; 0 takes any that is free.")] = 8000,
          host: Annotated[str, typer.Option(help="Address of this machine that is answered at.")] = "127.0.0.1",
          yes_open: Annotated[bool, typer.Option(
              "--yes-open", help="Let others who reach --host read the reports.")] = False) -> None:
    """Show the folders' reports in a browser, and how the work goes until they are there; Ctrl-C ends it."""
    from optscope.serving import Server

    def page_of(recordings: Path) -> str:
        from optscope.lab import recorded_page

        return recorded_page(recordings)

    with Server(folder, host, port, open_to_all=yes_open, page_of=page_of) as server:
        say(f"{folder} is shown at {server.url} (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


@app.command()
def data(name: Annotated[str, typer.Argument(help="Its name; without one, all are named.")] = "") -> None:
    """Fetch a data set, as it was published, below the folder that OPTSCOPE_DATA names (~/.cache/optscope)."""
    from optscope.tasks.sources import fetch, sources

    say(f"{name}: {fetch(name)}" if name else f"there are: {', '.join(sources())}")


@app.command()
def guide() -> None:
    """Print one page that an assistant, or a person, can follow to run a fair comparison."""
    from importlib.resources import files

    say(files("optscope").joinpath("guide.md").read_text(encoding="utf-8").rstrip())
