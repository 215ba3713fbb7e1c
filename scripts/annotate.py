"""Draw the annotated picture of a report: a real page of it with numbers, which docs/start.md says the meaning of.

    optscope compare fashion-mnist -o sgd -o adam --quick --epochs 1
    python scripts/annotate.py runs/compare-fashion-mnist/report.html

Writes docs/pictures/annotated.png and annotated-dark.png by a headless Chromium. Of figures, claims, tables and
checks the first few are left, so that the picture is not as long as the page; nothing else of it is changed.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import CHROMIUM, Browser  # noqa: E402

PARTS = (".answer", ".summary", "main > div figure .card", ".warnings", ".chips", "#figures ~ figure .card",
         ".claims", ".differences table", ".checks", "#reproduce ~ pre")
"""Where the numbers stand, in the order of the page; docs/start.md explains them by the same numbers."""
FEWER = {"#figures ~ figure": 1, ".claims tbody tr": 6, ".differences tbody tr": 4, "#tables ~ .wide": 0,
         "#tables": 0, "#runs": 0, "#runs ~ *": 0, ".checks li": 4, ".words": 0, "#next": 0, "#next + ul": 0,
         "footer": 0, "#reproduce ~ .scroll": 0, "#reproduce ~ .tools": 0}
"""How many of each are left in the picture."""
WIDTH = 1000
DRAW = """(parts, fewer) => {
  document.body.style.paddingLeft = '24px';
  for (const each of document.querySelectorAll('.scroll, .card')) each.style.contentVisibility = 'visible';
  for (const [what, left] of Object.entries(fewer))
    [...document.querySelectorAll(what)].slice(left).forEach(each => each.style.display = 'none');
  const missing = [];
  parts.forEach((part, i) => {
    const found = [...document.querySelectorAll(part)].find(each => each.getClientRects().length);
    if (!found) return missing.push(part);
    const box = found.getBoundingClientRect(), mark = document.createElement('div');
    mark.textContent = i + 1;
    mark.style.cssText = `position:absolute;left:${box.left - 36}px;top:${box.top + scrollY}px;width:30px;` +
      'height:30px;border-radius:50%;background:#b3261e;color:#fff;font:700 17px/30px sans-serif;text-align:center';
    document.body.append(mark);
  });
  return {missing, height: Math.ceil(document.querySelector('main').getBoundingClientRect().bottom + scrollY)};
}"""


def main(report: str) -> int:
    """Take both pictures, and return 1 where a part of the page was not found."""
    if CHROMIUM is None:
        sys.exit("scripts/annotate.py needs Chromium, and none is on PATH")
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        try:
            for name, dark in (("annotated", False), ("annotated-dark", True)):
                browser.open(Path(report).resolve(), WIDTH, 900, dark)
                drawn = browser.run(f"({DRAW})({json.dumps(PARTS)}, {json.dumps(FEWER)})")
                if drawn["missing"]:
                    print("not on the page:", ", ".join(drawn["missing"]), file=sys.stderr)
                    return 1
                shot = browser.ask("Page.captureScreenshot", captureBeyondViewport=True, clip={
                    "x": 0, "y": 0, "width": WIDTH, "height": drawn["height"] + 20, "scale": 1})
                whole = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
                # Median cut, the usual way, would dull the hues of small marks.
                few = whole.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
                few.save(ROOT / "docs" / "pictures" / f"{name}.png", optimize=True)
        finally:
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
