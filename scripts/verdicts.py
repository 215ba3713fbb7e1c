"""Write what the committed verdicts say into docs/findings.md, between its marks, with each study's first picture.

    python scripts/verdicts.py    write docs/findings.md anew from results/*/verdicts.json
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from optscope.evidence.words import listed

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "findings.md"
MARK = re.compile(r"(<!-- from results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = re.compile(r"^!\[(?P<title>.*)\]\((?P<file>[^()]+)\)$", re.MULTILINE)
OUTCOMES = ("holds", "fails", "undecided")


def judged(study: str) -> list[dict[str, Any]]:
    """Return the committed verdicts of a study."""
    path = ROOT / "results" / study / "verdicts.json"
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def written(page: str) -> str:
    """Return the page with what lies between its marks made anew."""
    def made(found: re.Match[str]) -> str:
        return f"{found[1]}\n{overview() if found[2] == 'overview' else claims(found[2])}\n{found[3]}"

    return MARK.sub(made, page)


def overview() -> str:
    """Return a table of how many claims of every study hold, fail and are undecided."""
    lines = ["| study | scale | claims | hold | fail | undecided |", "|---|---|---|---|---|---|"]
    for path in sorted(path for path in (ROOT / "results").iterdir() if path.is_dir()):
        verdicts = judged(path.name)
        counts = [sum(each["outcome"] == outcome for each in verdicts) for outcome in OUTCOMES]
        (scale,) = {each["scale"] for each in verdicts}
        lines.append(f"| [{path.name}](../results/{path.name}/report.md) | {scale} | {len(verdicts)} | "
                     f"{' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def claims(study: str) -> str:
    """Return a study's first picture, what became of every family of claims, and what does not hold."""
    verdicts, picture = judged(study), PICTURE.search((ROOT / "results" / study / "report.md").read_text("utf-8"))
    assert picture is not None
    about = import_module(f"optscope.studies.{study}").STUDY.families
    lines = [f"![{picture['title']}](../results/{study}/{picture['file']})", "",
             "| claims about | hold | do not | undecided |", "|---|---|---|---|"]
    for family, words in about.items():
        own = [each for each in verdicts if each["claim"].split()[0] == family]
        if own:
            lines.append(f"| {family}. {cell(words)} | {' | '.join(named(own, outcome) for outcome in OUTCOMES)} |")
    lines += ["", "| does not hold | effect, 95 % interval | n |", "|---|---|---|"]
    lines += [f"| {each['claim']}: {cell(each['text'])} | {effect(each)} | {each['n']} |"
              for each in verdicts if each["outcome"] == "fails"]
    return "\n".join(lines) + "\n"


def named(verdicts: list[dict[str, Any]], outcome: str) -> str:
    """Return how many claims of a family ended so, and which unless they hold.

    >>> named([{"claim": "C1 a", "outcome": "fails"}, {"claim": "C1 b", "outcome": "fails"}], "fails")
    '2: a, b'
    """
    found = [each["claim"] for each in verdicts if each["outcome"] == outcome]
    names = [name.partition(" ")[2] or name for name in found]
    return f"{len(found) or ''}" + (f": {listed(names)}" if found and outcome != "holds" and verdicts[1:] else "")


def effect(verdict: dict[str, Any]) -> str:
    """Return an effect with its interval.

    >>> effect({"effect": 2.875, "low": 0.7347, "high": 5.015})
    '2.9 (0.73 to 5)'
    """
    shown = [f"{verdict[name]:.2g}" for name in ("effect", "low", "high") if verdict[name] is not None]
    return f"{shown[0]} ({shown[1]} to {shown[2]})" if len(shown) == 3 else "".join(shown[:1])


def cell(text: str) -> str:
    """Return text that stands in a cell of a table."""
    return re.sub(r"([|*_<>])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit()
