"""Build the wheel, say what it holds, and try it in fresh environments: every Python here, both ends of packages.

    python scripts/release_matrix.py                  every Python from 3.11 on that is found
    python scripts/release_matrix.py 3.11 3.12        these alone

The newest end is what the index gives today, the oldest what pyproject.toml permits and has a wheel for a Python.
On Linux torch's builds on PyPI bring gigabytes of CUDA (5 GB an environment, which goes when it was tried; uv keeps
the wheels): UV_TORCH_BACKEND=cpu takes the builds for the CPU, where their index answers. Every environment runs
the core of the suite without pandas, and what makes data frames again with it. Prints a table, and exits with 1
where something fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 12_000_000
"""Bytes that a wheel may have."""
SLOWEST = 0.1
"""CPU seconds that `import optscope` may take."""
TOOLS = ["hypothesis", "pytest", "jsonschema", "pytorch-optimizer"]
"""What the tests need; against the last, rules are tested."""
CORE = [f"tests/test_{name}.py" for name in ("rules", "task", "tree", "comparison", "stats", "verdicts", "records",
                                             "doors")]
FRAMES = [f"tests/test_{name}.py" for name in ("records", "gather", "doors")]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""The environment in which everything is tried: the installed package must be found, not the checkout."""


def said(*command: str | Path, folder: Path = ROOT) -> tuple[bool, str]:
    """Return whether a command succeeds, and what it says."""
    done = subprocess.run(command, cwd=folder, env=CLEAN, capture_output=True, text=True)
    return done.returncode == 0, (done.stdout + (done.stderr if done.returncode else "")).strip()


def must(*command: str | Path) -> str:
    """Return what a command says, or end with it."""
    fine, output = said(*command)
    if not fine:
        sys.exit(f"{' '.join(map(str, command))}\n{output}")
    return output


def pythons(asked: list[str]) -> list[str]:
    """Return the interpreters to try, the oldest first: those of the path and of pyenv."""
    places = [*os.environ["PATH"].split(os.pathsep), *map(str, Path.home().glob(".pyenv/versions/*/bin"))]
    found: dict[str, str] = {}
    for minor in range(11, 15):
        for place in places:
            path = shutil.which(f"python3.{minor}", path=place)
            if path and "shims" not in path and said(path, "-c", "import ensurepip")[0]:
                found.setdefault(f"3.{minor}", path)
    missing = [name for name in asked or [f"3.{minor}" for minor in range(11, 15)] if name not in found]
    print("not found:", ", ".join(missing) or "none")
    return [path for name, path in found.items() if not asked or name in asked]


def contents(wheel: Path) -> bool:
    """Print what a wheel holds, folder by folder, and return whether it is small enough and holds what git does."""
    folders: dict[str, list[int]] = {}
    known = set(must("git", "-C", ROOT / "src", "ls-files", "optscope").splitlines())
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("optscope/")}
        for member in archive.infolist():
            folders.setdefault("/".join(member.filename.split("/")[:-1][:2]), []).append(member.compress_size)
    for folder, sizes in sorted(folders.items()):
        print(f"  {folder:<32} {len(sizes):>4} files {sum(sizes) / 1e3:>9,.0f} kB")
    size = wheel.stat().st_size
    print(f"  {wheel.name}: {size / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f}")
    print("  FAILED, only in one of wheel and git:" if held ^ known else "  the package as git has it",
          *sorted(held ^ known))
    return size <= LARGEST and held == known


def tried(python: str, end: str, wheel: Path, work: Path) -> list[str]:
    """Return a row: what came of one Python with the newest or the oldest packages."""
    home = work / f"{Path(python).name}-{end}"
    must(python, "-m", "venv", home)
    bin_ = home / "bin"
    pip = [str(bin_ / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    must(*pip, "uv")
    how = ["--resolution", "lowest-direct"] if end == "oldest" else []
    uv = [str(bin_ / "uv"), "pip", "install", "-q", "--no-build", "--python", str(bin_ / "python")]
    fine, output = said(*uv, *how, *SETTINGS["dependencies"])
    if not fine:
        return [Path(python).name, end, "-", f"FAILED to install: {output.splitlines()[-1]}"]
    must(*uv, *TOOLS)
    must(*uv, "--no-deps", str(wheel))
    told, held = [], versions(bin_, "torch", "numpy", "scipy", "pydantic")
    pytest = [bin_ / "python", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
              "-W", "ignore::DeprecationWarning"]  # of old packages among new ones
    steps = {"imports": [bin_ / "python", "-c", "import optscope; optscope.__version__"],
             "command": [bin_ / "optscope", "guide"],
             "core": [*pytest, *CORE],
             "pandas": [*uv, "pandas", versions(bin_, "numpy").replace(" ", "==")],  # scipy of an age wants it
             "frames": [*pytest, *FRAMES]}
    for name, command in steps.items():
        fine, output = said(*command)
        last = output.splitlines()[-1] if output else ""
        told.append(f"{name}: {last}" if name in ("core", "frames") and fine else
                    versions(bin_, "pandas") if name == "pandas" and fine else
                    name if fine else f"FAILED {name}: {output[-2000:]}")
    shutil.rmtree(home)
    return [Path(python).name, end, held, "; ".join(told)]


def versions(programs: Path, *names: str) -> str:
    """Return the versions of packages in an environment, beside their names."""
    return must(programs / "python", "-c", "from importlib.metadata import version; "
                f"print(*(n + ' ' + version(n) for n in {names}))")


def typed(wheel: Path, work: Path) -> list[str]:
    """Return what mypy and pyright say of a user's file, twine of the wheel, and how long it imports."""
    home = work / "typed"
    must(sys.executable, "-m", "venv", home)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    must(*pip, "-c", ROOT / "constraints.txt", "torch")
    must(*pip, "-c", ROOT / "constraints.txt", str(wheel), "mypy", "pyright")
    must(*pip, "cffconvert", "twine")  # apart: it wants an older jsonschema than the tests
    shutil.copyfile(ROOT / "scripts" / "typed_user.py", work / "typed_user.py")
    python = str(home / "bin" / "python")
    checks = {"mypy --strict": [python, "-m", "mypy", "--strict", "typed_user.py"],
              "pyright": [python, "-m", "pyright", "--pythonpath", python, "typed_user.py"],
              "cffconvert": [str(home / "bin" / "cffconvert"), "--validate", "-i", str(ROOT / "CITATION.cff")],
              "twine": [python, "-m", "twine", "--no-color", "check", "--strict", str(wheel)],
              "import": [python, "-c", "import sys, time; t = time.process_time(); import optscope; "
                         "t = time.process_time() - t; print(f'{t:.3f} CPU seconds'); "
                         f"sys.exit(t > {SLOWEST})"]}
    found = []
    for name, command in checks.items():
        fine, output = said(*command, folder=work)
        found.append(f"{name}: {'' if fine else 'FAILED '}{output.splitlines()[-1] if output else ''}")
    return found


def main(asked: list[str]) -> int:
    """Build, list, try, and print the table."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        must(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work, ROOT)
        wheel = next(work.glob("*.whl"))
        small = contents(wheel)
        lines = typed(wheel, work)
        print(*lines, sep="\n", flush=True)
        for python in pythons(asked):
            for end in ("newest", "oldest"):
                lines.append(" | ".join(tried(python, end, wheel, work)))
                print(lines[-1], flush=True)
    return 0 if small and not any("FAILED" in line for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
