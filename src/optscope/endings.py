"""How a command ends: by itself, by a signal or a closed pipe, and with what a user can mend in a sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

import typer
from rich.console import Console

from optscope.errors import DISK_ERRORS, UserError


class UnreadError(RuntimeError):
    """Nobody reads what is printed; no OSError, of which typer would make an exit without a word."""


class Teller(Console):
    """A console that leaves it to the command what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        """Raise."""
        raise UnreadError


OUT, ERR = Teller(), Teller(stderr=True)
SHOW_CURSOR = "\x1b[?25h"
HEARD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 5.0
"""Seconds in which a second Ctrl-C waits for the first to do its work."""


def ended(run: Callable[[], object]) -> None:
    """Run a command; what a user can mend is one sentence and exit code 2, a full disk is 74."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    came = _hear_signals()
    try:
        if run() == 130:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except UserError as error:
        _stop(str(error), 2, debug)
    except (UnreadError, BrokenPipeError):
        _leave_pipes()
        try:
            _stop("nobody reads the output; finished runs are kept: the same command continues", 141, debug=False)
        except UnreadError:  # nor that
            _leave(sys.stderr)
            sys.exit(141)
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
            _leave(stream)


def _leave(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stop(sentence: str, code: int, debug: bool) -> None:
    if debug:
        raise
    if sentence:  # without arguments the help has been shown, and nothing is left to say
        say(f"optscope: {' '.join(sentence.split())}", ERR)
    sys.exit(code)


def say(text: str, console: Console = OUT) -> None:
    """Print a line as it is: names and paths may hold brackets, and are copied whole."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
