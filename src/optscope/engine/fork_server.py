"""A process that has loaded torch once, and forks workers of it: each begins in milliseconds, in a clean state.

The server is started anew, not forked from a user's process: it has one thread, holds none of the user's files or
modules, and libraries found their number of threads set when they were loaded. It never uses an accelerator. This
module runs without torch, so that a command can start the server before it loads torch itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from multiprocessing.connection import Connection, Pipe
from typing import NoReturn

FORKS = sys.platform == "linux"
"""Whether processes may be forked here: libraries of macOS do not bear it, and Windows has no such thing."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
               "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Variables that a worker has beyond its parent's, for libraries when they are loaded: one thread, and no bars of
transformers, which would lie across the display of all runs.
"""

_PACE = 0.5
_PROGRAM = ("import sys; sys.path[:] = {path!r}; "
            "from optscope.engine.fork_server import serve; serve({fd}, {parent})")
_shared: ContextVar[ForkServer | None] = ContextVar("_shared", default=None)


class Forked:
    """A worker that a server has forked: what it is asked of a process."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid, self._server = pid, server
        self.exitcode: int | None = None

    def kill(self) -> None:
        """End it at once: its number is its own until it is joined."""
        if self.exitcode is None:
            with contextlib.suppress(ProcessLookupError):  # its server was gone, and it has left
                os.kill(self.pid, signal.SIGKILL)

    def join(self) -> None:
        """Wait until it has ended; how is not known when its server is gone, which it does not survive."""
        if self.exitcode is None:
            self.exitcode = self._server.join(self.pid)


class ForkServer:
    """The server as its parent sees it: it ends with that, however it comes, and all workers with it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._environment: dict[str, str] = {}
        self._workers: set[int] = set()

    def begin(self, path: Sequence[str]) -> None:
        """Start the server if there is none, or an idle one has other variables; do not wait until it has loaded.

        `path` is where it finds modules.
        """
        environment = os.environ | ENVIRONMENT
        if self._process is not None and self._process.poll() is None and (
                self._workers or self._environment == environment):
            return
        self.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = _PROGRAM.format(path=list(path), fd=theirs.fileno(), parent=os.getpid())
        with theirs, deaf():
            self._process = subprocess.Popen([sys.executable, "-P", "-c", program], env=environment,
                                             stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        self._environment = environment

    def fork(self, path: Sequence[str]) -> tuple[Connection, Forked, int]:
        """Return a connection to a new worker, its process, and its parent's id; it does the first thing sent."""
        self.begin(path)
        assert self._process is not None
        mine, theirs = Pipe()
        with theirs:
            pid = self._ask(0, theirs.fileno())
        self._workers.add(pid)
        return mine, Forked(pid, self), self._process.pid

    def join(self, pid: int) -> int | None:
        """Wait until a worker has ended, and return how."""
        if pid not in self._workers:  # of a server that is gone
            return None
        self._workers.discard(pid)
        try:
            return self._ask(pid)
        except ConnectionError:
            return None

    def _ask(self, pid: int, *fds: int) -> int:
        """Return how the worker `pid` ended; or for 0 fork one that has the other end of a connection: its id."""
        assert self._socket is not None
        try:
            socket.send_fds(self._socket, [_packed(pid)], fds)
            answer = self._socket.recv(8)
        except BaseException:  # interrupted, it may have forked what nobody knows of
            self.close()
            raise
        if not answer:
            raise ConnectionResetError("the process that workers are forked of has ended")
        return int.from_bytes(answer, signed=True)

    def close(self) -> None:
        """End the server and all its workers."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            if not self._workers:  # it may still be loading
                self._process.kill()
            self._process.wait()
        self._process = self._socket = None
        self._workers.clear()


def at_hand() -> AbstractContextManager[ForkServer]:
    """Give the server that is shared here, or one that ends with this."""
    known = _shared.get()
    return contextlib.closing(ForkServer()) if known is None else contextlib.nullcontext(known)


@contextlib.contextmanager
def shared_server() -> Iterator[ForkServer]:
    """Within it, all who need a server share one."""
    with at_hand() as server:
        token = _shared.set(server)
        try:
            yield server
        finally:
            _shared.reset(token)


def kept() -> ForkServer:
    """Return the server that is shared here, or one that is from now on and ends with this process."""
    known = _shared.get()
    if known is None:
        _shared.set(known := ForkServer())
    return known


def serve(fd: int, parent: int) -> None:
    """Load, and fork workers, until the parent closes its end or is gone; then end them."""
    program = importlib.import_module("optscope.engine.execute").PROGRAM
    importlib.import_module("optscope.engine.identity").source_digest(*program)  # which loads all that it names
    with contextlib.suppress(ImportError):  # what torch loads, sympy and all, at the first product with a Hessian
        importlib.import_module("torch.fx.experimental.symbolic_shapes")
    gc.collect()
    gc.freeze()  # so that collections of workers write into none of the memory that they share
    workers: set[int] = set()
    with socket.socket(fileno=fd) as asked, contextlib.suppress(ConnectionError):
        asked.settimeout(_PACE)
        while os.getppid() == parent:  # a process that the parent has forked may hold its end longer than it lives
            with contextlib.suppress(TimeoutError):
                message, fds, *_ = socket.recv_fds(asked, 8, 1)
                if not message:
                    break
                if fds:
                    answer = _fork(fds[0], asked)
                    workers.add(answer)
                else:
                    answer = _ended(int.from_bytes(message))
                    workers.discard(int.from_bytes(message))
                asked.send(_packed(answer))
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def _packed(number: int) -> bytes:
    return number.to_bytes(8, signed=True)


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fork(fd: int, asked: socket.socket) -> int:
    """Return the id of a new process that does what comes through a connection first."""
    pid = os.fork()
    if not pid:
        asked.close()
        _work(fd)
    os.close(fd)
    return pid


def _work(fd: int) -> NoReturn:
    code = 1
    try:
        with Connection(fd) as connection:
            function, *arguments = connection.recv()
            function(connection, *arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Start processes that do not hear what is sent to a whole group, as by Ctrl-C: this one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
