"""Firefox for tests, by the interface of `browser.Browser`: WebDriver BiDi over a web socket of a few lines."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "ArrowLeft": "\ue012", "ArrowRight": "\ue014"}
SHIFT = "\ue008"
EVENTS = ("log.entryAdded", "network.beforeRequestSent")


class Line:
    """A web socket (RFC 6455) to this machine, of text in messages of any length."""

    def __init__(self, port, path):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall((f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
                              f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13"
                              "\r\n\r\n").encode())
        self._left = b""
        while b"\r\n\r\n" not in self._left:
            self._more()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        assert b" 101 " in head.split(b"\r\n")[0] + b" ", head

    def _more(self):
        more = self._socket.recv(1 << 20)
        assert more, "the browser has gone"
        self._left += more

    def _take(self, count):
        while len(self._left) < count:
            self._more()
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def send(self, text):
        """Send a message, as clients have to: masked."""
        content, mask = text.encode(), os.urandom(4)
        size = len(content)
        head = (bytes([0x81, 0x80 | size]) if size < 126 else
                struct.pack(">BBH", 0x81, 0x80 | 126, size) if size < 1 << 16 else
                struct.pack(">BBQ", 0x81, 0x80 | 127, size))
        keys = (mask * (size // 4 + 1))[:size]
        masked = int.from_bytes(content, "big") ^ int.from_bytes(keys, "big")
        self._socket.sendall(head + mask + masked.to_bytes(size, "big"))

    def hear(self):
        """Return the next message."""
        content = b""
        while True:
            first, size = self._take(2)
            size = size if size < 126 else int.from_bytes(self._take(2 if size == 126 else 8), "big")
            part = self._take(size)
            if first & 15 < 3:  # else a ping or a farewell
                content += part
                if first & 128:
                    return content.decode()

    def close(self):
        """Hang up."""
        self._socket.close()


class Firefox:
    """One Firefox with one page; `said` is what its console and its policies complained of."""

    def __init__(self, profile):
        self._process = subprocess.Popen(
            [FIREFOX, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "HOME": str(profile), "MOZ_CRASHREPORTER_DISABLE": "1"})
        found = next(filter(None, (re.search(r"BiDi listening on ws://[^:]*:(\d+)", line)
                                   for line in self._process.stderr)))
        self._asked, self.said, self.requests = 0, [], []
        self._line = Line(int(found[1]), "/session")
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=list(EVENTS))
        self._context = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def close(self):
        """End the browser."""
        self.ask("browser.close")
        self._line.close()
        self._process.wait(60)
        self._process.stderr.close()

    def ask(self, method, **parameters):
        """Send a command, and return what comes of it."""
        self._asked += 1
        self._line.send(json.dumps({"id": self._asked, "method": method, "params": parameters}))
        while True:
            heard = json.loads(self._line.hear())
            if heard.get("method") == "log.entryAdded":
                self.said.append(heard["params"]["text"])
            elif heard.get("method") == "network.beforeRequestSent":
                url = heard["params"]["request"]["url"]
                self.requests += [] if url.startswith(("data:", "about:")) else [url]
            if heard.get("id") == self._asked:
                assert heard["type"] == "success", heard
                return heard["result"]

    def size(self, width, height):
        """Make the window so large."""
        self.ask("browsingContext.setViewport", context=self._context, viewport={"width": width, "height": height})

    def open(self, path, width=1280, height=900):
        """Open a file and wait for it, with a new memory of what was said; return the seconds it took."""
        self.size(width, height)
        self.said, self.requests = [], []
        begun = time.perf_counter()
        self.ask("browsingContext.navigate", context=self._context, url=path.as_uri(), wait="complete")
        return time.perf_counter() - begun

    def run(self, expression):
        """Return the value of some JavaScript, in which one may wait."""
        found = self.ask("script.evaluate", expression=expression, target={"context": self._context},
                         awaitPromise=True, userActivation=True)
        assert found["type"] == "success", found["exceptionDetails"]["text"]
        return _value(found["result"])

    def _act(self, kind, *actions, **more):
        self.ask("input.performActions", context=self._context,
                 actions=[{"type": kind, "id": kind, "actions": list(actions), **more}])

    def press(self, key, shift=False):
        """Press a key and let it go."""
        keys = [SHIFT] * shift + [KEYS[key]]
        self._act("key", *({"type": "keyDown", "value": each} for each in keys),
                  *({"type": "keyUp", "value": each} for each in keys[::-1]))

    def point(self, x, y):
        """Move the pointer to a place in the window."""
        self._act("pointer", {"type": "pointerMove", "x": round(x), "y": round(y)})

    def drag(self, left, right, y):
        """Press the pointer's button, move the pointer, and let go."""
        moves = [{"type": "pointerMove", "x": round(x), "y": round(y)} for x in (left, (left + right) / 2, right)]
        self._act("pointer", moves[0], {"type": "pointerDown", "button": 0}, *moves[1:],
                  {"type": "pointerUp", "button": 0})

    def picture(self):
        """Return what the window shows, as PNG."""
        return base64.b64decode(self.ask("browsingContext.captureScreenshot", context=self._context)["data"])

    def pdf(self):
        """Return the page as it prints."""
        return base64.b64decode(self.ask("browsingContext.print", context=self._context)["data"])


def _value(remote):
    """Return the Python value of what BiDi calls a remote value."""
    kind, value = remote["type"], remote.get("value")
    if kind == "array":
        return [_value(each) for each in value]
    if kind == "object":
        return {key: _value(each) for key, each in value}
    if kind == "number":
        return float(value) if isinstance(value, str) else value
    return value if kind in ("string", "boolean") else None
