"""What is public, as docs/public.md lists it, is there, says what it does, and names the errors that it raises."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator

import pytest
from scripts.reference import docstring, markdown, named, public, reference, signature, summary

from optscope.optim import Rule
from optscope.probes.probe import Probe
from test_architecture import DOCUMENTS, MODULES, ROOT, TUTORIALS, Module, none

SOURCE = re.compile(r"arXiv|\b(1[89]|20)\d\d\b|\b[Oo]urs\b")
CLAIM_NOTHING = "ByKind", "Decayed", "Foreign", "Players", "Scheduled", "Samples"
"""Rules and a probe that pass on what others make, and have no source to name."""
PUBLIC = [(module, name) for page in public(ROOT / "docs" / "public.md").values()
          for module, names in page.items() for name in names]


def test_every_public_name_is_there_with_a_sentence():
    none((f"{module}.{name}" for module, name in PUBLIC
          if not re.match(r"[A-Z0-9`].*[.:]$", summary(docstring(module, name)))
          or docstring(module, name).startswith(f"{name}(")),  # what dataclasses write by themselves
         "every name in docs/public.md is there, and its docstring opens with a sentence")


def test_documents_use_what_is_public():
    listed = {module for module, _ in PUBLIC}
    used = {(found[1], name.strip()) for path in (*DOCUMENTS, *TUTORIALS)
            for found in re.finditer(r"^(?:>>> )?from (optscope[\w.]*) import ([\w, ]+)", path.read_text(), re.M)
            for name in found[2].split(",")}
    assert len(used) > 30
    none((f"from {module} import {name}" for module, name in sorted(used - set(PUBLIC))
          if not module.startswith("optscope.studies")), "what documents import is in docs/public.md")
    assert {"optscope", "optscope.optim", "optscope.lab"} <= listed


def test_the_reference_has_every_public_name():
    pages = reference(ROOT / "docs" / "public.md")
    assert len({(module, name) for module, name in PUBLIC}) == len(PUBLIC)
    for module, name in PUBLIC:
        entries = [page for page in pages.values() if re.search(rf"}}[ `]{re.escape(module)}\.{name}\b", page)]
        assert len(entries) == 1, f"{module}.{name}"


def test_rules_probes_and_theory_name_their_source():
    none((f"{module}.{name}" for module, name in PUBLIC
          for value in [named(module, name)] for theory in [module.startswith("optscope.theory.")]
          if theory or (inspect.isclass(value) and issubclass(value, (Rule, Probe))
                        and not inspect.isabstract(value) and name not in CLAIM_NOTHING)
          if not SOURCE.search(docstring(module, name) + (importlib.import_module(module).__doc__ or "") * theory)),
         "a rule or a probe says which paper it is from, or that it is ours; theory says so in its module at least")


def test_the_reference_shows_the_source_of_theory_and_the_units_of_probes():
    pages = reference(ROOT / "docs" / "public.md")
    assert "arXiv 2305.05448, whose claims these formulas make exact" in pages["theory.md"]
    assert "| drop under band noise, a number for each band | points | lower |" in pages["probes.md"]
    assert "| better than chance | check | higher | 0 where they are not shown" in pages["probes.md"]
    assert "| modes |  | higher |" in pages["probes.md"]
    assert "when the batch is not known" in pages["probes.md"]  # of a method that only says its errors
    assert "trials: int | None = None" in pages["comparisons.md"] or "trials: Optional[int] = None" in pages[
        "comparisons.md"]
    assert "Annotated" not in pages["comparisons.md"]
    assert "class} optscope.protocol.events.Listener\n" in pages["comparisons.md"]
    assert "&#124;w&#124;₁²/(P &#124;w&#124;₂²)" in pages["probes.md"]


@pytest.mark.parametrize(("module", "name", "shown"), [
    ("optscope.optim", "Adam", "(lr: Hyper, beta1: Hyper = 0.9"),
    ("optscope.probes.noise", "BandNoise",
     "(variance: float = 0.01, bands: int = 10, *, examples: int | None = None, "
     "split: Literal['train', 'validation', 'test'] = 'test')"),
    ("optscope.evidence.power", "seeds_to_show", "(spread: float, difference: float")])
def test_signatures_are_as_they_are_written(module, name, shown):
    assert signature(named(module, name)).startswith(shown)
    assert inspect.signature(named(module, name)).parameters


def test_a_section_goes_on_after_lines_that_are_left_blank():
    text = ("What it is.\n\n    a = b\n\nArgs:\n    kind: which:\n\n        * \"one\": a\n          b;\n"
            "    bounds: range,\n        or none.\n\nRaises:\n    UserError: never.\n\n    c = d\n\nThe end.")
    assert [line for line in markdown(text) if line] == [
        "What it is.", "```text", "a = b", "```", "**Args**", "- `kind`: which:", '  * "one": a', "  b;",
        "- `bounds`: range,", "  or none.", "**Raises**", "- `UserError`: never.", "  c = d", "The end."]


def raised(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield where a function itself raises UserError, or calls what checks a setting, in no function within it."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Raise) and node.exc is not None and re.match(r"UserError\b", ast.unparse(node.exc)):
            yield node
        if isinstance(node, ast.Call) and re.match(r"_?check(_|$)", ast.unparse(node.func)):
            yield node
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)


def unsaid(module: Module) -> Iterator[str]:
    """Yield the public callables of a module that raise UserError where no docstring says so."""
    def look(body: list[ast.stmt], owner: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from look(node.body, ast.get_docstring(node) or " ")
            if isinstance(node, ast.FunctionDef):
                made = node.name in ("__init__", "__post_init__", "measure") and owner
                said = (owner if made else "") + (ast.get_docstring(node) or "")
                if (made or not node.name.startswith("_")) and any(raised(node)) and not re.search(
                        r"Raises:\n.*UserError|^Raise UserError", said, re.DOTALL):
                    yield f"{module.at(node.lineno)}: {node.name}"

    yield from look(module.tree.body, "")


def test_what_is_raised_is_said():
    none((each for module in MODULES if module.unit != "cli" for each in unsaid(module)),
         "a public function, method or class that raises UserError says when, under Raises:")


def test_a_raise_that_is_not_said_is_found():
    class Written(Module):
        text = ('class A:\n    """A."""\n    def __post_init__(self):\n        raise UserError("no")\n'
                'def f():\n    """F.\n\n    Raises:\n        UserError: always.\n    """\n'
                '    raise UserError("no")\n'
                'def g():\n    """G."""\n    if 1:\n        raise UserError("no")\n'
                'def h():\n    """H."""\n    def inner():\n        raise UserError("no")\n')

    assert [each.rpartition(" ")[2] for each in unsaid(Written(ROOT / "src" / "a.py"))] == ["__post_init__", "g"]


def test_data_and_extras_have_a_licence_line():
    page, sources = (ROOT / "docs" / "licences.md").read_text(), importlib.import_module("optscope.tasks.sources")
    none((name for name in sources.sources() if f"`{name}`" not in page),
         "docs/licences.md says of every data set what may be done with it")


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "licences.md").read_text()
    wanted = [re.match(r"[\w-]+", each)[0] for each in project["dependencies"]]
    none((name for name in wanted if not re.search(rf"^\| ([\w-]+, )*{name}(, [\w-]+)* \|", page, re.M)),
         "docs/licences.md says of every dependency what it is for")
    none((name for name in project["optional-dependencies"] if not re.search(rf"^\|.*`{name}`", page, re.M)),
         "docs/licences.md says of every extra what it brings")


def lasts() -> Iterator[tuple[str, str]]:
    """Yield where a former name is still known, and the last version that is to know it."""
    for module in MODULES:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("formerly", "told"):
                given = [*node.args[:1], *(each.value for each in node.keywords if each.arg == "last")]
                yield from ((module.at(node.lineno), each.value) for each in given
                            if isinstance(each, ast.Constant) and re.fullmatch(r"\d+\.\d+", str(each.value)))


def test_former_names_go_after_one_minor_version():
    def minor(version: str) -> list[int]:
        return [int(each) for each in version.split(".")[:2]]

    now = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert len(list(lasts())) >= 4
    none((f"{at}: {last} is the last version that was to know it, and this is {now}" for at, last in lasts()
          if minor(last) < minor(now)), "former names are taken out when their last version is over")
    most = [minor(now)[0], minor(now)[1] + 1]
    none((f"{at}: promised until {last}" for at, last in lasts() if minor(last) > most),
         "a former name is known for one minor version more, no longer")
