"""Build the documentation into docs/_build/html: gather its pages, run its tutorials, call Sphinx.

    python scripts/docs.py

Pages are the Markdown files of docs/ and those named in `PLACES`; the reference, and what was found in other
packages, are written from their sources. Links between files of the repository become links between pages, and a
link to a file that is not there ends the build. Every page's Markdown lies beside it, and llms.txt lists them.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.reference import reference  # noqa: E402

BUILD = ROOT / "docs" / "_build"
PAGES, HTML = BUILD / "pages", BUILD / "html"
PLACES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md",
          "src/optscope/guide.md": "guide.md", "results": "studies.md", "findings": "other-packages.md",
          **{f"results/{path.name}/report.md": f"studies/{path.name}.md" for path in (ROOT / "results").iterdir()},
          **{path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "docs").as_posix()
             for path in (ROOT / "docs").rglob("*.md") if BUILD not in path.parents}}
"""Where files of the repository lie in the site. docs/index.md takes the README's place."""
WRITTEN = {"docs/reference/index.md": "reference/index.md", "docs/other-packages.md": "other-packages.md"}
"""Pages that are written here."""
NEEDS = re.compile(r"<!-- needs (\w+) -->")
"""What a tutorial says of a package that optscope does not bring."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE)
OPENING = re.compile(r"^# (.+)\n\n?((?:(?!```)[^\n#|<].*\n)*)", re.MULTILINE)


def moved(text: str, file: str, keep: Callable[[str], str]) -> str:
    """Return a page's text with its links changed: to pages; to kept copies of pictures; other files are named."""
    here, folder = Path(PLACES[file]).parent, Path(file).parent

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return found[0]
        aimed = os.path.normpath(folder / path)
        if not (ROOT / aimed).exists() and aimed not in WRITTEN:
            raise SystemExit(f"{file}: links to {target}, which is not there")
        place = PLACES.get(aimed) or WRITTEN.get(aimed) or (keep(aimed) if picture else "")
        dark = aimed.replace(".png", "-dark.png")
        if picture and dark != aimed and (ROOT / dark).is_file():
            both = (f"![{words}]({os.path.relpath(each, here)}){{.only-{light}}}"
                    for each, light in ((place, "light"), (keep(dark), "dark")))
            return " ".join(both)
        if not place:
            return words if aimed.removeprefix("src/") in words else f"{words} (`{aimed}`)"
        return f"{picture}[{words}]({os.path.relpath(place, here)}{hash_}{anchor})"

    done, at = [], 0
    for fence in FENCE.finditer(text):
        done += [LINK.sub(link, text[at:fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*done, LINK.sub(link, text[at:])])


def kept(file: str) -> str:
    """Copy a picture among the pages, and return its place there."""
    place = f"_pictures/{file}"
    (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / file, PAGES / place)
    return place


def executed(text: str, name: str, pictures: Path) -> str:
    """Return a tutorial with, below each python block, what it prints and what its last line is worth.

    The blocks are one program. As in a notebook, an expression in the last line is shown, a figure as a picture.
    """
    program: dict[str, Any] = {"__name__": name}

    def run(block: re.Match[str]) -> str:
        code = ast.parse("\n" * text.count("\n", 0, block.start(1)) + block[1], name)
        last = ast.Expression(code.body.pop().value) if isinstance(code.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, name, "exec", dont_inherit=True), program)
            shown = eval(compile(last, name, "eval", dont_inherit=True), program) if last else None
        below = block[0]
        if hasattr(shown, "savefig"):
            picture = pictures / f"{name}-{len(list(pictures.glob(f'{name}-*.svg'))) + 1}.svg"
            shown.savefig(picture, bbox_inches="tight")
            shown = None
            below += f"\n\n![What the block draws.]({picture.name})"
        said = printed.getvalue() + ("" if shown is None else str(shown))
        return below + (f"\n\n```output\n{said.rstrip()}\n```" if said.strip() else "")

    return re.sub(r"^```python\n(.*?)^```$", run, text, flags=re.DOTALL | re.MULTILINE)


