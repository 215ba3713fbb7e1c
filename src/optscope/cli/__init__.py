"""The command: new, compare, rounding, advise, probe, run, list, show, status, serve, report, export, data, guide.

Torch is imported only by commands that need it.
"""

from optscope.cli import first, look, probe, work
from optscope.cli.app import main

__all__ = ["first", "look", "main", "probe", "work"]
