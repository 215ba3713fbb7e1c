"""The site's pages have no dead link, tutorials show what they print, and programs get what the schemas say."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import referencing
import typer
from scripts import docs, site_links, verdicts
from typer.testing import CliRunner

from optscope.cli.app import app
from optscope.engine.execute import Inline
from optscope.evidence.records import Metric, Records
from optscope.lab import compare
from optscope.probes.catalog import PROBES
from optscope.protocol.arms import DEFAULT, NAMES
from optscope.protocol.margin import margin_said
from optscope.protocol.settings import Settings
from optscope.tasks.sources import sources
from test_architecture import DOCUMENTS, ROOT, TUTORIALS, run_document
from tiny import TASK

SCHEMAS = {path.name: json.loads(path.read_text())
           for path in files("optscope").joinpath("report/schemas").iterdir()}
KNOWN = referencing.Registry().with_resources(
    (schema["$id"], referencing.Resource.from_contents(schema)) for schema in SCHEMAS.values())


def check(name, found):
    jsonschema.Draft202012Validator(SCHEMAS[name], registry=KNOWN).validate(found)


def rows(records: Records):
    columns = records.columns()
    for values in zip(*columns.values(), strict=True):
        yield {name: None if isinstance(v, float) and math.isnan(v) else v
               for name, v in zip(columns, values, strict=True)}


def test_every_link_of_a_page_leads_somewhere():
    for file in docs.PLACES:
        if (ROOT / file).is_file():
            docs.moved((ROOT / file).read_text(), file, lambda picture: f"_pictures/{picture}")
    with pytest.raises(SystemExit, match=r"docs/start.md: links to nowhere.md"):
        docs.moved("[a](nowhere.md)", "docs/start.md", str)


def test_links_are_moved_with_their_pages():
    text = ("[s](../results/gan_grafting/report.md#claims) ![p](../results/gan_grafting/figures/race.svg) "
            "[w](https://a.b) [l](../LICENSE)\n```\n[s](../nowhere.md)\n```\n")
    assert docs.moved(text, "docs/start.md", lambda file: f"p/{file}") == (
        "[s](studies/gan_grafting.md#claims) ![p](p/results/gan_grafting/figures/race.svg) "
        "[w](https://a.b) l (`LICENSE`)\n```\n[s](../nowhere.md)\n```\n")


def test_a_picture_with_a_dark_twin_is_shown_as_the_page_is():
    assert docs.moved("![p](pictures/demo.png)", "docs/start.md", lambda file: f"p/{file}") == (
        "![p](p/docs/pictures/demo.png){.only-light} ![p](p/docs/pictures/demo-dark.png){.only-dark}")


def test_links_that_lead_nowhere_and_pages_out_of_reach_are_found(tmp_path):
    pages = {"index.html": '<a href="a/">a</a><a href="https://b.c/d">w</a><a href="#">top</a><img src="no.png">',
             "a/index.html": '<a id="here" href="../b.html#there">b</a><a href="#here">h</a>',
             "b.html": '<p id="else"><a href="c%20d.html">c</a></p>', "c d.html": "", "search.html": "",
             "_static/macros.html": '<a href="{{ a }}">of the theme</a>',
             "b.md": "[c](c%20d.html#x) ![p](no.svg) [w](https://a.b) `[d](e.md)`\n```\n[f](g.md)\n```\n",
             "llms.txt": "- [B](b.md): b\n- [C](c.md)\n"}
    for name, text in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert site_links.problems(tmp_path) == [
        "a/index.html: ../b.html#there leads to no place in b.html", "index.html: no.png leads to no file",
        "b.md: no.svg leads to no file", "llms.txt: c.md leads to no file",
        "c d.html is more than 2 clicks from the first page"]


def test_a_tutorial_shows_what_it_prints_and_draws(tmp_path):
    text = "# A\n\n```python\nx = 2\nprint(x)\nx + 1\n```\n\n```python\ny = x\n```\n\n```sh\nls\n```\n"
    assert docs.executed(text, "a", tmp_path) == text.replace("x + 1\n```", "x + 1\n```\n\n```output\n2\n3\n```")
    drawn = docs.executed("```python\nfrom matplotlib.figure import Figure\nFigure()\n```\n", "b", tmp_path)
    assert "![What the block draws.](b-1.svg)" in drawn
    assert (tmp_path / "b-1.svg").is_file()
    with pytest.raises(ZeroDivisionError):
        docs.executed("```python\n1 / 0\n```\n", "c", tmp_path)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_tutorials_run(path, tmp_path, monkeypatch):
    for package in docs.NEEDS.findall(path.read_text()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    run_document(path)


def test_the_navigation_is_read_for_programs(monkeypatch):
    monkeypatch.setattr(docs, "PAGES", ROOT / "docs")
    sections = docs.below("index.md")
    assert sections[:3] == ["start.md", "tutorials/index.md", "choosing.md"]
    assert "contributing.md" in sections
    assert docs.below("tutorials/index.md")[0] == "tutorials/tabular.md"
    assert {"probes.md", "cluster.md"} <= set(docs.below("choosing.md"))
    assert docs.below("start.md") == []


def test_what_was_found_in_other_packages_is_told_of_every_script():
    page = docs.other_packages()
    for path in (ROOT / "findings").glob("*.sh"):
        assert f"`findings/{path.name}`" in page
    assert page.count("\nSource: ") == page.count("\n## ") == len(list((ROOT / "findings").glob("*.sh")))


def test_findings_are_those_of_the_committed_verdicts():
    page = verdicts.PAGE.read_text(encoding="utf-8")
    assert verdicts.written(page) == page, "run python scripts/verdicts.py"
    assert {name for _, name, _ in verdicts.MARK.findall(page)} == {
        "overview", *(path.name for path in (ROOT / "results").iterdir())}


def test_the_readme_counts_the_committed_verdicts():
    found = Counter(each["outcome"] for path in (ROOT / "results").iterdir() for each in verdicts.judged(path.name))
    said = (f"of {found.total()} claims {found['holds']} hold, {found['fails']} fail and {found['undecided']} are "
            "undecided")
    assert said in " ".join((ROOT / "README.md").read_text().split())


def test_costs_of_probes_are_those_that_were_measured():
    lines = [line.split(" | ") for line in (ROOT / "docs" / "choosing.md").read_text().splitlines()]
    rows = [cells for cells in lines if len(cells) == 5 and any(name in PROBES for name in cells[1].split("`"))]
    assert len(rows) > 9
    for _, probes, costs, *_ in rows:
        known = [PROBES[name].cost for name in probes.split("`") if name in PROBES]
        assert costs == ", ".join("?" if cost is None else f"{cost:,g}" for cost in known), probes


def test_pages_are_two_clicks_away_by_the_links_that_a_reader_of_the_files_sees():
    near = {"docs/index.md": 0}
    for clicks in range(site_links.CLICKS):
        pages = [file for file, far in near.items() if far == clicks and file.endswith(".md")]
        for file in [page for page in pages if (ROOT / page).is_file()]:  # the reference is written later
            for _, _, link in docs.LINK.findall(docs.FENCE.sub("", (ROOT / file).read_text())):
                near.setdefault(os.path.normpath(Path(file).parent / link.partition("#")[0]), clicks + 1)
    assert {path.relative_to(ROOT).as_posix() for path in (*DOCUMENTS, *TUTORIALS)} - {"README.md"} <= set(near)


def test_every_command_and_option_is_in_a_document():
    text = "\n".join(path.read_text() for path in (*DOCUMENTS, *TUTORIALS))
    commands = [each for each in typer.main.get_command(app).commands.values() if not each.hidden]
    said = {f"optscope {each.name}" for each in commands} | {
        option for each in commands for param in each.params for option in param.opts if option.startswith("-")}
    settings = {f"--{name}".replace("_", "-") for name in Settings.model_fields}  # whose table the page holds
    assert len(said) > 40
    assert [each for each in sorted(said - settings) if not re.search(rf"(?<![\w-]){each}(?![\w-])", text)] == []


def test_every_ready_optimiser_is_in_the_list_of_the_settings():
    page = (ROOT / "docs" / "your-model.md").read_text().partition("## Settings")[2]
    listed = page.partition("`-o` takes these names")[2].partition("More than learning rates")[0]
    assert [name for name in NAMES if f"`{name}`" not in listed] == []
    assert f"the first is the baseline ({', '.join(f'`{name}`' for name in DEFAULT)}) |" in page


@pytest.mark.parametrize(("command", "words"), [
    ("run", "runs/STUDY-SCALE"), ("compare", "runs/COMMAND-NAME"), ("compare", f"({', '.join(DEFAULT)})"),
    ("compare", f"({margin_said(None, Metric('accuracy', '%')).text(Metric('accuracy', '%'))})"),
    ("advise", "auto, cpu, cuda, mps, ...")])
def test_help_says_what_counts_without_a_word(command, words):
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "500", "TERM": "dumb"}).output
    assert words in " ".join(said.split())


def test_data_without_a_name_names_all():
    said = CliRunner().invoke(app, ["data"])
    assert said.exit_code == 0
    assert said.output == f"there are: {', '.join(sources())}\n"


def test_the_guide_is_printed_whole():
    said = CliRunner().invoke(app, ["guide"])
    assert said.exit_code == 0
    assert said.output.strip() == files("optscope").joinpath("guide.md").read_text(encoding="utf-8").strip()


def test_what_a_comparison_leaves_is_as_the_schemas_say(tmp_path):
    result = compare(TASK, ["sgd", "adam"], tmp_path, seeds=2, epochs=1, batch=8, tuning_seeds=1, examples=4,
                     executor=Inline())
    report = json.loads((tmp_path / "report.json").read_text())
    check("report.json", report)
    check("verdicts.json", json.loads((tmp_path / "verdicts.json").read_text()))
    for row in rows(result.records):
        check("records.json", row)
    for name in SCHEMAS["report.json"]["required"]:
        with pytest.raises(jsonschema.ValidationError):
            check("report.json", {key: value for key, value in report.items() if key != name})
    with pytest.raises(jsonschema.ValidationError, match="maybe"):
        check("verdicts.json", [report["verdicts"][0] | {"outcome": "maybe"}])


@pytest.mark.parametrize("study", sorted(path.name for path in (ROOT / "results").iterdir()))
def test_committed_files_are_as_the_schemas_say(study):
    check("verdicts.json", verdicts.judged(study))
    check("report.json", json.loads((ROOT / "results" / study / "report.json").read_text()))


def test_schemas_are_schemas_and_versioned():
    for name, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"] == f"urn:optscope:{name.removesuffix('.json')}:1"
