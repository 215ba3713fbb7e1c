"""What a built site owes to who clicks: no link leads nowhere, and every page is two clicks from the first.

That goes for programs too: the links of llms.txt, and those of the Markdown beside each page, lead to files.

    make docs && python scripts/site_links.py docs/_build/html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

CLICKS = 2
CODE = re.compile(r"^(```|~~~).*?^\1\s*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
MARKED = re.compile(r"\]\(([^()\s]+)\)")
"""The target of a link in Markdown, once code is taken out."""
BESIDES = {"search.html", "genindex.html", "py-modindex.html"}
"""Pages that Sphinx makes: the search box leads to the first, and nothing needs the others."""


class Page(HTMLParser):
    """The links of a page, and the places in it that a link may name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given and tag != "base"]


def problems(html: Path) -> list[str]:
    """Return a line for each link that leads nowhere and each page that is too far from the first."""
    pages = {path: Page(path) for path in sorted(html.rglob("*.html")) if "_static" not in path.parts}
    found, near = [], {html / "index.html": 0}
    for path, page in pages.items():
        for link, target, place in inside(path, page):
            if not target.is_file():
                found.append(f"{path.relative_to(html)}: {link} leads to no file")
            elif target in pages and place not in pages[target].places:
                found.append(f"{path.relative_to(html)}: {link} leads to no place in {target.relative_to(html)}")
    for path in [*sorted(html.rglob("*.md")), *html.glob("llms.txt")]:
        for link in MARKED.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
            if not urlsplit(link).scheme and not (path.parent / unquote(urlsplit(link).path)).exists():
                found.append(f"{path.relative_to(html)}: {link} leads to no file")
    for clicks in range(CLICKS):
        for path in [path for path, far in near.items() if far == clicks]:
            for _, target, _ in inside(path, pages[path]):
                if target in pages:
                    near.setdefault(target, clicks + 1)
    return found + [f"{path.relative_to(html)} is more than {CLICKS} clicks from the first page"
                    for path in pages if path not in near and path.name not in BESIDES]


def inside(path: Path, page: Page) -> Iterator[tuple[str, Path, str]]:
    """Yield the links of a page within the site: as written, the file, the place in it."""
    for link in page.links:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc and link != "#":
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            yield link, target / "index.html" if target.is_dir() else target, unquote(parts.fragment)


if __name__ == "__main__":
    told = problems(Path(sys.argv[1]).resolve())
    print(*told, sep="\n", end="\n" * bool(told))
    sys.exit(bool(told))
