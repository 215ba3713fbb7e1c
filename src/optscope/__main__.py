"""The command, as `python -m optscope`."""

from optscope.cli import main

main()
