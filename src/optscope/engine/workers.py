"""A worker: a process that makes one call after the other, is ended at any moment, and whose death is an answer."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from optscope.engine.fork_server import ENVIRONMENT, ForkServer, deaf
from optscope.engine.numerics import THREADS
from optscope.engine.origin import users_folders
from optscope.engine.watch import describe_error
from optscope.errors import UserError


class DiedError(RuntimeError):
    """A worker ended before it answered; the sentence says how."""


class Worker:
    """A process that works on a device: forked by a server, or new where there is none.

    It is started when it is given its first call, and again when it has died. It gets this process's import path,
    working directory and words of the command, loads torch before it sees a user's files, and leaves when its
    parent is gone.
    """

    def __init__(self, device: str, server: ForkServer | None) -> None:
        self.device, self._server = device, server
        self._connection: Connection | None = None
        self._process: Any

    def give(self, function: Callable[..., object], *arguments: object) -> Connection:
        """Let it make a call, and return where the answer comes."""
        if self._connection is None or not self._send(function, *arguments):
            self.end()  # it died while it had nothing to do
            self._start()
            self._send(function, *arguments)
        assert self._connection is not None
        return self._connection

    def heard(self, seconds: float) -> bool:
        """Wait at most so long, and return whether an answer has come or the process has ended."""
        return self._connection is None or self._connection.poll(seconds)

    def answer(self) -> Any:
        """Wait for what the call gives.

        Raises:
            DiedError: when the worker has ended.
            UserError, OSError or RuntimeError: what the call raised.
        """
        assert self._connection is not None
        try:
            found = self._connection.recv()
        except (EOFError, OSError):
            raise DiedError(self.end()) from None
        if isinstance(found, BaseException):
            raise found
        return found

    def end(self) -> str:
        """End the process and all that it has started, if there is one, and return how it ended."""
        from loky.backend.utils import kill_process_tree

        if self._connection is None:
            return "no process was started"
        self._connection.close()
        self._connection = None
        kill_process_tree(self._process)
        code = self._process.exitcode
        if code is None or code >= 0:
            return "its process ended" + (f" with exit code {code}" if code else "")
        by = signal.Signals(-code)
        return f"its process was ended by {by.name}" + ": memory may be short" * (by == signal.SIGKILL)

    def _start(self) -> None:
        path, place = list(sys.path), (Path.cwd(), sys.argv, self.device)
        safe = [folder for folder in path if folder not in users_folders.get()]
        if self._server is not None:
            self._connection, self._process, parent = self._server.fork(safe)
            self._send(obey, parent, path, *place)
        else:
            self._connection, self._process = _spawned(safe, (os.getpid(), path, *place))

    def _send(self, *call: object) -> bool:
        """Return whether it was there to hear of a call."""
        assert self._connection is not None
        try:
            self._connection.send(call)
        except OSError:
            return False
        return True


def _spawned(path: list[str], arguments: tuple[object, ...]) -> tuple[Connection, Any]:
    """Return a connection to a new process that obeys, and the process."""
    from loky.backend.context import get_context

    mine, theirs = Pipe()
    process = get_context("loky").Process(target=obey, args=(theirs, *arguments), env=ENVIRONMENT)
    before = list(sys.path)
    sys.path[:] = path
    try:
        with theirs, deaf():
            process.start()
    finally:
        sys.path[:] = before
    return mine, process


def obey(connection: Connection, parent: int, path: list[str], place: Path, words: list[str],
         device: str) -> NoReturn:
    """Make the calls that come, until no more can: one thread, a device, and an end when the parent is gone."""
    sys.path[:], sys.argv[:] = path, words
    os.chdir(place)
    torch.set_num_threads(THREADS)
    np.random.seed()  # of forked processes, Python's own are seeded anew, and NumPy's are not
    if torch.device(device).index is not None:
        torch.accelerator.set_device_index(torch.device(device).index)

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, *arguments = connection.recv()
            connection.send(_called(function, arguments))
    os._exit(0)


def _called(function: Callable[..., object], arguments: list[Any]) -> object:
    """Return what a call gives, or what it raised, as another process can read it."""
    try:
        return function(*arguments)
    except (UserError, OSError, DiedError) as error:
        return error
    except BaseException as error:
        return RuntimeError(describe_error(error) if isinstance(error, Exception) else repr(error))
