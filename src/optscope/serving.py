"""Folders as pages for a browser: what optscope made below a folder, read only, also while it grows."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import os
import platform
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from pathlib import Path

import jinja2

from optscope.errors import UserError
from optscope.evidence.recorded import Stamp, recorded_at
from optscope.files import read_json
from optscope.following import Follower
from optscope.pace import outlook
from optscope.status import Status

KINDS = {"report.html": "text/html", "report.md": "text/markdown", "report.json": "application/json",
         "verdicts.json": "application/json", "summary.csv": "text/csv"}
"""The files of a folder that are shown, of what type; no other is."""
MARKER = "optscope.json"
PageOf = Callable[[Path], str]
SOON, LATER = 2, 10
"""Seconds after which a page is asked for again: while a command works, and while none does."""
MOST = 500
"""So many folders are listed."""
OURS = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
THEIRS = "frame-ancestors 'none'"  # a report says in itself what it may load: nothing

_TEMPLATE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=True,
    trim_blocks=True, lstrip_blocks=True).get_template("serving.html")


@dataclass(frozen=True)
class Shown:
    """A folder of the list: where it lies, how it stands, what it found; or why that cannot be read."""

    path: str
    status: Status | None = None
    answer: str = ""
    report: bool = False
    problem: str = ""

    @property
    def works(self) -> bool:
        """Whether a command works there."""
        return self.status is not None and self.status.works


class Gallery:
    """What optscope made in a folder and below it; each folder's events are read on from where they were left."""

    def __init__(self, root: Path, page_of: PageOf | None) -> None:
        self.root = root.resolve()
        self.page_of = page_of
        self._pages: dict[str, tuple[tuple[Stamp, ...], bytes]] = {}
        self._made = threading.Lock()
        self._followers: dict[str, Follower] = {}
        self._lock = threading.Lock()

    def places(self) -> Iterator[str]:
        """Yield the path of every folder with a marker, from the root, in the order of names."""
        for folder, below, files in os.walk(self.root):
            below[:] = [] if MARKER in files else sorted(name for name in below if not name.startswith("."))
            if MARKER in files:
                yield Path(folder).relative_to(self.root).as_posix().removeprefix(".")

    def holds(self, path: str, name: str = MARKER) -> bool:
        """Return whether a folder that optscope made lies at a path and holds a file, neither outside the root."""
        with contextlib.suppress(OSError, ValueError):  # names that no system takes
            folder = (self.root / path).resolve(strict=True)
            return (folder / MARKER).is_file() and (folder / name).resolve(strict=True).is_relative_to(self.root)
        return False

    def shown(self, path: str) -> Shown:
        """Return how the folder at a path stands now."""
        folder = self.root / path
        try:
            with self._lock:
                if path not in self._followers:
                    self._followers[path] = Follower(folder)
                status = self._followers[path].status()
        except (UserError, OSError) as error:
            return Shown(path, problem=str(error))
        return Shown(path, status, _answer(folder), (folder / "report.html").is_file())

    def page(self, path: str, page_of: PageOf) -> bytes:
        """Return the report of what recorders have left at a path so far, made anew when there is more; in memory.

        Raises:
            UserError: when a file is not what they write.
        """
        with self._made:
            stamp = recorded_at(self.root / path)
            if path not in self._pages or self._pages[path][0] != stamp:
                self._pages[path] = stamp, page_of(self.root / path).encode()
            return self._pages[path][1]


