"""SVG text that can stand alone or be set into a page beside others: no clashing ids, no stray styles."""

from __future__ import annotations

import base64
import html
import io
import re
import textwrap
from collections.abc import Sequence

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from optscope.report.places import Places, as_text, panels_as_text

FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"
_LEADING = 19.0


def serialise(canvas: Canvas, name: str, title: str, alt: str, tables: Sequence[tuple[int, Places]] = ()) -> str:
    """Return a drawn figure as one `<svg>` element with its `title` and with `alt` as its accessible name.

    Ids are prefixed with `name`, so that several figures can share a page, and the fonts are left to the
    reader's machine. The same drawing gives the same bytes. `tables` says where the numbers of which table are.
    """
    buffer = io.StringIO()
    # `savefig` would draw twice: once for the layout, which drawing makes anyway.
    FigureCanvasSVG(canvas).print_svg(  # type: ignore[no-untyped-call]
        buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _tidy(tag[0], name), text)
    text = re.sub(r"base64,\s+", "base64,", text)
    text = re.sub(r"\s+", " ", text).replace("> <", "><").strip()
    width, height = canvas.get_size_inches() * 72
    places = f'data-places="{as_text(tables, height)}" data-panels="{panels_as_text(tables)}" ' if tables else ""
    root = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width:g} {height:g}" width="{width / 0.72:g}" height="{height / 0.72:g}" '
            f'role="img" aria-label="{html.escape(alt)}" font-family="{FONTS}" '
            f'{places}'
            f'stroke-linejoin="round"><title>{html.escape(title)}</title><desc>{html.escape(alt)}</desc>')
    return re.sub(r"<svg[^>]*>", lambda _: root, text, count=1)


def _tidy(tag: str, name: str) -> str:
    """Return one tag without fonts, needless ids and digits; the text between tags is the user's and stays."""
    if tag.startswith(("<path", "<use")):
        tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is not seen
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r'^<g id="axes_(\d+)"', r'<g data-axes="\1"', tag)
    tag = re.sub(r'^<g id="xtick_\d+"', '<g data-tick=""', tag)
    tag = re.sub(r'^<g id="series-(-?\d+)-(runs|band)"', r'<g data-\2="" data-series="\1"', tag)
    tag = re.sub(r'^<g id="series-(-?\d+)[^"]*"', r'<g data-series="\1"', tag)
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = re.sub(r' id="', f' id="{name}-', tag)
    return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", tag)


def headed(svg: str, heading: str) -> str:
    """Return a figure that stands alone: on a white ground, with its title above it."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)" width="[\d.]+" height="[\d.]+"', svg)
    assert found, "only what serialise returns has this form"
    width, height = float(found[1]), float(found[2])
    lines = textwrap.wrap(heading, int(width / 8.8))
    above = _LEADING * len(lines) + 12 * bool(lines)
    box = (f'viewBox="0 {-above:g} {width:g} {height + above:g}" width="{width / 0.72:g}" '
           f'height="{(height + above) / 0.72:g}"')
    ground = f'<rect x="0" y="{-above:g}" width="{width:g}" height="{height + above:g}" fill="#ffffff"/>'
    spans = "".join(f'<tspan x="8" y="{6 - above + _LEADING * (i + 0.6):g}">{html.escape(line)}</tspan>'
                    for i, line in enumerate(lines))
    title = f'<text font-size="14" font-weight="600" fill="#1A1A1A">{spans}</text>'
    return svg.replace(found[0], box, 1).replace("</desc>", f"</desc>{ground}{title}", 1)


def as_image(svg: str, alt: str) -> str:
    """Return the text of a figure's file as an image in which nothing runs, without the title drawn above it."""
    drawn = re.sub(r'viewBox="0 -[\d.]+ ([\d.]+) ([\d.]+)" width="[\d.]+" height="[\d.]+"', _without_title, svg,
                   count=1)
    return (f'<img src="data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}" '
            f'alt="{html.escape(alt)}">')


def _without_title(box: re.Match[str]) -> str:
    above = float(box[0].split()[1].lstrip("-"))
    width, height = float(box[1]), float(box[2]) - above
    return f'viewBox="0 0 {width:g} {height:g}" width="{width / 0.72:g}" height="{height / 0.72:g}"'
