"""Follow a page as a newcomer does, in an empty folder: write the file it shows, run its commands as they stand.

    python scripts/walk.py README.md                  commands are found on PATH: that of a fresh environment
    python scripts/walk.py src/optscope/guide.md --limit 600

The file is the python block that begins with its name, or else the one that the words before name in backquotes;
each line of a sh block is a command (make and pip are left to scripts/release_matrix.py). Saved models, which pages
take as given, are made of its own model. A command that goes on until it is stopped (serve) gets Ctrl-C after
ten seconds; so does one over the limit, in seconds of the clock, and shows 130. Prints exit code and time of each
command, and exits with 1 where one fails.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`(\w+\.py)`")
ELSEWHERE = ("make ", "pip ")
ENDLESS = "optscope serve"
SAVED = """import torch, my_task
for name in ("adam", "sgd"):
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(my_task.model().state_dict(), f"{name}-{seed}.pt")
"""


def files(text: str) -> dict[str, str]:
    """Return the files that a page shows, by name."""
    found: dict[str, str] = {}
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            first = re.match(r"# (\w+\.py)\n", block[2])
            before = FILE.findall(text[:block.start()])
            name = first[1] if first else before[0] if before else ""
            if name:
                found.setdefault(name, block[2])
    return found


def commands(text: str) -> list[str]:
    """Return the commands that a page shows, without its remarks."""
    lines = [line.partition(" #")[0].strip() for block in BLOCK.finditer(text) if block[1] == "sh"
             for line in block[2].splitlines()]
    return [line for line in lines if line and not line.startswith(("#", *ELSEWHERE))]


def followed(command: str, folder: Path, limit: float) -> tuple[int, float, str]:
    """Return exit code, seconds and the last words of a command."""
    begun = time.perf_counter()
    running = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    endless = command.startswith(ENDLESS)
    try:
        said, _ = running.communicate(timeout=10 if endless else limit)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGINT)
        said, _ = running.communicate(timeout=120)
    code = 0 if endless and running.returncode == 130 else running.returncode
    return code, time.perf_counter() - begun, said.strip()


def main(page: Path, limit: float) -> int:
    """Follow a page, and return 1 where a command fails."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    text, failed = page.read_text(encoding="utf-8"), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = files(text)
        for command in commands(text):
            made = re.match(r"optscope new (\S+)", command)
            if "my_task.py" in command and not made and not (folder / "saved").exists():
                for name, content in given.items():  # over what `optscope new` wrote, as a newcomer puts theirs in
                    (folder / name).write_text(content)
                subprocess.run([sys.executable, "-c", SAVED], cwd=folder, check=True)
                (folder / "saved").touch()
            code, seconds, said = followed(command, folder, limit)
            failed += code not in (0, 130)
            print(f"{code:>4} {seconds:7.1f} s  {command}", flush=True)
            if code not in (0, 130):
                print(said[-2000:], flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("page", type=Path)
    asked.add_argument("--limit", type=float, default=3600.0)
    given = asked.parse_args()
    sys.exit(main(given.page, given.limit))
