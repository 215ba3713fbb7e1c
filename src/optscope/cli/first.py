"""The command for a first step: a task's file that runs as it is, to be made one's own line by line."""

from __future__ import annotations

import importlib.util
import shlex
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from optscope.cli.app import app
from optscope.endings import say
from optscope.errors import UserError, nearest

KINDS = ("table", "images", "text", "checkpoint")


@app.command()
def new(file: Annotated[Path, typer.Argument(help="The file to write, such as my_task.py.")],
        kind: Annotated[str, typer.Option(help=f"What is learned from: {', '.join(KINDS)}.")] = "table") -> None:
    """Write a task's first file, which runs as it is: table, images, text, or a checkpoint that is trained on."""
    if kind not in KINDS:
        raise UserError(f'no kind "{kind}"; {nearest(kind, KINDS)}')
    if file.suffix != ".py":
        raise UserError(f"a Python file is expected, such as my_task.py; got {file}")
    if file.exists():
        raise UserError(f"{file} is there already, and stays as it is: give another name")
    if importlib.util.find_spec(file.stem.replace(".", "_")):
        raise UserError(f"{file} would have the name of a module that is there already: call it my_{file.name}")
    text = resources.files("optscope").joinpath("templates", f"{kind}.py").read_text(encoding="utf-8")
    try:
        with file.open("x", encoding="utf-8") as made:
            made.write(text.replace("my_task.py", shlex.quote(str(file))))
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): give a folder that is there") from error
    say(f"wrote {file}; it runs as it is: optscope compare {shlex.quote(f'{file}:task')} --quick")
