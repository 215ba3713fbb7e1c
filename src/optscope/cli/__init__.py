"""The command: run, compare, rounding, advise, probe, list, show, status, report, export, data, guide.

Torch is imported only by commands that need it.
"""

from optscope.cli import look, probe, work
from optscope.cli.app import main

__all__ = ["look", "main", "probe", "work"]