def other_packages() -> str:
    """Return the page of what packages of others do that one would not guess, from the scripts that show it."""
    lines = ["# What other packages do that one would not guess", "",
             "Each was found on the way, and is a script in `findings/`, which installs the package and shows it."]
    for path in sorted((ROOT / "findings").glob("*.sh")):
        first, _, rest = path.read_text().partition("\n")[2].partition("\n#\n")
        body = rest.partition("\nset -")[0].replace("\n#", "\n").removeprefix("#")
        parts = re.split(r"^ ?(?=Expected|Happens|Why|Source)", body, flags=re.MULTILINE)
        lines += ["", f"## {first.removeprefix('# ')}", "", f"`findings/{path.name}`"]
        lines += [line for part in parts if part.strip() for line in ("", escaped(" ".join(part.split())))]
    return "\n".join([*lines, ""])


def escaped(text: str) -> str:
    """Return plain words as Markdown that shows them as they are."""
    return re.sub(r"([*_<>\[\]`|])", r"\\\1", text)


def gather() -> None:
    """Write all pages to PAGES, with the tutorials' output."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for file, place in PLACES.items():
        if (ROOT / file).is_file() and file != "README.md":
            (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
            text = moved((ROOT / file).read_text(), file, kept)
            runs = place == "start.md" or place.startswith("tutorials/")
            (PAGES / place).write_text(shown(text, PAGES / place) if runs else text)
    (PAGES / "other-packages.md").write_text(other_packages())
    for place, text in reference(ROOT / "docs" / "public.md").items():
        (PAGES / "reference").mkdir(exist_ok=True)
        (PAGES / "reference" / place).write_text(text)


def shown(text: str, page: Path) -> str:
    """Return a tutorial as it ran in an empty folder, or as it is where a package that it needs is missing."""
    missing = [name for name in NEEDS.findall(text) if importlib.util.find_spec(name) is None]
    if missing:
        return f"{text}\nThis page was built without {missing[0]}, so that the output is not shown.\n"
    print("runs", page.relative_to(PAGES), flush=True)
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        return executed(text, page.stem, page.parent)


def for_machines() -> None:
    """Put every page's Markdown beside it, with its pictures, and llms.txt on top, in the navigation's order."""
    lines = ["# optscope", "", "> What the choice of optimiser does to a trained model, beyond its loss curve."]
    for top in below("index.md"):
        lines += ["", f"## {OPENING.search((PAGES / top).read_text())[1]}", ""]  # type: ignore[index]
        for place in (top, *below(top)):
            found = OPENING.search((PAGES / place).read_text())
            assert found is not None
            about = " ".join(found[2].split()).partition(". ")[0].strip("*")
            lines.append(f"- [{found[1]}]({place})" + (f": {about}" if about and "](" not in about else ""))
    (HTML / "llms.txt").write_text("\n".join(lines) + "\n")
    for file in PAGES.rglob("*.*"):  # pages and their pictures
        (HTML / file.relative_to(PAGES)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, HTML / file.relative_to(PAGES))


def below(place: str) -> list[str]:
    """Return the pages that the navigation holds below a page, at any depth."""
    block = re.search(r"```{toctree}\n(?::[^\n]*\n)*(.*?)```", (PAGES / place).read_text(), re.DOTALL)
    here = Path(place).parent
    named = [f"{each[1:] if each[0] == '/' else here / each}.md" for each in block[1].split()] if block else []
    return named if place == "index.md" else [page for each in named for page in (each, *below(each))]


def main() -> int:
    """Build the site; any warning is an error."""
    gather()
    shutil.rmtree(HTML, ignore_errors=True)
    built = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-c", ROOT / "docs",
                            "-d", BUILD / "doctrees", PAGES, HTML]).returncode
    if not built:
        for_machines()
    return built


if __name__ == "__main__":
    sys.exit(main())
