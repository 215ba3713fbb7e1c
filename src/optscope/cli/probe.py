"""The command that measures saved models, and says by what they can be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optscope.cli.app import Device, Margin, Out, Slots, app, close, command
from optscope.endings import ERR, OUT, say
from optscope.errors import UserError


@app.command()
def probe(checkpoints: Annotated[list[Path] | None, typer.Argument(
              help="Files of weights, or folders of save_pretrained, Accelerate or a run.")] = None,
          task: Annotated[str, typer.Option("--task", metavar="TASK", help=(
              "What they were trained for: a task's name, or my_task.py:NAME."))] = "",
          probes: Annotated[list[str] | None, typer.Option(
              "--probes", metavar="NAME", help="Repeat for each (the usual ones that fit).")] = None,
          group: Annotated[str, typer.Option("--group", metavar="PATTERN", help=(
              'How paths end, such as "{arm}-{seed}.pt": tests differences over shared seeds.'))] = "",
          out: Out = None,
          examples: Annotated[int | None, typer.Option(help="Test examples that attacks look at (1000).")] = None,
          margin: Margin = None,
          list_: Annotated[bool, typer.Option("--list", help="Say what probes there are, and end.")] = False,
          slots: Slots = 0, device: Device = None) -> None:
    """Measure saved models and write one page about them; the same command again takes no reading twice."""
    if list_:
        _list()
        return
    if not checkpoints or not task:
        raise UserError("a saved model and its task are expected: optscope probe model.pt --task my_task.py:task "
                        "(optscope probe --list says by what it is measured)")
    from optscope.engine.execute import Local
    from optscope.lab import probe as door
    from optscope.progress import Display
    from optscope.protocol.resolve import task_at
    from optscope.protocol.settings import read_settings

    settings, start = read_settings(None, examples=examples, margin=margin, device=device), Path.cwd()
    found = task_at(task)
    moved = Path.cwd() != start  # by the task's file
    paths = [start / path for path in checkpoints] if moved else checkpoints
    result = door(paths, found, probes=probes or (), group=group, out=start / out if out and moved else out,
                  settings=settings, executor=Local(slots, settings.devices), listener=Display(ERR),
                  command=command())
    say(result.summary)
    close(result)


def _list() -> None:
    from rich.table import Table

    from optscope.probes.catalog import PROBES, kind_named, measures

    table = Table("probe", "costs", "MB", "needs", "measures", box=None, pad_edge=False)
    for column in table.columns[:3]:
        column.no_wrap = True
    for name, known in PROBES.items():
        kind = kind_named(name)
        table.add_row(name, *("" if number is None else f"{number:,g}" for number in (known.cost, known.memory)),
                      ", ".join(need for need in kind.needs if need != "one network"), measures(kind))
    OUT.print(table, highlight=False)
    say("needs: one network, but for games, and what docs/probes.md tells of; costs: in gradients of 128 examples, "
        "or steps of SGD, of a small network, with the settings that compare takes; MB: what a look adds to a "
        "process at its peak (docs/benchmarks.md, B24)")