def _answer(folder: Path) -> str:
    """Return the first line of what a folder's last command found, "" before it has ended."""
    with contextlib.suppress(OSError, UserError):
        made = read_json(folder / "run.json")
        if isinstance(made, dict):
            return next(iter(str(made.get("answer", "")).splitlines()), "")
    return ""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by a server's gallery; every page is made when it is asked for, and none can change anything."""

    server: Server
    timeout = 10  # seconds of a connection on which nothing is said

    def do_GET(self) -> None:
        """Send the list of folders, a folder's page, or one of its files."""
        if not self.server.answers_to(self.headers.get("Host", "")):
            self._send(HTTPStatus.FORBIDDEN, b"this server was asked by another host's name\n", "text/plain")
            return
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        gallery, (first, _, rest) = self.server.gallery, path.removeprefix("/").partition("/")
        place, _, name = rest.rpartition("/")
        if not path.strip("/"):
            rows = [gallery.shown(each) for each in islice(gallery.places(), MOST)]
            self._page("optscope", rows=rows, again=SOON if any(row.works for row in rows) else LATER)
        elif first == "folder" and not name and gallery.holds(place):
            self._folder(gallery.shown(place))
        elif first == "folder" and name in KINDS and gallery.holds(place, name):
            self._file(gallery.root / place, name)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"nothing that optscope made lies there\n", "text/plain")

    do_HEAD = do_GET  # noqa: N815, the name that http.server looks for

    def _folder(self, shown: Shown) -> None:
        """Send a folder's report; while a command works, or before one has ended, how it stands.

        That of recordings, of which no command writes one, is of what is there now.
        """
        gallery, page_of = self.server.gallery, self.server.gallery.page_of
        if page_of and shown.status and shown.status.recorded:
            try:
                page = gallery.page(shown.path, page_of)
            except (UserError, OSError) as error:  # a file was damaged since
                shown = Shown(shown.path, problem=str(error))
            else:
                self._send(HTTPStatus.OK, page, "text/html", THEIRS)
                return
        if shown.report and not shown.works:
            self._file(self.server.gallery.root / shown.path, "report.html")
            return
        status = shown.status
        left = outlook(status.runs_per_second, status.total - status.done) if status and shown.works else ""
        self._page(shown.path or self.server.gallery.root.name, shown=shown, left=left,
                   again=SOON if shown.works else LATER)

    def _file(self, folder: Path, name: str) -> None:
        self._send(HTTPStatus.OK, (folder / name).read_bytes(), KINDS[name], THEIRS)

    def _page(self, title: str, again: int, **what: object) -> None:
        """Send a page that is asked for again after so many seconds, unless its reader holds it still."""
        still = urllib.parse.urlsplit(self.path).query == "still"
        text = _TEMPLATE.render({"title": title, "shown": None, "rows": (), "left": "", "again": again,
                                 "still": still, **what})
        self._send(HTTPStatus.OK, text.encode(), "text/html", again=0 if still else again)

    def _send(self, status: HTTPStatus, content: bytes, kind: str, policy: str = OURS, again: int = 0) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(content))),
                            ("Content-Security-Policy", policy), ("X-Content-Type-Options", "nosniff"),
                            ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-store"),
                            ("Cross-Origin-Resource-Policy", "same-origin")):
            self.send_header(name, value)
        if again:
            self.send_header("Refresh", str(again))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the base's name
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """A gallery at an address of this machine; anything but loopback only where that is said to be meant.

    `page_of` makes the report of a folder of recordings, which takes what this module does without; without it, how
    they stand is shown.

    Raises:
        UserError: when the folder is not there, the address is none, is open and not meant to be, or is taken.
    """

    daemon_threads = True

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 8000, *, open_to_all: bool = False,
                 page_of: PageOf | None = None) -> None:
        if not root.is_dir():
            raise UserError(f"no folder {root}: give the one in which runs lie, such as runs")
        try:
            address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError as error:
            raise UserError(f"an address of this machine is expected, such as 127.0.0.1; got {host}") from error
        self.open = not address.is_loopback
        if self.open and not open_to_all:
            raise UserError(f"at {address} everyone who can reach this machine may read the reports: leave --host "
                            "out, or add --yes-open if that is meant")
        self.gallery = Gallery(root, page_of)
        self.address_family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        try:
            super().__init__((str(address), port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} of {address} cannot be had ({error}): give --port another number, or 0 "
                            "for any that is free") from error

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def answers_to(self, said: str) -> bool:
        """Return whether a request's Host is this machine's.

        A page of another host, whose name was made to point here, would otherwise read the reports through the
        browser that shows it. Addresses cannot be made to point elsewhere; names are taken only if they are ours.
        """
        name = ""
        try:
            name = urllib.parse.urlsplit(f"//{said}").hostname or ""
            address = ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or (self.open and name in (platform.node().lower(), socket.getfqdn()))
        return self.open or address.is_loopback
