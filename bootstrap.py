"""Make the project's own virtual environment, once, and run one of its commands in it.

    python3 bootstrap.py demo     compare optimisers on the embedded data; the report's path comes last
    python3 bootstrap.py smoke    the same in seconds: every part runs, nothing can be concluded
    python3 bootstrap.py test     lint, types, and the whole test suite
    python3 bootstrap.py docs     the documentation, with the output of its tutorials, into docs/_build/html
    python3 bootstrap.py check    does the package import, does the command answer?

Needs Python 3.11 to 3.14 and nothing else. Environment variables: PIP_ARGS is passed on to pip (offline:
PIP_ARGS="--no-index --find-links DIR"); USE_SYSTEM_TORCH=1 takes the torch that this Python has (one outside
virtual environments) instead of installing the CPU build.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STUDIES = sorted(path.parent.name for path in Path(__file__).parent.glob("src/optscope/studies/*/__init__.py"))
# What each command runs inside the environment, in order, until one fails; and what is said at the end.
COMMANDS = {
    "demo": ([["optscope", "compare", "fashion-mnist", "--out", "demo"]], "report: {root}/demo/report.html"),
    "smoke": ([*(["optscope", "run", study, "--scale", "smoke"] for study in STUDIES),
               ["optscope", "compare", "digits", "--seeds", "2", "--epochs", "2", "--out", "runs/smoke"]], ""),
    "test": ([["ruff", "check", "."], ["mypy"], ["pytest", "-n", "2", "--dist", "loadscope"]], ""),
    "docs": ([["python", "scripts/docs.py"]], "documentation: {root}/docs/_build/html/index.html"),
    "check": ([["python", "-c", "import optscope; print('optscope', optscope.__version__)"],
               ["optscope", "--help"]], ""),
}
OLDEST, NEWEST = (3, 11), (3, 14)
FREE_GB = 3
# On Linux, PyPI's torch brings gigabytes of CUDA that the demo has no use for. The version of the CPU build,
# 2.13.0+cpu, sorts above 2.13.0, so pip takes it where this index answers, and PyPI's where it does not.
CPU_INDEX = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"] if sys.platform == "linux" else []

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "bootstrap.stamp"
LOG = VENV / "install.log"
UNFINISHED = "unfinished"
HINT = """No network? Give pip a folder of wheels: PIP_ARGS="--no-index --find-links DIR".
No wheel for this Python or machine (torch has none for Intel Macs)? Try another Python from 3.11 to 3.14,
or the torch you have: USE_SYSTEM_TORCH=1. Then run the same command again."""


def main(arguments: list[str]) -> int:
    """Run the command that is named, and return its exit code."""
    if len(arguments) != 1 or arguments[0] not in COMMANDS:
        print(__doc__)
        return 2
    use_a_supported_python()
    system_torch = os.environ.get("USE_SYSTEM_TORCH") == "1"
    wanted = fingerprint(system_torch)
    if not is_installed(wanted):
        with one_at_a_time():
            if not is_installed(wanted):
                install(system_torch)
                STAMP.write_text(wanted)
    commands, closing = COMMANDS[arguments[0]]
    for command in commands:
        print("$", shlex.join(command), flush=True)
        code = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT).returncode
        if code:
            print(f"{command[0]} failed with exit code {code}", file=sys.stderr)
            return code
    if closing:
        print(closing.format(root=ROOT))
    return 0


def use_a_supported_python() -> None:
    """Go on in a Python of a supported version: this one, or another on the path in its place."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    for minor in (13, 12, 11, 14):
        other = shutil.which(f"python3.{minor}")
        if other:
            os.execv(other, [other, *sys.argv])
    sys.exit(f"optscope needs Python 3.11 to 3.14; this is {sys.version.split()[0]}, and no other was found. "
             "Install one (python.org, or your system's packages) and run the command again.")


def fingerprint(system_torch: bool) -> str:
    """Return a hash of all that decides what is installed: requirements, pins, interpreter and place."""
    import tomllib  # not at the top: an older Python must get as far as the message above

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [settings["build-system"], settings["project"], (ROOT / "constraints.txt").read_text(),
             sys.version, sys.base_prefix, ROOT, system_torch]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def is_installed(wanted: str) -> bool:
    """Return whether the environment is there, whole, and made for what is wanted now."""
    return STAMP.is_file() and STAMP.read_text() == wanted


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Make a second command, started while the first still installs, wait for it."""
    if fcntl is None:
        yield
        return
    place = os.open(ROOT, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some network disks cannot lock
        fcntl.flock(place, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(place)


def install(system_torch: bool) -> None:
    """Build the environment from nothing: what an interrupted or outdated installation left goes first."""
    check_machine()
    start = time.monotonic()
    print(f"installing into {VENV} (320 MB to download, 1.9 GB on disk, a minute or two)", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    STAMP.write_text(UNFINISHED)
    pins = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    constraints = VENV / "constraints.txt"
    constraints.write_text("".join(pin for pin in pins if not (system_torch and pin.startswith("torch=="))))
    extra = ["--system-site-packages"] if system_torch else []
    logged([sys.executable, "-m", "venv", *extra, str(VENV)])
    pip = [str(BIN / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input",
           "-c", str(constraints), *shlex.split(os.environ.get("PIP_ARGS", ""))]
    if system_torch:
        logged([str(BIN / "python"), "-c", "import torch"])
    else:
        logged([*pip, "--no-deps", "--timeout", "15", "--retries", "2", *CPU_INDEX, "torch"])
    logged([*pip, "-e", ".[test,oracle,docs]"])
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)


def check_machine() -> None:
    """Exit unless an environment can be made here: venv works, the disk has room, the place is ours."""
    try:
        import ensurepip  # noqa: F401  (Debian ships it, and so a working venv, in a package of its own)
        import venv  # noqa: F401
    except ImportError:
        sys.exit(f"this Python has no venv; on Debian or Ubuntu: sudo apt install "
                 f"python3.{sys.version_info[1]}-venv")
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < FREE_GB:
        sys.exit(f"the installation needs {FREE_GB} GB of free disk; {ROOT} has {free:.1f} GB left")
    if VENV.exists() and not STAMP.is_file():
        sys.exit(f"{VENV} is there but was not made by bootstrap.py; move it away and run the command again")


def logged(command: list[str]) -> None:
    """Run one step of the installation with its output in the log; show its last lines when it fails."""
    alive = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1
    with LOG.open("a") as log, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE,
                                                stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if alive:
                print("\r" + line.strip()[:width].ljust(width), end="", flush=True)
    if alive:
        print("\r" + " " * width, end="\r", flush=True)
    if process.returncode:
        tail = "".join(LOG.read_text().splitlines(keepends=True)[-15:])
        sys.exit(f"{tail}\n{shlex.join(command)}\nfailed ({process.returncode}); see {LOG}\n{HINT}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
