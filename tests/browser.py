"""A browser for tests: Debian's Chromium without a window or a network, spoken to over a pipe of its own."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--mute-audio",
         "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
         "--remote-debugging-pipe")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One Chromium with one page; `said` is what its console and its policies complained of."""

    def __init__(self, profile):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # The pipes have to be its descriptors 3 and 4, and may lie in each other's way: so by way of 8 and 9.
        joined = f'exec 8<&{to_read} 9>&{to_write}; exec "$0" "$@" 3<&8 4>&9 8<&- 9>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", joined, CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._asked, self._left, self.said, self.requests = 0, b"", [], []
        self._session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self):
        """End the browser."""
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(30)

    def ask(self, method, **parameters):
        """Send a command, and return what comes of it."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == self._asked:
                assert "error" not in heard, heard
                return heard["result"]

    def _hear(self):
        while b"\0" not in self._left:
            more = os.read(self._read, 1 << 20)
            assert more, "the browser has gone"
            self._left += more
        line, _, self._left = self._left.partition(b"\0")
        heard = json.loads(line)
        method, told = heard.get("method"), heard.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(told["exceptionDetails"]["exception"]["description"])
        elif method == "Log.entryAdded":
            self.said.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.said.append(str([each.get("value") for each in told["args"]]))
        elif method == "Network.requestWillBeSent":
            self.requests += [told["request"]["url"]] if not told["request"]["url"].startswith("data:") else []
        return heard

    def size(self, width, height, dark=False):
        """Make the window so large, and the page light or dark."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 500)
        self.ask("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def open(self, path, width=1280, height=900, dark=False, script=True):
        """Open a file and wait for it, with a new memory of what was said; return the seconds it took."""
        self.size(width, height, dark)
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.said, self.requests = [], []
        begun = time.perf_counter()
        self.ask("Page.navigate", url=path.as_uri())
        while self._hear().get("method") != "Page.loadEventFired":
            pass
        return time.perf_counter() - begun

    def run(self, expression):
        """Return the value of some JavaScript, in which one may wait."""
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True,
                         userGesture=True, allowUnsafeEvalBlockedByCSP=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def spent(self):
        """Return the CPU seconds that the page's thread has worked."""
        found = self.ask("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in found if each["name"] == "TaskDuration")

    def press(self, key, shift=False):
        """Press a key and let it go."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key],
                     modifiers=8 if shift else 0, **({"text": "\r"} if key == "Enter" and kind != "keyUp" else {}))

    def point(self, x, y):
        """Move the pointer to a place in the window."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, left, right, y):
        """Press the pointer's button, move the pointer, and let go."""
        for kind, x in (("mousePressed", left), ("mouseMoved", (left + right) / 2), ("mouseMoved", right),
                        ("mouseReleased", right)):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1,
                     buttons=int(kind != "mouseReleased"))

    def picture(self):
        """Return what the window shows, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot")["data"])

    def pdf(self):
        """Return the page as it prints."""
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=False)["data"])
