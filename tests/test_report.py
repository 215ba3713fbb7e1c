"""The report: the same data give the same bytes, any data a page, and the page is safe, whole and offline."""

import base64
import hashlib
import itertools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from optscope.errors import UserError
from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.picture import Heatmap, ImageGrid, Panel, Picture, Series
from optscope.evidence.records import Metric, Record, Records
from optscope.evidence.stats import Interval
from optscope.report import tables
from optscope.report.document import Check, Document
from optscope.report.drawable import MOST_POINTS, Points, thin
from optscope.report.figures import draw, plain
from optscope.report.forest import BRIEF, forest
from optscope.report.inline import inline
from optscope.report.manifest import manifest, verdict_rows
from optscope.report.measures import Measure
from optscope.report.page import SCRIPTS, render, write
from optscope.report.seal import sealed
from optscope.report.style import Styles, slug
from optscope.report.tables import Table, figure_tables, interval, metric_table, number, runs_table

ARMS = ("SGD", "Adam")
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # a figure takes too long to be shrunk
HOSTILE = "<script>alert(1)</script>\"'&amp; onload=x $x_1$ `|` \x00\ud800"


def picture(label: str = "SGD", **panel) -> Picture:
    line = Series(label, [0, 1, 2], [0.9, 0.6, 0.4], [0.8, 0.5, 0.3], [1.0, 0.7, 0.5])
    return Picture("fall", "Accuracy falls", [Panel("radius", "accuracy", [line], **panel)], "How to read.")


def figures(text: str = "") -> list:
    bars = [Series(f"{arm}{text}", [0, 1], [0.9, 0.5], [0.8, 0.4], [1.0, 0.6], "bars") for arm in ARMS]
    lines = [Series(f"{arm}{text}", [1, 10, 100], [1, 0.1, 0.01]) for arm in ARMS]
    theory = Series(f"theory, SGD{text}", [1, 100], [1, 0.01], mark="theory")
    t = text or "plain"
    return [
        Picture(f"bars{text}", f"Bars {t}",
                [Panel(t, t, bars, t, categories=[t, "fog"], levels={t: 0.1})], t),
        Picture("lines", f"Lines {t}", [Panel(t, t, [*lines, theory], log_x=True, log_y=True)], t),
        ImageGrid("grid", f"Grid {t}", [t], [t, "b"], [[np.eye(4), np.full((3, 5, 3), 0.5)]], t),
        Heatmap("heat", f"Heat {t}", [t, "b"], ["x", t], np.array([[1.0, -0.5], [math.nan, 0.0]]), t, t)]


def records(seeds: int = 8, text: str = "") -> Records:
    draw_ = np.random.default_rng(0)
    return Records(Record("demo", f"{arm}{text}", seed, metric, float(draw_.normal(i)), at)
                   for i, arm in enumerate(ARMS) for seed in range(seeds)
                   for metric, at in (("accuracy", None), ("robust", 0.5), ("robust", 1.0)))


def document(text: str = "", seeds: int = 8) -> Document:
    t = text or "plain"
    claim = Claim(f"C1{text}", t, t, lambda rows: Verdict("holds", ""), t)
    rows = records(seeds, text)
    return Document(
        t, t, f"{t}\n{t}", [t],
        [(claim, Verdict("holds", t, 0.1, 0.05, 0.15, 8, 0.0078)),
         (claim, Verdict("fails", t, -1, -2, -0.5, 8)), (claim, Verdict("undecided", t))],
        "desk", [t], figures(text), [metric_table(rows, [Metric("accuracy")], f"SGD{text}")],
        [Check(t, True, t), Check(t, False)], {t: t, "threads": 1}, t, runs_table(rows))


class Page(HTMLParser):
    """What a browser would find: tags with attributes in order, and the text within each element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.stack = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(t for t, _ in self.stack)))
        if tag not in ("meta", "link", "br"):
            self.stack.append((tag, len(self.tags) - 1))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(t for t, _ in self.stack)))

    def handle_endtag(self, tag):
        opened, _ = self.stack.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        self.texts.append((data, tuple(i for _, i in self.stack)))

    def text_of(self, index: int) -> str:
        return "".join(data for data, path in self.texts if index in path)

    def all(self, tag: str) -> list[int]:
        return [i for i, (name, _, _) in enumerate(self.tags) if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(document(), tmp_path_factory.mktemp("plain")).parent


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory):
    return write(document(HOSTILE), tmp_path_factory.mktemp("hostile")).parent


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile(hostile_folder) -> Page:
    return Page((hostile_folder / "report.html").read_text(encoding="utf-8"))


# -- figures ---------------------------------------------------------------------------------------------------


def test_the_same_data_give_the_same_bytes_whatever_the_users_matplotlibrc_says(folder):
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20, "axes.grid": False, "svg.fonttype": "path"}):
        assert render(document()) == (folder / "report.html").read_text(encoding="utf-8")


def marks(svg: str, series: int) -> np.ndarray:
    """Return the places of the markers of a series, in SVG units."""
    group = re.search(rf'<g data-series="{series}">(?:<path[^>]*/>)?<defs>(.*?)</g></g>', svg)
    assert group
    places = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', group[1])
    return np.array(places, dtype=np.float64)


@pytest.mark.parametrize(("log", "transform"), [(False, np.asarray), (True, np.log10)])
def test_marks_stand_where_the_numbers_are(log, transform):
    x, y = [1.0, 3.0, 4.0, 9.0], [0.5, 0.02, 0.3, 7.0]
    found = marks(plain(Picture("p", "t", [Panel("x", "y", [Series("a", x, y)], log_x=log, log_y=log)])), 0)
    for axis, values in ((found[:, 0], x), (found[:, 1], y)):
        line = np.polyfit(transform(values), axis, 1)
        np.testing.assert_allclose(np.polyval(line, transform(values)), axis, atol=0.011)
    assert np.polyfit(x, found[:, 0], 1)[0] > 0 > np.polyfit(y, found[:, 1], 1)[0]


def test_a_ring_is_around_the_mark_it_picks_out_and_is_larger():
    line, ring = Series("a", [1.0, 3.0, 4.0], [5.0, 2.0, 3.0]), Series("a", [3.0], [2.0], mark="rings")
    svg = plain(Picture("p", "t", [Panel("x", "y", [line, ring])]))
    dot, circle = re.findall(r'<g data-series="0">(?:<path[^>]*/>)?<defs>(.*?)</g></g>', svg)[:2]
    place = re.search(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="fill-opacity: 0;', circle)
    assert place
    np.testing.assert_allclose(np.array(place.groups(), dtype=np.float64), marks(svg, 0)[1], atol=0.011)
    paths = [each[each.index(' d="'):each.index('"/>')] for each in (dot, circle)]
    reach = [max(map(float, re.findall(r"[\d.]+", path))) for path in paths]
    assert reach[1] > 1.5 * reach[0]


def test_a_label_looks_the_same_in_every_figure_and_labels_look_different():
    many = Picture("many", "t", [Panel("x", "y", [Series(f"arm {i}", [0], [i]) for i in range(50)])])
    styles = Styles.of([many, picture("arm 3")])
    looks = [styles.look(s) for s in many.panels[0].series]
    assert len({(k.colour, k.marker, k.dash) for k in looks}) == 50
    assert len({(k.colour, k.marker) for k in looks}) == 50
    assert looks[3].colour.lower() in plain(picture("arm 3"), styles)
    assert looks[0].colour.lower() not in plain(picture("arm 3"), styles)


def test_a_theory_is_thin_and_dashed_in_the_darker_colour_of_what_it_predicts():
    labels = ("theory, SGD", "bound", "SGDm bound")
    theory = [Series(label, [1, 2], [1, 2], mark="theory") for label in labels]
    panel = Panel("x", "y", [*theory, Series("Adam", [1], [1]), Series("SGD", [1], [1])])
    styles = Styles.of([Picture("p", "t", [panel])])
    named, other, longer = map(styles.look, theory)
    assert named.colour == styles.measured["SGD"].colour
    assert other.index == longer.index == -1
    assert other.colour != longer.colour
    assert re.search(rf'<path d="[^"]*" [^>]*stroke-dasharray[^>]*stroke: {named.ink}', plain(
        Picture("p", "t", [panel]), styles))


def test_an_interval_that_reaches_zero_on_a_logarithmic_axis_is_cut_and_said_to_be():
    series = Series("a", [1, 2, 3], [1.0, 1.0, 1.0], [-1.0, 0.0, 0.01], [2.0, 2.0, 2.0])
    panel = Panel("x", "y", [series], log_y=True)
    np.testing.assert_array_equal(Points.of(series, panel).low, [0.1, 0.1, 0.01])
    assert "2 of 3 intervals reach 0 and are cut" in plain(Picture("p", "t", [panel]))


def test_points_at_shared_places_stand_side_by_side_and_measurements_stay_put():
    def places(*xs):
        series = [Series(f"arm {i}", x, [1.0, 2.0, 3.0], mark="points") for i, x in enumerate(xs)]
        svg = plain(Picture("p", "t", [Panel("x", "y", series)]))
        return [marks(svg, i)[:, 0] for i in range(len(xs))]

    left, right = places([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    assert np.ptp(right - left) < 0.03
    assert 5 < (right - left)[0] < 0.1 * (left[1] - left[0])
    first, other = places([0.0, 1.0, 2.0], [0.0, 1.0, 3.0])
    np.testing.assert_allclose(first[:2], other[:2], atol=0.011)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_thinning_keeps_few_points_both_ends_and_the_extremes(y, path):
    y = np.array(y)
    x = np.cos(np.arange(len(y))) if path else np.arange(len(y)) + 1.0
    thinned = thin(Points(x, y, y - 1, y + 1), log_x=not path)
    assert len(thinned.x) <= MOST_POINTS
    assert (thinned.x[0], thinned.x[-1]) == (x[0], x[-1])
    assert (thinned.y.min(), thinned.y.max()) == (y.min(), y.max())
    assert set(zip(thinned.x, thinned.y, strict=True)) <= set(zip(x, y, strict=True))
    np.testing.assert_array_equal(thinned.low, thinned.y - 1)


@pytest.mark.parametrize(("y", "log", "note"), [
    ([1.0, math.nan, math.inf], False, "2 of 3 points not drawn (not finite)"),
    ([1.0, 0.0, -1.0], True, "2 of 3 points not drawn (not finite, or not above 0 on a logarithmic axis)"),
    ([math.nan] * 3, False, "3 of 3 points not drawn (not finite)"),
    ([1.0, 2.0, 3.0], True, None),
])
def test_points_that_cannot_be_drawn_are_counted_in_the_figure(y, log, note):
    svg = plain(Picture("p", "t", [Panel("x", "y", [Series("a", [1, 2, 3], y)], log_y=log)]))
    said = " ".join(re.sub(r"<[^>]*>", " ", svg).split())
    assert note in said if note else "not drawn" not in said


def test_a_figure_that_does_not_fit_its_labels_says_what_was_expected():
    with pytest.raises(UserError, match="equally long, but have 2, 1, 1 and 1"):
        draw(Picture("p", "t", [Panel("x", "y", [Series("a", [1, 2], [1])])]))
    with pytest.raises(UserError, match=r"must have shape \(1, 2\) to fit the labels, but have \(1, 1\)"):
        draw(Heatmap("h", "t", ["a"], ["b", "c"], np.ones((1, 1))))
    with pytest.raises(UserError, match="must be 1 rows of 2"):
        draw(ImageGrid("g", "t", ["a"], ["b", "c"], [[np.ones((2, 2))]]))
    with pytest.raises(UserError, match=r"but one has \(3, 2, 2\)"):
        draw(ImageGrid("g", "t", ["a"], ["b"], [[np.ones((3, 2, 2))]]))


def test_a_drawn_file_stands_alone(tmp_path):
    text = draw(picture(), tmp_path / "fall.svg")
    assert (tmp_path / "fall.svg").read_text(encoding="utf-8") == text + "\n"
    assert "Accuracy falls</tspan>" in text
    assert "</tspan>" not in plain(picture())


anything = st.floats(width=64)
text = st.text(max_size=12)


@given(st.data(), st.booleans(), st.booleans())
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=QUICK)
def test_any_picture_is_drawn(data, log_x, log_y):
    kinds = st.sampled_from(["line", "points", "theory", "bars"])
    series = []
    for _ in range(data.draw(st.integers(0, 3))):
        n = data.draw(st.integers(0, 4))
        column = st.lists(anything, min_size=n, max_size=n)
        has_interval = data.draw(st.booleans())
        low, high = (data.draw(column) if has_interval else None for _ in range(2))
        x, y = data.draw(column), data.draw(column)
        series.append(Series(data.draw(text), x, y, low, high, data.draw(kinds)))
    categories, levels = st.lists(text, max_size=3), st.dictionaries(text, anything, max_size=2)
    panel = Panel(data.draw(text), data.draw(text), series, data.draw(text), log_x, log_y,
                  data.draw(categories), data.draw(levels))
    Page(draw(Picture(data.draw(text), data.draw(text), [panel] * data.draw(st.integers(1, 2)))))


# -- tables ----------------------------------------------------------------------------------------------------


def test_the_metric_table_agrees_with_scipy():
    rows = records()
    metrics = [Metric("accuracy", "%", "higher"), Metric("robust", "", "lower", axis="ε")]
    table = metric_table(rows, [*metrics, metrics[1]], "SGD")
    assert table.title == "Arms and metrics: demo"
    assert table.header == ("metric", *ARMS)
    places = {"accuracy [%]\u00a0↑": ("accuracy", None), "robust at ε = 0.5\u00a0↓": ("robust", 0.5),
              "robust at ε = 1\u00a0↓": ("robust", 1.0)}
    assert [row[0] for row in table.rows] == list(places)
    for name, sgd_cell, adam_cell in table.rows:
        metric, at = places[name]
        sgd, adam = (rows.values(arm, metric, at) for arm in ARMS)
        for values, cell in ((sgd, sgd_cell), (adam, adam_cell.split("\n")[0])):
            mean, half = (float(v.replace("−", "-")) for v in cell.split(" ± "))
            low, high = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
            assert [mean, half] == pytest.approx([values.mean(), (high - low) / 2], abs=0.05 * (high - low) / 2)
        low, high = stats.ttest_rel(adam, sgd).confidence_interval(0.95)
        shown = re.findall(r"[+−][\d.]+", adam_cell.split("\n")[1])
        assert [float(v.replace("−", "-")) for v in shown] == pytest.approx(
            [(adam - sgd).mean(), low, high], abs=0.05 * (high - low) / 2)


def test_a_diverged_run_is_counted_and_left_out_of_the_mean():
    rows = Records(Record("demo", "Adam", s, "loss", v, status="ok" if math.isfinite(v) else "diverged")
                   for s, v in enumerate((1.0, 3.0, math.nan, math.inf)))
    assert metric_table(rows, [Metric("loss")]).rows == [("Adam", "2 ± 13 (2 of 4 not finite)")]
    assert [row[2] for row in runs_table(rows).rows] == ["ok", "ok", "diverged", "diverged"]
    assert "4 runs, 2 of them diverged" in runs_table(rows).note


def test_a_page_is_known_by_all_that_it_says_by_what_drew_it_and_by_its_bytes(tmp_path, monkeypatch):
    given = replace(document(), measures=[Measure("loss", {"SGD": {1: 0.5, 2: math.nan}})],
                    environment={"torch": "2", "time of this call [s]": 3.0})
    page = write(given, tmp_path)
    assert sealed(given, tmp_path) == page
    assert sealed(replace(given, environment={"torch": "2", "time of this call [s]": 4.0}), tmp_path) == page
    (claim, verdict), *others = given.verdicts
    figure = replace(given.figures[0], title=given.figures[0].title + ".")
    for other in ({"title": given.title + " "}, {"environment": {"torch": "3"}}, {"checklist": given.checklist[1:]},
                  {"verdicts": [(claim, replace(verdict, effect=math.nextafter(verdict.effect, 9))), *others]},
                  {"figures": [figure, *given.figures[1:]]}, {"figures": given.figures[::-1]}, {"command": "other"},
                  {"measures": [Measure("loss", {"SGD": {1: 0.5, 2: 0.25}})]}):
        assert sealed(replace(given, **other), tmp_path) is None, other
    for name, content in (("report.html", page.read_text() + " "), ("report.json", '{"se'), ("report.json", "[]")):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content)
        assert sealed(given, tmp_path) is None
        (tmp_path / name).write_text(before)
    drawing = next((tmp_path / "figures").iterdir())
    drawing.rename(tmp_path / "away.svg")
    assert sealed(given, tmp_path) is None
    (tmp_path / "away.svg").rename(drawing)
    assert sealed(given, tmp_path) == page
    monkeypatch.setattr("optscope.report.seal._drawn_by", lambda: b"other code")
    assert sealed(given, tmp_path) is None
    assert sealed(given, tmp_path / "none") is None


def test_of_many_runs_the_diverged_are_shown_and_the_first_of_the_others_and_it_is_said():
    runs = range(tables.MOST_RUNS + 500)
    late = {tables.MOST_RUNS + 1, tables.MOST_RUNS + 400}
    found = runs_table(Records(Record("e", "a", seed, metric, seed / 8, run=str(seed),
                                      status="diverged" if seed in late else "ok")
                               for seed in runs for metric in (f"m{i}" for i in range(40))))
    seeds = [row[1] for row in found.rows]
    assert seeds == [*range(tables.MOST_RUNS - 2), *sorted(late)]
    assert len(found.rows) * sum(name.startswith("m") for name in found.header) == tables.MOST_CELLS
    assert found.note == ("2500 runs, 2 of them diverged. 2000 are shown, diverged ones before others; every run "
                          'is in summary.csv. 10 more columns are in summary.csv, from "m30" on.')


def test_rounding_is_no_spread_and_no_difference():
    noise = 1e-16 * np.arange(8)
    rows = Records(Record("demo", arm, seed, "rank", 1 + turn * float(noise[seed]))
                   for arm, turn in (("SGD", 1), ("Adam", -1)) for seed in range(8))
    table = metric_table(rows, [Metric("rank")], "SGD")
    assert [row[1] for row in table.rows] == ["1 ± 0", "1 ± 0\n0"]
    real = Records(replace(row, value=row.value + 1e-5 * (row.arm == "Adam")) for row in rows)
    assert metric_table(real, [Metric("rank")], "SGD").rows[1][1] == "1 ± 0\n+1e−5 [+1e−5, +1e−5]"


def test_each_experiment_has_rows_of_its_own():
    rows = Records(Record(e, "SGD", s, "loss", v + s) for e, v in (("a", 0.0), ("b", 10.0)) for s in (0, 2))
    assert [row[0] for row in metric_table(rows, [Metric("loss")]).rows] == ["a: SGD", "b: SGD"]
    assert [row[1][:2] for row in metric_table(rows, [Metric("loss")]).rows] == ["1 ", "11"]


def test_the_numbers_of_a_figure_are_its_numbers():
    table, = figure_tables(picture(categories=["clean", "fog", "snow"]))
    assert table.header == ("radius", "SGD")
    assert table.rows[1] == ("fog", "0.60 [0.50, 0.70]")
    loop, = figure_tables(Picture("p", "t", [Panel("x", "y", [Series("a", [0, 1, 0], [1, 2, 3])])]))
    assert loop.rows == [(0.0, "1"), (0.0, "3"), (1.0, "2")]
    long, = figure_tables(Picture("p", "t", [Panel("x", "y", [Series("a", range(1000), range(1000))])]))
    assert len(long.rows) <= 60


def test_the_numbers_of_a_figure_say_over_which_seeds_they_are():
    found = [Interval(1.0, 0.5, 1.5, 3), Interval(2.0, 1.5, 2.5, 2)]
    series = [Series.over("whole", [0, 1], found[:1] * 2, seeds=(1, 2, 4)),
              Series("seed", [0, 1], [1, 1], seeds=[3]),
              Series.over("fewer", [0, 1], found, seeds=(1, 2, 4)), Series.over("of some", [0, 1], found[1:] * 2),
              Series("theory", [0, 1], [1, 1], mark="theory")]
    table, = figure_tables(Picture("p", "t", [Panel("step", "y", series)]))
    assert table.samples == ("", "n = 3: seeds 1–2, 4", "seed 3", "of seeds 1–2, 4", "n = 2", "")
    assert [row[3] for row in table.rows] == ["1.00 [0.50, 1.50] (n = 3)", "2.00 [1.50, 2.50] (n = 2)"]
    assert [row[1] for row in table.rows] == ["1.00 [0.50, 1.50]"] * 2
    page = render(replace(document(), figures=[Picture("p", "t", [Panel("step", "y", series)])]))
    assert '<th scope="col" data-n="n = 3: seeds 1–2, 4">whole</th>' in page
    assert '<th scope="col">theory</th>' in page


@given(anything, anything, anything)
def test_numbers_of_any_size_have_a_form(a, b, c):
    assert number(a)
    assert interval(a, b, c, signed=True).startswith(("+", "−", "n", "0", "∞")) or a == 0


# -- the page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["page", "hostile"])
def test_the_page_loads_nothing_and_runs_one_known_script(name, request):
    page = request.getfixturevalue(name)
    for tag, attributes, _ in page.tags:
        for attribute, value in attributes.items():
            assert not attribute.startswith("on"), (tag, attribute)
            if attribute in ("src", "href", "xlink:href", "action", "data", "srcset"):
                assert value.startswith(("#", "data:image/png;base64,", "data:,")), (tag, value)
            if attribute == "style":
                assert not re.search(r"url\((?!#)", value)
    assert not {name for name, *_ in page.tags} & {"iframe", "object", "embed", "form", "base", "img"}
    policy, = (a["content"] for t, a, _ in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    script, = (i for i in page.all("script") if page.tags[i][1].get("type") != "application/json")
    digest = base64.b64encode(hashlib.sha256(page.text_of(script).encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy
    for index in page.all("style"):
        assert "@import" not in page.text_of(index)
        assert "url(" not in page.text_of(index)


def test_the_script_is_small_and_nobody_elses():
    assert sum(path.stat().st_size for path in SCRIPTS) <= 20_000


def test_what_users_write_never_becomes_markup(page, hostile):
    def outside_pictures(found):
        return [(tag, sorted(a)) for tag, a, path in found.tags if "svg" not in path]
    assert {t for t, *_ in hostile.tags} == {t for t, *_ in page.tags}
    assert outside_pictures(hostile) == outside_pictures(page)
    title, = (i for i in hostile.all("h1"))
    assert hostile.text_of(title) == HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


@pytest.mark.parametrize("name", ["page", "hostile"])
def test_the_page_is_whole(name, request):
    page = request.getfixturevalue(name)
    assert not page.stack
    ids = [a["id"] for _, a, _ in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    values = [(name, value or "") for _, a, _ in page.tags for name, value in a.items()]
    references = [v[1:] for name, v in values if name in ("href", "xlink:href") and v.startswith("#")]
    references += [found for _, v in values for found in re.findall(r"url\(#([^)]*)\)", v)]
    references += [a["aria-labelledby"] for _, a, _ in page.tags if "aria-labelledby" in a]
    assert set(references) <= set(ids)
    levels = [int(t[1]) for t, *_ in page.tags if re.fullmatch(r"h\d", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    html, = (a for t, a, _ in page.tags if t == "html")
    assert html["lang"] == "en"
    regions = [a["aria-label"] for _, a, _ in page.tags if a.get("role") == "region"]
    assert len(regions) == len(set(regions)) > 5


def test_every_figure_has_a_caption_words_for_it_and_its_numbers(page):
    assert len(page.all("figure")) == len(figures())
    for figure in page.all("figure"):
        inside = [i for i in range(figure, len(page.tags)) if figure in _path(page, i)]
        caption, svg, desc, title = (next(i for i in inside if page.tags[i][0] == tag)
                                     for tag in ("figcaption", "svg", "desc", "h3"))
        assert page.text_of(caption).strip()
        assert page.text_of(title).strip()
        assert page.tags[svg][1]["role"] == "img"
        assert page.tags[svg][1]["aria-label"] == page.text_of(desc) != ""
        named = next(i for i in inside if page.tags[i][0] == "title")
        assert named == svg + 1
        assert page.text_of(title).partition(". ")[2] == page.text_of(named)
        assert any(page.tags[i][0] == "table" and "details" in page.tags[i][2] for i in inside)


def _path(page: Page, index: int) -> tuple[int, ...]:
    """Return the indices of the elements around some text of element `index`; none when it has no text."""
    return next((path for _, path in page.texts if index in path), ())


def test_sections_come_in_the_order_of_a_decision(page):
    found = [page.text_of(i) for i in page.all("h2")]
    assert found == ["Answer", "Read this first", "What to do next", "Figures", "Claims and verdicts",
                     "Tables", "Protocol", "Reproduce", "Every run"]


def test_verdicts_are_words_with_effect_interval_and_sample(page):
    table = next(i for i in page.all("table") if page.tags[i][1].get("class") == "claims")
    said = " ".join(page.text_of(table).split())
    assert "✓ holds" in said
    assert "✗ fails" in said
    assert "? undecided" in said
    assert "0.100 [0.050, 0.150]n = 8, p = 0.008" in said


def test_what_was_found_of_a_claim_folds_away_and_every_claim_can_be_linked_to(page):
    rows = [i for i in page.all("tr") if page.tags[i][1].get("id", "").startswith("claim-")]
    assert [page.tags[i][1]["id"] for i in rows] == ["claim-1", "claim-2", "claim-3"]
    found = [i for i in page.all("tr") if page.tags[i][1].get("class") == "found"]
    for i in found:
        details = next(j for j in page.all("details") if j > i)
        assert page.text_of(i) == page.text_of(details) != ""
    assert "What would refute it: plain" in page.text_of(found[0])
    assert "What refutes it: plain" in page.text_of(found[1])


def test_families_of_claims_and_the_figures_that_show_them_lead_to_each_other():
    first = slug(document().figures[0].name)
    page = Page(render(replace(document(), families={"C1": "words"}, shown={"C1": (first[:3],), "C9": (first,)})))
    figure = next(i for i in page.all("figure") if page.tags[i][1]["id"] == f"fig-{first}")
    caption = next(i for i in page.all("figcaption") if i > figure)
    leads = [page.tags[i][1]["href"] for i in page.all("a") if "figcaption" in page.tags[i][2] and i > caption]
    assert leads[0] == "#claim-1"
    assert page.text_of(caption).endswith(" Shows C1.")
    found = [i for i in page.all("tr") if page.tags[i][1].get("class") == "found"]
    assert all("Shown in figure 1" in page.text_of(i) for i in found)
    assert sum(page.tags[i][1]["href"] == f"#fig-{first}" for i in page.all("a")) >= len(found)


def judged(least, most, effect, low, high, unit=""):
    return Verdict("holds", "", effect, low, high, 8, least=least, most=most, unit=unit)


def drawn(*verdicts, family="C1"):
    """Return the rows of a forest of one family."""
    claims = [Claim(f"{family} {i}", "t", "s", lambda rows: verdicts[0], "f") for i in range(len(verdicts))]
    found, = forest(Document("t", "q", "v", verdicts=list(zip(claims, verdicts, strict=True)),
                             families={family: "a", "C9": "no claim is of it"}))
    return found.rows


inf, nan = math.inf, math.nan


@pytest.mark.parametrize(("effect", "low", "high", "said"), [
    (2.1, -0.7, 4.8, "2.1 [−0.7, 4.8]"), (-10.501, -10.516, -10.486, "−10.5 [−10.5, −10.5]"),
    (-2.335e-13, -3.345e-13, -2.123e-13, "−2.34e−13"), (0.5, nan, nan, "0.5")])
def test_a_number_beside_a_row_of_the_forest_has_room(effect, low, high, said):
    row, = drawn(judged(0, inf, effect, low, high))
    assert row.brief == said
    assert len(row.brief) <= BRIEF


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.floats(1e-6, 1e3), st.booleans())
def test_a_bar_of_the_forest_lies_in_the_tint_exactly_if_the_interval_lies_where_the_claim_holds(
        bound, width, effect, half, turned):
    low, high = effect - half, effect + half
    cases = ((-inf, bound) if turned else (bound, inf), (bound - width, bound + width))
    for least, most in cases:
        row, = drawn(judged(least, most, effect, low, high))
        assert 0 <= row.low <= row.effect <= row.high <= 100
        inside = row.least + 1e-9 < row.low and row.high < row.most - 1e-9
        outside = row.high < row.least - 1e-9 or row.low > row.most + 1e-9
        assert not inside or (least <= low and high <= most)
        assert not outside or high < least or low > most
        if (least < low and high < most) and not inside:  # a hair from the bound
            assert min(abs(row.low - row.least), abs(row.high - row.most)) < 1e-6
    one, = drawn(judged(*cases[0], effect, low, high))
    assert one.least == pytest.approx(50)
    assert one.most == 100


def test_rows_of_a_family_share_a_scale_where_they_ask_for_the_same_and_can_be_seen_so():
    small, large = judged(0, inf, 1, 0.5, 1.5, "points"), judged(0, inf, 4, 3, 5, "points")
    a, b = drawn(small, large)
    assert b.effect - 50 == pytest.approx(4 * (a.effect - 50))
    alone, other = drawn(small, judged(0, inf, 4, 3, 5, "nats"))
    assert alone.effect - 50 == pytest.approx(46 / 1.5)
    assert other.effect == b.effect
    first, far = drawn(small, judged(0, inf, 1e4, 9e3, 1.1e4, "points"))
    assert first.effect == alone.effect
    assert far.high == pytest.approx(96)


@pytest.mark.parametrize(("verdict", "text", "asked"), [
    (judged(-1.5, 1.5, 0.97, 0.85, 1.09, "points"), "0.97 [0.85, 1.09] points", "within ±1.5"),
    (judged(-inf, 0.05, 2e-6, nan, nan), "2e−6", "≤ 0.05"),
    (judged(0.5, inf, inf, 3, inf), "∞ [3, ∞]", "≥ 0.5"),
    (judged(0.8, 1.05, 0.97, 0.96, 0.98), "0.970 [0.960, 0.980]", "0.8 to 1.05"),
    (judged(-inf, inf, nan, nan, nan), "not measured", ""),
    (Verdict("holds", "2 of 2 hold, 2 needed: [holds] a. [holds] b."), "in parts", "")])
def test_a_row_of_the_forest_says_what_was_found_and_asked_whatever_there_is(verdict, text, asked):
    row, = drawn(verdict)
    assert (row.text, row.asked) == (text, asked)
    shown = render(Document("t", "q", "v", verdicts=[(Claim("C1", "t", "s", lambda r: verdict, "f"), verdict)],
                            families={"C1": "words"}))
    assert 'href="#claim-1"' in shown
    assert "nan%" not in shown
    assert "inf%" not in shown


def test_optimisers_look_the_same_in_every_report_and_others_take_what_is_left():
    def looks(*labels):
        panel = Panel("x", "y", [Series(label, [0], [0]) for label in labels])
        styles = Styles.of([Picture("p", "t", [panel])])
        return {label: styles.look(Series(label, [], [])) for label in labels}
    one, other = looks("mine", "Adam", "SGD", "yours"), looks("SGD", "Lion", "Adam")
    for name in ("SGD", "Adam"):
        assert (one[name].colour, one[name].marker) == (other[name].colour, other[name].marker)
    assert [one[name].index for name in one] == [0, 1, 2, 3]
    assert len({look.colour for look in one.values()}) == 4


def test_headings_and_buttons_have_words_where_series_and_columns_have_none():
    nameless = picture("")
    shown = Page(render(Document("t", "q", "v", figures=[nameless, picture(), *figures()],
                                 tables=[Table("", ["", "a"], [["b", "c"], ["", "d"]])])))
    for tag in ("th", "button", "h1", "h2", "h3", "summary", "a"):
        assert shown.all(tag) or tag == "a"
        assert all(shown.text_of(i).strip() for i in shown.all(tag)), tag
    one = render(Document("t", "q", "v", figures=[nameless, picture()]))
    assert 'class="chips"' not in one  # a single name is nothing to choose from


def test_a_table_without_rows_is_left_out():
    empty = Table("nothing here", ["a"], [])
    shown = render(Document("t", "q", "v", tables=[empty], summaries=[empty]))
    assert "nothing here" not in shown
    assert 'id="tables"' not in shown
    assert "seldom" in render(Document("t", "q", "v", tables=[empty, Table("seldom", ["a"], [["b"]])]))


def _colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))


def _contrast(one: str, other: str) -> float:
    def luminance(colour):
        channels = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_text_stands_out_from_its_ground_in_light_and_dark(page):
    css = page.text_of(page.all("style")[0])
    light, dark = css.split("prefers-color-scheme: dark", 1)
    for colours in (_colours(light), _colours(dark.split("* {", 1)[0])):
        pairs = [(ink, ground) for ink in ("ink", "soft", "accent") for ground in ("ground", "sheet", "tint")]
        pairs += [(ink, f"{ink}-bg") for ink in ("good", "bad", "open", "warn")]
        for ink, ground in pairs:
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def test_a_report_of_200_runs_is_small():
    rows = Records(Record("demo", f"arm {i % 8}", i, f"metric {m}", i / 7 + m)
                   for i in range(200) for m in range(25))
    y = np.sin(np.arange(2000) / 9)
    long = Picture("p", "t", [Panel("x", "y", [Series(f"arm {i}", range(2000), y, y - 1, y + 1)
                                               for i in range(8)])])
    table = len(render(Document("t", "q", "v", runs_table=runs_table(rows))).encode())
    assert table + 6 * len(plain(long)) < 1_500_000


# -- files -----------------------------------------------------------------------------------------------------


def test_write_leaves_the_page_its_twin_the_verdicts_and_the_figures(tmp_path):
    same = [picture(), picture(), Picture("../../up", "t", picture().panels)]
    path = write(Document("t", "q", "v", verdicts=document().verdicts, figures=same), tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "report.html"
    files = sorted(str(f.relative_to(path.parent)) for f in tmp_path.rglob("*") if f.is_file())
    assert files == ["figures/fall-2.svg", "figures/fall.svg", "figures/up.svg", "report.html", "report.json",
                     "report.md", "verdicts.json"]
    for figure in json.loads((path.parent / "report.json").read_text())["figures"]:
        assert (path.parent / figure["file"]).is_file()
    assert (path.parent / "report.md").read_text().count("](figures/fall-2.svg)") == 1
    for svg in path.parent.glob("figures/*.svg"):
        Page(svg.read_text(encoding="utf-8"))


def test_verdicts_json_has_the_agreed_form(folder):
    rows = json.loads((folder / "verdicts.json").read_text(), parse_constant=pytest.fail)
    assert rows == verdict_rows(document())
    assert [list(row) for row in rows] == [
        ["claim", "text", "source", "outcome", "effect", "low", "high", "n", "p", "test", "scale", "note", "said",
         "unit", "least", "most"]] * 3
    assert rows[0] == {"claim": "C1", "text": "plain", "source": "plain", "outcome": "holds", "effect": 0.1,
                       "low": 0.05, "high": 0.15, "n": 8, "p": 0.0078, "test": "", "scale": "desk", "note": "plain",
                       "said": "holds", "unit": "", "least": None, "most": None}
    assert rows[2]["effect"] is rows[2]["p"] is None


@pytest.mark.parametrize("name", ["folder", "hostile_folder"])
def test_the_page_holds_the_report_as_json_and_its_file_the_same_with_its_seal(name, request):
    found = request.getfixturevalue(name)
    page = Page((found / "report.html").read_text(encoding="utf-8"))
    held, = (i for i in page.all("script") if page.tags[i][1].get("id") == "manifest")
    said = json.loads(page.text_of(held), parse_constant=pytest.fail)
    filed = json.loads((found / "report.json").read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{32}", filed.pop("seal"))  # of the page too, which so cannot hold it
    assert said == filed
    text = HOSTILE if name == "hostile_folder" else ""
    assert said["schema"] == 1
    assert said["verdicts"] == verdict_rows(document(text))
    assert said["answer"] == [said["title"]] * 2 != []
    assert [figure["name"] for figure in said["figures"]][1:] == ["lines", "grid", "heat"]
    assert said["environment"]["threads"] == 1


def test_numbers_that_json_does_not_know_are_none():
    rows = [["a", 1, 0.5, math.nan, math.inf, np.float64(2.5), np.int64(3)]]
    table = manifest(Document("t", "q", "v", summaries=[Table("", ["x"], rows)]))["summary"][0]
    assert table["rows"] == [["a", 1, 0.5, None, None, 2.5, 3]]
    json.dumps(table, allow_nan=False)


def test_a_notebook_shows_the_answer_at_a_glance_and_no_markup_of_users():
    shown = [inline(replace(document(text), summaries=document(text).tables, openers=[picture(f"SGD{text}")]), text)
             for text in ("path", HOSTILE)]
    tags = [[(tag, sorted(a)) for tag, a, path in Page(each).tags if "svg" not in path] for each in shown]
    assert tags[0] == tags[1]
    assert "<script" not in shown[1].lower()
    assert "<style" not in shown[1].lower()
    plainly = Page(shown[0])
    assert plainly.text_of(plainly.all("h3")[0]) == "path"
    assert "1 reservation: see the report." in shown[0]
    assert shown[0].count("<svg") == 1


def test_markdown_takes_no_markup_from_users(hostile_folder):
    text = (hostile_folder / "report.md").read_text(encoding="utf-8")
    fenced = re.sub(r"(?ms)^(`{3,})\n.*?^\1\n", "", text)
    assert "<script" not in fenced
    tables = [line for line in fenced.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 9) for line in tables)


@given(st.lists(st.builds(
    Record, st.sampled_from(["e", "f"]), text, st.integers(0, 3), text, anything, st.none() | anything,
    st.none() | st.integers(0, 5), st.sampled_from(["tune", "final"]), text,
    st.sampled_from(["ok", "diverged"]), text), max_size=8), text, anything, anything, st.integers(0, 3))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=QUICK)
def test_any_records_are_reported(rows, words, effect, bound, n):
    found = Records(rows)
    metrics = [Metric(name) for name in found.metrics()]
    claim = Claim(words, words, words, lambda r: Verdict("holds", ""), words)
    verdict = Verdict("undecided", words, effect, bound, effect, n, min(abs(bound), 1))
    table = metric_table(found, metrics, (found.arms() or [""])[0])
    report = Document(words, words, words, [words], [(claim, verdict)], "smoke", environment={words: words},
                      tables=[table, Table(words, [words], [])], command=words, runs_table=runs_table(found))
    assert not Page(render(report)).stack
    json.dumps(verdict_rows(report), allow_nan=False)


@pytest.mark.parametrize("name", ["", "..", "a/b", "Ünïcode", "con\n"])
def test_names_of_files_stay_in_their_folder(name):
    assert re.fullmatch(r"[a-z0-9-]+", slug(name))
